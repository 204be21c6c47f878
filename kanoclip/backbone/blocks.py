"""The vision transformer of CLIP, step by step: patches in, blocks with a second path and hooks, joint space out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import Attention
from kanoclip.backbone.tuning import Hooks
from kanoclip.types import KanoclipError


def embed_patches(visual: Any, image: Tensor, position: Tensor) -> Tensor:
    """Image ``(B, 3, H, W)``, normalised -> tokens ``(B, 1 + N, width)`` for the first block."""
    patches = visual.conv1(image).flatten(2).transpose(1, 2)  # (B, N, width)
    cls = visual.class_embedding.expand(patches.shape[0], 1, -1)
    return visual.ln_pre(torch.cat([cls, patches], dim=1) + position)


def run_blocks(
    visual: Any, tokens: Tensor, attention: Attention, levels: Sequence[int], hooks: Hooks | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Run the blocks of a vision transformer, with the second path beside CLIP's own; differentiable.

    The second path begins at the block ``attention.start`` and ends with the highest level.

    Args:
        visual: open_clip's VisionTransformer.
        tokens: ``(B, 1 + N, width)`` from ``embed_patches``.
        attention: What the second path attends to.
        levels: Blocks to read, counted from 1.
        hooks: What is trained between the blocks of CLIP's own path.

    Returns:
        The tokens of CLIP's own path after the last block, and those of each level, all ``(B, 1 + N, width)``.
    """
    blocks = visual.transformer.resblocks
    first = attention.start(len(blocks)) or len(blocks) + 1
    second: Tensor | None = None
    taps: dict[int, Tensor] = {}
    for number, block in enumerate(blocks, start=1):
        attn = block.attn
        tokens = tokens if hooks is None else hooks.before(number, tokens)
        q, k, v = (
            x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)  # (B, heads, 1 + N, d)
            for x in F.linear(block.ln_1(tokens), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        )
        if first <= number <= max(levels, default=0):
            gathered = attn.out_proj(attention(q, k, v).transpose(1, 2).flatten(2))
            second = (tokens if second is None else second) + block.ls_1(gathered)
        own = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, 1 + N, width)
        tokens = tokens + block.ls_1(attn.out_proj(own))
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        tokens = tokens if hooks is None else hooks.after(number, tokens)
        if number in levels:
            taps[number] = tokens if second is None else second
    return tokens, [taps[level] for level in levels]


def project(visual: Any, tokens: Tensor, norm: bool = True) -> Tensor:
    """Tokens ``(..., width)`` -> joint space ``(..., D)``, float32 and unit length."""
    return F.normalize(((visual.ln_post(tokens) if norm else tokens) @ visual.proj).float(), dim=-1)


def resize_position(position: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str) -> Tensor:
    """Resize a position embedding ``(1 + h*w, width)`` from grid ``old`` to ``new``; the class token's stays."""
    if mode not in ("bicubic", "bicubic_no_antialias", "bilinear"):
        raise KanoclipError(
            f"position is {mode!r}, expected bicubic, bicubic_no_antialias or bilinear. Use --model.backbone.position "
            f"bicubic."
        )
    if old == new:
        return position.clone()
    grid = position[1:].T.unflatten(1, old)[None]  # (1, width, h, w)
    kind = mode.removesuffix("_no_antialias")
    grid = F.interpolate(grid, size=new, mode=kind, antialias=mode == "bicubic", align_corners=False)
    return torch.cat([position[:1], grid[0].flatten(1).T])
