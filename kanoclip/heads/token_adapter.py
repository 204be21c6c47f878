"""Token adapter: tokens of a frozen tower attend to each other once more, in windows of several sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.head import Head


class TokenAdapter(Head):
    """Replace the tokens of the image tower by what they gather from each other; one layer for all levels.

    ``W_o attention(W_q n, W_k n, W_v n)`` of ``n = LayerNorm(tokens)``, without a residual.

    Args:
        heads: Attention heads.
        head_width: Width of each.

    Reference:
        Q. Fang et al., *AF-CLIP: Zero-Shot Anomaly Detection via Anomaly-Focused CLIP Adaptation*, ACM MM 2025, the
        adaptor of its code.
    """

    def __init__(self, heads: int = 8, head_width: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = head_width

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the layers for tokens of the tower's width."""
        width, inner = backbone.width, self.heads * self.head_width
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens as a block returns them ``(B, T, W)`` -> ``(B, T, W)``."""
        normed = self.norm(tokens)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, head_width)
            for layer in (self.query, self.key, self.value)
        )
        gathered: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return gathered


def gaussian_window(patches: Tensor, grid: tuple[int, int], side: int, sigma: float = 4.0) -> Tensor:
    """Average each patch with those around it, by a Gaussian cut to a window; beyond the border stand zeros.

    Args:
        patches: ``(..., N, W)``.
        grid: ``(h, w)`` with ``h * w = N``.
        side: Of the window in patches, odd; 1 leaves patches as they are.
        sigma: Of the Gaussian, in patches.

    Returns:
        ``(..., N, W)``.

    Reference:
        AF-CLIP's code, which has windows of 1, 3 and 5 patches and a sigma of 4.
    """
    if side == 1:
        return patches
    around = side // 2
    weights = [math.exp(-((shift - around) ** 2) / (2 * sigma**2)) for shift in range(side)]
    weights = [weight / math.fsum(weights) for weight in weights]
    h, w = grid
    padded = F.pad(patches.unflatten(-2, grid), (0, 0, around, around, around, around))
    zero = torch.zeros((), device=patches.device)
    rows = sum((weight * padded[..., i : i + h, :, :] for i, weight in enumerate(weights)), zero)
    return sum((weight * rows[..., i : i + w, :] for i, weight in enumerate(weights)), zero).flatten(-3, -2)
