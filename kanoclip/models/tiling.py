"""Tiling: a picture larger than the square of a model is scored in squares; their maps are blended without seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from kanoclip.types import Batch, Scores


def tiled(forward: Callable[[Batch], Scores], batch: Batch, size: int, tiles_at_once: int = 8) -> Scores:
    """Score a batch whose images are larger than the model's square.

    They are cut into square tiles that overlap by half or more. The maps of the tiles are averaged, weighted by a
    window that falls to zero at the borders of a tile, so that one fades into the next; where tiles agree, the result
    is their value. The image score is the highest of the tiles.

    Args:
        forward: The model.
        batch: Images of one shape. What is a single tile, or has a side shorter than ``size``, goes to ``forward`` as
            it is.
        size: Side of the square that the model takes, pixels.
        tiles_at_once: Most tiles to score together, but at least one of each image. 0: nothing is cut.

    Returns:
        Map, image score and kind of defect only, if the images were cut; else all that ``forward`` returns.
    """
    height, width = batch.image.shape[-2:]
    if not tiles_at_once or min(height, width) < size or height == width == size:
        return forward(batch)
    tops, lefts = tile_starts(height, size), tile_starts(width, size)
    corners, step = list(product(tops, lefts)), max(1, tiles_at_once // len(batch.image))
    best = batch.image.new_full((len(batch.image),), -math.inf, dtype=torch.float32)
    defects: Tensor | None = None  # those of the highest tile

    def maps() -> Iterator[Tensor]:  # (B, size, size), row by row
        nonlocal defects
        for first in range(0, len(corners), step):
            group = corners[first : first + step]
            scores = forward(_cut(batch, group, size))
            highest, tile = scores.image_score.float().unflatten(0, (len(group), -1)).max(0)  # (B,)
            if scores.defects is not None:
                of_tile = scores.defects.unflatten(0, (len(group), -1))[tile, torch.arange(len(best))]  # (B, K)
                defects = of_tile if defects is None else torch.where((highest > best)[:, None], of_tile, defects)
            torch.maximum(best, highest, out=best)
            yield from scores.anomaly_map.float().split(len(batch.image))

    tiles, heat = maps(), torch.zeros_like(batch.image[:, 0], dtype=torch.float32)  # (B, H, W)
    down, across = (_shares(starts, size, heat.device) for starts in (tops, lefts))
    for top, share in zip(tops, down, strict=True):
        strip = heat.new_zeros(len(heat), size, width)
        for left, part in zip(lefts, across, strict=True):
            strip.narrow(2, left, size).lerp_(next(tiles), part)
        heat.narrow(1, top, size).lerp_(strip, share[:, None])
    return Scores(heat, best, defects=defects)


def tile_starts(length: int, size: int) -> list[int]:
    """Return where each tile starts, pixels: every half tile, and the last one so that it ends where the picture does.

    Tiles begin at the same places whatever lies behind them, so a picture with more background to its right or below
    is scored by the tiles that it was scored by before, and more.

    Args:
        length: Side of the image, pixels, at least ``size``.
        size: Side of a tile, pixels.
    """
    return [*range(0, length - size, max(1, size // 2)), length - size]


def _shares(starts: list[int], size: int, device: torch.device) -> list[Tensor]:
    """Return what each tile ``(size,)`` along a side adds to the mean of those before it.

    The window is a squared sine; two that overlap by half sum to 1. A running mean rather than a sum: where tiles
    agree, their value stays the same to the last bit.
    """
    window = torch.sin((torch.arange(size, dtype=torch.float64) + 0.5) * (math.pi / size)).square().float()
    weight, shares = torch.zeros(starts[-1] + size), []
    for start in starts:
        weight[start : start + size] += window
        shares.append((window / weight[start : start + size]).to(device))
    return shares


def _cut(batch: Batch, corners: Sequence[tuple[int, int]], size: int) -> Batch:
    """Cut the tiles at (top, left): the first one of each image, then the second one of each image, and so on."""
    count = len(corners)
    places = [np.s_[..., top : top + size, left : left + size] for top, left in corners]
    return Batch(
        image=torch.cat([batch.image[place] for place in places]),
        mask=torch.cat([batch.mask[place] for place in places]),
        label=batch.label.repeat(count),
        has_mask=batch.has_mask.repeat(count),
        size=batch.size.repeat(count, 1),
        category=batch.category * count,
        defect=batch.defect * count,
        path=batch.path * count,
    )
