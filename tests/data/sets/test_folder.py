from __future__ import annotations

from pathlib import Path

import pytest

from kanoclip.data.about import DamagedDataError
from kanoclip.data.sets.folder import Folder
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, MissingError


def module(root: Path, **kwargs) -> Folder:
    return Folder(root=str(root), **{"image_size": 24, "num_workers": 0, **kwargs})


def masks_of(data: Folder) -> dict[str, list[str]]:
    root = Path(data.root)
    return {
        Path(s.image).relative_to(root).as_posix(): [Path(mask).relative_to(root).as_posix() for mask in s.masks]
        for s in data.samples()
    }


def test_images_in_folders_of_other_names_are_told(write, tmp_path, caplog):
    write("normal/1.png")
    data = module(tmp_path)
    data.setup("test")
    assert (len(data.index()), data.left_out, caplog.text) == (1, [], "")
    for name in ("other/1.png", "other/deep/2.png", "3.png"):
        write(name)
    data = module(tmp_path)
    data.setup("test")
    assert len(data.index()) == 1
    remedy = "To use it: --data.normal, --data.abnormal"
    why = f"in no folder named normal or abnormal (1 image). {remedy}"
    assert data.left_out == [
        (str(tmp_path / "3.png"), why),
        (str(tmp_path / "other"), why.replace("1 image", "2 images")),
    ]
    assert f"left out {tmp_path / 'other'}: in no folder named normal or abnormal (2 images). {remedy}" in caplog.text


