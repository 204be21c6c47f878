"""Connected regions of an anomaly map above a threshold."""

from __future__ import annotations

from typing import Any, NamedTuple

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
        contour: Its outer border, along the edges of its pixels: ``(n, 2)`` int32, x and y, pixels of the photo. A
            region of the pixel (0, 0) alone has the corners (0, 0), (0, 1), (1, 1) and (1, 0).
        holes: The borders of its holes, likewise.
    """

    box: tuple[int, int, int, int]
    area: int
    share: float
    peak: float
    mean: float
    contour: NDArray[np.int32]
    holes: tuple[NDArray[np.int32], ...] = ()


def find_regions(anomaly_map: NDArray[np.float32], threshold: float, min_area: float = 0.0) -> list[Region]:
    """Find the regions of a map, the one with the highest peak first.

    Args:
        anomaly_map: ``(H, W)`` at the size of the photo. What is NaN belongs to no region.
        threshold: Pixels above it belong to a region.
        min_area: Smallest region that counts, as a share of the picture.
    """
    above = (anomaly_map > threshold).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(above)
    if not width:
        return []
    place = np.s_[top : top + height, left : left + width]
    labels: Any
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above[place], connectivity=8)
    members, scores = labels[labels > 0], anomaly_map[place][labels > 0]
    mean = np.bincount(members, scores, count) / np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
    peak = np.full(count, -np.inf, np.float32)
    np.maximum.at(peak, members, scores)
    borders = _borders(above[place], labels, (left, top))
    found = []
    for label, (x, y, wide, high, area) in enumerate(stats.tolist()):
        share = area / above.size
        if label > 0 and share >= min_area:
            contour, *holes = borders[label]
            box = (left + x, top + y, wide, high)
            found.append(Region(box, area, share, float(peak[label]), float(mean[label]), contour, tuple(holes)))
    return sorted(found, key=lambda region: -region.peak)


def _borders(
    above: NDArray[np.uint8], labels: NDArray[np.int32], origin: tuple[int, int]
) -> dict[int, list[NDArray[np.int32]]]:
    """Return the outer border of each label and then those of its holes, along the edges of pixels."""
    # OpenCV's contours go through the middles of pixels: of a picture enlarged twice, through quarters of pixels, and
    # what these are rounded up to are the corners.
    doubled: Any = cv2.resize(above, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    points = np.concatenate(found)[:, 0]  # of all borders at once: there may be many thousands
    ends = np.cumsum([len(border) for border in found])
    starts = np.append(0, ends[:-1])
    corners = (points + 1) // 2
    following = np.append(corners[1:], corners[:1], 0)
    following[ends - 1] = corners[starts]
    x, y = points[starts].T // 2
    different = (corners != following).any(1)
    corners = (corners[different] + origin).astype(np.int32)
    parts = np.split(corners, np.cumsum(different)[ends[:-1] - 1])
    borders: dict[int, list[NDArray[np.int32]]] = {}
    # an outer border has no parent: -1
    for turn in np.argsort(tree[0, :, 3] >= 0, kind="stable").tolist():
        borders.setdefault(int(labels[y[turn], x[turn]]), []).append(parts[turn])
    return borders
