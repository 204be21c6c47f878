"""Cross-attention between the patches of each level and the texts of the two states, as Bi-CMCI uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.heads.adapter import zeroed
from kanoclip.types import KanoclipError


class PerLevel(nn.Module):
    """One linear layer, or one layer norm, per level: weights stacked to ``(L, ...)``, all levels at once.

    Args:
        layers: The layers to stack, one per level.
    """

    def __init__(self, layers: Sequence[nn.Linear | nn.LayerNorm]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the layer of each level to ``(L, B, S, .)``."""
        bias = self.bias[:, None, None]
        if self.weight.ndim == 2:
            return F.layer_norm(tokens, tokens.shape[-1:]) * self.weight[:, None, None] + bias
        return torch.einsum("lbsi,loi->lbso", tokens, self.weight) + bias


class CrossAttention(nn.Module, ABC):
    """Pre-norm multi-head cross-attention with a residual; the identity before training.

    Args:
        levels: Number of levels L; they share no weights.
        dim: Joint width D.
        heads: Attention heads; must divide ``width``.
        width: Width of queries, keys and values, all heads together.

    Raises:
        KanoclipError: If ``heads`` does not divide ``width``.
    """

    def __init__(self, levels: int, dim: int, heads: int, width: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise KanoclipError(
                f"interaction.heads {heads} does not divide the width {width} of the interaction. "
                f"Use --model.interaction.heads {max(h for h in range(1, max(heads, 1) + 1) if width % h == 0)}."
            )
        self.heads = heads
        layers = [
            (nn.Linear(dim, width), nn.Linear(dim, 2 * width), zeroed(nn.Linear(width, dim))) for _ in range(levels)
        ]
        self.query, self.key_value, self.out = (PerLevel(kind) for kind in zip(*layers, strict=True))
        self.norm_patches, self.norm_states = (PerLevel([nn.LayerNorm(dim)] * levels) for _ in range(2))

    @abstractmethod
    def forward(self, patches: Tensor, states: Tensor) -> Tensor:
        """Return the side that asks, with what it found added, unit length.

        Args:
            patches: ``(L, B, N, D)``, unit length.
            states: ``(L, B, 2, D)``, unit length.
        """

    def attention(self, queries: Tensor, context: Tensor) -> Tensor:
        """Multi-head attention of queries ``(L, B, S, D)`` to a context ``(L, B, T, D)``, both normed."""
        q, (k, v) = self.query(queries), self.key_value(context).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(2, 3) for x in (q, k, v))  # (L, B, heads, S or T, d)
        found = F.scaled_dot_product_attention(q, k, v)  # (L, B, heads, S, d)
        return self.out(found.transpose(2, 3).flatten(3))


class PatchQueries(CrossAttention):
    """Patches attend to the texts: ``F <- normalize(F + MHA(LN(F), LN(T)))``."""

    def forward(self, patches: Tensor, states: Tensor) -> Tensor:
        """Return the patches ``(L, B, N, D)``."""
        found = self.attention(self.norm_patches(patches), self.norm_states(states))
        return F.normalize(patches + found, dim=-1)


class TextQueries(CrossAttention):
    """Texts attend to the patches: ``T <- normalize(T + MHA(LN(T), LN(F)))``."""

    def forward(self, patches: Tensor, states: Tensor) -> Tensor:
        """Return the states ``(L, B, 2, D)``."""
        found = self.attention(self.norm_states(states), self.norm_patches(patches))
        return F.normalize(states + found, dim=-1)
