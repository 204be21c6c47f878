import re
from base64 import b64decode
from html import escape

import cv2
import numpy as np
import pytest
from PIL import Image

from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.finding import SHOWN, finding
from kanoclip.types import KanoclipError

HEAT = np.zeros((8, 8), np.float32)
HEAT[2:4, 4:6] = 0.9
GREY = np.full((16, 24, 3), 90, np.uint8)


def test_the_map_comes_at_the_size_of_the_photo_and_stays_in_its_range():
    found = finding(HEAT * 1.2, 0.7, (16, 24))
    assert (found.anomaly_map.shape, found.anomaly_map.dtype) == ((16, 24), np.float32)
    assert (found.anomaly_map.min(), found.anomaly_map.max()) == (0, 1)
    assert (found.decision, found.margin, found.threshold, found.regions) == (None, None, None, [])


@pytest.mark.parametrize(("score", "decision"), [(0.7, "defective"), (0.6, "good"), (0.5, "good")])
def test_above_the_threshold_is_defective(score, decision):
    found = finding(HEAT, score, (16, 24), threshold=Threshold(0.6, 0.5))
    assert (found.decision, found.margin) == (decision, pytest.approx(score - 0.6))
    assert len(found.regions) == 1
    assert finding(HEAT, score, (16, 24), threshold=Threshold(0.6)).regions == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_told_by_path_or_name(bad):
    heat = HEAT.copy()
    heat[0, 0] = bad
    with pytest.raises(KanoclipError, match=r"The scores of a\.png are NaN or infinite\. The model overflowed"):
        finding(heat, 0.5, (16, 24), "a.png")
    with pytest.raises(KanoclipError, match=r"The scores of images\[3\] are NaN or infinite"):
        finding(HEAT, bad, (16, 24), name="images[3]")


def test_the_photo_is_the_one_from_memory_or_is_read_when_it_is_asked_for(tmp_path):
    assert finding(HEAT, 0.5, (16, 24), pixels=GREY).image is GREY
    path = str(tmp_path / "a.png")
    found = finding(HEAT, 0.5, (16, 24), path)
    with pytest.raises(KanoclipError, match=r"a\.png: there is no such file"):
        _ = found.image
    Image.fromarray(GREY).save(path)
    np.testing.assert_array_equal(found.image, GREY)


def test_an_overlay_is_coloured_above_the_threshold_alone():
    found = finding(HEAT, 0.7, (16, 24), threshold=Threshold(0.6, 0.5), pixels=GREY)
    drawn = found.overlay(contour=False)
    assert ((drawn != GREY).any(2) <= (found.anomaly_map > 0.5)).all()
    assert (drawn != GREY).any()
    assert (finding(HEAT, 0.7, (16, 24), threshold=Threshold(0.6, 0.95), pixels=GREY).overlay(False) == GREY).all()
    too_small = finding(HEAT, 0.7, (16, 24), threshold=Threshold(0.6, 0.5, 0.9), pixels=GREY)
    assert (too_small.overlay() == GREY).all()  # as in the overlay of predict


def test_a_notebook_shows_the_overlay_and_one_line_in_which_a_hostile_name_is_text(tmp_path):
    path = str(tmp_path / "<img src=x onerror=alert(1)>.png")
    wide = np.full((20, 3 * SHOWN, 3), 90, np.uint8)
    Image.fromarray(wide).save(path)
    page = finding(HEAT, 0.7, wide.shape[:2], path)._repr_html_()
    shown = cv2.imdecode(np.frombuffer(b64decode(re.search(r"base64,([^\"]+)", page)[1]), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (7, SHOWN, 3)
    assert "<img src=x" not in page
    assert escape("<img src=x onerror=alert(1)>.png: score 0.700, uncalibrated") in page


def test_a_notebook_shows_a_line_scan():
    assert "<img" in finding(HEAT, 0.7, (1, 3 * SHOWN), pixels=np.zeros((1, 3 * SHOWN, 3), np.uint8))._repr_html_()


def test_one_line_says_what_was_found():
    assert f"{finding(HEAT, 0.7, (16, 24))}" == "image: score 0.700, uncalibrated"
    assert f"{[finding(HEAT, 0.7, (16, 24))]}" == "[<image: score 0.700, uncalibrated>]"
    decided = finding(HEAT, 0.7, (16, 24), "a\n.png", threshold=Threshold(0.6, 0.5))
    assert f"{decided}" == r"a\n.png: score 0.700: defective (threshold 0.600), 1 region"
    assert f"{finding(HEAT, 0.2, (16, 24), 'b', threshold=Threshold(0.6))}" == "b: score 0.200: good (threshold 0.600)"


def test_the_likeliest_kind_of_defect_is_named_unless_the_photo_is_good():
    kinds = {"hole": 0.25, "scratch": 0.75}
    found = finding(HEAT, 0.7, (16, 24), defects=kinds)
    assert (found.defect, found.defect_probability) == ("scratch", 0.75)
    assert f"{found}" == "image: score 0.700, uncalibrated, scratch (75%)"
    good, defective = (finding(HEAT, score, (16, 24), threshold=Threshold(0.6), defects=kinds) for score in (0.5, 0.7))
    assert (good.defect, good.defect_probability) == (None, None)
    assert (defective.defect, defective.defect_probability) == ("scratch", 0.75)
    assert finding(HEAT, 0.7, (16, 24)).defect is None
