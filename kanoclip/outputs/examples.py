"""Images of a test or a fit that are kept to be shown, and their panels: photo, ground truth and overlay."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.overlay import heated, legend, scale_of, verdict
from kanoclip.types import ANOMALOUS, UNKNOWN, Batch, Scores

LONGEST = 2048  # longer side of a kept example, pixels: a strip enlarged to the model's size has millions of them


class Example(NamedTuple):
    """One image with what is known and what was found, on the CPU.

    Attributes:
        image: ``(H, W, 3)`` RGB, 0-255.
        anomaly_map: ``(H, W)`` in [0, 1].
        mask: ``(H, W)``, 1 = anomalous; None without ground truth.
        score: Image score in [0, 1].
        label: 0 = normal, 1 = anomalous, -1 = unknown.
        category: What is shown.
        defect: Kind of defect, "good" or "".
        path: Where it came from.
    """

    image: NDArray[np.uint8]
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.uint8] | None
    score: float
    label: int
    category: str
    defect: str
    path: str


def photo(image: Tensor) -> NDArray[np.uint8]:
    """Turn ``(3, H, W)`` in [0, 1] into ``(H, W, 3)`` of 0-255."""
    return (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


def example(batch: Batch, scores: Scores, index: int) -> Example:
    """Take one image out of a batch and of its scores; long strips are shrunk."""
    image: Any = photo(batch.image[index])
    anomaly_map: Any = scores.anomaly_map[index].detach().float().cpu().numpy().copy()
    mask: Any = batch.mask[index].cpu().numpy().copy() if bool(batch.has_mask[index]) else None
    factor = LONGEST / max(anomaly_map.shape)
    if factor < 1 and image.shape[0] != image.shape[1]:
        size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
        image, anomaly_map = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (image, anomaly_map))
        mask = mask if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    return Example(
        image=image,
        anomaly_map=anomaly_map,
        mask=mask,
        score=float(scores.image_score[index]),
        label=int(batch.label[index]),
        category=batch.category[index],
        defect=batch.defect[index],
        path=batch.path[index],
    )


def panel(shown: Example, threshold: Threshold | None = None, tile: int = 256) -> NDArray[np.uint8]:
    """Set photo, ground truth and overlay side by side, below what is known of the image and the colour scale.

    Those of a wide image, three times as wide as high or more, are set one below the other.

    Args:
        shown: The image and what was found on it.
        threshold: Where colour begins, and the decision; None: at 0.5, uncalibrated.
        tile: Smallest height of the three pictures, in pixels; smaller ones are enlarged so that the text fits.

    Returns:
        ``(H', W', 3)`` RGB, 0-255.
    """
    height, width = shown.image.shape[:2]
    factor = max(1.0, tile / min(height, width))
    size = (round(width * factor), round(height * factor))  # (W, H), as OpenCV wants it
    image: Any = cv2.resize(shown.image, size, interpolation=cv2.INTER_CUBIC)
    anomaly_map: Any = cv2.resize(shown.anomaly_map, size, interpolation=cv2.INTER_LINEAR)
    mask: Any = None
    truth = np.full_like(image, 96)
    if shown.mask is not None:
        mask = cv2.resize(shown.mask, size, interpolation=cv2.INTER_NEAREST)
        truth = np.repeat((mask > 0).astype(np.uint8)[..., None] * 255, 3, axis=2)
    three = [image, truth, heated(image, anomaly_map, threshold, mask)]
    pictures = np.vstack(three) if size[0] >= 3 * size[1] else np.hstack(three)
    label = {UNKNOWN: "label unknown", ANOMALOUS: "anomalous"}.get(shown.label, "normal")
    what = f"{shown.category} / {shown.defect}: {label}" if shown.defect else f"{shown.category}: {label}"
    known = what if shown.mask is not None else f"{what}, no ground truth"
    lines = [shown.path, known, verdict(shown.score, threshold)]
    return np.vstack([legend(pictures.shape[1], lines, scale_of(threshold)), pictures])
