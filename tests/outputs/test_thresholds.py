import json
import math
import subprocess
import sys

import pytest

from kanoclip.metrics.calibration import Promise, Share, Threshold
from kanoclip.outputs.thresholds import Calibration, Thresholds
from kanoclip.types import KanoclipError

SCORING = {
    "model": "clip_vv",
    "weights": "a" * 64,
    "components": {"backbone": "embedded"},
    "settings": {"sigma": 4.0},
    "precision": "32-true",
    "pixels": {"image_size": 224, "tile": False},
    "results_version": 2,
}


def calibrated(image, **more):
    return Calibration(Threshold(image, 0.6, 0.001), Promise(100, 100), "f" * 16, **more)


@pytest.fixture
def several():
    pooled = calibrated(0.5, alarms=Share(1, 40), detected=Share(18, 20), f1_max=0.9)
    return Thresholds(pooled, {"nut": calibrated(0.4), "cable": None}, SCORING, {"max_fpr": 0.01})


@pytest.fixture
def single():
    return Thresholds(calibrated(0.5), {"nut": calibrated(0.5)}, SCORING)


def test_what_is_saved_is_loaded(several, tmp_path):
    several.save(tmp_path / "t.json")
    found = Thresholds.load(str(tmp_path / "t.json"))
    assert (found.pooled, found.categories, found.scoring, found.about) == (
        several.pooled,
        several.categories,
        several.scoring,
        several.about,
    )


def test_a_category_has_its_own_threshold_and_an_unknown_one_the_pooled(several):
    assert several.entry("nut").image == 0.4
    assert several.entry("cable").image == several.entry("screw").image == several.entry("").image == 0.5


def test_a_threshold_of_one_category_is_refused_for_another(single):
    assert single.entry("object") == single.entry("") == single.entry("nut")
    with pytest.raises(KanoclipError, match=r"is for nut, and this image shows cable. Calibrate cable too"):
        single.entry("cable")


def test_a_threshold_of_images_without_a_name_is_good_for_all():
    unnamed = Thresholds(calibrated(0.5), {"object": calibrated(0.5)}, SCORING)
    assert unnamed.entry("cable").image == 0.5


@pytest.mark.parametrize(("calibrated_as", "shown"), [("object", "nut"), ("nut", "object"), ("nut", "")])
def test_prompts_that_name_the_image_need_the_same_name_as_the_threshold(calibrated_as, shown):
    scoring = {**SCORING, "settings": {"prompts.class_name": True}}
    own = Thresholds(calibrated(0.5), {calibrated_as: calibrated(0.5)}, scoring)
    assert own.entry(calibrated_as).image == 0.5
    with pytest.raises(
        KanoclipError, match=rf"is for {calibrated_as}, and this image shows {shown or 'object'}\. This"
    ):
        own.entry(shown)


@pytest.mark.parametrize("number", [0.25, "0.25", "1", 0])
def test_a_number_is_the_threshold_of_images_and_pixels_of_any_model(number):
    found = Thresholds.load(number)
    found.check(SCORING)
    assert found.entry("nut") == Threshold(float(number), float(number), 0.0)


@pytest.mark.parametrize("number", ["nan", "1.5", "-0.1", "inf", 7])
def test_a_number_that_is_no_score_is_refused(number):
    with pytest.raises(KanoclipError, match=rf"--threshold {number}: expected a score from 0 to 1"):
        Thresholds.load(number)


def test_the_same_scores_pass(single, tmp_path):
    single.save(tmp_path / "t.json")
    Thresholds.load(tmp_path / "t.json").check({**SCORING, "settings": {"sigma": 4}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "kanoclip"}, "its model is clip_vv, and here it is kanoclip"),
        ({"weights": "b" * 64}, r"its weights \(sha256\) is a{12}\.\.\.a{24}, and here it is b{12}\.\.\.b{24}"),
        ({"precision": "bf16-mixed"}, "its precision is 32-true, and here it is bf16-mixed"),
        ({"pixels": {"image_size": 518, "tile": False}}, "its image size is 224, and here it is 518"),
        ({"pixels": {"image_size": 224, "tile": True}}, "its tile is False, and here it is True"),
        ({"settings": {"sigma": 4.0, "score": "mean"}}, "its settings.score is not set, and here it is mean"),
        ({"results_version": 3}, "its version of the scores is 2, and here it is 3"),
    ],
)
def test_other_scores_are_refused_by_what_differs(single, change, said):
    with pytest.raises(KanoclipError, match=f"{said}. Run kanoclip calibrate"):
        single.check({**SCORING, **change})


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--here .*none.json: there is no such file. Make it with kanoclip"):
        Thresholds.load(str(tmp_path / "none.json"), "--here")
    with pytest.raises(KanoclipError, match="cannot be read: Is a directory"):
        Thresholds.load(str(tmp_path))


def broken(content, *keys, value=None):
    """Replace a value, or leave it out."""
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner.pop(keys[-1])
    if value is not None:
        inner[keys[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: "{", "is damaged: it is not JSON"),
        (lambda content: "\udcff", "is damaged: it is not JSON"),
        (lambda content: "[]", "is not a threshold.json: it has no format"),
        (lambda content: broken(content, "format"), "is not a threshold.json: it has no format"),
        (lambda content: broken(content, "format", value=99), "has format 99, and this version reads 1"),
        (lambda content: broken(content, "scoring"), "damaged at scoring"),
        (lambda content: broken(content, "scoring", value=5), "damaged at scoring"),
        (lambda content: broken(content, "pooled"), "damaged at pooled"),
        (lambda content: broken(content, "pooled", "image"), "damaged at pooled: 'image' is missing"),
        (lambda content: broken(content, "pooled", "image", value=2), "damaged at pooled"),
        (lambda content: broken(content, "pooled", "pixel", value="high"), "damaged at pooled"),
        (lambda content: broken(content, "pooled", "rank", value=200), "damaged at pooled"),
        (lambda content: broken(content, "pooled", "rank", value=math.inf), "damaged at pooled"),
        (lambda content: broken(content, "pooled", "image", value=10**400), "damaged at pooled"),
        (lambda content: broken(content, "categories", value=["nut"]), "damaged at categories"),
        (lambda content: broken(content, "categories", "nut", value=5), "damaged at nut"),
        (lambda content: broken(content, "categories", "nut", "detected", value={"hits": 3, "images": 2}), "damaged"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(several, tmp_path, damage, said):
    path = tmp_path / "t.json"
    several.save(path)
    path.write_bytes(damage(json.loads(path.read_text())).encode("utf-8", "surrogateescape"))
    with pytest.raises(KanoclipError, match=said) as told:
        Thresholds.load(path)
    assert "\n" not in str(told.value)


def test_a_place_that_cannot_be_written_is_told(single, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KanoclipError, match="Cannot write"):
        single.save(tmp_path / "file" / "t.json")


def test_a_model_that_finds_no_more_than_chance_does_not_separate():
    assert calibrated(0.5, detected=Share(18, 20)).separates
    assert not calibrated(0.5, detected=Share(1, 20)).separates
    assert calibrated(0.5).separates is None


def test_thresholds_are_loaded_without_torch():
    code = "import sys, kanoclip.outputs.thresholds; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
