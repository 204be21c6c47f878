"""Residual cross-attention: texts look at the patches of each level (Bayes-PFL)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.interaction import Interaction
from kanoclip.types import KanoclipError


class RCA(Interaction):
    """Project the patches of each level, and let the texts attend to them.

    ``f = L2(W_l x)`` of each patch x; queries are a linear layer of the texts t, keys and values the heads' parts of f;
    ``t' = L2(t + softmax(q f / sqrt(D)) f)``. Not the identity before training. It takes patches of any width, so also
    those of a backbone whose ``levels_at`` is "block".

    Args:
        heads: Attention heads; must divide D.

    Raises:
        KanoclipError: If ``heads`` does not divide D.

    Reference:
        Z. Qu et al., *Bayes-PFL*, CVPR 2025, section 3.4, and its code, which divides by the root of D, not of the
        width of a head. It takes any number of texts at once, since none sees another.
    """

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the queries, and a matrix per level, drawn from N(0, 0.02)."""
        if self.heads < 1 or backbone.dim % self.heads:
            raise KanoclipError(
                f"interaction.heads is {self.heads}, expected a divisor of the joint width {backbone.dim} of "
                f"{backbone.description}. Use --model.interaction.heads 1."
            )
        self.weight = nn.Parameter(0.02 * torch.randn(len(backbone.levels), backbone.patch_dim, backbone.dim))
        self.query = nn.Linear(backbone.dim, backbone.dim)

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches ``(L, B, N, D)`` and states ``(L, B, T, D)`` for T texts ``(B, T, D)``, all unit length."""
        projected = F.normalize(torch.einsum("lbnw,lwd->lbnd", patches, self.weight).float(), dim=-1)
        seen = projected.unflatten(-1, (self.heads, -1)).transpose(2, 3)  # (L, B, heads, N, d)
        query = self.query(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d)
        scale = states.shape[-1] ** -0.5
        looked = F.scaled_dot_product_attention(query.expand(len(seen), -1, -1, -1, -1), seen, seen, scale=scale)
        return projected, F.normalize(states + looked.transpose(2, 3).flatten(3).float(), dim=-1)
