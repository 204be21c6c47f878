import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import beta, binomtest

from kanoclip.metrics.calibration import Promise, Share, conformal_threshold, images_for, promise, region_score
from kanoclip.outputs.regions import find_regions
from kanoclip.types import KanoclipError

rates = st.integers(1, 999).map(lambda tenths: tenths / 1000)
scores = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60)


@given(scores, rates)
def test_the_threshold_is_the_score_of_conformal_rank(values, rate):
    """k = ceil((n + 1) (1 - a)), in whole thousandths so that no rounding can hide a rank."""
    n, thousandths = len(values), round(rate * 1000)
    rank = -((n + 1) * (thousandths - 1000) // 1000)
    assert conformal_threshold(values, rate) == sorted(values)[min(rank, n) - 1]
    assert promise(n, rate) == (min(rank, n), n, rank <= n)


@given(st.integers(1, 400), rates)
def test_the_average_is_at_most_what_was_asked_for_unless_images_are_too_few(n, rate):
    found = promise(n, rate)
    assert found.kept == (n >= images_for(rate)) == (found.average <= rate)
    assert found.average == pytest.approx((n + 1 - found.rank) / (n + 1))
    if not found.kept:
        assert (found.rank, found.average) == (n, pytest.approx(1 / (n + 1)))


@given(scores, rates, rates)
def test_a_lower_rate_never_lowers_the_threshold(values, one, other):
    assert conformal_threshold(values, min(one, other)) >= conformal_threshold(values, max(one, other))


@given(scores, rates, st.randoms())
def test_order_does_not_matter(values, rate, random):
    shuffled = random.sample(values, len(values))
    assert conformal_threshold(shuffled, rate) == conformal_threshold(values, rate)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=40), rates)
def test_ties_only_lower_the_rate(values, rate):
    """The share of all n + 1 places that an exchangeable image may take and raise an alarm, over the whole multiset."""
    alarms = 0
    for i, score in enumerate(values):  # each in turn is the new image
        others = values[:i] + values[i + 1 :]
        alarms += bool(others) and score > conformal_threshold(others, rate)
    average = promise(max(len(values) - 1, 1), rate).average
    assert alarms <= len(values) * average + 1e-9


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40, unique=True), rates)
def test_without_ties_the_rate_is_exactly_the_average(values, rate):
    alarms = sum(score > conformal_threshold(values[:i] + values[i + 1 :], rate) for i, score in enumerate(values))
    assert alarms == pytest.approx(len(values) * promise(len(values) - 1, rate).average)


@pytest.mark.parametrize(("n", "rate"), [(100, 0.01), (100, 0.1), (30, 0.05), (1, 0.5), (20, 0.01)])
def test_simulated_parts_keep_both_promises(n, rate):
    """Uniform scores: the rate at a threshold t is 1 - t."""
    draws = np.random.default_rng(0).random((20_000, n))
    missed = 1 - np.array([conformal_threshold(draw, rate) for draw in draws])
    found = promise(n, rate)
    assert missed.mean() == pytest.approx(found.average, abs=4 * missed.std() / math.sqrt(len(draws)))
    assert np.mean(missed <= found.confident) == pytest.approx(0.95, abs=0.007)


def test_the_numbers_of_the_issue():
    assert promise(100, 0.01) == Promise(100, 100)
    assert promise(100, 0.01).confident == pytest.approx(0.0295, abs=5e-5)
    assert promise(100, 0.01).confident == pytest.approx(beta(1, 100).ppf(0.95))
    assert promise(30, 0.01).average == pytest.approx(0.0323, abs=5e-5)
    assert images_for(0.01) == 99


def test_no_rank_is_lost_to_rounding():
    assert 0.29 * 100 < 29
    assert promise(99, 0.29).rank == 71


def test_one_image_and_equal_ones():
    assert conformal_threshold([0.4], 0.01) == 0.4
    assert promise(1, 0.01) == (1, 1, False)
    assert promise(1, 0.01).average == 0.5
    assert conformal_threshold([0.4] * 50, 0.1) == 0.4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(KanoclipError, match="1 of 3 scores are NaN or infinite"):
        conformal_threshold([0.1, bad, 0.3], 0.1)
    with pytest.raises(KanoclipError, match="NaN or infinite"):
        region_score(np.array([[0.1, bad]], np.float32), 0.5)


def test_no_image_is_refused():
    with pytest.raises(KanoclipError, match=r"no good image.*Add images"):
        conformal_threshold([], 0.1)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, math.nan])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(KanoclipError, match=r"max_fpr is .*, expected a rate between 0 and 1.*--max_fpr"):
        conformal_threshold([0.1], rate)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_that_of_clopper_and_pearson(counts):
    known = binomtest(*counts).proportion_ci(0.95, "exact")
    assert Share(*counts).interval == pytest.approx((known.low, known.high), abs=1e-9)


maps = arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.floats(0, 1, width=16))
areas = st.sampled_from([0, 0.001, 0.1, 0.25, 0.5, 1])


@given(maps, areas)
def test_an_image_has_a_region_exactly_where_its_region_score_is_above_the_threshold(heat, area):
    score = region_score(heat, area)
    step = (float(heat.max()) - float(heat.min())) / 2**16
    assert not find_regions(heat, score, area)
    below = np.unique(heat[heat < score - step])
    for threshold in [*below.tolist(), -1.0]:
        assert find_regions(heat, threshold, area)


@given(maps)
def test_a_larger_region_never_scores_higher(heat):
    step = (float(heat.max()) - float(heat.min())) / 2**16
    found = [region_score(heat, area) for area in (0, 0.1, 0.25, 0.5, 1)]
    assert all(later <= earlier + step for earlier, later in pairwise(found))


def test_a_map_of_one_value_and_a_region_as_large_as_the_picture():
    flat = np.full((5, 6), 0.3, np.float32)
    assert region_score(flat, 0.1) == flat[0, 0]
    half = flat.copy()
    half[:, 3:] = 0.8
    assert region_score(half, 0.5) == half.max()
    assert region_score(half, 0.51) == pytest.approx(0.3, abs=1e-5)


def test_a_diagonal_is_one_region():
    heat = np.eye(8, dtype=np.float32)
    assert region_score(heat, 8 / 64) == 1
    assert region_score(heat, 9 / 64) < 1e-4


def test_the_share_of_good_images_with_a_region_is_at_most_what_was_promised():
    draw = np.random.default_rng(1)
    blurred = [cv2.GaussianBlur(draw.random((24, 24), np.float32), (0, 0), 2) for _ in range(1000)]
    values = [region_score(heat, 0.02) for heat in blurred]
    rates = []
    for _ in range(100):
        order = draw.permutation(1000)
        threshold = conformal_threshold([values[i] for i in order[:60]], 0.1)
        rates.append(np.mean([bool(find_regions(blurred[i], threshold, 0.02)) for i in order[60:160]]))
    assert np.mean(rates) == pytest.approx(promise(60, 0.1).average, abs=0.015)
