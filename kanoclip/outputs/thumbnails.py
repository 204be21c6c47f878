"""Small pictures for a report: of each image what the model saw, and the same under its heat map."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kanoclip.data.files import write_bytes
from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.overlay import heated
from kanoclip.types import Batch, Scores

SIDE = 160  # longer side of a thumbnail, pixels
QUALITY = 80  # of its JPEG, to 100


def thumbnail(path: str, heat: bool = False) -> str:
    """Return where in a report's folder the thumbnail of an image is, by a digest of the image's path.

    So its name needs no quoting whatever the path is, and several processes need not agree on numbers. A folder holds
    some forty of ten thousand files.
    """
    digest = sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{digest[:2]}/{digest[2:18]}{'-heat' * heat}.jpg"


class Thumbnails:
    """Writes thumbnails of the images with the highest scores, as many as may be.

    Args:
        folder: Where to write; none is read, so that a run that goes on keeps those that are there.
        most: Number of images to keep; thumbnails of others are deleted, or not written at all.
        threshold: Category -> where its colour begins; None: at 0.5.
    """

    def __init__(self, folder: Path, most: int, threshold: Callable[[str], Threshold | None]) -> None:
        self.folder, self.most, self.threshold = folder, most, threshold
        self._kept: list[tuple[float, str]] = []  # a heap, the lowest score first

    def add(self, batch: Batch, scores: Scores) -> None:
        """Write those of a batch.

        Raises:
            CannotWriteError: If one cannot be written; names it.
        """
        for i, path in enumerate(batch.path):
            one = float(scores.image_score[i]), path
            if len(self._kept) < self.most:
                heapq.heappush(self._kept, one)
            elif one > self._kept[0]:
                _, dropped = heapq.heapreplace(self._kept, one)
                for heat in (False, True):
                    (self.folder / thumbnail(dropped, heat)).unlink(missing_ok=True)
            else:
                continue
            pictures = self._draw(batch, scores.anomaly_map[i], i)
            for heat, picture in zip((False, True), pictures, strict=True):
                bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
                jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
                write_bytes(self.folder / thumbnail(path, heat), jpeg.tobytes(), durable=False)

    def _draw(self, batch: Batch, anomaly_map: Tensor, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Draw an image in the shape of its photo, and its heat map over it, masks outlined."""
        factor = SIDE / max(batch.size[i].tolist())
        height, width = (max(1, round(side * factor)) for side in batch.size[i].tolist())

        def small(values: Any) -> Any:
            return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)

        image = np.stack([small(channel) for channel in batch.image[i].detach().float().cpu().numpy()], -1)
        photo = (image.clip(0, 1) * 255).round().astype(np.uint8)
        heat = small(anomaly_map.detach().float().cpu().numpy())
        mask = None
        if bool(batch.has_mask[i]) and bool(batch.mask[i].any()):
            mask = (small(batch.mask[i].cpu().numpy() * np.uint8(255)) > 0).astype(np.uint8)
        return photo, heated(photo, heat, self.threshold(batch.category[i]), mask)
