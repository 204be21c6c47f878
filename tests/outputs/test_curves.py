import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from kanoclip.outputs.curves import draw, image_curves


def some(count=200):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    return (rng.normal(size=count) + labels).round(1), labels  # with ties


@pytest.mark.parametrize("points", [200, 20_000])
def test_curves_enclose_the_areas_that_are_reported(points):
    scores, labels = some(points)
    found = {name: np.array([0.0, *column]) for name, column in image_curves(scores, labels).items()}
    area = np.trapezoid(found["recall"], found["false_positive_rate"])
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    steps = np.sum(np.diff(found["recall"]) * found["precision"][1:])
    assert steps == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


def test_a_long_curve_is_thinned():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 50_000)
    scores = rng.normal(size=50_000) + labels
    found = image_curves(scores, labels)
    assert len(found["recall"]) <= 258
    assert (found["recall"][-1], found["false_positive_rate"][-1]) == (1, 1)
    area = np.trapezoid([0, *found["recall"]], [0, *found["false_positive_rate"]])
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)


def test_unlabelled_images_are_left_out_and_one_class_has_no_curve():
    scores, labels = some()
    more = image_curves(np.append(scores, [9.0, -9.0]), np.append(labels, [-1, -1]))
    assert more == image_curves(scores, labels)
    assert image_curves(scores, np.zeros_like(labels)) == {}
    assert image_curves(np.zeros(0), np.zeros(0, int)) == {}


def test_names_are_drawn_as_texts():
    scores, labels = some()
    names = ["<script>alert(1)</script>", "$\\frac$", "_hidden", "\ud800", "缺", "\u202e"]
    drawn = draw({name: image_curves(scores, labels) for name in names}, {}, {"normal": scores}, 0.5)
    assert "<script" not in drawn
    assert "&lt;script" in drawn
    assert all(text in drawn for text in ("$\\frac$", "_hidden", "缺", "mean of 6", "threshold 0.5"))
    assert "\u202e" not in drawn


def test_what_is_not_defined_is_not_drawn():
    drawn = draw({"road": {}}, {"road": ([0, 0.3], [0, 1])}, {"anomalous": np.ones(3)}, None)
    assert "ROC" not in drawn
    assert "Region overlap" in drawn
    assert "<svg" in draw({}, {}, {"normal": np.zeros(0)}, None)
