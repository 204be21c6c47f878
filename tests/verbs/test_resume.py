"""A prediction that is stopped in any way and goes on has the rows of an unbroken one."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial, wraps
from pathlib import Path

import cv2
import numpy as np
import pytest
from several import CPU, kill_in_write, run

from kanoclip.data.files import CannotWriteError
from kanoclip.models.baselines import LocalStats
from kanoclip.outputs import predictions, resuming
from kanoclip.outputs.names import read_csv
from kanoclip.verbs import watching
from kanoclip.verbs.options import OPTIONS
from kanoclip.verbs.table import main

COUNT = 30
MODEL = ["--model", "local_stats", "--model.image_size", "32", "--data.num_workers", "0", "--data.batch_size", "4"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("photos", range(COUNT))
    return tmp_path


def write(folder: str, numbers, side: int = 32) -> None:
    Path(folder).mkdir(exist_ok=True)
    for number in numbers:
        picture = np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)
        cv2.imwrite(f"{folder}/{number:02d}.png", picture)


def predict(*options: str) -> list[str]:
    return ["predict", "photos", *MODEL, *CPU, "--output", "found", "--report", "false", *options]


def files(folder: Path) -> dict[str, bytes]:
    """All that a prediction leaves, but for its record of paths and versions."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".csv", ".png")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def unbroken(folder) -> dict[str, bytes]:
    assert main([*predict("--trainer.logger", "false"), "--output", "once"]) == 0
    found = files(Path("once"))
    assert len(found) == 2 * COUNT + 1
    return found


def done(folder: Path) -> int:
    return sum(len(read_csv(file)) for file in (folder / "found").glob("predictions*.csv"))


def test_a_prediction_that_is_killed_twice_ends_as_an_unbroken_one(unbroken, folder, capsys) -> None:
    rows = []
    for turn in (25, 30):  # of the files that are written
        assert run(1, predict(), folder, fault=partial(kill_in_write, turn))[0] == [-9]
        rows.append(done(folder))
    assert 0 < rows[0] < rows[1] < COUNT
    with open("found/predictions.csv", "ab") as file:
        file.write(b"photos/29.png,object,0.5")  # as a power cut may leave it
    assert run(1, predict(), folder)[0] == [0]
    assert files(Path("found")) == unbroken
    said = (folder / "out-0").read_text()
    assert f"{COUNT} images, {COUNT - rows[1]} of them now: found/predictions.csv, maps/, overlays/" in said
    assert main(predict()) == 0  # nothing is left
    assert files(Path("found")) == unbroken


def test_two_processes_that_are_killed_and_one_that_goes_on_end_as_an_unbroken_one(unbroken, folder) -> None:
    codes, _, err = run(2, predict(), folder, fault=partial(kill_in_write, 13))
    assert -9 in codes, err
    first = done(folder)
    assert 0 < first < COUNT
    codes, _, err = run(1, predict(), folder, fault=partial(kill_in_write, 13))
    assert first < done(folder) < COUNT
    codes, _, err = run(2, predict(), folder)
    assert codes == [0, 0], err
    assert files(Path("found")) == unbroken


def test_four_shards_of_which_two_are_killed_end_as_an_unbroken_one(unbroken, folder) -> None:
    shards = [predict("--shard", f"{number}/4") for number in (1, 2, 3, 4)]
    for number in (1, 3):
        assert run(1, shards[number], folder, fault=partial(kill_in_write, 11))[0] == [-9]
    for number in (3, 0, 2):
        codes, out, err = run(1, shards[number], folder)
        assert codes == [0], err
    assert "missing: [2]" in out[0]
    assert not Path("found/predictions.csv").exists()
    codes, _, err = run(2, shards[1], folder)  # of two processes
    assert codes == [0, 0], err
    assert files(Path("found")) == unbroken


def test_an_image_that_could_not_be_read_is_tried_again(folder, capsys) -> None:
    Path("photos/07.png").write_text("no image yet")
    assert main(predict()) == 1
    assert "skipped photos/07.png" in capsys.readouterr().err
    assert len(read_csv("found/predictions.csv")) == COUNT - 1
    write("photos", [7])
    assert main(predict()) == 0
    assert [row["path"] for row in read_csv("found/predictions.csv")] == [f"photos/{i:02d}.png" for i in range(COUNT)]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--model.image_size", "64"], "image size was 32 and is 64"),
        (["--overlays", "false"], "overlays was True and is False"),
        (["--maps", "false"], "maps was True and is False"),
        (["--threshold", "0.5"], "threshold was not set and is"),
        (["--data.category_name", "nut"], "data.category_name was object and is nut"),
        (["--data.root", "photos/../photos"], "data.root was photos and is photos/../photos"),
        (["--shard", "1/2"], "shards was 1 and is 2"),
    ],
)
def test_another_run_does_not_go_on_in_its_folder(options, what, folder, capsys) -> None:
    assert main(predict("--data.limit", "4")) == 0
    capsys.readouterr()
    before = files(Path("found"))
    assert main(predict("--data.limit", "4", *options)) == 2
    said = capsys.readouterr().err
    assert f"found has predictions of another run: {what}" in said
    assert said.count("\n") == 1
    assert files(Path("found")) == before


