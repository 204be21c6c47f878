"""How far the metrics of a test would move with other images: a bootstrap over images, category by category.

Normal and anomalous images of a category are drawn anew, each class for itself, with replacement; the metrics of each
draw are averaged over categories. Image metrics are exact. Of a map only some quantiles of its scores are kept, so the
pixel metrics of a draw are moved by what those of the images themselves are off; where that is more than ``TOLERANCE``
there is no interval. Draws depend on the images alone: those of two models tested on the same images are pairs.

Reference:
    B. Efron and R. Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 8 and 13 (strata, percentiles).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.types import ANOMALOUS, NORMAL

DRAWS = 1000
LEVEL = 0.95
LEAST = 5
"""Fewest images of a class for an interval: of fewer, draws are all alike."""
TOLERANCE = 0.01
"""Most that a pixel metric from quantiles may be off."""
MAX_FPR = 0.3  # of AUPRO, as ``metrics.ranking.PixelMetrics``
NORMAL_STEPS, ANOMALOUS_STEPS = 64, 32
ENOUGH = 2**16  # normal pixels of a map to look at
BINS = 512  # of the scores of a category
AT_ONCE = 2**20  # numbers of an array

Floats = NDArray[np.floating]
Draws = dict[str, NDArray[np.float32]]
"""Metric -> ``(DRAWS,)`` values."""


class Summary(NamedTuple):
    """What is kept of a map with a known mask: some 0.6 KB of a normal image, 1 KB of an anomalous one.

    Attributes:
        normal: ``(n, 2)``: a score, and how many normal pixels it stands for. Steps are finest at the highest scores.
        anomalous: ``(m, 3)``: a score, how many anomalous pixels it stands for, and what part of regions they are.
    """

    normal: NDArray[np.float32]
    anomalous: NDArray[np.float32]


class Tested(NamedTuple):
    """One image of a test.

    Attributes:
        category: What it shows.
        label: 0 = normal, 1 = anomalous.
        score: Its image score.
        pixels: Of its map; None where its mask is not known.
    """

    category: str
    label: int
    score: float
    pixels: Summary | None


def summary(anomaly_map: NDArray[np.float32], mask: NDArray[Any]) -> Summary:
    """Keep some quantiles of the scores of a map.

    Args:
        anomaly_map: ``(H, W)`` scores.
        mask: ``(H, W)``, non-zero = anomalous.
    """
    anomalous = mask != 0
    if not anomalous.any():
        return Summary(_normal(anomaly_map.ravel()), np.zeros((0, 3), np.float32))
    region = cv2.connectedComponents(anomalous.view(np.uint8), connectivity=8)[1][anomalous]
    scores, share = anomaly_map[anomalous], 1 / np.bincount(region)[region]
    order = np.argsort(scores)
    ends = np.unique(np.linspace(0, len(scores), ANOMALOUS_STEPS + 1).astype(int))
    middle, held = (ends[:-1] + ends[1:]) // 2, np.diff(ends)
    parts = np.add.reduceat(share[order], ends[:-1])
    kept = np.stack([scores[order][middle], held, parts], 1).astype(np.float32)
    return Summary(_normal(anomaly_map[~anomalous]), kept)


def _normal(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    every = max(1, len(scores) // ENOUGH)  # neighbours of a smooth map say the same, and sorting takes the time
    scores = scores[::every]
    steps = (np.arange(NORMAL_STEPS + 1) / NORMAL_STEPS) ** 3  # from the highest score down
    ends = np.unique(len(scores) - np.rint(len(scores) * steps).astype(int))
    middle = (ends[:-1] + ends[1:]) // 2
    return np.stack([np.sort(scores)[middle], np.diff(ends) * every], 1).astype(np.float32)


def draw(
    images: Sequence[Tested], results: Mapping[str, Mapping[str, Any]], name: str
) -> tuple[dict[str, dict[str, list[float]]], Draws]:
    """Draw images anew and compute the metrics of each draw.

    Args:
        images: In an order that does not depend on the model.
        results: Category -> metric -> its exact value, as ``AnomalyModule.results``.
        name: Of the images, such as a digest: by it and the category the random numbers are drawn.

    Returns:
        Category or "mean" -> metric -> lower and upper end of its interval, and the draws of the mean; a metric that
        is not defined, or has no interval in a category where it is defined, is left out.
    """
    groups: dict[str, list[Tested]] = {}
    for one in images:
        groups.setdefault(one.category, []).append(one)
    each = {}
    for category, mine in groups.items():
        called = category if category in results and category != "mean" else f"{category} (category)"
        each[called] = _centred(_category(mine, _random(name, category)), results.get(called, {}))
    intervals = {category: {k: interval(v) for k, v in found.items()} for category, found in each.items() if found}
    defined: dict[str, list[str]] = {}
    for category in (one for one in results if one != "mean"):
        for metric, value in results[category].items():
            if isinstance(value, float) and value == value:
                defined.setdefault(metric, []).append(category)
    means = {
        metric: np.mean([each[one][metric] for one in behind], 0).astype(np.float32)
        for metric, behind in defined.items()
        if all(metric in each.get(one, {}) for one in behind)
    }
    if means:
        intervals["mean"] = {metric: interval(values) for metric, values in means.items()}
    return intervals, means


def interval(draws: Floats) -> list[float]:
    """Return the lower and the upper end of the interval of 95 %, by percentiles."""
    return [round(float(end), 6) for end in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def _random(*names: str) -> np.random.Generator:
    return np.random.default_rng(
        int.from_bytes(hashlib.sha256("\0".join(names).encode("utf-8", "replace")).digest(), "big")
    )


def _centred(found: Mapping[str, Floats], exact: Mapping[str, Any]) -> Draws:
    """Move the draws, of which the first is the images themselves, so that this one has its exact value."""
    kept: Draws = {}
    for metric, values in found.items():
        value = exact.get(metric)
        if value is not None and abs(off := value - values[0]) <= TOLERANCE:
            kept[metric] = np.clip(values[1:] + off, 0, 1).astype(np.float32)
    return kept


def _category(images: Sequence[Tested], random: np.random.Generator) -> dict[str, Floats]:
    """Return metric -> ``(1 + DRAWS,)`` values of a category, the first one of the images themselves."""
    label = np.array([one.label for one in images])
    score = np.array([one.score for one in images], np.float32)
    masked = np.array([one.pixels is not None for one in images])
    counts = [np.count_nonzero(label == one) for one in (NORMAL, ANOMALOUS)]
    by_image = min(counts) >= LEAST
    by_pixel = np.count_nonzero(masked & (label == ANOMALOUS)) >= LEAST
    if not by_image and not by_pixel:
        return {}
    bins = _bins([one.pixels for one in images if one.pixels is not None]) if by_pixel else None
    chunks: list[dict[str, Floats]] = []
    step = max(1, AT_ONCE // max(len(images), BINS))
    for start in range(0, 1 + DRAWS, step):
        times = _draws(label, min(step, 1 + DRAWS - start), random)
        if start == 0:
            times[0] = 1
        found: dict[str, Floats] = {}
        if by_image:
            found |= _by_image(times, score, label == ANOMALOUS)
        if bins is not None:
            found |= _by_pixel(*(times[:, masked] @ one for one in bins))
        chunks.append(found)
    return {metric: np.concatenate([one[metric] for one in chunks]) for metric in chunks[0]}


def _draws(label: NDArray[np.integer], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return how often each image is in each draw: ``(count, n)``; each class keeps its size."""
    times = np.zeros((count, len(label)), np.float32)
    for one in (NORMAL, ANOMALOUS):
        (at,) = np.nonzero(label == one)
        if len(at):
            drawn = random.integers(0, len(at), (count, len(at))) + len(at) * np.arange(count)[:, None]
            times[:, at] = np.bincount(drawn.ravel(), minlength=count * len(at)).reshape(count, len(at))
    return times


