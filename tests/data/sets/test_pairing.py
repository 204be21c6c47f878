from __future__ import annotations

from pathlib import Path

import pytest

from kanoclip.data.about import DamagedDataError
from kanoclip.data.sets.pairing import list_images, name_of, pair_masks


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_are_found_sorted_in_any_case_and_hidden_or_other_files_are_left_out(tmp_path):
    touch(tmp_path, "b.PNG", "a/c.JPeG", "a/x.txt", "._b.png", ".cache/d.png", "Thumbs.db", "1 no.bmp", "z.TIF")
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        "1 no.bmp",
        "a/c.JPeG",
        "b.PNG",
        "z.TIF",
    ]


def test_a_folder_that_is_not_there_has_no_images(tmp_path):
    assert list_images(tmp_path / "missing") == []


def test_images_below_linked_folders_are_found_once_and_links_in_a_circle_end(tmp_path):
    touch(tmp_path / "elsewhere", "2.png", "deep/3.png")
    touch(tmp_path / "root", "1.png")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "gone.png").symlink_to("nowhere.png")
    found = [path.relative_to(tmp_path / "root").as_posix() for path in list_images(tmp_path / "root")]
    assert found == ["1.png", "gone.png", "linked/2.png", "linked/deep/3.png"]  # reading tells of a link to nothing


def test_only_the_suffix_is_taken_off_a_name():
    assert name_of(Path("/r/scratch/img.v2.png"), Path("/r")) == "scratch/img.v2"


@pytest.mark.parametrize(
    "mask",
    [
        "scratch/007.png",
        "scratch/007.bmp",
        "scratch/007_mask.PNG",
        "scratch/007_GT.png",
        "scratch/007_label.tif",
        "scratch/007_Segmentation.png",
        "scratch/007-mask.png",
        "scratch/007.mat",
        "scratch/007.npy",
        "scratch/007/000.png",
    ],
)
def test_every_published_spelling_of_a_mask_is_paired(tmp_path, mask):
    touch(tmp_path, mask)
    image = Path("/images/scratch/007.jpg")
    assert pair_masks({"scratch/007": [image]}, tmp_path) == {image: (str(tmp_path / mask),)}


def test_all_masks_in_the_folder_of_an_image_belong_to_it(tmp_path):
    touch(tmp_path, "logical/000.v1/000.png", "logical/000.v1/001.png")
    pairs = pair_masks({"logical/000.v1": [Path("i.png")]}, tmp_path)
    assert [Path(mask).name for mask in pairs[Path("i.png")]] == ["000.png", "001.png"]


def test_an_image_whose_own_name_ends_in_mask_is_paired_exactly(tmp_path):
    touch(tmp_path, "a_mask.png")
    images = {"a": [Path("a.png")], "a_mask": [Path("a_mask.png")]}
    assert list(pair_masks(images, tmp_path)) == [Path("a_mask.png")]


def test_names_decide_and_not_order(tmp_path):
    touch(tmp_path, "002_mask.png", "003_mask.png")
    images = {name: [Path(f"{name}.png")] for name in ("001", "002", "003")}
    pairs = pair_masks(images, tmp_path)
    assert {image.stem: Path(masks[0]).stem for image, masks in pairs.items()} == {"002": "002_mask", "003": "003_mask"}


def test_a_mask_without_an_image_is_an_error(tmp_path):
    touch(tmp_path, "hole/1_mask.png", "hole/2_mask.png")
    expected = r"No image for the mask .*hole/1_mask\.png: expected one named hole/1 .*\(2 such masks\)\. Add the image"
    with pytest.raises(DamagedDataError, match=expected):
        pair_masks({}, tmp_path)


def test_a_mask_that_fits_two_images_is_an_error(tmp_path):
    touch(tmp_path, "1.png")
    with pytest.raises(DamagedDataError, match=r"1\.png fits 2 images: a/1\.png, b/1\.png\. Rename one"):
        pair_masks({"1": [Path("a/1.png"), Path("b/1.png")]}, tmp_path)
