"""calibrate from end to end, on photos in a folder."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from kanoclip.outputs.thresholds import Thresholds
from kanoclip.types import KanoclipError
from kanoclip.verbs.table import main

MODEL = ["--model", "local_stats", "--model.image_size", "32"]
QUIET = ["--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
RUN = Path("runs/calibrate/local_stats/folder-photos/version_0")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(*files: str, seed: int = 0) -> None:
    """Noise of 40 x 30 pixels, different in each file."""
    random = np.random.default_rng(seed)
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(file, random.integers(0, 255, (40, 30, 3), np.uint8))


def calibrate(*options: str, model: list[str] = MODEL) -> int:
    return main(["calibrate", "photos", *model, *QUIET, *options])


def test_a_folder_of_good_photos_becomes_a_threshold(capsys) -> None:
    draw(*(f"photos/{i}.png" for i in range(6)))
    assert calibrate("--max_fpr", "0.2") == 0
    printed = capsys.readouterr()
    assert "The images have no labels: all are taken for good ones." in printed.out
    assert "at most 14.3 % on average" in printed.out
    found = Thresholds.load(RUN / "threshold.json")
    assert (found.pooled.promise.images, found.about["max_fpr"]) == (6, 0.2)
    assert len((RUN / "calibration.csv").read_text().splitlines()) == 7
    assert {path.name for path in RUN.iterdir()} == {"threshold.json", "calibration.csv"}


def test_good_and_bad_photos_copies_and_some_held_out(capsys) -> None:
    draw(*(f"photos/normal/{i}.png" for i in range(10)), "photos/abnormal/1.png")
    Path("photos/normal/again.png").write_bytes(Path("photos/normal/3.png").read_bytes())
    assert calibrate("--max_fpr", "0.2", "--holdout", "0.3", "--output", "mine/t.json") == 0
    out = capsys.readouterr().out
    assert "1 exact copy counted once" in out
    assert "Of 3 good images held out, " in out
    assert "Of 1 bad image, " in out
    assert Thresholds.load("mine/t.json").pooled.promise.images == 7
    assert "mine/t.json; scores of all images" in out


def test_one_photo_and_identical_photos(capsys) -> None:
    draw("photos/1.png")
    for i in range(5):
        Path(f"photos/copy{i}.png").write_bytes(Path("photos/1.png").read_bytes())
    assert calibrate() == 0
    assert "With 1 good image no rate below 50 % can be promised; 1 % takes 99." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max_fpr", "1.5"], "max_fpr is 1.5, expected a rate between 0 and 1, such as 0.01. Set --max_fpr."),
        (["--max_fpr", "low"], "--max_fpr: "),
        (["--min_area", "2"], "min_area is 2.0, expected a share in [0, 1). Set --min_area."),
        (["--holdout", "1"], "holdout is 1.0, expected a share in [0, 1). Set --holdout."),
        (["--max_fp", "0.1"], "Did you mean --max_fpr?"),
        (
            ["--output", "photos/1.png/t.json"],
            "Cannot write photos/1.png/t.json",
        ),
    ],
)
def test_mistakes_are_told_before_a_photo_is_read(capsys, options, said) -> None:
    draw("photos/1.png")
    assert calibrate(*options) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not Path("runs").exists()


def test_no_good_photo_and_an_empty_folder(capsys) -> None:
    draw("photos/abnormal/1.png")
    assert calibrate() == 2
    assert (
        "has anomalous images and no normal one, and a threshold is the score of a good image"
        in capsys.readouterr().err
    )
    Path("photos/abnormal/1.png").unlink()
    assert calibrate() == 2
    assert "No images in" in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_is_left_out_and_told(capsys) -> None:
    draw("photos/1.png", "photos/2.png")
    Path("photos/3.png").write_bytes(b"")
    assert calibrate() == 1
    assert "skipped" in capsys.readouterr().err
    assert Thresholds.load(RUN / "threshold.json").pooled.promise.images == 2


def test_options_stand_in_a_config_too() -> None:
    draw(*(f"photos/{i}.png" for i in range(4)))
    Path("my.yaml").write_text("max_fpr: 0.2\nmin_area: 0.01\n")
    assert calibrate("--config", "my.yaml") == 0
    found = Thresholds.load(RUN / "threshold.json")
    assert (found.about["max_fpr"], found.pooled.threshold.min_area) == (0.2, 0.01)


def test_what_a_prediction_of_the_same_model_depends_on_agrees_and_of_another_does_not() -> None:
    from kanoclip.outputs.identity import scoring

    draw("photos/1.png")
    assert calibrate() == 0
    found = Thresholds.load(RUN / "threshold.json")

    def predicted(*options: str) -> dict:
        assert main(["predict", "photos", *QUIET, "--trainer.default_root_dir", "others", *options]) == 0
        newest = max(Path("others").rglob("predictions.json"), key=lambda path: path.stat().st_mtime_ns)
        return scoring(json.loads(newest.read_text()))

    found.check(predicted(*MODEL))
    with pytest.raises(KanoclipError, match="its image size is 32, and here it is 48"):
        found.check(predicted("--model", "local_stats", "--model.image_size", "48"))
    with pytest.raises(KanoclipError, match="its precision is 32-true, and here it is bf16-mixed"):
        found.check(predicted(*MODEL, "--trainer.precision", "bf16-mixed"))


def test_the_newest_fit_is_taken_and_its_own_images_break_the_promise(tiny_name, capsys) -> None:
    tiny = ["--model.backbone", "clip", "--model.backbone.name", tiny_name, "--model.backbone.image_size", "32"]
    data = ["--data.images", "2", *QUIET]
    assert main(["fit", "--data", "surfaces_auxiliary", "--data.category", "wood", *data, *tiny,
                 "--model.adapter", "linear", "--trainer.max_epochs", "1"]) == 0  # fmt: skip
    capsys.readouterr()
    for name, category, said in (("surfaces_auxiliary", "wood", True), ("surfaces", "gear", False)):
        assert main(["calibrate", "--data", name, "--data.category", category, *data]) == 0
        printed = capsys.readouterr().err
        assert "checkpoint runs/fit/kanoclip/surfaces_auxiliary/version_0" in printed
        assert ("fitted on some of these images" in printed) is said
    found = Thresholds.load("runs/calibrate/kanoclip/surfaces/version_0/threshold.json")
    assert found.pooled.detected.images == 1
    with pytest.raises(KanoclipError, match="is for gear, and this image shows wood"):
        found.entry("wood")
