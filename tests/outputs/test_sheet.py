from collections import Counter

import numpy as np

from kanoclip.data.base import Sample
from kanoclip.data.faults import UnreadableImageError
from kanoclip.outputs.sheet import COLUMNS, TILE, contact_sheet, varied


def samples(categories, defects, each, split="test"):
    return [
        Sample(f"{category}/{defect}/{i}.png", (), int(defect != "good"), category, defect, split)
        for category in categories
        for defect in defects
        for i in range(each)
    ]


def test_all_categories_and_all_kinds_of_defect_come_before_any_comes_twice():
    chosen = varied(samples("abc", ["crack", "good", "hole"], 10), 9)
    assert Counter(sample.category for sample in chosen) == {"a": 3, "b": 3, "c": 3}
    assert Counter((sample.category, sample.defect) for sample in chosen).most_common(1)[0][1] == 1


def test_fewer_pictures_than_kinds_still_show_every_category_and_several_kinds():
    chosen = varied(samples("abcd", ["crack", "dent", "good", "hole"], 5), 4)
    assert {sample.category for sample in chosen} == set("abcd")
    assert len({sample.defect for sample in chosen}) == 4


def test_samples_of_a_kind_are_spread_over_its_files_and_training_images_are_left_out():
    chosen = varied([*samples("a", ["hole"], 10), *samples("a", ["good"], 10, "train")], 2)
    assert [sample.image for sample in chosen] == ["a/hole/0.png", "a/hole/5.png"]


def test_only_training_images_are_shown_as_they_come():
    assert len(varied(samples("a", ["good"], 10, "train"), 3)) == 3


def test_an_unreadable_file_is_told_and_the_others_are_drawn():
    def read(sample):
        if sample.image.endswith("1.png"):
            raise UnreadableImageError(sample.image, "it is broken")
        return np.full((20, 40, 3), 200, np.uint8), None

    sheet, skipped = contact_sheet(samples("a", ["hole"], 3), read)
    assert len(skipped) == 1
    assert "a/hole/1.png" in skipped[0]
    assert sheet.shape[1] == 2 * TILE
    assert COLUMNS > 2
