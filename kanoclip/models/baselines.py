"""What needs no learning at all: whatever these solve was easy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.heads.scoring import scaled, smooth
from kanoclip.models.base import AnomalyModule
from kanoclip.types import Batch, KanoclipError, Scores


class LocalStats(AnomalyModule):
    """Call unusual what differs from the rest of its own image in colour, contrast or edges; learns nothing.

    Colour mean, deviation and gradient energy in windows of 1/16 of the image, each as a robust distance from the
    image's median; the largest one counts. No text, no weights, no other image.

    Args:
        image_size: Height and width that images are resized to, in pixels.

    Reference:
        Ours; the control that every table of ours prints beside the methods.
    """

    name = "local_stats"

    def __init__(self, image_size: int = 128) -> None:
        super().__init__()
        if image_size < 16:
            raise KanoclipError(f"image_size is {image_size}, but windows of 1/16 need at least 16 pixels.")
        self.save_hyperparameters(logger=False)
        self.image_size = image_size

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; the map is 1 - exp(-distance / 4), the image score its maximum."""
        window = self.image_size // 16
        grey = batch.image.mean(1, keepdim=True)  # (B, 1, H, W)
        down, right = F.pad(grey.diff(dim=2), (0, 0, 0, 1)), F.pad(grey.diff(dim=3), (0, 1))
        edges = (down**2 + right**2).sqrt()
        colour, edge = _windows(batch.image, window), _windows(edges, window)
        contrast = (_windows(grey**2, window) - _windows(grey, window) ** 2).clamp_min(0).sqrt()
        statistics = torch.cat([colour, contrast, edge], 1)  # (B, 5, h, w)
        middle = _median(statistics)
        spread = _median((statistics - middle).abs())
        distance = ((statistics - middle).abs() / (spread + 0.01)).amax(1, keepdim=True)  # 0.01: a grey level or two
        heat = F.interpolate(1 - torch.exp(-distance / 4), size=(self.image_size,) * 2, mode="bilinear")[:, 0]
        heat = smooth(heat, scaled(4, self.image_size))
        return Scores(heat, heat.flatten(1).amax(1))

    @classmethod
    def learns(cls, options: Mapping[str, Any]) -> bool | None:
        """It learns nothing."""
        return False

    def describe_components(self) -> dict[str, str]:
        """No backbone and no components."""
        return {"backbone": "none (no-learning statistics)"}


def _windows(values: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(values, window, stride=max(1, window // 2))


def _median(values: Tensor) -> Tensor:
    """Lower median over ``h, w``: ``(B, C, h, w)`` -> ``(B, C, 1, 1)``; ONNX can sort, but has no median."""
    ordered = values.flatten(2).sort(-1).values
    return ordered[..., (ordered.shape[-1] - 1) // 2, None, None]
