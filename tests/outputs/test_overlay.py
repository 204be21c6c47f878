import cv2
import numpy as np
import pytest

from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.overlay import (
    LIKELIER,
    NARROWEST,
    OUTLINE,
    colour_note,
    heated,
    hot,
    legend,
    marked,
    overlay,
    scale_of,
    verdict,
)

GREY = np.full((20, 30, 3), 100, np.uint8)
NOTHING = np.zeros((20, 30), np.float32)


def test_a_map_of_zeros_leaves_the_photo_unchanged():
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(overlay(noise, NOTHING, np.zeros((20, 30), np.uint8), contour=True), noise)


def test_only_the_hot_pixel_is_coloured_and_warmer_than_before():
    heat = np.zeros((20, 30), np.float32)
    heat[4, 7] = 1
    changed = (overlay(GREY, heat) != GREY).any(-1)
    assert np.argwhere(changed).tolist() == [[4, 7]]
    red, _, blue = overlay(GREY, heat)[4, 7].astype(int)
    assert red > 150 > blue


def test_opacity_and_warmth_grow_with_the_score():
    heat = np.tile(np.linspace(0, 1, 30), (20, 1))
    distance = np.abs(overlay(GREY, heat).astype(int) - 100)[0].sum(-1)
    assert distance[0] == 0
    assert distance[1] < distance[10] < distance[20] < distance[29]


def test_a_score_at_the_lower_end_of_the_scale_is_not_coloured():
    assert np.array_equal(overlay(GREY, np.full((20, 30), 0.5), None, *LIKELIER, contour=True), GREY)
    assert not np.array_equal(overlay(GREY, np.full((20, 30), 0.51), None, *LIKELIER), GREY)


def test_what_is_smaller_than_a_region_that_counts_is_not_coloured():
    heat = np.zeros((20, 30), np.float32)
    heat[2, 3], heat[10:14, 10:16] = 1, 0.8
    assert np.array_equal(hot(heat, 0.5, 24 / 600), heat == np.float32(0.8))
    picture = heated(GREY, heat, Threshold(0.5, 0.5, 24 / 600))
    assert (picture[:6] == 100).all()
    assert (picture[11, 12] != 100).any()
    assert (heated(GREY, heat, Threshold(0.5, 0.5))[2, 3] != 100).any()


def test_the_outline_lies_on_the_edge_of_the_mask_and_nowhere_else():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 6:12] = 1
    edge = mask.astype(bool)
    edge[6:9, 7:11] = False
    assert np.array_equal((overlay(GREY, np.zeros((20, 30)), mask) == OUTLINE).all(-1), edge)


@pytest.mark.parametrize("colour", [(200, 20, 20), (235, 210, 30), (0, 0, 0), (255, 255, 255), (128, 128, 128)])
@pytest.mark.parametrize("peak", [0.51, 0.7, 1])
def test_a_border_shows_on_any_colour_and_in_grey_print(colour, peak):
    photo, heat = np.full((200, 300, 3), colour, np.uint8), np.zeros((200, 300), np.float32)
    heat[60:140, 100:200] = peak
    grey = cv2.cvtColor(overlay(photo, heat, None, *LIKELIER, contour=True), cv2.COLOR_RGB2GRAY).astype(int)
    for across in (grey[100, 90:110], grey[100, 190:210], grey[50:70, 150], grey[130:150, 150]):
        outside, inside = (across[0], across[-1])
        assert across.max() - across.min() >= 200  # light beside dark, whatever is around
        assert max(abs(across - outside)) >= 100
        assert max(abs(across - inside)) >= 100


def test_what_is_not_a_number_is_not_coloured():
    assert np.array_equal(overlay(GREY, np.full((20, 30), np.nan), contour=True), GREY)


@pytest.mark.parametrize("wrong", ["anomaly_map", "mask"])
def test_another_size_is_an_error_that_tells_how_to_resize(wrong):
    arrays = {"anomaly_map": np.zeros((20, 30)), "mask": None} | {wrong: np.zeros((10, 30), np.uint8)}
    with pytest.raises(ValueError, match=rf"{wrong} is \(10, 30\).*cv2.resize\({wrong}, \(30, 20\)\)"):
        overlay(GREY, **arrays)


def test_a_scale_upside_down_is_an_error():
    with pytest.raises(ValueError, match=r"low=1 to high=0"):
        overlay(GREY, np.zeros((20, 30)), None, 1, 0)


