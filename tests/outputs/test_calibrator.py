import csv
import json

import cv2
import numpy as np
import pytest
import torch

from kanoclip.metrics.calibration import Share
from kanoclip.outputs.calibrator import Calibrator, Scored, calibrate
from kanoclip.outputs.promises import told
from kanoclip.outputs.regions import find_regions
from kanoclip.outputs.thresholds import Thresholds
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, KanoclipError, Scores


def images(scores, label=NORMAL, category="nut", content="c"):
    named = [f"{content}{i}" for i in range(len(scores))]
    return [Scored(f"{name}.png", category, label, s, s / 2, name) for name, s in zip(named, scores, strict=True)]


HUNDRED = images([i / 200 for i in range(1, 101)])
BAD = images([0.3, 0.6, 0.7, 0.8], ANOMALOUS, content="b")


def said(thresholds):
    return told(thresholds, "model on data")


def test_a_hundred_good_images_choose_the_threshold_and_bad_ones_show_what_it_finds():
    found = calibrate([*HUNDRED, *BAD], 0.01, 0.001)
    assert found.entry("nut") == (0.5, 0.25, 0.001)
    assert found.pooled.detected == Share(3, 4)
    assert found.pooled.f1_max == pytest.approx(6 / 7)
    text = said(found)
    assert (
        "nut: 100 good images; defective above an image score of 0.500000; regions: pixels above 0.250000, 0.1 % of"
        in text
    )
    assert "at most 0.99 % on average over all choices of 100 images; with these, at most 2.95 % with 95 %" in text
    assert "Of 4 bad images, 3 are called defective: 75 % (95 % interval 19.4 % to 99.4 %)" in text
    assert "Near-duplicates break them" in text
    assert "c99.png (0.500000), c98.png" in text


def test_too_few_images_are_told_what_they_can_promise():
    text = said(calibrate(HUNDRED[:30], 0.01, 0.001))
    assert "With 30 good images no rate below 3.23 % can be promised; 1 % takes 99." in text
    assert "With 1 good image no rate below 50 % can be promised" in said(calibrate(HUNDRED[:1], 0.01, 0.001))


def test_bad_images_that_are_found_no_more_often_are_told():
    found = calibrate([*HUNDRED, *images([0.1] * 9 + [0.9], ANOMALOUS, content="b")], 0.01, 0.001)
    assert found.pooled.detected == Share(1, 10)
    assert "This model does not separate these parts" in said(found)
    assert "does not separate" not in said(calibrate([*HUNDRED, *BAD], 0.01, 0.001))


def test_exact_copies_count_once_in_whatever_folder():
    copies = [one._replace(path=f"copy/{one.path}") for one in HUNDRED[60:]]
    found = calibrate([*HUNDRED, *copies], 0.01, 0.001)
    assert found.pooled == calibrate(HUNDRED, 0.01, 0.001).pooled
    assert "40 exact copies counted once" in said(found)
    assert calibrate([one._replace(content="same") for one in HUNDRED], 0.01, 0.001).pooled.promise.images == 1


def test_images_of_unknown_content_are_told_apart_by_path():
    found = calibrate([one._replace(content="") for one in HUNDRED], 0.01, 0.001).pooled
    assert (found.promise.images, found.samples) == (100, "")
    assert len(calibrate(HUNDRED, 0.01, 0.001).pooled.samples) == 16


def test_images_without_labels_are_all_taken_for_good_but_not_beside_labelled_ones():
    unlabelled = [one._replace(label=UNKNOWN) for one in HUNDRED]
    found = calibrate(unlabelled, 0.01, 0.001)
    assert found.pooled == calibrate(HUNDRED, 0.01, 0.001).pooled
    assert "no labels: all are taken for good" in said(found)
    mixed = calibrate([*HUNDRED[:50], *unlabelled[50:]], 0.05, 0.001)
    assert mixed.pooled.promise.images == 50
    assert "50 images without a label left out" in said(mixed)


def test_a_category_with_too_few_good_images_gets_the_pooled_threshold():
    found = calibrate([*HUNDRED, *images([0.9] * 5, category="cable", content="k")], 0.01, 0.001)
    assert found.categories["cable"] is None
    assert found.entry("nut").image == 0.5
    assert found.entry("cable") == found.entry("screw") == found.pooled.threshold
    assert "cable: 5 good images, and 1 % takes 99; the threshold of all together is used." in said(found)
    assert "all together: 105 good images" in said(found)


def test_a_category_of_bad_images_alone_is_no_error():
    found = calibrate([*HUNDRED, *images([0.9] * 5, ANOMALOUS, "cable", "k")], 0.01, 0.001)
    assert found.categories["cable"] is None
    assert found.pooled.detected == Share(5, 5)


