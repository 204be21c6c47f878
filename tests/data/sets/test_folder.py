from __future__ import annotations

import os
from pathlib import Path

import cv2
import pytest
from PIL import Image

from kanoclip.data.about import DamagedDataError
from kanoclip.data.formats import IMAGE_SUFFIXES
from kanoclip.data.sets import pairing
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


def names_of(data: Folder) -> dict[str, int]:
    return {Path(s.image).relative_to(data.root).as_posix(): s.label for s in data.samples()}


@pytest.mark.parametrize(
    ("normal", "abnormal", "masks"),
    [
        ("Normal", "Abnormal", "Masks"),
        ("good", "bad", "ground_truth"),
        ("OK", "NOK", "GroundTruth"),
        ("ok", "ng", "Ground Truth"),
        ("NORMAL", "defect", "gt"),
        ("normal", "Anomalous", "mask"),
    ],
)
def test_other_usual_names_of_the_folders_are_understood(normal, abnormal, masks, write, tmp_path):
    for name in (f"{normal}/1.png", f"{abnormal}/2.png", f"{masks}/2.png"):
        write(name)
    data = module(tmp_path)
    assert names_of(data) == {f"{normal}/1.png": NORMAL, f"{abnormal}/2.png": ANOMALOUS}
    assert masks_of(data)[f"{abnormal}/2.png"] == [f"{masks}/2.png"]
    assert data.left_out == []


def test_good_beside_kinds_of_defect_is_no_label_but_the_reader_that_fits_is_named(write, tmp_path):
    for name in ("set/train/good/0.png", "set/test/good/1.png", "set/test/hole/2.png", "set/ground_truth/hole/2.png"):
        write(name)
    for root in (tmp_path / "set", tmp_path / "set/test"):
        data = module(root)
        assert set(names_of(data).values()) == {UNKNOWN}
        assert not any("ground_truth" in name for name in names_of(data))  # masks are no photos
        reader = f"--data mvtec --data.root {tmp_path / 'set'}"
        with pytest.raises(ValueError, match=f"needs labels.*{reader}"):
            data.setup("test")
        assert data.notes()[-1].endswith(reader)
    write("Kvasir-SEG/images/a.png")
    assert module(tmp_path / "Kvasir-SEG").notes()[-1].endswith(f"--data kvasir --data.root {tmp_path / 'Kvasir-SEG'}")


def test_a_two_valued_image_beside_a_photo_of_its_name_is_a_mask(write, picture, mask, tmp_path):
    smooth = cv2.GaussianBlur(mask, (3, 3), 0)  # as published masks often are
    write("MT_Free/a.jpg", picture)
    write("MT_Free/a.png", mask * 0)
    write("MT_Crack/b.jpg", picture)
    write("MT_Crack/b.png", smooth)
    write("c.png", picture)
    write("c_mask.png", mask)
    for name in ("d.jpg", "d.png"):  # two photos
        write(name, picture)
    write("e.png", mask)  # alone it may be anything
    data = module(tmp_path)
    assert list(names_of(data)) == ["MT_Crack/b.jpg", "MT_Free/a.jpg", "c.png", "d.jpg", "d.png", "e.png"]
    assert [Path(path).name for path, why in data.left_out if "a mask" in why] == ["b.png", "a.png", "c_mask.png"]
    assert len(module(tmp_path, masks=None).samples()) == 9


def test_only_files_that_share_their_name_are_opened_to_look_for_masks(write, tmp_path, monkeypatch):
    write("a.jpg")
    for name in ("b.jpg", "b.png"):
        write(name)
    opened = []
    monkeypatch.setattr(pairing, "_is_two_valued", lambda path: opened.append(Path(path).name))
    module(tmp_path).samples()
    assert sorted(opened) == ["b.jpg", "b.png"]


def test_every_format_with_a_decoder_is_read_and_others_are_told_with_the_remedy(write, picture, tmp_path):
    write("normal/0.png")
    (tmp_path / "abnormal").mkdir()
    for suffix, kind in ((".gif", "GIF"), (".jfif", "JPEG"), (".jp2", "JPEG2000"), (".avif", "AVIF")):
        if suffix in IMAGE_SUFFIXES:
            Image.fromarray(picture).save(tmp_path / f"abnormal/1{suffix}", format=kind)
    (tmp_path / "abnormal/2.psd").touch()
    data = module(tmp_path)
    assert [path.suffix for path in map(Path, names_of(data))][1:] == [
        suffix for suffix in (".avif", ".gif", ".jfif", ".jp2") if suffix in IMAGE_SUFFIXES
    ]
    assert all(data.read(sample)[0].shape == (24, 32, 3) for sample in data.samples())
    (left_out,) = data.left_out
    assert left_out[0] == str(tmp_path / "abnormal/2.psd")
    assert "convert it to PNG" in left_out[1]
    assert data.notes() == [f"left out {left_out[0]}: {left_out[1]}"]


