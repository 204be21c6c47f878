"""`kanoclip knowledge`: help, mistakes, and what `show` prints."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from kanoclip.verbs.table import main


def lines(capsys) -> str:
    return "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("name", ["kolektor", "ksdd2"])
def test_show_prints_texts_and_provenance_by_name_of_base_or_data_set(capsys, name) -> None:
    assert main(["knowledge", "show", name]) == 0
    told = lines(capsys)
    assert "data sets: ksdd, ksdd_anomalyclip, ksdd_adaclip, ksdd2" in told
    assert "author: the kanoclip authors" in told
    assert "electrical commutators normal " in told
    assert "a thin dark crack meandering over a gray surface" in told
    assert "2 categories, " in told


def test_show_of_a_strange_data_set_prints_generic_entries(capsys) -> None:
    assert main(["knowledge", "show", "folder"]) == 0
    told = lines(capsys)
    assert "data sets: any" in told
    assert "a hairline crack running across a surface" in told
    assert "0 categories, 0 texts." in told


def test_show_ends_quietly_when_its_reader_has_enough() -> None:
    command = [sys.executable, "-m", "kanoclip", "knowledge", "show", "mvtec"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.close()
        assert shown.stderr.read() == b""
    assert shown.returncode == 0


def test_show_needs_no_torch() -> None:
    source = "import sys; sys.modules['torch'] = None; from kanoclip.verbs.table import main; sys.exit(main())"
    command = [sys.executable, "-c", source, "knowledge", "show", "mvtec"]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_show_prints_a_file_of_ones_own(capsys, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("generic: {normal: [a whole thing], anomalous: [a broken thing]}\nprovenance: {model: me}\n")
    assert main(["knowledge", "show", str(path)]) == 0
    told = lines(capsys)
    assert f"file: {path}" in told
    assert "model: me" in told
    assert "generic normal a whole thing" in told


def test_show_prints_what_is_known_of_images(capsys, tmp_path) -> None:
    path = tmp_path / "mine.jsonl"
    entry = {"image": "0123456789abcdef", "category": "nut", "state": "anomalous", "answers": ["a crack", "a dent"]}
    path.write_text(json.dumps(entry | {"model": "seer", "host": "here", "date": "2026-01-02"}) + "\n")
    assert main(["knowledge", "show", str(path)]) == 0
    told = lines(capsys)
    assert "0123456789ab nut anomalous a crack seer @ here 2026-01-02" in told
    assert "1 image, 2 texts." in told


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("shwo", "Unknown action 'shwo'. Did you mean 'show'? Actions: build, show."),
        ("show", "Which one? Type: kanoclip knowledge show NAME"),
        ("show nowhere", "No knowledge base 'nowhere': expected the path of a YAML file or one of btad"),
        ("show nowhere.jsonl", "No image knowledge nowhere.jsonl"),
        ("build", "Which data set? Add --data NAME. All names: kanoclip list data"),
        ("build --model m", "Which data set? Add --data NAME. All names: kanoclip list data"),
        ("build --data mvtecc", "Unknown data 'mvtecc'. Did you mean 'mvtec'?"),
    ],
)
def test_a_mistake_is_one_line(capsys, typed, message) -> None:
    assert main(["knowledge", *typed.split()]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("typed", ["", "--help", "show --help", "build --help"])
def test_help_is_given(capsys, typed) -> None:
    assert main(["knowledge", *typed.split()]) == 0
    assert "kanoclip knowledge" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["--root", "--data.root"])
@pytest.mark.parametrize("dry", [["--dry-run", "true"], ["--dry_run=true"]])
@pytest.mark.parametrize("data", [["--data", "folder"], ["--data=folder"]])
def test_options_have_more_than_one_spelling_and_values_have_one(capsys, tmp_path, name, dry, data) -> None:
    folder = tmp_path / "two-words"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    assert main(["knowledge", "build", name, str(folder), *dry, *data, "--model", "m-1"]) == 0
    assert "[m-1, 2 calls] You look at own images" in capsys.readouterr().out


def test_a_dry_run_without_a_model_shows_what_both_would_be_asked(capsys) -> None:
    options = ["--data", "surfaces", "--data.category", "gear", "--data.images", "2"]
    assert main(["knowledge", "build", *options, "--dry_run", "true"]) == 0
    told = capsys.readouterr().out
    assert "[MODEL, 1 call] You look at drawn images of this subject: gear." in told
    assert "[VQA_MODEL, 1 images] The subject of this drawn image is: gear." in told
    assert "7 calls; 0 questions are answered already. Nothing was asked." in told
    assert main(["knowledge", "build", *options]) == 2


def test_help_of_a_data_set_names_its_options(capsys) -> None:
    assert main(["knowledge", "build", "--data=folder", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--category_name" in told
    assert "--vqa_model" in told
