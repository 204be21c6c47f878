"""Interaction: patches of each level and the texts of the two states look at each other (Bi-CMCI)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.adapter import zeroed
from kanoclip.backbone.clip import CLIPBackbone


class Interaction(nn.Module, ABC):
    """Changes patches and states, level by level; the identity before training."""

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the weights for a backbone; the model calls it once."""

    @abstractmethod
    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches ``(L, B, N, D)`` and states ``(L, B, 2, D)``, all unit length.

        Args:
            patches: ``(L, B, N, D)``, unit length.
            states: ``(B, 2, D)``, unit length.
        """


class NoInteraction(Interaction):
    """Leave patches and states as they are."""

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, the states once per level."""
        return patches, states.expand(len(patches), -1, -1, -1)


class LinearInteraction(Interaction):
    """Project the patches of each level by a matrix of its own, which starts as the identity.

    Reference:
        X. Chen et al., *APRIL-GAN*, arXiv 2305.17382, 2023: a linear layer per level from the tower's width to D.
        Ours acts in the joint space, behind CLIP's own projection.
    """

    def build(self, backbone: CLIPBackbone) -> None:
        """Create one identity matrix per level."""
        identity = torch.eye(backbone.dim).expand(len(backbone.levels), -1, -1)
        self.weight = nn.Parameter(identity.clone())  # (L, D, D)

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected patches and the states."""
        projected = torch.einsum("lbnd,lde->lbne", patches, self.weight)
        return F.normalize(projected, dim=-1), states.expand(len(patches), -1, -1, -1)


class CrossAttention(nn.Module):
    """One look: pre-norm multi-head cross-attention with a residual, zero before training.

    Args:
        dim: Joint width D.
        heads: Attention heads; must divide ``width``.
        width: Width inside.

    Shapes:
        query ``(B, Q, D)`` and context ``(B, K, D)`` -> ``(B, Q, D)``, unit length.
    """

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"interaction.heads {heads} does not divide the width {width} of the interaction. "
                f"Use --model.interaction.heads {max(h for h in range(1, heads + 1) if width % h == 0)}."
            )
        self.heads = heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, width)
        self.key_value = nn.Linear(dim, 2 * width)
        self.out = zeroed(nn.Linear(width, dim))

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Return the query with what it found in the context added."""
        q = self.query(self.norm_query(query))
        k, v = self.key_value(self.norm_context(context)).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, ., d)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.normalize(query + self.out(found), dim=-1)


class BiCMCI(Interaction):
    """Let the texts look at the patches and the patches at the texts, on each level apart (Bi-CMCI).

    Both look at what came in, so neither direction goes first.

    Args:
        heads: Attention heads; must divide the width.
        width: Width inside. null: the joint width D. A quarter of it makes the checkpoint four times smaller, which at
            ViT-L and four levels is 19 MB instead of 76 MB.

    Raises:
        ValueError: If ``heads`` does not divide the width.

    Reference:
        KAnoCLIP, section 2.3: bi-directional cross-modal cross-attention of text and multi-level local features; its
        form is not given. Ours: pre-norm, residual, unit length again afterwards, output projections zero at first,
        nothing shared between levels.
    """

    to_patches = True  # whether the patches look at the texts
    to_texts = True  # whether the texts look at the patches

    def __init__(self, heads: int = 8, width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.width = width

    def build(self, backbone: CLIPBackbone) -> None:
        """Create a look per direction and level."""
        levels = len(backbone.levels)
        self.patches_look = self._looks(backbone.dim, levels if self.to_patches else 0)
        self.texts_look = self._looks(backbone.dim, levels if self.to_texts else 0)

    def _looks(self, dim: int, count: int) -> nn.ModuleList:
        return nn.ModuleList(CrossAttention(dim, self.heads, self.width or dim) for _ in range(count))

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return both after they looked at each other."""
        seen = [look(level, states) for look, level in zip(self.patches_look, patches, strict=False)]
        read = [look(states, level) for look, level in zip(self.texts_look, patches, strict=False)]
        levels = states.expand(len(patches), -1, -1, -1)  # (L, B, 2, D)
        return (torch.stack(seen) if seen else patches), (torch.stack(read) if read else levels)


class TextToPatch(BiCMCI):
    """Half of Bi-CMCI: only the texts look at the patches, so they become those of the image at hand."""

    to_patches = False


class PatchToText(BiCMCI):
    """Half of Bi-CMCI: only the patches look at the texts."""

    to_texts = False