def test_rows_alone_are_written_where_nothing_else_is_wanted(folder) -> None:
    assert main(predict("--maps", "false", "--overlays", "false", "--threshold", "0.6")) == 0
    assert list(files(Path("found"))) == ["predictions.csv"]
    for row in read_csv("found/predictions.csv"):
        assert (row["map"], row["overlay"]) == ("", "")
        assert row["decision"] == ("defective" if float(row["image_score"]) > 0.6 else "good")
        assert f"{float(row['margin'])}" in Path("found/predictions.csv").read_text()  # a number, with no apostrophe
        assert float(row["margin"]) == pytest.approx(float(row["image_score"]) - 0.6, abs=2e-6)
    with open("found/predictions.csv", newline="", encoding="utf-8") as file:  # as pandas or a spreadsheet reads it
        assert min(float(row["margin"]) for row in csv.DictReader(file)) < 0


def test_what_many_files_will_take_is_told(folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr("kanoclip.outputs.predictions.MANY", COUNT - 1)
    assert main(predict()) == 0
    assert f"maps and overlays of {COUNT} images will take about" in capsys.readouterr().err
    assert main([*predict("--maps", "false", "--overlays", "false"), "--output", "rows"]) == 0
    assert "will take about" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("predict photos --watch true", "--watch true needs a folder that stays the same: add --output FOLDER"),
        ("predict photos --shard 1/2", "--shard 1/2 needs a folder that stays the same: add --output FOLDER"),
        ("predict photos --output x --shard 3/2", "--shard 3/2: expected I/N with 1 <= I <= N, such as 2/4"),
        ("predict photos --output x --shard 1/2 --watch true", "exclude each other"),
        ("predict photos --output file", "Cannot write file: A file is where its folder should be"),
        ("predict photos --output file/x", "another place with --output"),
        ("predict photos --output results", "--output results has the results.json of another run"),
        ("test --data surfaces --output results", "--output results has the results.json of another run"),
        ("predict photos --threshold nowhere.json", "--threshold nowhere.json: there is no such file"),
        ("predict photos --thresold 1", "Unknown option --thresold. Did you mean --threshold?"),
        ("test --data surfaces --watch true", "Unknown option --watch"),
        ("fit --data surfaces --output x", "Unknown option --output"),
        ("predict photos --overlays perhaps", "--overlays: Expected bool. Got value: perhaps"),
        ("predict photos --output", "--output needs a value"),
        ("predict --data surfaces --watch true --output x", "--watch true watches a folder of photos"),
        ("predict nothing --output x", "No images in nothing"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_a_model_is_built(typed, answer, monkeypatch, capsys) -> None:
    built = wraps(LocalStats.__init__)(lambda *_, **__: pytest.fail("built"))  # with its signature, which parsers keep
    monkeypatch.setattr(LocalStats, "__init__", built)
    Path("file").touch()
    Path("nothing").mkdir()
    Path("results").mkdir()
    Path("results/results.json").touch()
    assert main([*typed.split(), "--model", "local_stats"]) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.count("\n") == 1


def test_options_stand_in_configs_and_in_help(folder, capsys) -> None:
    Path("mine.yaml").write_text("output: there\nmaps: false\nthreshold: 0.5\n")
    assert main(["predict", "photos", *MODEL, *CPU, "--config", "mine.yaml", "--overlays", "false"]) == 0
    assert "decision" in read_csv("there/predictions.csv")[0]
    assert not Path("there/maps").exists()
    capsys.readouterr()
    assert main(["predict", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"--{name} " in said for name in OPTIONS)


def test_a_test_writes_exactly_there_and_one_photo_has_a_folder_of_its_name(folder) -> None:
    options = ["--data.images", "2", "--data.num_workers", "0", "--data.category", "gear", "--model", "local_stats"]
    assert main(["test", "--data", "surfaces", *options, *CPU, "--output", "tested", "--overlays", "false"]) == 0
    assert {"results.json", "results.csv"} <= {path.name for path in Path("tested").iterdir()}
    assert not Path("tested/overlays").exists()
    assert main(["predict", "photos/03.png", *MODEL, *CPU]) == 0
    assert Path("runs/predict/local_stats/folder-03/version_0/maps/03.png").is_file()
    assert {path.name for path in Path().iterdir()} == {"photos", "tested", "runs"}


@pytest.fixture
def watched(folder, monkeypatch):
    """Run ``predict --watch true`` and do other things meanwhile, then interrupt it."""
    monkeypatch.setattr(watching, "SECONDS", 0.3)
    monkeypatch.setattr(resuming, "PATIENCE", 1)

    def watch(meanwhile) -> int:
        def act() -> None:
            try:
                meanwhile()
            finally:
                os.kill(os.getpid(), signal.SIGINT)

        handler, other = signal.getsignal(signal.SIGINT), threading.Thread(target=act)
        other.start()
        try:
            return main(["predict", "arriving", *MODEL, *CPU, "--output", "found", "--watch", "true"])
        finally:
            other.join()
            signal.signal(signal.SIGINT, handler)

    return watch


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)


def rows_of(folder: str) -> list[str]:
    try:
        return [row["path"] for row in read_csv(f"{folder}/predictions.csv")]
    except FileNotFoundError:
        return []


def test_a_watched_folder_is_scored_file_by_file_each_once(watched, capsys) -> None:
    Path("arriving").mkdir()

    def arrive() -> None:
        time.sleep(0.5)
        write("arriving", [5])
        until(lambda: len(rows_of("found")) == 1)
        whole = Path("photos/03.png").read_bytes()
        with open("arriving/03.png", "wb", buffering=0) as slow:  # earlier in the order than what is there
            for start in range(0, len(whole), len(whole) // 8):
                slow.write(whole[start : start + len(whole) // 8])
                time.sleep(0.15)
                assert len(rows_of("found")) == 1
        until(lambda: len(rows_of("found")) == 2)
        Path("arriving/05.png").unlink()  # taken away by whoever sorts parts
        Path("arriving/06.png").write_bytes(whole[:900])  # a copy that was broken off
        until(lambda: "06.png" in capsys.readouterr().err)
        Path("arriving/06.png").write_bytes(whole)
        until(lambda: len(rows_of("found")) == 3)
        time.sleep(1.5)  # now there is nothing to do

    assert watched(arrive) == 130
    said = capsys.readouterr()
    assert "0 of them now" not in said.out + said.err
    assert rows_of("found") == [f"arriving/{name}.png" for name in ("05", "03", "06")]
    write("arriving", [8])
    assert watched(lambda: until(lambda: len(rows_of("found")) == 4)) == 130  # it goes on
    assert rows_of("found")[3:] == ["arriving/08.png"]


def test_watching_ends_by_ctrl_c_in_a_terminal_too(folder) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "kanoclip", *predict("--watch", "true")]
    watching = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
    until(lambda: len(rows_of("found")) == COUNT, 120)
    time.sleep(1)
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "Traceback" not in said


def test_a_run_that_goes_on_has_all_regions_once_and_a_report_of_all_rows(folder) -> None:
    more = ["--threshold", "0.6", "--report", "true"]
    assert main([*predict(*more), "--output", "once"]) == 0
    assert run(1, predict(*more), folder, fault=partial(kill_in_write, 25))[0] == [-9]
    first = [json.loads(line)["path"] for line in Path("found/regions.jsonl").read_text().split("\n") if line]
    assert 0 < len(first) < COUNT
    with open("found/predictions.csv", "r+b") as file:  # the regions of a batch were written, and its rows not
        lines = file.readlines()
        file.truncate(sum(map(len, lines[:-2])))
    assert main(predict(*more)) == 0
    for name in ("regions.jsonl", "annotations.json", "predictions.csv"):
        assert Path("found", name).read_bytes() == Path("once", name).read_bytes()
    assert all(f"{number:02d}.png" in Path("found/report.html").read_text() for number in range(COUNT))
    assert main(predict("--threshold", "0.6", "--report", "false")) == 0


def test_an_overlay_without_space_is_written_when_the_run_goes_on(unbroken, monkeypatch, capsys) -> None:
    write_image, full = predictions.write_image, True

    def sometimes(path, image) -> None:
        if full and path == Path("found/overlays/07.png"):
            raise CannotWriteError(path, OSError(28, "No space left on device"))
        write_image(path, image)

    monkeypatch.setattr(predictions, "write_image", sometimes)
    assert main(predict()) == 2
    assert "Cannot write found/overlays/07.png: No space left on device" in capsys.readouterr().err
    full = False
    assert main(predict()) == 0
    assert files(Path("found")) == unbroken
