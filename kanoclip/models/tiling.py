"""Tiling: a picture far from square is scored in square tiles, and their maps are blended without seams."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kanoclip.types import Batch, Scores


def tiled(forward: Callable[[Batch], Scores], batch: Batch, size: int, tiles_at_once: int = 8) -> Scores:
    """Score a batch whose pictures may be longer than the model's square.

    Pictures with ``size`` as their short side are cut along the long one into tiles that overlap by half or more. The
    maps are averaged by a window that falls to zero at the borders of a tile, so that one fades into the next: where
    the tiles agree, their value comes back unchanged. The image score is the highest of the tiles'.

    Args:
        forward: The model.
        batch: Pictures of one shape; square ones, and those that do not fit the model, go to ``forward`` as they are.
        size: Side of the square that the model takes, pixels.
        tiles_at_once: Most tiles to hand to ``forward`` together, but at least one of each picture.

    Returns:
        Map and image score alone, unless the batch was handed on.
    """
    height, width = batch.image.shape[-2:]
    if min(height, width) != size or height == width:
        return forward(batch)
    side = 1 if height > width else 2  # of a (B, H, W) map
    starts = tile_starts(max(height, width), size)
    step = max(1, tiles_at_once // len(batch.image))
    heat = torch.zeros_like(batch.image[:, 0], dtype=torch.float32)  # (B, H, W)
    weight = heat.new_zeros(max(height, width))
    window = _window(size).to(heat.device)
    best = None
    for first in range(0, len(starts), step):
        group = starts[first : first + step]
        scores = forward(_cut(batch, group, side, size))
        for start, tile in zip(group, scores.anomaly_map.float().split(len(batch.image)), strict=True):
            # A running mean rather than a sum: equal values stay equal to the last bit.
            weight[start : start + size] += window
            share = window / weight[start : start + size]
            heat.narrow(side, start, size).lerp_(tile, share[:, None] if side == 1 else share)
        score = scores.image_score.unflatten(0, (len(group), -1)).amax(0)  # (B,)
        best = score if best is None else torch.maximum(best, score)
    assert best is not None  # for the type checker: there are at least two tiles
    return Scores(heat, best)


def tile_starts(length: int, size: int) -> list[int]:
    """Place tiles evenly, from one end to the other, so that neighbours share half a tile or more.

    Args:
        length: Long side of the picture, pixels, at least ``size``.
        size: Side of a tile, pixels.

    Returns:
        Where each begins.
    """
    steps = math.ceil((length - size) / max(1, size // 2))
    return [round(turn * (length - size) / max(1, steps)) for turn in range(steps + 1)]


def _window(size: int) -> Tensor:
    """Return the weights ``(size,)`` along a tile: a squared sine, above zero, which adds up to 1 at half overlap."""
    return torch.sin((torch.arange(size, dtype=torch.float64) + 0.5) * (math.pi / size)).square().float()


def _cut(batch: Batch, starts: list[int], side: int, size: int) -> Batch:
    """Cut the tiles at ``starts``: the first one of each picture, then the second one of each picture, and so on."""
    count = len(starts)
    return Batch(
        image=torch.cat([batch.image.narrow(side + 1, start, size) for start in starts]),
        mask=torch.cat([batch.mask.narrow(side, start, size) for start in starts]),
        label=batch.label.repeat(count),
        has_mask=batch.has_mask.repeat(count),
        size=batch.size.repeat(count, 1),
        category=batch.category * count,
        defect=batch.defect * count,
        path=batch.path * count,
    )