def test_a_folder_of_unreadable_formats_alone_says_so(tmp_path):
    (tmp_path / "a.psd").touch()
    with pytest.raises(MissingError, match=r"Left out .*a\.psd: .* convert it to PNG\. Set --data\.root"):
        module(tmp_path).samples()


def test_a_link_to_nothing_is_skipped_and_told(write, tmp_path):
    write("normal/1.png")
    (tmp_path / "normal/2.png").symlink_to("gone.png")
    data = module(tmp_path)
    data.setup("test")
    assert [len(batch.path) for batch in data.test_dataloader()] == [1]
    assert data.unreadable == [(str(tmp_path / "normal/2.png"), "there is no such file. Check the path.")]


def test_a_root_may_be_relative_where_files_share_a_name(write, picture, mask, tmp_path, monkeypatch):
    for name, pixels in (("d/x.jpg", picture), ("d/x.png", mask), ("d/more/y.jpg", picture), ("d/more/y.png", picture)):
        write(name, pixels)
    for folder, root in ((tmp_path, "d"), (tmp_path / "d", "."), (tmp_path / "d/more", ".."), (tmp_path, "./d/../d")):
        monkeypatch.chdir(folder)
        data = module(root)
        assert [Path(sample.image).name for sample in data.samples()] == ["y.jpg", "y.png", "x.jpg"]
        assert [path for path, _ in data.left_out] == [str(Path(root) / "x.png")]


def test_masks_in_a_folder_beside_the_photos_are_no_photos(write, picture, mask, tmp_path):
    photos = ["images/a/X.JPG", "images/b/0.jpg", "side/1.png", "top/1.png"]  # two photos may share a number
    for name in photos:
        write(name, picture)
    masks = ["annotations/a/x.png", "annotations/b/0.png"]
    for name in (*masks, "annotations/a/alone.png"):
        write(name, mask)
    data = module(tmp_path)
    assert sorted(names_of(data)) == ["annotations/a/alone.png", *photos]
    assert [path for path, why in data.left_out if "a mask." in why] == [str(tmp_path / name) for name in masks]
    assert len(module(tmp_path, masks=None).samples()) == 7


def test_of_folders_of_photos_that_share_their_numbers_a_few_are_opened(write, tmp_path, monkeypatch):
    for folder in ("good", "bad"):
        for number in range(20):
            write(f"{folder}/{number}.png")
    opened = []
    monkeypatch.setattr(pairing, "_is_two_valued", lambda path: bool(opened.append(path)))
    assert pairing.masks_beside(pairing.list_images(tmp_path), tmp_path) == set()
    assert len(opened) == 2 * pairing.LOOKED_AT


def test_what_kanoclip_has_drawn_is_no_photo(write, tmp_path):
    run, test = "runs/predict/local_stats/folder-d/version_0", "runs/test/m/d/version_0"
    drawn = f"{run}/maps/a.png", f"{run}/overlays/a.png", f"{run}/report/5c/a.jpg", f"{test}/overlays/b.png"
    for name in (*drawn, "runs/data/folder.png"):
        write(name)
    for name in ("a.png", "maps/1.png", "runs/data/mine.png"):
        write(name)
    (tmp_path / run / "predictions.csv").touch()
    (tmp_path / test / "results.json").touch()
    data = module(tmp_path)
    assert list(names_of(data)) == ["a.png", "maps/1.png", "runs/data/mine.png"]
    (note,) = data.notes()
    assert note.startswith(f"left out {tmp_path / run}/maps, {tmp_path / run}/overlays, {tmp_path / run}/report and ")
    assert note.endswith("made by kanoclip: maps, overlays, a report or a sheet")
    write("normal/1.png")
    assert list(names_of(data)) == ["normal/1.png"]
    assert f"{tmp_path}/runs: in no folder named normal or abnormal (1 image)" in " ".join(
        map(": ".join, data.left_out)
    )


def test_what_is_no_file_is_told(write, tmp_path):
    write("a.png")
    os.mkfifo(tmp_path / "p.png")
    data = module(tmp_path)
    assert list(names_of(data)) == ["a.png"]
    assert data.left_out == [(str(tmp_path / "p.png"), "neither a file nor a folder, but a pipe, a socket or a device")]
