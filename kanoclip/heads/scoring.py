"""Scoring: similarities -> level maps -> anomaly map -> image score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError

SIDE = 518
"""Pixels: the side of the image that options in pixels, such as ``sigma``, are meant for; AnomalyCLIP's."""


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Multiply vectors ``(..., D)`` -> ``(...)``, float32 whatever autocast and TF32 say.

    Both round the factors of a matrix product to 7 or 10 bits, so that different images and pixels tie.
    """
    return (first.float() * second.float()).sum(-1)


def level_maps(
    patches: Tensor,
    states: Tensor,
    grid: tuple[int, int],
    size: int,
    temperature: float,
    enlarge: Literal["probability", "logits"] = "probability",
    align_corners: bool = False,
) -> Tensor:
    """Compare each patch with the two states, and resize the result to pixels.

    Args:
        patches: ``(L, B, N, D)``, unit length.
        states: ``(L, B, 2, D)``, unit length.
        grid: ``(h, w)`` of the patches.
        size: Height and width of the maps in pixels.
        temperature: Divisor of the cosine.
        enlarge: What is resized: probabilities, as in AnomalyCLIP, or logits before their softmax, as in APRIL-GAN.
        align_corners: Whether the corners of the grid lie in those of the map, instead of patch centres in place.

    Returns:
        Probability of anomalous ``(L, B, size, size)``, bilinear.
    """
    difference = states[:, :, ANOMALOUS] - states[:, :, NORMAL]
    logits = (dot(patches, difference[:, :, None]) / temperature).unflatten(-1, grid)  # (L, B, h, w)
    small = logits if enlarge == "logits" else logits.sigmoid()  # the softmax over the two states
    maps = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=align_corners)
    return maps.sigmoid() if enlarge == "logits" else maps


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
    inverse = (1 / probability.float().clamp_min(1e-12)).unflatten(
        1, (h - size + 1, w - size + 1)
    )  # (B, rows, columns)
    return _cover(torch.ones_like(inverse[:1]), size) / _cover(inverse, size)


def _cover(windows: Tensor, size: int) -> Tensor:
    """Sum, for each patch, the windows that cover it: ``(B, h - size + 1, w - size + 1)`` -> ``(B, h, w)``."""
    rest = size - 1
    if windows.shape[-2:] == (1, 1):  # the image as one window
        return windows.expand(-1, size, size)
    shifted = (
        F.pad(windows, (right, rest - right, down, rest - down)) for down in range(size) for right in range(size)
    )
    return sum(shifted, torch.zeros(()))


def harmonic_mean(maps: Tensor) -> Tensor:
    """Fuse maps by their harmonic mean: ``(L, B, h, w)`` -> ``(B, h, w)``, both in [0, 1]."""
    return len(maps) / (1 / maps.clamp_min(1e-12)).sum(0)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps ``(B, H, W)`` by a Gaussian of ``sigma`` pixels, cut at 4 sigma; 0: no blur.

    Behind a border stands its mirror image, the edge twice, as in ``scipy.ndimage.gaussian_filter``, which AnomalyCLIP,
    AdaCLIP and others use. The sum is taken shift by shift: a convolution may round to TF32, and maps near 1 would tie.
    """
    radius = int(4 * sigma + 0.5)  # as scipy
    if radius < 1:
        return maps
    weights = [math.exp(-(shift**2) / (2 * sigma**2)) for shift in range(radius + 1)]
    total = weights[0] + 2 * math.fsum(weights[1:])
    blurred = maps.float()
    for axis in (-2, -1):
        length = blurred.shape[axis]
        place = torch.arange(-radius, length + radius, device=maps.device) % (2 * length)
        padded = blurred.index_select(axis, torch.minimum(place, 2 * length - 1 - place))
        blurred = padded.narrow(axis, radius, length) * (weights[0] / total)
        for shift in range(1, radius + 1):
            pair = padded.narrow(axis, radius - shift, length) + padded.narrow(axis, radius + shift, length)
            blurred.add_(pair, alpha=weights[shift] / total)
    return blurred.clamp(0, 1)


def check_blur(sigma: float) -> None:
    """Raise KanoclipError unless ``sigma`` is from 0 to ``SIDE`` pixels: a wider blur would never end."""
    if not 0 <= sigma <= SIDE:
        raise KanoclipError(f"sigma is {sigma}, expected 0 to {SIDE} pixels. Use --model.sigma 4, or 0 for no blur.")


def scaled(sigma: float, image_size: int) -> float:
    """Return the blur ``sigma`` of a ``SIDE`` pixel image in pixels of one of ``image_size``."""
    return sigma * image_size / SIDE


def check_temperature(temperature: float) -> None:
    """Raise KanoclipError unless ``temperature`` is above 0."""
    if not 0 < temperature < math.inf:
        raise KanoclipError(f"temperature is {temperature}, expected a number above 0. Use --model.temperature 0.07.")


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
