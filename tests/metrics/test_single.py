import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from kanoclip.metrics import PixelMetrics
from kanoclip.metrics.single import map_metrics


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 50), st.floats(0.05, 1))
def test_one_map_is_ranked_as_by_the_metrics_of_a_set(seed, height, width, values, max_fpr):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, values, (height, width)) / values).astype(np.float32)  # few values: many ties
    mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
    found, metric = map_metrics(scores, mask, max_fpr), PixelMetrics(max_fpr)
    metric.update(torch.from_numpy(scores)[None], torch.from_numpy(mask)[None])
    expected = metric.compute()
    assert found["ap"] == pytest.approx(float(expected["ap"]), abs=1e-9, nan_ok=True)
    assert found["aupro"] == pytest.approx(float(expected["aupro"]), abs=1e-9, nan_ok=True)
    if 0 < mask.sum() < mask.size:
        assert found["ap"] == pytest.approx(average_precision_score(mask.ravel(), scores.ravel()), abs=1e-6)


@pytest.mark.parametrize("mask", [np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)])
def test_of_one_class_nothing_is_defined(mask):
    assert all(np.isnan(value) for value in map_metrics(np.zeros((3, 4), np.float32), mask).values())
