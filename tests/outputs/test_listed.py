import numpy as np

from kanoclip.outputs.listed import read_images
from kanoclip.outputs.names import csv_text


def written(path, columns, *rows):
    path.write_bytes(csv_text([columns, *rows]).encode("utf-8", "surrogateescape"))
    return path


def test_all_are_counted_and_those_with_the_highest_scores_listed(tmp_path):
    columns = ("path", "category", "label", "defect", "image_score", "decision", "margin")
    file = written(
        tmp_path / "images.csv",
        columns,
        ("=a\udce9.png", "nut", 0, "good", "0.250000", "good", "-0.250000"),
        ("b.png", "ring", 1, "hole", "0.750000", "defective", "0.250000"),
        ("c.png", "nut", -1, "", "0.500000", "good", "0.000000"),
    )
    told = read_images([file], 2)
    assert [(one.path, one.label, one.defect, one.decision) for one in told.listed] == [
        ("b.png", "anomalous", "hole", "defective"),
        ("c.png", "", "", "good"),
    ]
    assert told.scores.tolist() == [0.25, 0.75, 0.5]
    assert told.labels.tolist() == [0, 1, -1]
    assert [told.categories[place] for place in told.category] == ["nut", "ring", "nut"]
    assert told.decisions == {"good": 2, "defective": 1}
    assert told.thresholds == {0.5}
    assert read_images([file], 3).listed[-1].path == "=a\udce9.png"


def test_shards_of_a_prediction_count_together(tmp_path):
    columns = ("path", "category", "image_score")
    files = [written(tmp_path / f"{n}.csv", columns, *((f"{n}{i}", "", i) for i in range(3))) for n in range(2)]
    told = read_images(files, 5)
    assert [one.path for one in told.listed] == ["12", "02", "11", "01", "10"]
    assert np.all(told.labels == -1)
    assert not told.decisions
    assert not told.thresholds
