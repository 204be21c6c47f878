"""The front door: what it answers, how soon, and how a run ends that is interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kanoclip import benchmark
from kanoclip.__main__ import VERBS, main

ROOT = Path(__file__).parents[1]
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
        ("fit --data surfaces --model.adapter cnov", 2),
    ],
)
def test_what_needs_no_torch_is_answered_in_two_seconds(typed: str, code: int) -> None:
    start = time.monotonic()
    command = [sys.executable, "-m", "kanoclip", *typed.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=HERE)
    assert time.monotonic() - start < 2
    assert done.returncode == code, done.stderr


def test_benchmark_goes_to_its_own_room(monkeypatch) -> None:  # T6: no verb of our own on the Trainer
    seen = []
    monkeypatch.setattr(benchmark, "main", lambda argv: seen.append(argv) or 7)
    assert main(["benchmark", "--config", "x.yaml"]) == 7
    assert seen == [["benchmark", "--config", "x.yaml"]]


def test_ctrl_c_ends_a_fit_with_130_and_tells_what_is_kept(tiny_name, tmp_path) -> None:
    options = (
        f"--data surfaces_auxiliary --data.category wood --data.images 2 --data.num_workers 0 --model.backbone clip "
        f"--model.backbone.name {tiny_name} --model.backbone.image_size 32 --trainer.max_epochs 100000"
    )
    said = tmp_path / "said.txt"
    with said.open("w") as output:
        command = [sys.executable, "-m", "kanoclip", "fit", *options.split()]
        child = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, env=HERE)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/**/last.ckpt")) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        try:
            assert child.wait(30) == 130, said.read_text()
        finally:
            child.kill()
    assert re.search(r"interrupted.*last\.ckpt.*--ckpt_path last", said.read_text(), re.S)
    assert "Traceback" not in said.read_text()
    assert not list(tmp_path.glob("runs/**/run.json"))
