"""What was found on one photo: the same for the command line, a Python call and an exported model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.regions import Region, find_regions
from kanoclip.types import KanoclipError


@dataclass(frozen=True)
class Finding:
    """What was found on one photo.

    Attributes:
        path: The photo's file; "" for one from memory.
        category: What it shows, as far as known.
        score: Image score in [0, 1], higher = more anomalous.
        anomaly_map: ``(H, W)`` float32 in [0, 1], at the photo's size.
        threshold: What the decision was made with; None: there is none.
        decision: "good" or "defective"; None without a threshold.
        margin: Score minus threshold; None without a threshold.
        regions: Connected regions above the pixel threshold, the highest peak first; empty without one.
    """

    path: str
    category: str
    score: float
    anomaly_map: NDArray[np.float32] = field(repr=False)
    threshold: Threshold | None = None
    decision: str | None = None
    margin: float | None = None
    regions: list[Region] = field(default_factory=list)


def finding(
    anomaly_map: NDArray[np.float32],
    score: float,
    size: tuple[int, int],
    path: str = "",
    category: str = "",
    threshold: Threshold | None = None,
) -> Finding:
    """Bring a model's map to the photo's size, decide, and look for regions.

    Args:
        anomaly_map: ``(h, w)`` as the model returns it.
        score: Image score in [0, 1].
        size: Height and width of the photo, pixels.
        path: The photo's file.
        category: What it shows.
        threshold: Where "good" ends; None: no decision.

    Raises:
        KanoclipError: If a score is NaN or infinite.
    """
    if not (np.isfinite(anomaly_map).all() and np.isfinite(score)):
        raise KanoclipError(
            f"The scores of {path or 'this image'} are NaN or infinite. The model overflowed: use --trainer.precision "
            f"32-true, or look for NaN in its weights."
        )
    enlarged: Any = cv2.resize(anomaly_map, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    heat: NDArray[np.float32] = enlarged.clip(0, 1)
    if threshold is None:
        return Finding(path, category, score, heat)
    regions = [] if threshold.pixel is None else find_regions(heat, threshold.pixel, threshold.min_area)
    return Finding(path, category, score, heat, threshold, threshold.decide(score), threshold.margin(score), regions)