def test_colour_begins_at_the_threshold_of_pixels_or_at_the_stated_score():
    assert scale_of(Threshold(0.9, 0.7, 0.1)) == (0.7, 1, True)
    assert scale_of(None) == scale_of(Threshold(0.9)) == (0.5, 1, False)
    highest = scale_of(Threshold(1, 1))
    assert np.array_equal(overlay(GREY, np.ones((20, 30)), None, highest.low, highest.high), GREY)


def test_an_overlay_keeps_the_photo_free_above_its_legend():
    photo = np.random.default_rng(0).integers(0, 256, (50, 700, 3), np.uint8)
    heat = np.zeros((50, 700), np.float32)
    picture = marked(photo, heat, "a.png", 0.25)
    assert picture.shape[1] == 700
    assert np.array_equal(picture[:50], photo)
    assert picture[50:].max() > 200  # letters
    narrow = marked(GREY, NOTHING, "a.png", 0.25)
    assert narrow.shape[1] == NARROWEST
    assert np.array_equal(narrow[:20, :30], GREY)
    assert (narrow[:20, 30:] == 32).all()


def test_the_same_map_has_the_same_colours_whatever_else_is_drawn():
    heat = np.random.default_rng(0).random((20, 30), np.float32)
    threshold = Threshold(0.9, 0.7)
    assert np.array_equal(marked(GREY, heat, "a", 0.95, threshold)[:20, :30], overlay(GREY, heat, None, 0.7, 1, True))


@pytest.mark.parametrize("path", ["", "x" * 5000, "Käffchen_чашка_杯子.png", "a\nb\x1b[31m\udcfc.png"])
@pytest.mark.parametrize("width", [1, 320, 4000])
def test_any_name_fits_into_a_legend_of_any_width(path, width):
    few, many = (legend(width, [path, line], scale_of(None)) for line in ("", "score 0.5"))
    assert few.shape == many.shape == (few.shape[0], max(width, NARROWEST), 3)
    assert not np.array_equal(few, many)
    assert (few[:, -3:] == 32).all()  # no letter is cut off


def test_a_picture_without_a_threshold_says_that_it_is_uncalibrated(monkeypatch):
    from kanoclip.outputs import overlay as room

    said = []
    original = room.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        room.ImageDraw.ImageDraw, "text", lambda self, at, text, *a: said.append(text) or original(self, at, text, *a)
    )
    marked(GREY, NOTHING, "a.png", 0.25)
    assert said == ["a.png", "score 0.250", "pixel score 0.5", "1  uncalibrated"]
    said.clear()
    marked(GREY, NOTHING, "a.png", 0.25, Threshold(0.2, 0.3))
    assert said == ["a.png", "score 0.250: defective (threshold 0.200)", "pixel score 0.3", "1"]


def test_a_verdict_is_that_of_the_threshold():
    assert verdict(0.5, Threshold(0.5)) == "score 0.500: good (threshold 0.500)"
    assert verdict(0.9996, Threshold(0.9995)) == "score 0.999600: defective (threshold 0.999500)"


@pytest.mark.parametrize(
    ("coloured", "images", "calibrated", "said"),
    [
        (
            0,
            5,
            False,
            "No overlay is coloured: colour begins at 0.5 and no map reaches it. The highest score of a pixel is 0.49.",
        ),
        (5, 5, False, "Every overlay is coloured: colour begins at 0.5 and each map exceeds it."),
        (0, 5, True, "No overlay is coloured: no map has a region above its pixel threshold."),
        (5, 5, True, "Every overlay is coloured: each map has a region above its pixel threshold."),
        (0, 1, True, "No overlay"),
    ],
)
def test_it_is_told_when_all_or_no_overlays_are_coloured(coloured, images, calibrated, said):
    told = colour_note(coloured, images, 0.49, calibrated)
    assert told.startswith(said)
    assert ("kanoclip calibrate" in told) != calibrated


@pytest.mark.parametrize(("coloured", "images"), [(2, 5), (1, 1), (0, 0)])
def test_else_nothing_is_told(coloured, images):
    assert colour_note(coloured, images, 0.9, calibrated=False) == ""


def test_the_room_of_pictures_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, kanoclip.outputs.overlay, kanoclip.outputs.coco; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
