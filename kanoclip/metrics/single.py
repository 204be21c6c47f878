"""AP and AUPRO of a single anomaly map: exact, by the formulas of ``metrics.ranking``."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.metrics.ranking import per_region_overlap, ranking


def map_metrics(anomaly_map: NDArray[np.float32], mask: NDArray[np.uint8], max_fpr: float = 0.3) -> dict[str, float]:
    """Compute how well one map ranks its own pixels.

    Precision and overlap change at scores of anomalous pixels alone, which are few: only these are looked up among the
    sorted normal ones.

    Args:
        anomaly_map: ``(H, W)`` scores.
        mask: ``(H, W)``, non-zero = anomalous.
        max_fpr: False positive rate up to which AUPRO integrates, in (0, 1].

    Returns:
        ``ap`` and ``aupro`` in [0, 1]; NaN if all pixels are normal, or all anomalous.
    """
    anomalous = mask != 0
    normal, scores = np.sort(anomaly_map[~anomalous]), anomaly_map[anomalous]
    if not len(normal) or not len(scores):
        return {"ap": math.nan, "aupro": math.nan}
    region = cv2.connectedComponents(anomalous.view(np.uint8), connectivity=8)[1][anomalous]
    steps, place = np.unique(scores, return_inverse=True)
    # From the highest score down: how many normal pixels score more than each step, and how many at least as much.
    passed = len(normal) - np.stack([np.searchsorted(normal, steps, side) for side in ("right", "left")], 1)

    def curve(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        more = np.bincount(place, weights)[::-1]
        reached = np.cumsum(more)
        return np.concatenate([[0.0], np.stack([reached - more, reached], 1).ravel(), reached[-1:]])

    found, overlap = curve(np.ones(len(scores))), curve(1 / np.bincount(region)[region])
    false = np.concatenate([[0.0], passed[::-1].ravel(), [len(normal)]])
    some = np.append(True, found[1:] + false[1:] > 0)
    ap = ranking(false[some], found[some])["ap"]
    return {"ap": ap, "aupro": per_region_overlap(false, overlap, max_fpr)}
