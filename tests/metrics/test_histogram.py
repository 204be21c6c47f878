import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kanoclip.metrics import histogram
from kanoclip.metrics.histogram import Histogram, keys

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
NEAR = st.integers(0, 40).map(lambda step: 0.5 + step * 2.0**-24)
SCORES = arrays(np.float32, st.integers(0, 60), elements=st.one_of(FLOATS, NEAR))
HEAVY = 2**38


@pytest.fixture(params=[(8, 2**23), (8, 64), (2**17, 64)], ids=["dense", "far", "exact"])
def few_bins(request, monkeypatch) -> None:
    """Bins so few that they are joined all the time, and both ways of counting."""
    monkeypatch.setattr(histogram, "LIMIT", request.param[0])
    monkeypatch.setattr(histogram, "DENSE", request.param[1])


def count(scores: np.ndarray, anomalous: np.ndarray) -> Histogram:
    return Histogram.empty().add(scores, anomalous, np.full(anomalous.sum(), HEAVY - 3))


def by_hand(scores: np.ndarray, anomalous: np.ndarray) -> tuple[int, dict[int, list[int]]]:
    """The smallest shift at which the bins are few enough, and what each holds, in Python's own integers."""
    shift = 0
    while len({key >> shift for key in keys(scores).tolist()}) > histogram.LIMIT:
        shift += 1
    held: dict[int, list[int]] = {}
    for key, bad in zip(keys(scores).tolist(), anomalous.tolist(), strict=True):
        mine = held.setdefault(key >> shift, [0, 0, 0])
        mine[0], mine[1], mine[2] = mine[0] + 1, mine[1] + bad, mine[2] + bad * (HEAVY - 3)
    return shift, dict(sorted(held.items()))


@given(SCORES)
def test_keys_are_ordered_as_the_scores(scores: np.ndarray) -> None:
    order = np.argsort(scores, kind="stable")
    assert (np.diff(keys(scores)[order]) >= 0).all()
    np.testing.assert_array_equal(keys(scores)[:, None] == keys(scores), scores[:, None] == scores)


@pytest.mark.usefixtures("few_bins")
@given(SCORES, st.integers(1, 5), st.randoms())
def test_the_state_depends_on_the_data_alone(scores: np.ndarray, parts: int, random) -> None:
    anomalous = np.arange(len(scores)) % 3 == 0
    shift, held = by_hand(scores, anomalous)
    order = np.array(random.sample(range(len(scores)), len(scores)), int)
    one, many = Histogram.empty(), []
    for part in np.array_split(order, parts):
        one = one.add(scores[part], anomalous[part], np.full(anomalous[part].sum(), HEAVY - 3))
        many.append(count(scores[part], anomalous[part]).pack())
    for found in (count(scores, anomalous), one, Histogram.unpack(many), Histogram.unpack([one.pack()])):
        assert found.shift == shift
        assert found.bins.tolist() == list(held)
        assert found.counts[:2].T.tolist() == [of[:2] for of in held.values()]
        assert [(high << 19) + low for high, low in found.counts[2:].T.tolist()] == [of[2] for of in held.values()]


def test_one_score_far_from_all_others_takes_one_bin() -> None:
    near = np.float32(0.5) + np.arange(1000, dtype=np.float32) * np.spacing(np.float32(0.5))
    found = count(np.append(near, np.float32(-1e30)), np.zeros(1001, bool))
    assert found.shift == 0
    assert found.counts[0].tolist() == [1] * 1001


def test_more_bins_than_the_limit_are_joined_by_no_more_than_needed() -> None:
    scores = np.random.default_rng(0).random(2**19, np.float32)
    found = count(scores, scores > 0.9)
    assert histogram.LIMIT / 2 < len(found.bins) <= histogram.LIMIT
    assert found.counts[0].sum() == 2**19


def test_a_state_is_as_narrow_as_its_numbers_and_grows_with_them() -> None:
    scores = np.random.default_rng(0).random(2**16, np.float32)
    anomalous = scores > 0.9
    seen = count(scores, anomalous)
    assert seen.pack().nbytes < 8 * len(seen.bins)
    many = seen
    for _ in range(300):  # above what a byte holds
        many = many.merge(seen)
    assert many.pack().dtype == torch.uint8
    again = Histogram.unpack([many.pack()])
    np.testing.assert_array_equal(again.counts, 301 * seen.counts)


def test_weights_of_a_hundred_million_regions_do_not_overflow() -> None:
    one = Histogram.empty().add(np.float32([0.5] * 2**10), np.ones(2**10, bool), np.full(2**10, HEAVY))
    for _ in range(20):
        one = one.merge(one)
    assert one.weights.tolist() == [2.0**68]  # of 2**30 regions
    assert Histogram.unpack([one.pack()]).weights.tolist() == [2.0**68]
