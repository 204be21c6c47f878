import csv
import json

import pytest
import torch
from several import run

from kanoclip.data.base import Sample
from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs import ResultsWriter
from kanoclip.outputs.names import read_csv
from kanoclip.outputs.thresholds import Calibration, Thresholds
from kanoclip.types import KanoclipError

PATHS = ["d/ring/good/1.png", "d/ring/hole/2.png", "d/nut/good/3.png", "d/nut/dent/4.png", "d/nut/dent/5.png"]
HALF = Thresholds(Calibration(Threshold(0.5, 0.5)), source="t.json")


@pytest.fixture
def tested(kit):
    """Test, and return the rows of images.csv and the report."""

    def test(samples=None, model=None, **options):
        data = kit.data(samples or kit.samples(*PATHS))
        kit.trainer(ResultsWriter(**options)).test(model or kit.model(), data, verbose=False)
        return read_csv(kit.folder / "images.csv"), json.loads((kit.folder / "results.json").read_text())

    return test


def test_each_image_has_a_row_with_what_was_found(tested, kit):
    rows, report = tested(overlays=2)
    assert [row["path"] for row in rows] == PATHS
    assert rows[0] == {
        "path": PATHS[0], "category": "ring", "label": "0", "defect": "good", "image_score": "0.0", "map_max": "0.0",
        "decision": "", "margin": "", "ap": "", "aupro": "", "overlay": "overlays/01_ring_good_0.000.png",
    }  # fmt: skip
    assert rows[1] == {
        "path": PATHS[1], "category": "ring", "label": "1", "defect": "hole", "image_score": "1.0", "map_max": "1.0",
        "decision": "", "margin": "", "ap": "1.0", "aupro": "1.0", "overlay": "",
    }  # fmt: skip
    named = [row["overlay"] for row in rows if row["overlay"]]
    assert sorted(named) == sorted(f"overlays/{path.name}" for path in (kit.folder / "overlays").iterdir())
    assert (report["threshold"], report["decisions"]) == (None, None)


def test_with_a_threshold_rows_have_decisions_and_the_report_their_rates(tested, capsys):
    rows, report = tested(overlays=0, thresholds=HALF)
    assert [(row["decision"], row["margin"]) for row in rows[:2]] == [("good", "-0.5"), ("defective", "0.5")]
    decisions = report["decisions"]
    assert list(decisions) == ["nut", "ring", "all"]
    assert decisions["ring"]["detected"] == {"hits": 1, "images": 1, "rate": 1.0, "interval": [0.025, 1.0]}
    assert decisions["all"]["false_alarms"]["hits"] == 0
    assert decisions["all"]["detected"]["images"] == 3
    assert report["threshold"] == "t.json"
    said = "Of 2 normal images, 0 are called defective: 0 % (95 % interval 0 % to 84.2 %). Of 3 anomalous images, 3 are"
    assert said in capsys.readouterr().out


def test_a_threshold_for_other_scores_is_refused_before_images_are_scored(kit):
    model = kit.model()
    model.test_step = lambda batch: pytest.fail("an image was scored")
    wrong = Thresholds(HALF.pooled, scoring={"model": "another"}, source="t.json")
    with pytest.raises(KanoclipError, match=r"t.json is for other scores: its model is another"):
        kit.trainer(ResultsWriter(thresholds=wrong)).test(model, kit.data(kit.samples(*PATHS)), verbose=False)
    other = Thresholds(HALF.pooled, {"bottle": HALF.pooled}, source="t.json")
    with pytest.raises(KanoclipError, match=r"t.json is for bottle, and this image shows nut"):
        kit.trainer(ResultsWriter(thresholds=other)).test(model, kit.data(kit.samples(*PATHS)), verbose=False)
    assert not (kit.folder / "images.csv").exists()


def test_names_and_words_from_strangers_are_kept(tested):
    samples = [Sample('a"b,\n.png', (), 1, "=ring", "-hole"), Sample("\udcfc.png", (), 0, "=ring", "good")]
    rows, _ = tested(samples, overlays=0)
    assert [(row["path"], row["category"], row["defect"]) for row in rows] == [
        ('a"b,\n.png', "=ring", "-hole"),
        ("\udcfc.png", "=ring", "good"),
    ]


def test_a_stopped_test_leaves_the_rows_of_what_it_had_scored(kit, monkeypatch):
    model = kit.model()
    step = iter([model.test_step, model.test_step, lambda batch: (_ for _ in ()).throw(KeyboardInterrupt)])
    model.test_step = lambda batch: next(step)(batch)
    with pytest.raises(SystemExit):
        kit.trainer(ResultsWriter()).test(model, kit.data(kit.samples(*PATHS)), verbose=False)
    assert [row["path"] for row in read_csv(kit.folder / "images.csv")] == PATHS[:4]
    assert not (kit.folder / "results.json").exists()


def test_the_maps_of_a_set_are_not_kept(kit, monkeypatch):
    writer = ResultsWriter(overlays=0, thresholds=HALF)
    kit.trainer(writer).test(kit.model(), kit.data(kit.samples(*PATHS * 10)), verbose=False)
    kept = vars(writer._table)
    assert not any(isinstance(value, (list, torch.Tensor)) for value in kept.values())
    assert len(read_csv(kit.folder / "images.csv")) == 50


def test_two_processes_write_the_same_table_as_one(tmp_path):
    argv = ["test", "--data", "surfaces", "--data.images", "7", "--data.batch_size", "2", "--data.num_workers", "0"]
    argv += ["--model", "clip", "--model.backbone", "embedded"]
    tables = []
    for count in (1, 2):
        codes, _, err = run(count, argv, tmp_path / f"{count}")
        assert codes == [0] * count, err
        (file,) = (tmp_path / f"{count}").rglob("images*.csv")
        tables.append([(row["path"], row["label"], row["overlay"]) for row in csv.DictReader(file.open(newline=""))])
    assert tables[0] == tables[1]
    assert len(tables[0]) >= 7
