"""Tiling: an image far from square is scored in square tiles, and their maps are blended without seams."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kanoclip.types import Batch, Scores


def tiled(forward: Callable[[Batch], Scores], batch: Batch, size: int, tiles_at_once: int = 8) -> Scores:
    """Score a batch whose images may be longer than the model's square.

    Images whose short side is ``size`` are cut along the long one into tiles that overlap by half or more. The maps of
    the tiles are averaged, weighted by a window that falls to zero at the borders of a tile, so that one fades into the
    next; where tiles agree, the result is their value. The image score is the highest of the tiles.

    Args:
        forward: The model.
        batch: Images of one shape. A batch that needs no tiling, or has another short side than ``size``, goes to
            ``forward`` as it is.
        size: Side of the square that the model takes, pixels.
        tiles_at_once: Most tiles to score together, but at least one of each image.

    Returns:
        Map and image score only, if the images were cut; else all that ``forward`` returns.
    """
    height, width = batch.image.shape[-2:]
    if min(height, width) != size or height == width:
        return forward(batch)
    axis = 1 if height > width else 2  # the long one of a (B, H, W) map
    starts = tile_starts(max(height, width), size)
    step = max(1, tiles_at_once // len(batch.image))
    heat = torch.zeros_like(batch.image[:, 0], dtype=torch.float32)  # (B, H, W)
    weight = heat.new_zeros(max(height, width))
    window = _window(size).to(heat.device)
    best = None
    for first in range(0, len(starts), step):
        group = starts[first : first + step]
        scores = forward(_cut(batch, group, axis, size))
        for start, tile in zip(group, scores.anomaly_map.float().split(len(batch.image)), strict=True):
            # a running mean rather than a sum: where tiles agree, their value stays the same to the last bit
            weight[start : start + size] += window
            share = window / weight[start : start + size]
            heat.narrow(axis, start, size).lerp_(tile, share[:, None] if axis == 1 else share)
        score = scores.image_score.unflatten(0, (len(group), -1)).amax(0)  # (B,)
        best = score if best is None else torch.maximum(best, score)
    assert best is not None  # for the type checker: there are at least two tiles
    return Scores(heat, best)


def tile_starts(length: int, size: int) -> list[int]:
    """Return where each tile starts, pixels: evenly from end to end, neighbours sharing half a tile or more.

    Args:
        length: Long side of the image, pixels, at least ``size``.
        size: Side of a tile, pixels.
    """
    steps = math.ceil((length - size) / max(1, size // 2))
    return [round(turn * (length - size) / max(1, steps)) for turn in range(steps + 1)]


def _window(size: int) -> Tensor:
    """Return weights ``(size,)`` along a tile: a squared sine; two that overlap by half sum to 1."""
    return torch.sin((torch.arange(size, dtype=torch.float64) + 0.5) * (math.pi / size)).square().float()


def _cut(batch: Batch, starts: list[int], axis: int, size: int) -> Batch:
    """Cut the tiles at ``starts``: the first one of each image, then the second one of each image, and so on."""
    count = len(starts)
    return Batch(
        image=torch.cat([batch.image.narrow(axis + 1, start, size) for start in starts]),
        mask=torch.cat([batch.mask.narrow(axis, start, size) for start in starts]),
        label=batch.label.repeat(count),
        has_mask=batch.has_mask.repeat(count),
        size=batch.size.repeat(count, 1),
        category=batch.category * count,
        defect=batch.defect * count,
        path=batch.path * count,
    )
