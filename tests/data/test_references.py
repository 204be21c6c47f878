"""Which reference images are found and drawn, and what identifies them."""

import shutil

import cv2
import numpy as np
import pytest

from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.data.references import find_references
from kanoclip.data.sets.mvtec import MVTecAD
from kanoclip.types import KanoclipError, MissingError


def write(path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((20, 24, 3), number, np.uint8))


@pytest.fixture
def good(tmp_path):
    """Two categories with six photos each."""
    for number in range(6):
        write(tmp_path / f"good/bottle/{number}.png", number)
        write(tmp_path / f"good/nut/deep/{number}.png", 100 + number)
    return tmp_path / "good"


def names(found, category=""):
    return sorted(one.image.rpartition("/")[2] for one in found.samples[category])


def test_a_folder_of_photos_serves_all_categories_and_one_of_folders_each_its_own(good) -> None:
    flat = find_references(f"{good}/bottle", None)
    assert list(flat.samples) == [""]
    assert flat.told == "6 reference images"
    each = find_references(f"{good}", None, shots=2)
    assert {name: len(images) for name, images in each.samples.items()} == {"bottle": 2, "nut": 2}
    assert each.told == "2 reference images per category"
    write(good / "nut/more.png", 7)
    assert find_references(f"{good}", None).told == "6 to 7 reference images per category"


def test_the_draw_depends_on_seed_and_names_inside_the_folder_alone(good, tmp_path) -> None:
    first = find_references(f"{good}", None, 3, seed=1)
    np.random.seed(5)  # noqa: NPY002  # other random use moves nothing
    shutil.copytree(good, tmp_path / "moved/elsewhere")
    again = find_references(f"{tmp_path}/moved/elsewhere", None, 3, seed=1)
    assert first.hashes == again.hashes
    shutil.rmtree(good / "nut")
    assert find_references(f"{good}", None, 3, seed=1).hashes["bottle"] == first.hashes["bottle"]
    others = {tuple(find_references(f"{good}", None, 3, seed=seed).hashes["bottle"]) for seed in range(8)}
    assert len(others) > 1


def test_fewer_shots_are_the_first_of_more(good) -> None:
    few, more = (set(find_references(f"{good}", None, shots, seed=4).hashes["nut"]) for shots in (2, 5))
    assert few < more


def test_images_are_ordered_by_content_so_that_names_change_nothing(good) -> None:
    before = find_references(f"{good}/bottle", None).hashes
    (good / "bottle/0.png").rename(good / "bottle/z.png")
    assert find_references(f"{good}/bottle", None).hashes == before


def test_with_replacement_an_image_may_come_twice(good) -> None:
    found = find_references(f"{good}/bottle", None, 20, with_replacement=True)
    assert len(found.samples[""]) == 20
    assert len(set(names(found))) <= 6


def test_train_is_the_normal_training_images_of_the_categories_in_use(tmp_path) -> None:
    for category in ("bottle", "nut"):
        for number in range(3):
            write(tmp_path / f"mvtec/{category}/train/good/{number}.png", number)
        write(tmp_path / f"mvtec/{category}/test/good/0.png", 50)
    data = MVTecAD(root=str(tmp_path), category="nut", limit=1)
    found = find_references("train", data, 2, seed=3)
    assert list(found.samples) == ["nut"]
    assert all("/train/good/" in one.image for one in found.samples["nut"])
    whole = find_references("train", MVTecAD(root=str(tmp_path)), 2, seed=3)
    assert whole.hashes["nut"] == found.hashes["nut"]  # neither limit nor the other categories move the draw


def test_they_are_read_as_tested_images_are(good) -> None:
    found = find_references(f"{good}/bottle", None)
    (batch,) = found.batches("", 32)
    assert batch.image.shape == (6, 3, 32, 32)
    assert sorted(float(one.max() * 255) for one in batch.image) == pytest.approx(list(range(6)), abs=1e-3)
    assert [one.image.shape[2:] for one in found.batches("", 10, tile=True)] == [(10, 12)] * 6  # in their own shape


def test_references_that_are_tested_too_are_counted(good) -> None:
    found = find_references(f"{good}", None)
    one = found.samples["nut"][0]
    assert found.paths_among([one, one, found.samples["bottle"][0]]) == 2
    number = int.from_bytes(bytes.fromhex(found.hashes["nut"][0][:16]), "big", signed=True)
    assert found.among([number, 5]) == 1


def test_what_is_wrong_with_the_references_is_told(good, tmp_path) -> None:
    with pytest.raises(KanoclipError, match=r"6 reference images of bottle, and 7 are asked for.*shots 6"):
        find_references(f"{good}", None, 7)
    write(good / "stray.png", 1)
    with pytest.raises(KanoclipError, match=r"has images and folders of images \(bottle, nut\)"):
        find_references(f"{good}", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"No reference images in .*empty"):
        find_references(f"{tmp_path}/empty", None)
    with pytest.raises(KanoclipError, match="there is no data set here"):
        find_references("train", None)
    with pytest.raises(MissingError, match="surfaces has no normal training images of gear"):
        find_references("train", Surfaces(images=2, category="gear"))
