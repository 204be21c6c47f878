"""MMCI: convolutions of several sizes and shapes bring patches to the texts (FiLo)."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.interaction import Interaction
from kanoclip.types import KanoclipError

SHAPES = ((1, 1), (3, 3), (5, 5), (7, 7), (1, 5), (5, 1))
"""Height and width in patches of the convolutions."""


class MMCI(Interaction):
    """Project patches to the joint space by the sum of six convolutions, from 1 x 1 to 7 x 7, 1 x 5 and 5 x 1.

    It takes patches of any width and length, and is not the identity before training. For ViT-L a level has 74 million
    weights.

    Args:
        levels: How many of the last levels are read. null: all.

    Raises:
        KanoclipError: If there are not so many levels.

    Reference:
        Z. Gu et al., *FiLo*, ACM MM 2024 (multi-scale multi-shape cross-modal interaction), and its code.
    """

    def __init__(self, levels: int | None = None) -> None:
        super().__init__()
        self.levels = levels

    def build(self, backbone: CLIPBackbone) -> None:
        """Create six convolutions per level."""
        self.read = len(backbone.levels) if self.levels is None else self.levels
        if not 1 <= self.read <= len(backbone.levels):
            raise KanoclipError(
                f"interaction.levels is {self.levels}, but the backbone gives {len(backbone.levels)}. Use such as "
                f"--model.interaction.levels {len(backbone.levels)}."
            )
        self.convolutions = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(backbone.patch_dim, backbone.dim, shape, padding="same") for shape in SHAPES)
            for _ in range(self.read)
        )

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Project patches ``(L, B, N, W)`` of a square grid to ``(levels, B, N, D)``, unit length; the states stay."""
        grids = patches[-self.read :].mT.unflatten(-1, (isqrt(patches.shape[2]), -1))  # (levels, B, W, h, w)
        seen = [
            torch.stack([convolve(grid) for convolve in level.children()]).sum(0)
            for level, grid in zip(self.convolutions, grids, strict=True)
        ]
        projected = torch.stack(seen).flatten(3).mT  # (levels, B, N, D)
        return F.normalize(projected.float(), dim=-1), states.expand(self.read, -1, -1, -1)
