import numpy as np
import pytest

from kanoclip.data.drawn.drawing import CATEGORIES, DEFECTS
from kanoclip.data.drawn.materials import MATERIALS
from kanoclip.data.drawn.surfaces import (
    SEEN_CATEGORIES,
    SEEN_DEFECTS,
    UNSEEN_CATEGORIES,
    UNSEEN_DEFECTS,
    Surfaces,
    SurfacesAuxiliary,
    SurfacesDefects,
)


def test_what_is_fitted_on_and_what_is_tested_on_share_no_category_and_no_unseen_defect() -> None:
    auxiliary, test, defects = (kind(images=16) for kind in (SurfacesAuxiliary, Surfaces, SurfacesDefects))
    assert auxiliary.categories == sorted(SEEN_CATEGORIES)
    assert test.categories == defects.categories == sorted(UNSEEN_CATEGORIES)
    assert not set(auxiliary.categories) & set(test.categories)
    kinds = [{sample.defect for sample in data.samples()} - {"good"} for data in (auxiliary, test, defects)]
    assert kinds == [set(SEEN_DEFECTS), set(SEEN_DEFECTS), set(UNSEEN_DEFECTS)]
    assert not set(SEEN_DEFECTS) & set(UNSEEN_DEFECTS)


def test_the_variety_is_what_the_readme_says() -> None:
    assert len(MATERIALS) >= 10
    assert len(CATEGORIES) - len(MATERIALS) >= 6
    assert len(DEFECTS) >= 8


def test_half_of_a_category_is_intact_and_masks_agree_with_labels() -> None:
    data = Surfaces(category="gear", images=8, image_size=64, batch_size=8, num_workers=0)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.label.tolist() == [0, 1] * 4
    assert (batch.mask.flatten(1).sum(1) > 0).tolist() == [False, True] * 4
    assert batch.has_mask.all()
    assert batch.size.tolist() == [[128, 128]] * 8
    assert batch.defect[0] == "good"
    assert batch.path[1] == "surfaces://gear/scratch/0-00001.png"


def test_another_drawing_seed_and_another_set_draw_other_images() -> None:
    shared = {"category": "pill", "images": 2}
    first = Surfaces(**shared)
    others = Surfaces(**shared, drawing_seed=1), SurfacesDefects(**shared)
    image = first.read(first.samples()[0])[0]
    for other in others:
        assert (image != other.read(other.samples()[0])[0]).any()
    np.testing.assert_array_equal(image, Surfaces(**shared).read(first.samples()[0])[0])


def test_too_few_images_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="images is 1, but a category needs at least 2"):
        Surfaces(images=1)


def test_a_seed_that_numpy_refuses_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"drawing_seed is -1, expected 0 or more\. Set --data\.drawing_seed"):
        Surfaces(drawing_seed=-1)


def test_an_unknown_category_is_looked_for_among_the_drawings() -> None:
    with pytest.raises(ValueError, match=r"Unknown category 'gaer' of surfaces.*In the drawings are: carpet"):
        Surfaces(category="gaer").index()


def test_more_images_than_anybody_means_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match=r"images is 9+, expected at most 100,000 of each category"):
        Surfaces(images=10**20 - 1)
