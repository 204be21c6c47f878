"""Lists as strangers write them: what is too long or too deep ends in one line, what is merely unusual is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import LAYOUTS
from layouts import write as write_layout

from kanoclip.data.about import DamagedDataError
from kanoclip.data.sets.head import HeadCT
from kanoclip.data.sets.inspection import ELPV
from kanoclip.data.sets.manifest import Manifest
from kanoclip.data.sets.meta_json import MetaJson
from kanoclip.registry import NAMES, load_class
from kanoclip.types import ANOMALOUS, KanoclipError, MissingError

DEEP, LONG = "[" * 200_000, "a" * 300
NESTED = "[" * 400 + "]" * 400


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("l.csv", f"image,label\n{'a' * 200_000},1\n", "field larger than field limit"),
        (
            "l.csv",
            'image,label\na.png,1\na.png,"' + "1,b\n" * 50_000,
            r'line 3: .*A quote \("\) is probably never closed',
        ),
        ("l.csv", f"image,label\n{LONG}.png,1\n", "row 1, column image: no file"),
        ("l.csv", f"image,label\na.png,{'x' * 100_000}\n", r"row 1, column label: 'xx.*\.\.\..*' is no label"),
        ("l.csv", f"image,{'x' * 100_000}\n", "header: unknown columns"),
        ("l.json", DEEP, "brackets are nested too deep"),
        ("l.jsonl", f'{{"image": "a.png"}}\n{DEEP}', "row 2: brackets are nested too deep"),
        ("l.jsonl", f'{{"image": {NESTED}}}', "row 1, column image: expected one value"),
        ("l.jsonl", f'{{"image": "a.png", "mask": {NESTED}}}', "row 1, column mask: expected one value"),
        ("l.jsonl", f'{{"image": "a.png", "label": {"9" * 5000}}}', "row 1: a number has thousands of digits"),
        ("l.jsonl", '{"image": "a\\u0000.png"}', "row 1, column image: no file"),
        ("l.jsonl", f'{{"{LONG * 1000}": 1}}', "unknown column"),
    ],
)
def test_a_hostile_manifest_ends_in_one_short_line(name, text, told, write, tmp_path):
    write("a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(DamagedDataError, match=told) as caught:
        Manifest(str(tmp_path / name)).samples()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "test",
    [
        DEEP,
        "9" * 5000,
        f'{{"bottle": [{NESTED}]}}',
        json.dumps({"bottle": [{"img_path": LONG, "anomaly": 1}]}),
        json.dumps({"bottle": [{"img_path": "a.png", "anomaly": 1, "specie_name": ["x"]}]}),
        json.dumps({"bottle": [{"img_path": "a.png", "anomaly": 1, "mask_path": ["x"]}]}),
        json.dumps({LONG * 1000: [1]}),
    ],
)
def test_a_hostile_meta_json_ends_in_one_short_line(test, write, tmp_path):
    write("a.png")
    (tmp_path / "meta.json").write_text(f'{{"test": {test}}}')
    with pytest.raises(DamagedDataError, match=r"^\S+meta\.json[^\n]+$") as caught:
        MetaJson(root=str(tmp_path)).samples()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["image,label\nb\u2028c.png,1\n", '{"image": "b\u2028c.png", "label": 1}\n'])
def test_a_line_ends_at_a_line_feed_and_not_at_its_like(text, write, tmp_path):
    path = write("b\u2028c.png")
    file = tmp_path / ("l.csv" if text.startswith("image") else "l.jsonl")
    file.write_text(text, encoding="utf-8")
    (sample,) = Manifest(str(file)).samples()
    assert (sample.image, sample.label) == (path, ANOMALOUS)


@pytest.mark.parametrize(
    ("kind", "file", "row"),
    [
        (HeadCT, "headct/labels.csv", f"{'9' * 5000},1\n"),
        (HeadCT, "headct/labels.csv", f"{'9' * 200_000},1\n"),
        (HeadCT, "headct/labels.csv", "\u00b2,1\n"),
        (ELPV, "elpv/labels.csv", f"images/{LONG}.png 1.0 mono\n"),
        (ELPV, "elpv/labels.csv", f"{'x' * 100_000}\n"),
    ],
)
def test_a_hostile_row_of_a_published_list_is_told(kind, file, row, tmp_path):
    write_layout(tmp_path, LAYOUTS[kind.name].files)
    path = tmp_path / file
    path.write_text(path.read_text() + row, encoding="utf-8")
    with pytest.raises(DamagedDataError, match=r"labels\.csv, (row|line) \d") as caught:
        kind(root=str(tmp_path)).samples()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["folder", "mvtec", "real_iad", "meta_json", "visa"])
def test_a_root_that_no_disk_can_hold_is_not_there(kind):
    with pytest.raises(MissingError) as caught:
        load_class(NAMES["data"][kind])(root=LONG).index()
    assert isinstance(caught.value, KanoclipError)


def test_labels_of_a_manifest_name_the_defect_where_no_column_does(write, tmp_path):
    write("a.png")
    Path(tmp_path / "l.csv").write_text("image,label\na.png,1\na.png,0\na.png,\n")
    assert [s.defect for s in Manifest(str(tmp_path / "l.csv")).samples()] == ["anomalous", "good", ""]
