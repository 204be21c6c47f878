import numpy as np
import pytest
import torch

from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.examples import Example, example, panel, photo
from kanoclip.outputs.overlay import legend, scale_of
from kanoclip.types import Scores

GREY = np.full((20, 30, 3), 100, np.uint8)
NOTHING = np.zeros((20, 30), np.float32)
HEIGHT = legend(768, ["", "", ""], scale_of(None)).shape[0]


def test_a_photo_is_rounded_to_its_8_bits():
    assert photo(torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1)).tolist() == [[[0, 255, 128]]]


@pytest.mark.parametrize("mask", [None, np.ones((20, 30), np.uint8)])
def test_a_panel_holds_photo_truth_and_overlay_in_a_row_below_a_legend(mask):
    picture = panel(Example(GREY, NOTHING, mask, 0.25, 0, "ring", "good", "x.png"), tile=256)
    assert picture.shape[1] == 3 * 384
    assert picture.shape[0] > 256 + 3 * 13
    assert (picture[-256:, :384] == 100).all()  # the photo
    assert (picture[-256:, 384:768] == (96 if mask is None else 255)).all()  # the truth
    assert (picture[-200:-20, 768 + 20 : -20] == 100).all()  # the overlay, of a map of zeros


def test_the_parts_of_a_wide_panel_lie_below_each_other():
    wide = np.full((20, 60, 3), 100, np.uint8)
    picture = panel(Example(wide, np.zeros((20, 60), np.float32), None, 0.25, 0, "rail", "", "x.png"), tile=256)
    assert picture.shape == (HEIGHT + 3 * 256, 768, 3)
    assert (picture[HEIGHT : HEIGHT + 256] == 100).all()  # the photo
    assert (picture[-256:] == 100).all()  # the overlay, of a map of zeros
    square = panel(Example(GREY[:, :20], np.zeros((20, 20), np.float32), None, 0.25, 0, "rail", "", "x.png"))
    assert np.array_equal(square[:HEIGHT], picture[:HEIGHT])  # with the same legend in the same place


def test_colour_in_a_panel_begins_at_the_threshold():
    heat = np.full((20, 30), 0.8, np.float32)
    shown = Example(GREY, heat, None, 0.8, 1, "ring", "hole", "x.png")
    assert (panel(shown, Threshold(0.9, 0.8))[-256:, 768:] == 100).all()
    assert not (panel(shown, Threshold(0.9, 0.7))[-256:, 768:] == 100).any(-1).all()
    assert not (panel(shown)[-256:, 768:] == 100).any(-1).all()


def test_an_example_of_a_long_strip_is_shrunk_with_its_map_and_mask(kit):
    batch = kit.batch(kit.samples("rail/hole/1.png"))
    strip = torch.zeros(1, 100, 8000)
    strip[:, 20:40, 4000:4800] = 1
    batch = batch._replace(image=strip[:, None].expand(-1, 3, -1, -1), mask=strip.byte())
    shown = example(batch, Scores(strip / 2, torch.ones(1)), 0)
    assert shown.image.shape == (26, 2048, 3)
    assert shown.mask is not None
    assert shown.anomaly_map.shape == shown.mask.shape == (26, 2048)
    for part, value in ((shown.image[..., 0], 255), (shown.anomaly_map, 0.5), (shown.mask, 1)):
        assert (part[8, 1024], part[8, 1020], part[8, 1229], part[15, 1100]) == (value, 0, 0, 0)