def test_no_good_image_is_an_error():
    with pytest.raises(KanoclipError, match="There is no good image"):
        calibrate(BAD, 0.01, 0.001)
    with pytest.raises(KanoclipError, match="There is no good image"):
        calibrate([], 0.01, 0.001)


def test_held_out_images_choose_nothing_and_are_drawn_by_seed():
    found = calibrate(HUNDRED, 0.05, 0.001, holdout=0.3, seed=1)
    assert (found.pooled.promise.images, found.pooled.alarms.images) == (70, 30)
    assert found == calibrate(HUNDRED[::-1], 0.05, 0.001, holdout=0.3, seed=1)
    assert found != calibrate(HUNDRED, 0.05, 0.001, holdout=0.3, seed=2)
    assert "Of 30 good images held out, " in said(found)
    assert calibrate(HUNDRED[:1], 0.05, 0.001, holdout=0.9).pooled.promise.images == 1


def test_the_rate_on_held_out_images_is_within_what_is_promised():
    draw = np.random.default_rng(0)
    rates = []
    for seed in range(200):
        found = calibrate(images(draw.random(150)), 0.1, 0.001, holdout=1 / 3, seed=seed)
        rates.append(found.pooled.alarms.rate)
    assert np.mean(rates) == pytest.approx(found.pooled.promise.average, abs=0.015)


@pytest.mark.parametrize("setting", [{"max_fpr": 1.0}, {"min_area": -0.1}, {"min_area": 1}, {"holdout": 1.0}])
def test_settings_out_of_range_are_told(setting):
    (name,) = setting
    with pytest.raises(KanoclipError, match=rf"{name} is .* expected .* Set --{name}\."):
        Calibrator(**setting)


def test_the_place_is_checked_before_anything_is_scored(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KanoclipError, match=r"Cannot write .*file/t.json"):
        Calibrator(output=f"{tmp_path}/file/t.json")
    with pytest.raises(KanoclipError, match="is an address"):
        Calibrator(output="s3://bucket/t.json")
    assert Calibrator(output=f"{tmp_path}/new/t.json").output == tmp_path / "new" / "t.json"
    assert Calibrator(output=f"{tmp_path}/new").output == tmp_path / "new" / "threshold.json"
    assert not list((tmp_path / "new").iterdir())


def run(kit, data, calibrator, **model):
    kit.trainer(calibrator).predict(kit.model(**model), data, return_predictions=False)


def test_a_run_scores_writes_and_says_where(kit, capsys):
    data = kit.data(kit.samples(*(f"/in/ring/{kind}/{i}.png" for i in range(3) for kind in ("good", "hole"))))
    calibrator = Calibrator(min_area=0.01)
    run(kit, data, calibrator)
    assert [(one.label, one.score, one.region_score) for one in calibrator.scored[:2]] == [(0, 0, 0), (1, 1, 1)]
    content = json.loads((kit.folder / "threshold.json").read_text())
    assert content["pooled"]["detected"]["hits"] == 3
    assert content["scoring"]["model"] == "brightness"
    with (kit.folder / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["1"] * 3 + ["0"] * 3
    out = capsys.readouterr().out
    assert "brightness on samples" in out
    assert f"kanoclip predict PHOTOS --threshold {kit.folder}/threshold.json and the same --model options" in out
    assert Thresholds.load(kit.folder / "threshold.json").entry("ring").image == 0


def test_the_output_is_where_it_was_asked_for(kit, tmp_path):
    data = kit.data(kit.samples("/in/ring/good/1.png"))
    run(kit, data, Calibrator(output=f"{tmp_path}/mine/t.json"))
    assert Thresholds.load(tmp_path / "mine" / "t.json").pooled.promise.images == 1


def test_region_scores_are_of_the_map_at_the_size_of_the_photo(kit):
    """The square is 4 of 16 pixels wide; enlarged, its edge is a slope, and what is above the threshold is found."""
    data = kit.data(kit.samples("/in/ring/good/1.png", "/in/ring/hole/1.png"), size=(320, 160))
    calibrator = Calibrator(min_area=0.07)
    run(kit, data, calibrator)
    found = calibrator.scored[1].region_score
    heat = cv2.resize(kit.batch(data.samples).image[1, 0].numpy(), (160, 320))
    assert 0.1 < found < 0.9
    assert not find_regions(heat, found, 0.07)
    assert find_regions(heat, found - 1e-4, 0.07)


def test_a_map_with_nan_names_its_image(kit):
    class Overflows(kit.model):
        def predict_step(self, batch, batch_idx):
            scores = self(batch)
            return Scores(scores.anomaly_map * torch.nan, scores.image_score)

    data = kit.data(kit.samples("/in/ring/good/1.png"))
    with pytest.raises(KanoclipError, match=r"scores of /in/ring/good/1.png are NaN"):
        kit.trainer(Calibrator()).predict(Overflows(), data, return_predictions=False)
    assert not (kit.folder / "threshold.json").exists()
