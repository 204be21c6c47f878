"""The front door: what it answers, how soon, and how a run ends that is interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kanoclip.verbs import benchmark
from kanoclip.verbs.table import VERBS, main

ROOT = Path(__file__).parents[2]
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_help_is_a_table_of_verbs_and_three_examples(capsys) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^  ([a-z]+)  +[a-z]", said, re.M) == list(VERBS)
    assert len(re.findall(r"^  kanoclip ", said, re.M)) == 3
    assert len(said.splitlines()) < 25


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("list", 0),
        ("test --data.help", 0),
        ("tset", 2),
        ("test", 2),
        ("test --data mvtecc", 2),
        ("data", 0),
        ("data lst", 2),
        ("knowledge shw", 2),
        ("benchmark --confg x", 2),
        ("data check mvtecc", 2),
        ("knowledge build --model talker --data mvtecc", 2),
        ("list --help", 0),
        ("fit --help", 0),
        ("calibrate -h", 0),
        ("fit --data surfaces --model.adapter cnov", 2),
    ],
)
def test_what_needs_no_torch_is_answered_without_it(typed: str, code: int) -> None:
    source = "import sys; sys.modules['torch'] = None; from kanoclip.verbs.table import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", source, *typed.split()], capture_output=True, text=True, env=HERE)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("typed", ["help fit", "--help fit", "fit --help --help", "-h fit --help"])
def test_help_of_a_verb_is_found_in_any_order(typed: str, capsys) -> None:
    assert main(typed.split()) == 0
    assert capsys.readouterr().out.startswith("kanoclip fit: train the heads")


def test_help_of_a_verb_that_is_none_says_so(capsys) -> None:
    assert main(["help", "tset"]) == 2
    assert "Unknown verb 'tset'. Did you mean 'test'?" in capsys.readouterr().err


def test_an_option_without_a_verb_is_told_to_stand_behind_one(capsys) -> None:
    assert main(["--data", "surfaces"]) == 2
    assert "Before --data comes what to do: kanoclip VERB --data ... Verbs: fit, validate" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [["test", "--data.root"], ["predict", "--data.root"], ["benchmark", "--root"]])
def test_a_folder_whose_name_is_not_utf_8_is_told_with_what_to_do(typed: list[str], capsys) -> None:
    assert main([*typed, os.fsdecode(b"t\xfcr")]) == 2
    said = capsys.readouterr().err
    assert said == (
        "kanoclip: error: t\\udcfcr is not a UTF-8 name. Rename it, or give a link to it: ln -s FOLDER photos.\n"
    )


def test_benchmark_goes_to_its_own_room(monkeypatch) -> None:  # T6: no verb of our own on the Trainer
    seen = []
    monkeypatch.setattr(benchmark, "main", lambda argv: seen.append(argv) or 7)
    assert main(["benchmark", "--config", "x.yaml"]) == 7
    assert seen == [["benchmark", "--config", "x.yaml"]]


def test_ctrl_c_before_anything_has_begun_leaves_no_traceback(monkeypatch) -> None:
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("kanoclip.verbs.arguments.prepare", interrupted)
    assert main(["fit", "--data", "surfaces"]) == 130


@pytest.mark.parametrize(("told", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_fit_that_is_told_to_end_says_what_is_kept(tiny_name, tmp_path, request, told, code) -> None:
    options = (
        f"--data surfaces_auxiliary --data.category wood --data.images 2 --data.num_workers 0 --model.backbone clip "
        f"--model.backbone.name {tiny_name} --model.backbone.image_size 32 --trainer.max_epochs 100000"
    )
    said = tmp_path / "said.txt"
    # a child inherits an ignored Ctrl-C, as of a shell's background job or left behind by Lightning
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with said.open("w") as output:
        command = [sys.executable, "-m", "kanoclip", "fit", *options.split()]
        child = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, env=HERE)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/**/last.ckpt")) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        child.send_signal(told)
        try:
            assert child.wait(30) == code, said.read_text()
        finally:
            child.kill()
    assert re.search(r"interrupted.*last\.ckpt.*--ckpt_path last", said.read_text(), re.S)
    assert "Traceback" not in said.read_text()
    assert not list(tmp_path.glob("runs/**/run.json"))