def _by_image(times: Floats, score: Floats, anomalous: NDArray[np.bool_]) -> dict[str, Floats]:
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # of images of one score
    times = times[:, order]  # float32 counts so many images to the last one
    found = _from_zero(np.cumsum(times * anomalous[order], 1)[:, last])
    normal = _from_zero(np.cumsum(times, 1)[:, last]) - found
    return {f"image_{name}": values for name, values in _ranking(normal, found).items()}


def _bins(maps: Iterable[Summary]) -> list[NDArray[np.float32]]:
    """Count pixels by score, from the highest down: normal ones, anomalous ones, parts of regions, each (n, bins)."""
    maps = list(maps)
    scores = np.sort(np.concatenate([part[:, 0] for one in maps for part in one]))
    edges = np.unique(scores[np.linspace(0, len(scores) - 1, BINS).astype(int)])
    counts = [np.zeros((len(maps), len(edges)), np.float32) for _ in range(3)]
    for at, one in enumerate(maps):
        for part, rows in ((one.normal, counts[:1]), (one.anomalous, counts[1:])):
            place = len(edges) - 1 - np.minimum(np.searchsorted(edges, part[:, 0]), len(edges) - 1)
            for column, row in enumerate(rows, 1):
                np.add.at(row[at], place, part[:, column])
    return counts


def _by_pixel(*counts: Floats) -> dict[str, Floats]:
    """Return the pixel metrics of draws from counts by score, the highest first, each ``(draws, bins)``."""
    normal, anomalous, regions = (_from_zero(np.cumsum(one, 1, dtype=np.float64)) for one in counts)
    found = {f"pixel_{name}": values for name, values in _ranking(normal, anomalous).items()}
    rate, overlap = (one / np.maximum(one[:, -1:], 1e-12) for one in (normal, regions))
    begin, end = np.minimum(rate, MAX_FPR)[:, :-1], np.minimum(rate, MAX_FPR)[:, 1:]
    way = (end - rate[:, :-1]).clip(0) / np.maximum(np.diff(rate), 1e-12)
    at_end = overlap[:, :-1] + np.diff(overlap) * way
    area = ((end - begin) * (overlap[:, :-1] + at_end) / 2).sum(1)
    return found | {"pixel_aupro": area / MAX_FPR}


def _ranking(normal: Floats, anomalous: Floats) -> dict[str, Floats]:
    """Compute the metrics of ``metrics.ranking.ranking`` of many draws at once, from counts ``(draws, 1 + n)``."""
    normals, anomalies = normal[:, -1:], anomalous[:, -1:]
    both = np.maximum(anomalous + normal, 1e-9)
    steps = np.diff(anomalous) / anomalies
    return {
        "auroc": np.trapezoid(anomalous / anomalies, normal / normals, axis=1),
        "ap": (steps * (anomalous / both)[:, 1:]).sum(1),
        "f1_max": (2 * anomalous / (anomalous + normal + anomalies)).max(1),
    }


def _from_zero(counts: Floats) -> Floats:
    return np.concatenate([np.zeros((len(counts), 1), counts.dtype), counts], 1)
