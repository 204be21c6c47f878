"""Connected regions of an anomaly map above a threshold."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


class Region(NamedTuple):
    """One connected piece (8 neighbours) of a map above the pixel threshold.

    Attributes:
        box: Left, top, width and height, pixels of the photo.
        area: Pixels.
        share: Of the picture, in (0, 1].
        peak: Highest score in it.
        mean: Mean score in it.
        contour: Its outer border, ``(n, 2)`` int32, x and y, pixels of the photo.
    """

    box: tuple[int, int, int, int]
    area: int
    share: float
    peak: float
    mean: float
    contour: NDArray[np.int32]


def find_regions(anomaly_map: NDArray[np.float32], threshold: float, min_area: float = 0.0) -> list[Region]:
    """Find the regions of a map, the one with the highest peak first.

    Args:
        anomaly_map: ``(H, W)`` at the size of the photo.
        threshold: Pixels above it belong to a region.
        min_area: Smallest region that counts, as a share of the picture.
    """
    above = (anomaly_map > threshold).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    found = []
    for label, (left, top, width, height, area) in enumerate(stats.tolist()):
        share = area / above.size
        if label == 0 or share < min_area:
            continue
        place = np.s_[top : top + height, left : left + width]
        inside = labels[place] == label
        scores = anomaly_map[place][inside]
        contours, _ = cv2.findContours(
            inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
        )
        contour = contours[0][:, 0].astype(np.int32)
        found.append(
            Region((left, top, width, height), area, share, float(scores.max()), float(scores.mean()), contour)
        )
    return sorted(found, key=lambda region: -region.peak)
