import cv2
import numpy as np
import pytest
import torch

from kanoclip.data.files import CannotWriteError
from kanoclip.outputs.thumbnails import SIDE, Thumbnails, thumbnail
from kanoclip.types import Scores


def added(folder, kit, scores, most=10, size=(16, 16), paths=None):
    paths = paths or [f"d/nut/dent/{n}.png" for n in range(len(scores))]
    batch = kit.batch(kit.samples(*paths), size)
    Thumbnails(folder, most, lambda category: None).add(batch, Scores(batch.image.mean(1), torch.tensor(scores)))
    return [folder / thumbnail(path) for path in paths]


@pytest.mark.parametrize(("size", "shape"), [((100, 400), (40, SIDE)), ((4000, 3), (SIDE, 1)), ((8, 8), (SIDE, SIDE))])
def test_a_thumbnail_has_the_shape_of_its_photo(tmp_path, kit, size, shape):
    (file,) = added(tmp_path, kit, [0.5], size=size)
    assert cv2.imread(str(file)).shape[:2] == shape


def test_the_heat_map_is_on_the_second_picture_alone(tmp_path, kit):
    (file,) = added(tmp_path, kit, [0.5])
    photo = cv2.imread(str(file)).astype(int)
    heat = cv2.imread(str(file.with_name(f"{file.stem}-heat.jpg"))).astype(int)
    inside, outside = (slice(50, 70), slice(50, 70)), (slice(100, 150), slice(100, 150))
    assert photo[inside].min() > 240
    assert np.ptp(heat[inside].mean((0, 1))) > 80
    assert np.abs(heat[outside] - photo[outside]).max() < 8


def test_as_many_as_may_be_are_kept_those_with_the_highest_scores(tmp_path, kit):
    files = added(tmp_path, kit, [0.5, 0.1, 0.9, 0.2, 0.7], most=2)
    assert [file.exists() for file in files] == [False, False, True, False, True]
    assert len(list(tmp_path.glob("*/*"))) == 4


def test_a_name_is_a_digest_whatever_the_path(tmp_path, kit):
    names = ["a b#?%20.png", "caf\udce9.png", "\ud800", "x" * 5000, "../../etc"]
    files = added(tmp_path, kit, [0.5] * 5, paths=[f"d/nut/dent/{name}" for name in names])
    assert all(file.is_file() and file.parents[1] == tmp_path for file in files)
    assert len({*files}) == 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path, kit):
    (tmp_path / "report").write_text("")
    with pytest.raises(CannotWriteError, match="report"):
        added(tmp_path / "report", kit, [0.5])
