from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kanoclip.data.about import DamagedDataError
from kanoclip.data.base import Sample
from kanoclip.data.sets.manifest import Manifest
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, MissingError


@pytest.fixture
def images(write, mask) -> None:
    for name in ("a.png", "sub/b 1.png", "c.png"):
        write(name, 9)
    write("m1.png", mask)
    write("m2.png", np.rot90(mask, 2))


def manifest(tmp_path: Path, text: str, name: str = "list.csv", **kwargs) -> Manifest:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return Manifest(str(tmp_path / name), **{"image_size": 24, "num_workers": 0, **kwargs})


@pytest.mark.usefixtures("images")
def test_every_column_of_a_csv_is_read(tmp_path):
    text = (
        "\ufeffimage, label, mask,category,split,defect\n"
        "a.png,0,,disc,train,\n"
        "sub/b 1.png, Anomalous ,m1.png; m2.png,disc,test,hole\n"
        '"c.png",1,,,,\n'
    )
    root = str(tmp_path)
    assert manifest(tmp_path, text).samples() == [
        Sample(f"{root}/a.png", (), NORMAL, "disc", "good", "train"),
        Sample(f"{root}/sub/b 1.png", (f"{root}/m1.png", f"{root}/m2.png"), ANOMALOUS, "disc", "hole", "test"),
        Sample(f"{root}/c.png", (), ANOMALOUS, "object", "anomalous", "test"),
    ]


ROWS = [
    {"image": "a.png", "label": 0, "mask": None},
    {"image": "c.png", "label": True, "mask": ["m1.png", "m2.png"], "category": "disc"},
]


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("name", "text"),
    [("list.jsonl", "\n\n".join(map(json.dumps, ROWS))), ("list.json", json.dumps(ROWS, indent=1))],
)
def test_json_lines_and_a_json_list_are_read(tmp_path, name, text):
    root = str(tmp_path)
    assert manifest(tmp_path, text, name).samples() == [
        Sample(f"{root}/a.png", (), NORMAL, "object", "good", "test"),
        Sample(f"{root}/c.png", (f"{root}/m1.png", f"{root}/m2.png"), ANOMALOUS, "disc", "anomalous", "test"),
    ]


@pytest.mark.usefixtures("images")
def test_merged_masks_reach_the_batch(tmp_path):
    data = manifest(tmp_path, "image,label,mask\na.png,1,m1.png;m2.png\nc.png,0,\n")
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.mask.sum((1, 2)).tolist() == [2 * 36, 0]


@pytest.mark.usefixtures("images")
def test_mask_values_choose_labels(tmp_path, write):
    write("labels.png", np.repeat(np.arange(4, dtype=np.uint8), 192).reshape(24, 32))
    text = "image,label,mask\na.png,1,labels.png\n"
    data = manifest(tmp_path, text, mask_values=[2])
    assert int(data.read(data.samples()[0])[1].sum()) == 192
    assert int(manifest(tmp_path, text).read(data.samples()[0])[1].sum()) == 3 * 192


@pytest.mark.parametrize(
    ("word", "label"),
    [("0", 0), ("1", 1), ("1.0", 1), ("Good", 0), ("OK", 0), ("anomaly", 1), ("NG", 1), ("False", 0), ("", UNKNOWN)],
)
@pytest.mark.usefixtures("images")
def test_common_words_for_labels_are_known(tmp_path, word, label):
    assert manifest(tmp_path, f"image,label\na.png,{word}\n").samples()[0].label == label


@pytest.mark.usefixtures("images")
def test_paths_start_from_the_manifest_or_from_the_root_or_are_absolute(tmp_path):
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    text = f"image,label\na.png,0\n{tmp_path}/c.png,0\n"
    found = [Path(s.image).name for s in manifest(elsewhere, text, root=str(tmp_path)).samples()]
    assert found == ["a.png", "c.png"]
    with pytest.raises(DamagedDataError, match=r"row 1, column image: no file .*/lists/a\.png\..*set --data\.root"):
        manifest(elsewhere, text).samples()


