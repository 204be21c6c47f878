"""CLIP features of small windows of an image, each encoded from its own patches alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import QKV
from kanoclip.backbone.blocks import pool, run_blocks
from kanoclip.backbone.casting import cast_once
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.towers import tower_of

WINDOWS_AT_ONCE = 1024  # windows encoded at a time, which bounds the memory of large grids


def window_patches(side: int, size: int) -> Tensor:
    """Return the patch numbers ``(W, size**2)`` of all windows of ``size`` x ``size`` on a grid ``side`` x ``side``."""
    grid = torch.arange(side * side).view(side, side)
    return grid.unfold(0, size, 1).unfold(1, size, 1).flatten(2).flatten(0, 1)


@torch.no_grad()
def encode_windows(backbone: CLIPBackbone, image: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Encode the windows of an image, of several sizes.

    CLIP's own blocks read the class token and the patches of the window, with the positions they have in the image;
    all other patches are left out. The feature of a window as large as the grid is CLIP's global feature.

    Args:
        backbone: Frozen CLIP; its levels are not used.
        image: ``(B, 3, image_size, image_size)`` in [0, 1].
        sizes: Sides of the windows in patches, each at most that of the grid.

    Returns:
        For each size ``(B, W, D)``, float32 and unit length, W windows row by row.

    Reference:
        J. Jeong et al., *WinCLIP*, CVPR 2023, section 4.2.
    """
    visual, tokens = cast_once(backbone.visual), backbone.embed_image(image)  # (B, 1 + N, width)
    found = []
    for size in sizes:
        patches = window_patches(backbone.image_size // backbone.patch_size, size).to(tokens.device)
        numbers = F.pad(patches + backbone.prefix, (backbone.prefix, 0))  # (W, 1 + size**2), the class token first
        windows = tokens[:, numbers].flatten(0, 1)  # (B * W, 1 + size**2, width)
        # an exported graph is the same for any batch: it has no loop
        parts = (windows,) if torch.compiler.is_compiling() else windows.split(WINDOWS_AT_ONCE)
        seen = [pool(visual, run_blocks(visual, part, QKV(), [])[0], norm=backbone.cls_norm) for part in parts]
        feature = torch.cat(seen)
        found.append(feature.unflatten(0, (image.shape[0], -1)))  # (B, W, D)
    return found


@torch.no_grad()
def encode_patches(backbone: CLIPBackbone, image: Tensor) -> Tensor:
    """Read the patches that CLIP's own blocks make of an image, behind its last norm and without projection.

    Args:
        backbone: Frozen CLIP; its levels are not used.
        image: ``(B, 3, image_size, image_size)`` in [0, 1].

    Returns:
        ``(B, N, W)``, float32, of any length.
    """
    visual = cast_once(backbone.visual)
    tokens, _ = run_blocks(visual, backbone.embed_image(image), QKV(), [])
    return tower_of(visual).norm(tokens[:, backbone.prefix :]).float()
