import json

import cv2
import numpy as np
import pytest

from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs import coco
from kanoclip.outputs.coco import append_regions, polygon, write_regions
from kanoclip.outputs.finding import finding

THRESHOLD = Threshold(0.5, 0.5)


def blobs(seed, height=120, width=160):
    """A smooth map with some regions, with holes among them."""
    scores = cv2.GaussianBlur(np.random.default_rng(seed).random((height, width), np.float32), (0, 0), 6)
    return (scores - scores.min()) / np.ptp(scores)


def found(path, scores, threshold=THRESHOLD):
    return finding(scores, float(scores.max()), scores.shape, path, "ring", threshold)


@pytest.fixture
def read_back(tmp_path):
    """Write findings, and read them as a tool would."""

    def read(*findings):
        append_regions(tmp_path / "regions.jsonl", findings)
        write_regions(tmp_path, [tmp_path / "regions.jsonl"], {one.path: i for i, one in enumerate(findings)})
        return pytest.importorskip("pycocotools.coco").COCO(tmp_path / "annotations.json")

    return read


def test_a_labelling_tool_reads_the_same_regions(read_back):
    findings = [found(f"d/{seed}.png", blobs(seed)) for seed in range(8)]
    read = read_back(*findings, found("d/good.png", np.zeros((10, 20), np.float32)))
    assert any(region.holes for one in findings for region in one.regions)
    assert [image["file_name"] for image in read.dataset["images"]] == [*(f"{i}.png" for i in range(8)), "good.png"]
    assert (read.imgs[9]["height"], read.imgs[9]["width"], read.imgs[9]["decision"]) == (10, 20, "good")
    assert read.getAnnIds(imgIds=[9]) == []
    for number, one in enumerate(findings, 1):
        annotations = read.loadAnns(read.getAnnIds(imgIds=[number]))
        assert [a["bbox"] for a in annotations] == [list(region.box) for region in one.regions]
        assert [a["area"] for a in annotations] == [region.area for region in one.regions]
        assert [a["score"] for a in annotations] == pytest.approx([region.peak for region in one.regions], abs=1e-5)
        drawn = sum(read.annToMask(annotation).astype(int) for annotation in annotations)
        above = one.anomaly_map > 0.5
        assert abs(int(drawn.sum()) - int(above.sum())) < 0.02 * above.sum()
        padded = np.pad(above, 2).astype(np.uint8)
        near = cv2.morphologyEx(padded, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))[2:-2, 2:-2]
        assert (near[(drawn > 0) != above] > 0).all()  # only what lies less than two pixels from the border moved


def test_exact_borders_with_holes_are_one_polygon(monkeypatch, read_back):
    monkeypatch.setattr(coco, "MANY", 10**9)
    findings = [found(f"{seed}.png", blobs(seed)) for seed in range(8)]
    read = read_back(*findings)
    for number, one in enumerate(findings, 1):
        drawn = sum(read.annToMask(a).astype(int) for a in read.loadAnns(read.getAnnIds(imgIds=[number])))
        assert np.array_equal(drawn, one.anomaly_map > 0.5)


def test_the_way_to_a_hole_leads_back_over_itself():
    square, hole = [[0, 0], [0, 9], [9, 9], [9, 0]], [[8, 8], [8, 7], [7, 7], [7, 8]]
    assert polygon(square) == [0, 0, 0, 9, 9, 9, 9, 0]
    assert polygon(square, [hole]) == [0, 0, 0, 9, 9, 9, 8, 8, 8, 7, 7, 7, 7, 8, 8, 8, 9, 9, 9, 0]


def test_a_border_of_a_large_region_has_few_corners(tmp_path):
    scores = np.zeros((2000, 2000), np.float32)
    cv2.circle(scores, (1000, 1000), 700, 1, -1)
    append_regions(tmp_path / "rows", [found("a.png", scores)])
    (region,) = json.loads((tmp_path / "rows").read_text())["regions"]
    assert 20 < len(region["contour"]) < 150


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines() if line]


def test_rows_of_several_processes_come_in_the_order_of_the_data_each_once(tmp_path):
    empty = np.zeros((4, 4), np.float32)
    parts = [tmp_path / f"regions-{i}.jsonl" for i in range(3)]  # the third has no rows yet
    append_regions(parts[0], [found("a", empty), found("c", empty)])
    append_regions(parts[1], [found("b", empty)])
    with parts[1].open("a") as file:
        file.write('{"path": "c", "cat')  # a process was killed while it wrote
    append_regions(parts[1], [found("d", empty), found("b", empty)])
    append_regions(parts[1], [found("of an image that is gone", empty)])
    write_regions(tmp_path, parts, {path: place for place, path in enumerate("dcba")})
    assert [row["path"] for row in rows(tmp_path / "regions.jsonl")] == ["d", "c", "b", "a", "of an image that is gone"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "regions.jsonl"]


def test_rows_can_be_added_to_what_was_finished(tmp_path):
    file, empty = tmp_path / "regions.jsonl", np.zeros((4, 4), np.float32)
    for path in "ab":
        append_regions(file, [found(path, empty)])
        write_regions(tmp_path, [file], {"a": 0, "b": 1})
    assert [row["path"] for row in rows(file)] == ["a", "b"]
    assert file.read_text().count("\n") == 2
    assert len(json.loads((tmp_path / "annotations.json").read_text())["images"]) == 2


def test_photos_are_named_from_the_folder_they_share(read_back):
    scores = np.zeros((4, 4), np.float32)
    paths = ["/data/ring/good/ä.png", "/data/ring/hole/\udcfc.png", "/data/rings/1.png"]
    read = read_back(*(found(path, scores) for path in paths))
    assert read.dataset["info"]["folder"] == "/data"
    names = [image["file_name"] for image in read.dataset["images"]]
    assert names == ["ring/good/ä.png", "ring/hole/\udcfc.png", "rings/1.png"]


def test_without_photos_there_is_an_empty_file(tmp_path):
    write_regions(tmp_path, [tmp_path / "regions.jsonl"], {})
    read = json.loads((tmp_path / "annotations.json").read_text())
    assert (read["images"], read["annotations"]) == ([], [])
    assert (tmp_path / "regions.jsonl").read_text() == ""
