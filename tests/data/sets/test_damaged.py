"""A data set that is there but wrong is an error of its own kind; one that is not there at all is a MissingError."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import IMAGE, LAYOUTS, MASK, write

from kanoclip.data.about import DamagedDataError
from kanoclip.registry import NAMES, load_class
from kanoclip.types import KanoclipError, MissingError

JSONS = "real_iad/realiad_jsons/realiad_jsons/audiojack.json"
NOT_UTF8 = "\udce9"
DAMAGED = {  # name -> (change of its files, what is told); None deletes a file
    "a mask without an image": ("mpdd", {"mpdd/cat/ground_truth/bad/009.png": MASK}, "No image for the mask"),
    "a mask of two images": ("mpdd", {"mpdd/cat/test/bad/000.jpg": IMAGE}, "000.png fits 2 images"),
    "no image of an entry of visa": ("visa", {"visa/candle/Data/Images/Normal/0001.JPG": None}, "row 2: no file"),
    "no mask of an entry of visa": ("visa", {"visa/candle/Data/Masks/Anomaly/000.png": None}, "row 3: no file"),
    "another header of visa": ("visa", {"visa/split_csv/1cls.csv": "object,split\n"}, "header: no column label"),
    "a split of visa that is no text": ("visa", {"visa/split_csv/1cls.csv": NOT_UTF8}, "is not UTF-8 text"),
    "no split of visa": ("visa", {"visa/split_csv/1cls.csv": None}, "No split 1cls of VisA"),
    "no json of real_iad": ("real_iad", {JSONS: None}, "expected realiad_1024/ and"),
    "a cut json of real_iad": ("real_iad", {JSONS: "{"}, "line 1: Expecting property name"),
    "another json of real_iad": ("real_iad", {JSONS: "{}"}, "is not a split of Real-IAD"),
    "no labels of headct": ("headct", {"headct/labels.csv": None}, "No labels.csv"),
    "no image of a label of headct": ("headct", {"headct/head_ct/head_ct/001.png": None}, "row 2: no image 001"),
    "a wrong row of headct": ("headct", {"headct/labels.csv": "id, hemorrhage\n0,yes\n"}, "row 1: expected an id"),
    "labels of headct that are no text": ("headct", {"headct/labels.csv": NOT_UTF8}, "is not UTF-8 text"),
    "no labels of elpv": ("elpv", {"elpv/labels.csv": None}, "ELPV's labels are in it"),
    "no image of a label of elpv": ("elpv", {"elpv/images/cell0003.png": None}, "row 3: no file"),
    "a wrong row of elpv": ("elpv", {"elpv/labels.csv": "images/cell0001.png 1.0\n"}, "row 1: expected path"),
    "no list of deeppcb": ("deeppcb", {"deeppcb/PCBData/test.txt": None}, "No test.txt"),
    "boxes of deeppcb without an image": (
        "deeppcb", {"deeppcb/PCBData/group00041/00041_not/00041009.txt": "0 0 8 6 1\n"}, "No image for the mask",
    ),
    "no image of an entry of meta_json": ("meta_json", {"bottle/test/bad/000.png": None}, "entry 2: no file"),
    "an entry of meta_json without a path": (
        "meta_json", {"meta.json": '{"test": {"bottle": [{"anomaly": 0}]}}'}, "entry 1: expected img_path",
    ),
}  # fmt: skip


def made(name: str, root: Path):
    return load_class(NAMES["data"][name])(root=str(root), image_size=24, num_workers=0, **LAYOUTS[name].options)


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_there_but_wrong_is_damaged_and_not_missing(damage, tmp_path):
    name, change, told = DAMAGED[damage]
    write(tmp_path, LAYOUTS[name].files)
    for path, content in change.items():
        if content is None:
            (tmp_path / path).unlink()
        elif content == NOT_UTF8:
            (tmp_path / path).write_bytes(b"\xe9")
        else:
            write(tmp_path, {path: content})
    with pytest.raises(DamagedDataError) as caught:
        made(name, tmp_path).index()
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not isinstance(caught.value, OSError)  # or it would be taken for a file that is not there


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_there_is_missing_and_not_damaged(name, tmp_path):
    (tmp_path / name).mkdir()
    for root in (tmp_path, tmp_path / name, tmp_path / "nowhere"):
        with pytest.raises(MissingError) as caught:
            made(name, root).index()
        assert not isinstance(caught.value, DamagedDataError)


def test_both_are_mistakes_that_a_user_can_mend():
    assert issubclass(DamagedDataError, KanoclipError)
    assert issubclass(MissingError, KanoclipError)
    assert not issubclass(DamagedDataError, MissingError)
    assert not issubclass(MissingError, DamagedDataError)
