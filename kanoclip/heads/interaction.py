"""Interaction: patches of each level and the texts of the two states look at each other (Bi-CMCI)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import zeroed
from kanoclip.types import KanoclipError


class Interaction(nn.Module, ABC):
    """Changes patches and states, level by level; the identity before training."""

    learns = True

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

    learns = False

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
        return unit(projected), states.expand(len(patches), -1, -1, -1)


class PerLevel(nn.Module):
    """Weights of one linear layer or norm per level, stacked: ``weight`` ``(L, ...)`` and ``bias`` ``(L, ...)``."""

    def __init__(self, layers: Sequence[nn.Linear | nn.LayerNorm]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, states: Tensor) -> Tensor:
        """Apply the layer of each level to ``(L, B, S, .)``."""
        bias = self.bias[:, None, None]
        if self.weight.ndim == 2:
            return F.layer_norm(states, states.shape[-1:]) * self.weight[:, None, None] + bias
        return torch.einsum("lbsi,loi->lbso", states, self.weight) + bias


class Look(nn.Module, ABC):
    """One look on all levels at once: pre-norm multi-head cross-attention with a residual, zero before training.

    The patches are thousands and the states two. So what the layers would make of the patches is folded into what is
    made of the states, as ``(W x) k = x (W' k)``: the same attention for N x D x 2 heads products instead of N x D x D.

    Args:
        levels: Number of levels L; they share nothing.
        dim: Joint width D.
        heads: Attention heads; must divide ``width``.
        width: Width inside.
    """

    def __init__(self, levels: int, dim: int, heads: int, width: int) -> None:
        super().__init__()
        if width % heads:
            raise KanoclipError(
                f"interaction.heads {heads} does not divide the width {width} of the interaction. "
                f"Use --model.interaction.heads {max(h for h in range(1, heads + 1) if width % h == 0)}."
            )
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        layers = [
            (nn.Linear(dim, width), nn.Linear(dim, 2 * width), zeroed(nn.Linear(width, dim))) for _ in range(levels)
        ]
        self.query, self.key_value, self.out = (PerLevel(kind) for kind in zip(*layers, strict=True))
        self.norm_patches, self.norm_states = (PerLevel([nn.LayerNorm(dim)] * levels) for _ in range(2))

    @abstractmethod
    def forward(self, patches: Tensor, plain: Tensor, states: Tensor) -> Tensor:
        """Return those who look, with what they found added, unit length.

        Args:
            patches: ``(L, B, N, D)``.
            plain: The patches, each at mean 0 and variance 1.
            states: ``(L, B, S, D)``.
        """

    def fold(self, asked: Tensor) -> Tensor:
        """Turn what is compared with the normed patches ``(L, B, S, heads, D)`` into what is with the plain ones."""
        return (asked * self.norm_patches.weight[:, None, None, None]).flatten(2, 3)  # (L, B, S * heads, D)


class PatchesLook(Look):
    """The patches ask and the states answer."""

    def forward(self, patches: Tensor, plain: Tensor, states: Tensor) -> Tensor:
        """Return the patches."""
        key, value = self.key_value(self.norm_states(states)).unflatten(-1, (2, self.heads, -1)).unbind(3)
        key = self.scale * key  # (L, B, S, heads, d)
        asked = torch.einsum("lbshd,lhdw->lbshw", key, self.query.weight.unflatten(1, (self.heads, -1)))
        offset = torch.einsum("lbshd,lhd->lbsh", key, self.query.bias.unflatten(1, (self.heads, -1)))
        offset = offset + torch.einsum("lbshw,lw->lbsh", asked, self.norm_patches.bias)
        logits = (self.fold(asked) @ plain.mT).unflatten(2, (-1, self.heads)) + offset[..., None]
        share = logits.softmax(2).flatten(2, 3)  # (L, B, S * heads, N): over states that lie apart, or it is slow
        told = torch.einsum("lbshd,lwhd->lbshw", value, self.out.weight.unflatten(2, (self.heads, -1)))
        told = told + self.out.bias[:, None, None, None] / self.heads  # the shares of each head sum to 1
        return unit(patches + share.mT @ told.flatten(2, 3))


class TextsLook(Look):
    """The states ask and the patches answer."""

    def forward(self, patches: Tensor, plain: Tensor, states: Tensor) -> Tensor:
        """Return the states; the bias of the keys would not change their softmax, nor that of the patches' norm."""
        key, value = self.key_value.weight.unflatten(1, (2, self.heads, -1)).unbind(1)  # (L, heads, d, D)
        query = self.scale * self.query(self.norm_states(states)).unflatten(-1, (self.heads, -1))
        asked = torch.einsum("lbshd,lhdw->lbshw", query, key)
        share = (self.fold(asked) @ plain.mT).softmax(-1)  # (L, B, S * heads, N)
        found = (share @ plain).unflatten(2, (-1, self.heads)) * self.norm_patches.weight[:, None, None, None]
        found = found + self.norm_patches.bias[:, None, None, None]  # (L, B, S, heads, D)
        told = torch.einsum("lbshw,lhdw->lbshd", found, value).flatten(3)
        return unit(states + self.out(told + self.key_value.bias.chunk(2, 1)[1][:, None, None]))


class BiCMCI(Interaction):
    """Let the texts look at the patches and the patches at the texts, on each level apart (Bi-CMCI).

    Both look at what came in, so neither direction goes first.

    Args:
        heads: Attention heads; must divide the width.
        width: Width inside. null: the joint width D. A quarter of it makes the weights four times smaller, which at
            ViT-L and four levels is 19 MB instead of 76 MB; a checkpoint also holds Adam's two moments of each, so
            57 MB instead of 227 MB.

    Raises:
        KanoclipError: If ``heads`` does not divide the width.

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
        settings = len(backbone.levels), backbone.dim, self.heads, self.width or backbone.dim
        self.patches_look = PatchesLook(*settings) if self.to_patches else None
        self.texts_look = TextsLook(*settings) if self.to_texts else None

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return both after they looked at each other."""
        states = states.expand(len(patches), -1, -1, -1)  # (L, B, 2, D)
        plain = F.layer_norm(patches, patches.shape[-1:])
        seen = self.patches_look(patches, plain, states) if self.patches_look else patches
        read = self.texts_look(patches, plain, states) if self.texts_look else states
        return seen, read


class TextToPatch(BiCMCI):
    """Half of Bi-CMCI: only the texts look at the patches, so they become those of the image at hand."""

    to_patches = False


class PatchToText(BiCMCI):
    """Half of Bi-CMCI: only the patches look at the texts."""

    to_texts = False


def unit(tokens: Tensor) -> Tensor:
    """Scale the last dimension to unit length, as ``F.normalize`` does."""
    scaled: Tensor = _Unit.apply(tokens)
    return scaled


class _Unit(torch.autograd.Function):
    """Of thousands of patches, most of the time went into the gradient of ``F.normalize``: ten passes, here four."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> Tensor:
        inverse = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).clamp_min(1e-12).reciprocal()
        scaled = tokens * inverse
        ctx.save_for_backward(scaled, inverse)
        return scaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]  # torch passes one for each output
        scaled, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, scaled).unsqueeze(-1)
        return torch.addcmul(gradient, scaled, along, value=-1) * inverse
