"""The vision transformer of CLIP, step by step: patches in, blocks with a second path and hooks, joint space out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import Attention
from kanoclip.backbone.towers import tower_of
from kanoclip.backbone.tuning import Hooks
from kanoclip.types import KanoclipError


def embed_patches(visual: Any, image: Tensor, position: Tensor) -> Tensor:
    """Image ``(B, 3, H, W)``, normalised -> tokens ``(B, 1 + N, width)`` for the first block."""
    return tower_of(visual).embed(image, position)


def run_blocks(
    visual: Any, tokens: Tensor, attention: Attention, levels: Sequence[int], hooks: Hooks | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Run the blocks of a vision transformer, with the second path beside CLIP's own; differentiable.

    The second path begins at the block ``attention.start`` and ends with the highest level.

    Args:
        visual: The image tower of an open_clip model.
        tokens: ``(B, 1 + N, width)`` from ``embed_patches``.
        attention: What the second path attends to.
        levels: Blocks to read, counted from 1.
        hooks: What is trained between the blocks of CLIP's own path.

    Returns:
        The tokens of CLIP's own path after the last block, and those of each level, all ``(B, 1 + N, width)``.
    """
    tower = tower_of(visual)
    first = attention.start(len(tower.blocks)) or len(tower.blocks) + 1
    second: Tensor | None = None
    taps: dict[int, Tensor] = {}
    for number, block in enumerate(tower.blocks, start=1):
        tokens = tokens if hooks is None else hooks.before(number, tokens)
        q, k, v = tower.split(block, tokens)  # (B, heads, 1 + N, d)
        changed = first <= number <= max(levels, default=0)
        if changed and not attention.in_place:
            second = (tokens if second is None else second) + tower.merge(block, attention(q, k, v))
        own = attention if changed and attention.in_place else F.scaled_dot_product_attention
        tokens = tokens + tower.merge(block, own(q, k, v))
        tokens = tokens + tower.feed(block, tokens)
        tokens = tokens if hooks is None else hooks.after(number, tokens)
        if number in levels:
            taps[number] = tokens if second is None else second
    return tokens, [taps[level] for level in levels]


def project(visual: Any, tokens: Tensor, norm: bool = True) -> Tensor:
    """Tokens ``(..., width)`` -> joint space ``(..., D)``, each on its own, float32 and unit length."""
    tower = tower_of(visual)
    return F.normalize(tower.project(tower.norm(tokens) if norm else tokens).float(), dim=-1)


def pool(visual: Any, tokens: Tensor, norm: bool = True, unit: bool = True) -> Tensor:
    """All tokens of the last block ``(B, 1 + N, width)`` -> global feature ``(B, D)``, float32, unit length or own."""
    pooled = tower_of(visual).pool(tokens, norm).float()
    return F.normalize(pooled, dim=-1) if unit else pooled


def resize_position(position: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str) -> Tensor:
    """Resize a position embedding ``(1 + h*w, width)`` from grid ``old`` to ``new``.

    That of the class token stays, where there is one: ``(h*w, width)`` has none.
    """
    if mode not in ("bicubic", "bicubic_no_antialias", "bilinear"):
        raise KanoclipError(
            f"position is {mode!r}, expected bicubic, bicubic_no_antialias or bilinear. Use --model.backbone.position "
            f"bicubic."
        )
    if old == new:
        return position.clone()
    prefix = len(position) - old[0] * old[1]
    grid = position[prefix:].T.unflatten(1, old)[None]  # (1, width, h, w)
    kind = mode.removesuffix("_no_antialias")
    grid = F.interpolate(grid, size=new, mode=kind, antialias=mode == "bicubic", align_corners=False)
    return torch.cat([position[:prefix], grid[0].flatten(1).T])
