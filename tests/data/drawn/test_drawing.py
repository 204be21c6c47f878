import numpy as np
import pytest

from kanoclip.data.drawn.drawing import CATEGORIES, DEFECTS, SIZE, draw
from kanoclip.data.drawn.materials import MATERIALS


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_same_seed_draws_the_same_image_and_another_seed_another(category: str) -> None:
    first, again, other = (
        draw(category, "stain", [5, 1]),
        draw(category, "stain", [5, 1]),
        draw(category, "stain", [5, 2]),
    )
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.image != other.image).any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_intact_image_has_an_empty_mask_and_a_surface_fills_the_image(category: str) -> None:
    drawing = draw(category, None, 3)
    assert drawing.image.shape == (SIZE, SIZE, 3)
    assert drawing.image.dtype == np.uint8
    assert not drawing.mask.any()
    assert drawing.part.all() == (category in MATERIALS)
    assert drawing.part.mean() > 0.08


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("category", ["wood", "marble", "ring", "connector"])
def test_the_mask_is_where_the_damaged_scene_differs_from_the_intact_one(category: str, defect: str) -> None:
    for seed in range(4):
        intact, damaged = draw(category, None, [9, seed]), draw(category, defect, [9, seed])
        change = np.abs(damaged.image.astype(int) - intact.image).max(-1)
        inside = damaged.mask.astype(bool)
        assert 12 <= inside.sum() < 0.3 * SIZE**2
        assert change[inside].mean() > 5 * change[~inside].mean() + 4
        assert (change[~inside] > 60).mean() < 0.01  # nothing striking is left out of the mask


def test_a_defect_lies_on_the_part_unless_it_is_foreign_matter() -> None:
    for seed in range(6):
        drawing = draw("ring", "crack", [2, seed])
        assert not (drawing.mask.astype(bool) & ~drawing.part.astype(bool)).any()
