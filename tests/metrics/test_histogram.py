import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kanoclip.metrics.histogram import BINS, Histogram, keys

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
SCORES = arrays(np.float32, st.integers(0, 60), elements=FLOATS)


def count(scores: np.ndarray, anomalous: np.ndarray) -> Histogram:
    return Histogram.empty().add(scores, anomalous, np.full(anomalous.sum(), 7))


@given(SCORES)
def test_keys_are_ordered_as_the_scores(scores: np.ndarray) -> None:
    order = np.argsort(scores, kind="stable")
    assert (np.diff(keys(scores)[order]) >= 0).all()
    np.testing.assert_array_equal(keys(scores)[:, None] == keys(scores), scores[:, None] == scores)


@given(SCORES, st.integers(1, 5), st.randoms())
def test_the_state_depends_on_the_data_alone(scores: np.ndarray, parts: int, random) -> None:
    anomalous = np.arange(len(scores)) % 3 == 0
    whole = count(scores, anomalous)
    order = np.array(random.sample(range(len(scores)), len(scores)), int)
    one, many = Histogram.empty(), []
    for part in np.array_split(order, parts):
        one = one.add(scores[part], anomalous[part], np.full(anomalous[part].sum(), 7))
        many.append(count(scores[part], anomalous[part]).pack())
    for other in (one, Histogram.unpack(many)):
        assert (other.shift, other.first) == (whole.shift, whole.first)
        np.testing.assert_array_equal(other.counts, whole.counts)


def test_the_finest_bins_that_fit_are_taken() -> None:
    near = np.float32(0.5) + np.arange(5, dtype=np.float32) * np.spacing(np.float32(0.5))
    histogram = count(near, np.zeros(5, bool))
    assert histogram.shift == 0
    assert histogram.counts[0].tolist() == [1, 1, 1, 1, 1]
    wide = count(np.float32([-1e30, 1e30]), np.zeros(2, bool))
    assert wide.counts.shape[1] <= BINS < 2 * wide.counts.shape[1]