@pytest.mark.usefixtures("images")
def test_a_manifest_may_be_named_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "list.csv").write_text("image,mask\na.png,\n")
    (sample,) = Manifest(f"{tmp_path.name}/list.csv").samples()
    assert Path(sample.image).resolve() == tmp_path / "a.png"


@pytest.mark.usefixtures("images")
def test_without_labels_only_predict_works(tmp_path):
    data = manifest(tmp_path, "image\na.png\n")
    data.setup("predict")
    with pytest.raises(ValueError, match=r"test needs labels, and .*a\.png has none\. Fill the column label in .*csv"):
        data.setup("test")


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,lable\na.png,1\n", r"list\.csv, header: unknown columns 'lable'\. Use these.*image, mask, label"),
        ("image;label\na.png;1\n", r"header: unknown columns 'image;label'.*separated by commas"),
        ("label\n1\n", r"header: there is no column image"),
        ("", r"header: there is no column image"),
        ("image,label\na.png,1,2\n", r"row 1: 1 values more than columns\. Put values that contain commas in quotes"),
        ("image,label\na.png,0\n ,1\n", r"list\.csv, row 2, column image: it is empty"),
        ("image,label\na.png,maybe\n", r"row 1, column label: 'maybe' is no label\. Write 0 or normal"),
        ("image,split\na.png,val\n", r"row 1, column split: 'val' is no split\. Write train or test"),
    ],
)
def test_a_wrong_csv_is_an_error_with_row_and_column(tmp_path, text, expected):
    with pytest.raises(DamagedDataError, match=expected):
        manifest(tmp_path, text).samples()


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"image": "a.png", "lable": 1}', r"row 1, column lable: unknown column\. Rename or remove it; known: image"),
        ('{"image": "a.png"}\n{"image": ', r"list\.jsonl, row 2: .*Write one json object a line"),
        ('[{"image": "a.png"},]', r"list\.jsonl, line 1: .*Correct the json"),
        ('"a.png"', r"row 1: expected an object such as \{\"image\": \.\.\.\}, found 'a\.png'"),
        ('{"image": ["a.png"]}', r"row 1, column image: expected one value, found \['a\.png'\]"),
        ('{"image": "a.png", "mask": {}}', r"row 1, column mask: expected one value, found \{\}"),
    ],
)
def test_wrong_json_is_an_error_with_its_place(tmp_path, text, expected):
    with pytest.raises(DamagedDataError, match=expected):
        manifest(tmp_path, text, "list.jsonl").samples()


@pytest.mark.usefixtures("images")
def test_a_missing_mask_is_an_error_with_row_and_column(tmp_path):
    with pytest.raises(
        DamagedDataError, match=r"list\.csv, row 1, column mask: no file .*/gone\.png\. Correct the path"
    ):
        manifest(tmp_path, "image,label,mask\na.png,1,m1.png;gone.png\n").samples()


def test_a_missing_manifest_or_one_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(MissingError, match=r"No manifest .*gone\.csv\. Set --data\.file"):
        Manifest(str(tmp_path / "gone.csv")).samples()
    with pytest.raises(ValueError, match=r"list\.xlsx is neither \.csv, \.json nor \.jsonl\. Rename or convert it"):
        manifest(tmp_path, "", "list.xlsx").samples()


def test_a_manifest_that_is_not_utf_8_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_bytes("image\nTür.png\n".encode("cp1252"))
    with pytest.raises(DamagedDataError, match=r"a\.csv is not UTF-8 text.*Save it as UTF-8"):
        Manifest(file=str(tmp_path / "a.csv")).samples()


def test_the_identity_tells_manifests_apart(tmp_path):
    assert manifest(tmp_path, "").identity == f"manifest {(tmp_path / 'list.csv').resolve()}"
