"""Scoring: similarities -> level maps -> anomaly map -> image score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError


def level_maps(patches: Tensor, states: Tensor, grid: tuple[int, int], size: int, temperature: float) -> Tensor:
    """Compare each patch with the two states, and resize the result to pixels.

    Args:
        patches: ``(L, B, N, D)``, unit length.
        states: ``(L, B, 2, D)``, unit length.
        grid: ``(h, w)`` of the patches.
        size: Height and width of the maps in pixels.
        temperature: Divisor of the cosine.

    Returns:
        Probability of anomalous ``(L, B, size, size)``, bilinear between patch centres.
    """
    difference = states[:, :, ANOMALOUS] - states[:, :, NORMAL]
    with torch.autocast(patches.device.type, enabled=False):  # in half precision different pixels would tie
        nearer = torch.einsum("lbnd,lbd->lbn", patches.float(), difference.float())
    small = (nearer / temperature).sigmoid()  # the softmax over the two states
    return F.interpolate(small.unflatten(-1, grid), size=(size, size), mode="bilinear", align_corners=False)


def anomaly_map(maps: Tensor) -> Tensor:
    """Average the levels: ``(L, B, H, W)`` -> ``(B, H, W)``, both in [0, 1]."""
    return maps.mean(0)


def window_map(probability: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Give each patch the harmonic mean of the windows that cover it: one low window makes it low.

    Args:
        probability: ``(B, W)`` of all windows of ``size`` x ``size`` patches, row by row, W = (h-size+1) * (w-size+1).
        grid: ``(h, w)`` of the patches.
        size: Side of a window in patches.

    Returns:
        ``(B, h, w)`` in [0, 1].
    """
    h, w = grid
    inverse = (1 / probability.float().clamp_min(1e-12)).unflatten(1, (h - size + 1, w - size + 1))[:, None]
    cover = inverse.new_ones(1, 1, size, size)
    with torch.autocast(inverse.device.type, enabled=False):
        count = F.conv_transpose2d(torch.ones_like(inverse[:1]), cover)  # (1, 1, h, w)
        return (count / F.conv_transpose2d(inverse, cover))[:, 0]


def harmonic_mean(maps: Tensor) -> Tensor:
    """Fuse maps by their harmonic mean: ``(L, B, h, w)`` -> ``(B, h, w)``, both in [0, 1]."""
    return len(maps) / (1 / maps.clamp_min(1e-12)).sum(0)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps ``(B, H, W)`` by a Gaussian of ``sigma`` pixels, cut at 4 sigma, borders mirrored; 0: no blur."""
    radius = min(math.ceil(4 * sigma), min(maps.shape[-2:]) - 1)
    if radius < 1:
        return maps
    offset = torch.arange(-radius, radius + 1, device=maps.device, dtype=torch.float32)
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    blurred = F.pad(maps[:, None].float(), (radius,) * 4, mode="reflect")
    with torch.autocast(maps.device.type, enabled=False):
        blurred = F.conv2d(F.conv2d(blurred, kernel[None, None, None]), kernel[None, None, :, None])
    return blurred[:, 0].clamp(0, 1)


class Score(nn.Module, ABC):
    """Makes the image score of the global probability and the anomaly map."""

    @abstractmethod
    def forward(self, probability: Tensor, anomaly_map: Tensor) -> Tensor:
        """Return the image score ``(B,)`` in [0, 1] from ``(B,)`` and ``(B, H, W)``, both in [0, 1]."""


class GlobalScore(Score):
    """Take the global probability.

    Reference:
        Q. Zhou et al., *AnomalyCLIP*, ICLR 2024.
    """

    def forward(self, probability: Tensor, anomaly_map: Tensor) -> Tensor:
        """Return the probability."""
        return probability


class MapMaxScore(Score):
    """Take the highest pixel of the map."""

    def forward(self, probability: Tensor, anomaly_map: Tensor) -> Tensor:
        """Return the highest pixel of each map."""
        return anomaly_map.flatten(1).amax(1)


class MeanScore(Score):
    """Average the global probability and the highest pixel of the map.

    Reference:
        Ours; KAnoCLIP does not say how its image score is fused.
    """

    def forward(self, probability: Tensor, anomaly_map: Tensor) -> Tensor:
        """Return the mean of both."""
        return (probability + anomaly_map.flatten(1).amax(1)) / 2


class TopKScore(Score):
    """Average the highest pixels of the map.

    Args:
        share: Share of the pixels, in (0, 1].

    Raises:
        KanoclipError: If ``share`` is not in (0, 1].
    """

    def __init__(self, share: float = 0.01) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise KanoclipError(f"score.share is {share}, expected a share in (0, 1]. Use --model.score.share 0.01.")
        self.share = share

    def forward(self, probability: Tensor, anomaly_map: Tensor) -> Tensor:
        """Return the mean of the highest pixels of each map."""
        pixels = anomaly_map.flatten(1)
        return pixels.topk(max(1, round(self.share * pixels.shape[1])), dim=1).values.mean(1)
