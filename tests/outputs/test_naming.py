"""Outputs of a model that names kinds of defect: columns that others have not."""

import csv

import numpy as np
import pytest
import torch

from kanoclip.inspector import Inspector
from kanoclip.metrics.calibration import Threshold
from kanoclip.models.rivals.multiads import MultiADS
from kanoclip.outputs import PredictionWriter, ResultsWriter
from kanoclip.outputs.resuming import COLUMNS, NAMING
from kanoclip.outputs.thresholds import Calibration, Thresholds

PATHS = ["d/ring/good/1.png", "d/ring/hole/2.png", "d/nut/good/3.png", "d/nut/dent/4.png", "d/nut/dent/5.png"]
HALF = Thresholds(Calibration(Threshold(0.5, 0.5)), source="t.json")


def named(kit):
    """Brightness, to which every defect is a scratch by 0.7."""

    class Naming(kit.model):
        defect_names = ("hole", "scratch")

        def forward(self, batch):
            scores = super().forward(batch)
            return scores._replace(defects=torch.tensor([[0.3, 0.7]]).expand(len(batch.image), -1))

    return Naming()


def rows(file):
    with open(file, newline="") as source:
        return list(csv.reader(source))


def test_rows_of_a_prediction_name_the_kind_where_the_model_does(kit, tmp_path):
    data = kit.data(kit.samples(*PATHS))
    kit.trainer(PredictionWriter(maps=False, overlays=False)).predict(kit.model(), data, return_predictions=False)
    plain = rows(kit.folder / "predictions.csv")
    assert plain[0] == list(COLUMNS)
    kit.trainer(PredictionWriter(maps=False, overlays=False)).predict(named(kit), data, return_predictions=False)
    found = rows(kit.folder / "predictions.csv")
    assert found[0] == list(NAMING)
    assert [row[:8] for row in found[1:]] == [row[:8] for row in plain[1:]]
    assert {tuple(row[8:]) for row in found[1:]} == {("scratch", "0.7")}


def test_a_stopped_prediction_of_a_model_that_names_kinds_goes_on(kit):
    def predict(**options):
        data, writer = kit.data(kit.samples(*PATHS)), PredictionWriter(maps=False, overlays=False, resume=True)
        model = named(kit)
        model.stop_at, model.stop_with = options.get("stop_at"), ValueError
        kit.trainer(writer).predict(model, data, return_predictions=False)

    with pytest.raises(ValueError):  # noqa: PT011  # ours
        predict(stop_at=1)
    file = kit.folder / "predictions.csv"
    assert len(rows(file)) == 3
    file.write_text(file.read_text() + "d/nut/good/3.png,nut,0.5")  # a row that was cut
    predict()
    assert rows(file)[0] == list(NAMING)
    assert sorted(row[0] for row in rows(file)[1:]) == sorted(PATHS)
    assert all(len(row) == len(NAMING) for row in rows(file))


def test_rows_of_a_test_name_the_kind_of_what_is_called_defective(kit):
    def test(model):
        kit.trainer(ResultsWriter(overlays=0, thresholds=HALF)).test(
            model, kit.data(kit.samples(*PATHS)), verbose=False
        )
        return rows(kit.folder / "images.csv")

    plain, found = test(kit.model()), test(named(kit))
    assert found[0] == [*plain[0], "found_defect", "defect_probability"]
    assert [row[:-2] for row in found] == plain
    assert [row[-2:] for row in found[1:3]] == [["", ""], ["scratch", "0.7"]]


def test_an_inspector_names_the_kind_from_the_users_list(tiny_clip):
    torch.manual_seed(0)
    model = MultiADS(backbone=tiny_clip, defects=["burr", "missing cap"])
    model.auxiliary = "somewhere"
    photos = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(3)]
    found = Inspector(model)(photos)
    assert {one.defect for one in found} <= {"burr", "missing cap"}
    assert all(0.5 <= one.defect_probability <= 1 for one in found)
    assert Inspector(model, threshold=1.0)(photos[0]).defect is None
    for one, photo in zip(found, photos, strict=True):
        again = Inspector(model, tile=True)(photo)
        assert again.defect in ("burr", "missing cap")
        assert one.path == ""
