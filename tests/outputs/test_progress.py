"""How far a run is, as a reader counts."""

import math
import re

import pytest
from several import run, talkative

from kanoclip.outputs import progress
from kanoclip.outputs.progress import Pace, duration
from kanoclip.verbs.table import main

DATA = ["--data.images", "2", "--data.num_workers", "0", "--data.batch_size", "1", "--model.backbone", "embedded"]
FIT = ["fit", "--data", "surfaces_auxiliary", "--data.category", "wood", *DATA]


@pytest.fixture
def terminal(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich then takes what it prints to for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("rich._console", None)  # a console of its own: what else was drawn here may not have ended
    monkeypatch.setattr(progress, "EVERY", 0.0)


def frames(text: str) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_a_fit_has_one_bar_that_counts_all_epochs_from_1_and_shows_the_loss(terminal, capsys) -> None:
    assert main([*FIT, "--trainer.max_epochs", "2"]) == 0
    drawn = frames(capsys.readouterr().out)
    assert re.fullmatch(r"Epoch 1 of 2 \S+ +0%", drawn[0])
    assert any(re.match(r"Epoch 1 of 2 .* 50% loss \d", one) for one in drawn)
    assert re.fullmatch(r"Epoch 2 of 2 \S+ 100% loss [\d.]+, [\d.]+ images/s", drawn[-1])
    assert any(re.search(r"75% loss [\d.]+, [\d.]+ images/s, \d+ s left", one) for one in drawn) or len(drawn) < 6


def test_the_bar_of_a_fit_that_its_steps_end_is_full_at_the_last_one(terminal, capsys) -> None:
    assert main([*FIT, "--trainer.max_steps", "3"]) == 0
    drawn = frames(capsys.readouterr().out)
    assert re.match(r"Step 3 of 3 .* 100% loss", drawn[-1])
    assert any(re.match(r"Step 1 of 3 .* 33% loss", one) for one in drawn)


def test_a_test_has_one_bar_with_its_speed(terminal, capsys) -> None:
    assert main(["test", "--data", "surfaces", "--data.category", "gear", *DATA, "--model", "clip"]) == 0
    drawn = [one for one in frames(capsys.readouterr().out) if one.startswith("Testing")]
    assert re.fullmatch(r"Testing \S+ 100% [\d.]+ images/s", drawn[-1])


@pytest.mark.parametrize("options", [[], ["--trainer.enable_progress_bar", "false"]])
def test_where_nobody_watches_each_epoch_has_one_line(tmp_path, monkeypatch, capsys, options) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--trainer.max_epochs", "2", *options]) == 0
    out, err = capsys.readouterr()
    assert not out
    assert "\r" not in err
    first, second, last = err.splitlines()[-3:]
    assert re.fullmatch(r"kanoclip: epoch 1 of 2 done, loss [\d.]+, [\d.]+ images/s, \d+ s left", first)
    assert re.fullmatch(r"kanoclip: epoch 2 of 2 done, loss [\d.]+, [\d.]+ images/s", second)
    assert last.startswith("kanoclip: fitted:")


def test_a_fit_that_ends_by_its_steps_counts_steps(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]) == 0
    said = capsys.readouterr().err
    assert "kanoclip: step 1 of 1 done, loss" in said
    assert "of 15" not in said


def test_a_pace_leaves_out_the_first_batch_and_counts_what_was_done_before(monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    pace, endless = Pace(103, done=50), Pace(math.inf)
    for one in (pace, endless):
        now = 100.0  # however long the first one took
        one.step(8)
        assert str(one) == ""
        for seconds in (1, 2):
            now = 100.0 + seconds
            one.step(8)
    assert str(pace) == "8 images/s, 50 s left"
    assert str(endless) == "8 images/s"


def test_durations_are_said_in_two_units_at_most() -> None:
    assert [duration(one) for one in (7.4, 98, 100, 3540, 3600, 7500)] == [
        "7 s", "98 s", "2 min", "59 min", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "options", "images"),
    [("test", [], 4), ("predict", [], 4), ("validate", ["--data.holdout", "0.5"], 2), ("test", ["--limit"], 2)],
)
def test_where_nobody_watches_a_long_test_says_now_and_then_how_far_it_is(
    tmp_path, monkeypatch, capsys, verb, options, images
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kanoclip.outputs.record.SAID", 0.0)
    options = [f"--trainer.limit_test_batches={images}"] if options == ["--limit"] else options
    data = ["--data", "surfaces", "--data.category", "gear", "--data.images", "4", *DATA[2:]]
    assert main([verb, *data, "--model", "clip", *options, "--trainer.enable_progress_bar", "false"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "images" in line]
    assert said[0] == f"kanoclip: 1 of {images} images"  # the first one is not timed
    assert re.fullmatch(rf"kanoclip: {images} of {images} images, [\d.]+ images/s", said[-1])
    assert len(said) == images


def test_a_short_test_says_nothing_of_that(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", "surfaces", "--data.category", "gear", *DATA, "--model", "clip"]
    assert main(["test", *data]) == 0
    assert " images" not in capsys.readouterr().err


def test_of_several_processes_the_first_one_says_how_far_all_are(tmp_path) -> None:
    data = ["--data", "surfaces", "--data.category", "gear", "--data.images", "6", *DATA[2:]]
    codes, _, err = run(2, ["test", *data, "--model", "clip"], tmp_path, fault=talkative)
    assert codes == [0, 0], err
    said = [[line for line in one.splitlines() if " images" in line] for one in err]
    assert [line.partition(" images")[0] for line in said[0]] == [f"kanoclip: {n} of 6" for n in (2, 4, 6)]
    assert said[1] == []
