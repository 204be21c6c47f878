import numpy as np
import pytest
import torch

from kanoclip.outputs.overlay import LIKELIER, OUTLINE, Example, ScoreRange, example, overlay, panel, photo
from kanoclip.types import Scores

GREY = np.full((20, 30, 3), 100, np.uint8)


def test_a_map_of_zeros_leaves_the_photo_unchanged():
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(overlay(noise, np.zeros((20, 30)), np.zeros((20, 30), np.uint8)), noise)


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
    assert np.array_equal(overlay(GREY, np.full((20, 30), 0.5), None, *LIKELIER), GREY)
    assert not np.array_equal(overlay(GREY, np.full((20, 30), 0.51), None, *LIKELIER), GREY)


def test_the_outline_lies_on_the_edge_of_the_mask_and_nowhere_else():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 6:12] = 1
    edge = mask.astype(bool)
    edge[6:9, 7:11] = False
    assert np.array_equal((overlay(GREY, np.zeros((20, 30)), mask) == OUTLINE).all(-1), edge)


def test_what_is_not_a_number_is_not_coloured():
    assert np.array_equal(overlay(GREY, np.full((20, 30), np.nan)), GREY)


@pytest.mark.parametrize("wrong", ["anomaly_map", "mask"])
def test_another_size_is_an_error_that_tells_how_to_resize(wrong):
    arrays = {"anomaly_map": np.zeros((20, 30)), "mask": None} | {wrong: np.zeros((10, 30), np.uint8)}
    with pytest.raises(ValueError, match=rf"{wrong} is \(10, 30\).*cv2.resize\({wrong}, \(30, 20\)\)"):
        overlay(GREY, **arrays)


def test_a_scale_upside_down_is_an_error():
    with pytest.raises(ValueError, match=r"low=1 to high=0"):
        overlay(GREY, np.zeros((20, 30)), None, 1, 0)


def test_a_photo_is_rounded_to_its_8_bits():
    assert photo(torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1)).tolist() == [[[0, 255, 128]]]


@pytest.mark.parametrize("mask", [None, np.ones((20, 30), np.uint8)])
def test_a_panel_holds_photo_truth_and_overlay_in_a_row_below_a_caption(mask):
    shown = Example(GREY, np.zeros((20, 30), np.float32), mask, 0.25, 0, "ring", "good", "x.png")
    picture = panel(shown, 0, 1, tile=256)
    assert picture.shape == (44 + 256, 3 * 384, 3)
    assert (picture[-256:, :384] == 100).all()  # the photo
    assert (picture[-20:, 384:768] == (96 if mask is None else 255)).all()  # the truth
    assert (picture[-200:-20, 768 + 20 : -20] == 100).all()  # the overlay, of a map of zeros


def test_the_parts_of_a_wide_panel_lie_below_each_other():
    wide = np.full((20, 60, 3), 100, np.uint8)
    picture = panel(Example(wide, np.zeros((20, 60), np.float32), None, 0.25, 0, "rail", "", "x.png"), 0, 1, tile=256)
    assert picture.shape == (44 + 3 * 256, 768, 3)
    assert (picture[44 : 44 + 256] == 100).all()  # the photo
    assert (picture[-256:] == 100).all()  # the overlay, of a map of zeros
    square = panel(Example(GREY[:, :20], np.zeros((20, 20), np.float32), None, 0.25, 0, "rail", "", "x.png"), 0, 1)
    assert np.array_equal(square[:44], picture[:44])  # with the same legend in the same place


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


def test_the_scale_of_a_run_is_that_of_its_quantiles():
    seen = ScoreRange(pixels=10_000)
    for part in torch.linspace(0, 1, 10_001).split(1000):
        seen.update(part[None])
    assert seen.scale() == pytest.approx((0.9, 0.999), abs=1e-3)


def test_the_scale_keeps_bounded_memory_and_its_value():
    seen = ScoreRange(images=100, pixels=1000, limit=4000)
    for _ in range(50):
        seen.update(torch.rand(2, 50, 50, generator=torch.Generator().manual_seed(1)))
    assert sum(part.size for part in seen._kept) <= 4000
    assert seen.scale()[0] == pytest.approx(0.9, abs=0.03)


def test_a_run_that_saw_nothing_has_the_fixed_scale():
    assert ScoreRange().scale() == LIKELIER
