import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from kanoclip.outputs.regions import find_regions


def filled(border, shape):
    """Pixels whose middle lies inside a border, by the crossing rule, with a library that knows nothing of ours."""
    mask = pytest.importorskip("pycocotools.mask")
    return mask.decode(mask.frPyObjects([border.ravel().astype(float).tolist()], *shape))[..., 0].astype(int)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.booleans())
def test_borders_enclose_exactly_the_pixels_above_the_threshold(seed, height, width, share, smooth):
    scores = np.random.default_rng(seed).random((height, width), np.float32)
    if smooth:
        scores = cv2.GaussianBlur(scores, (0, 0), 1.5)
    threshold = float(np.quantile(scores, share))
    found = find_regions(scores, threshold)
    drawn = np.zeros((height, width), int)
    for region in found:
        inside = filled(region.contour, (height, width)) - sum(filled(hole, (height, width)) for hole in region.holes)
        assert inside.sum() == region.area == pytest.approx(region.share * height * width)
        place = inside.astype(bool)
        assert region.peak == scores[place].max()
        assert region.mean == pytest.approx(scores[place].mean(), abs=1e-5)
        left, top, wide, high = region.box
        assert [*region.contour.min(0), *region.contour.max(0)] == [left, top, left + wide, top + high]
        drawn += inside
    assert np.array_equal(drawn, scores > threshold)
    assert len(found) == ndimage.label(scores > threshold, np.ones((3, 3)))[1]


def test_one_pixel_has_four_corners():
    scores = np.zeros((5, 7), np.float32)
    scores[3, 2] = 0.75
    (region,) = find_regions(scores, 0.5)
    assert region[:5] == ((2, 3, 1, 1), 1, 1 / 35, 0.75, 0.75)
    assert sorted(region.contour.tolist()) == [[2, 3], [2, 4], [3, 3], [3, 4]]
    assert region.contour.dtype == np.int32


def test_the_highest_peak_comes_first_and_small_ones_do_not_count():
    scores = np.zeros((10, 10), np.float32)
    scores[:2, :2], scores[5:8, 5:8], scores[9, 0] = 0.9, 0.6, 1
    assert [region.peak for region in find_regions(scores, 0.5)] == pytest.approx([1, 0.9, 0.6])
    assert [region.area for region in find_regions(scores, 0.5, 0.04)] == [4, 9]  # exactly a share of .04 does


@pytest.mark.parametrize("scores", [np.zeros((4, 4)), np.full((4, 4), 0.5), np.full((4, 4), np.nan), np.zeros((0, 0))])
def test_where_nothing_is_above_the_threshold_there_is_no_region(scores):
    assert find_regions(scores.astype(np.float32), 0.5) == []


def test_a_not_a_number_is_a_hole():
    scores = np.ones((3, 3), np.float32)
    scores[1, 1] = np.nan
    (region,) = find_regions(scores, 0.5)
    assert (region.area, region.peak, region.mean, len(region.holes)) == (8, 1, 1, 1)
    assert sorted(region.holes[0].tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]]