def test_images_and_masks_may_be_links(write, tmp_path, caplog):
    root = tmp_path / "data"
    for name in ("normal/1.png", "abnormal/2.png", "masks/2.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).symlink_to(write(f"store/{name}"))
    assert masks_of(module(root)) == {"normal/1.png": [], "abnormal/2.png": ["masks/2.png"]}
    assert not caplog.text
    for name in ("normal/1.png", "abnormal/2.png"):
        (root / name).rename(root / Path(name).name)
        (root / name).parent.rmdir()
    assert masks_of(module(root)) == {"1.png": [], "2.png": []}


def test_whole_folders_below_may_be_links(write, tmp_path):
    for name in ("normal/1.png", "store/scratch/2.png", "store/gt/2.png"):
        write(name)
    for link, target in (("abnormal/scratch", "scratch"), ("masks/scratch", "gt")):
        (tmp_path / link).parent.mkdir()
        (tmp_path / link).symlink_to(tmp_path / "store" / target)
    assert masks_of(module(tmp_path)) == {"normal/1.png": [], "abnormal/scratch/2.png": ["masks/scratch/2.png"]}


def test_folders_give_labels_defects_and_masks(write, tmp_path):
    for name in ("normal/1.png", "normal/deep/2.JPG", "abnormal/1.png", "abnormal/scratch/7.jpg", "abnormal/8.bmp"):
        write(name)
    write("masks/1.png")
    write("masks/scratch/7_mask.png")
    assert [(Path(s.image).name, s.label, s.defect, s.category) for s in module(tmp_path).samples()] == [
        ("1.png", NORMAL, "good", "object"),
        ("2.JPG", NORMAL, "good", "object"),
        ("1.png", ANOMALOUS, "abnormal", "object"),
        ("8.bmp", ANOMALOUS, "abnormal", "object"),
        ("7.jpg", ANOMALOUS, "scratch", "object"),
    ]
    assert masks_of(module(tmp_path)) == {
        "normal/1.png": [],
        "normal/deep/2.JPG": [],
        "abnormal/1.png": ["masks/1.png"],
        "abnormal/8.bmp": [],
        "abnormal/scratch/7.jpg": ["masks/scratch/7_mask.png"],
    }


def test_several_folders_of_each_kind_may_share_numbers(write, tmp_path):
    for name in ("ok/1.png", "fine/1.png", "dent/1.png", "hole/1.png", "gt/dent/1.png", "gt/hole/1.png"):
        write(name)
    data = module(tmp_path, normal=["ok", "fine"], abnormal=["dent", "hole"], masks="gt", category_name="door")
    assert {k: v for k, v in masks_of(data).items() if v} == {
        "dent/1.png": ["gt/dent/1.png"],
        "hole/1.png": ["gt/hole/1.png"],
    }
    assert data.categories == ["door"]
    assert [s.defect for s in data.samples()] == ["good", "good", "dent", "hole"]


def test_a_mask_that_fits_two_anomalous_images_is_an_error(write, tmp_path):
    for name in ("dent/1.png", "hole/1.png", "masks/1.png"):
        write(name)
    with pytest.raises(DamagedDataError, match=r"masks/1\.png fits 2 images: .*sub-folder"):
        module(tmp_path, abnormal=["dent", "hole"]).setup("test")


def test_masks_of_normal_images_are_known_but_not_read(write, tmp_path):
    for name in ("normal/1.png", "abnormal/2.png", "masks/1.png", "masks/2.png"):
        write(name)
    assert masks_of(module(tmp_path)) == {"normal/1.png": [], "abnormal/2.png": ["masks/2.png"]}


def test_a_mask_without_an_image_is_an_error(write, tmp_path):
    write("abnormal/1.png")
    write("masks/2.png")
    with pytest.raises(DamagedDataError, match=r"No image for the mask .*masks/2\.png"):
        module(tmp_path).setup("test")
    assert len(module(tmp_path, masks=None).samples()) == 1


def test_only_abnormal_images_are_enough(write, tmp_path):
    write("abnormal/1.png")
    data = module(tmp_path)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert (batch.label.tolist(), batch.has_mask.tolist()) == ([ANOMALOUS], [False])


def test_without_a_layout_all_images_are_taken_for_predict(write, tmp_path):
    for name in ("a.png", "line 1/ä.jpg", "line 1/masks/b.png", "masks/a.png"):
        write(name)
    data = module(tmp_path)
    data.setup("predict")
    assert [(Path(s.image).relative_to(tmp_path).as_posix(), s.label) for s in data.part("predict")] == [
        ("a.png", UNKNOWN),
        ("line 1/ä.jpg", UNKNOWN),
    ]
    why = "a folder of masks, by its name (1 file). As images: --data.masks null"
    assert data.left_out == [(str(tmp_path / place), why) for place in ("line 1/masks", "masks")]
    assert len(module(tmp_path, masks=None).samples()) == 4
    with pytest.raises(
        ValueError, match=r"fit needs labels, and .*a\.png has none\. Sort the images into .*/normal and"
    ):
        data.setup("fit")


def test_the_root_may_be_one_image(write):
    path = write("a.png", 51)
    data = module(Path(path))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch.path == [path]
    assert float(batch.image.mean()) == pytest.approx(0.2)


def test_a_missing_root_is_an_error(tmp_path):
    with pytest.raises(MissingError, match=r"No folder .*/gone\. Set --data\.root to the folder of your images"):
        module(tmp_path / "gone").setup("predict")


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(MissingError, match=r"No images in .*: looked for \.png, .*\.jpg.*Set --data\.root"):
        module(tmp_path).setup("predict")


def test_empty_normal_and_abnormal_folders_are_an_error(tmp_path):
    (tmp_path / "normal").mkdir()
    with pytest.raises(ValueError, match=r"No images in .*\. Check --data\.root"):
        module(tmp_path).setup("test")


@pytest.mark.parametrize("option", ["normal", "abnormal", "masks"])
def test_a_named_folder_that_is_missing_is_an_error(write, tmp_path, option):
    write("abnormal/1.png")
    with pytest.raises(DamagedDataError, match=rf"No folder .*/gone\. Set --data\.{option} to a folder below"):
        module(tmp_path, **{option: "gone"}).setup("test")


def test_the_identity_tells_folders_apart(tmp_path, monkeypatch):
    assert module(tmp_path).identity == f"folder {tmp_path.resolve()}"
    monkeypatch.chdir(tmp_path)
    assert module(Path(".")).identity == module(tmp_path).identity
