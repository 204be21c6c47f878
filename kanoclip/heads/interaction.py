"""Interaction: the patches of each level and the texts of the two states attend to each other (Bi-CMCI)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.head import Head
from kanoclip.backbone.residual import xavier_linear
from kanoclip.heads.folded import FoldedPatchQueries, FoldedTextQueries
from kanoclip.types import KanoclipError


class Interaction(Head, ABC):
    """Changes patches and states, level by level; the identity before training."""

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

    def build(self, backbone: CLIPBackbone) -> None:
        """Check that patches can be compared with texts as they are."""
        _check_joint("none", backbone)

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, the states once per level."""
        return patches, states.expand(len(patches), -1, -1, -1)


class LinearInteraction(Interaction):
    """Project the patches of each level by a matrix of its own, which starts as the identity.

    Reference:
        X. Chen et al., *APRIL-GAN*, arXiv 2305.17382, 2023: a linear layer per level from the tower's width to D, which
        is ``LevelProjection``. Ours acts in the joint space, behind CLIP's own projection.
    """

    def build(self, backbone: CLIPBackbone) -> None:
        """Create one identity matrix per level."""
        _check_joint("linear", backbone)
        identity = torch.eye(backbone.dim).expand(len(backbone.levels), -1, -1)
        self.weight = nn.Parameter(identity.clone())  # (L, D, D)

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected patches and the states."""
        projected = torch.einsum("lbnd,lde->lbne", patches, self.weight)
        return F.normalize(projected, dim=-1), states.expand(len(patches), -1, -1, -1)


class LevelProjection(Interaction):
    """Project the patches of each level to the joint space by a linear layer of its own that starts at random.

    It takes patches of any width and length, such as those of a backbone whose ``levels_at`` is "block" or "norm";
    unlike the other interactions it is not the identity before training.

    Args:
        bias: Whether the layers have a bias. Without one they are drawn Xavier uniform, else as ``nn.Linear`` is.
        relu: Whether a LeakyReLU follows.

    Reference:
        X. Chen et al., *APRIL-GAN*, arXiv 2305.17382, 2023; Y. Cao et al., *AdaCLIP*, ECCV 2024, both of what blocks
        return; W. Ma et al., *AA-CLIP*, CVPR 2025, behind the last norm and without a bias.
    """

    def __init__(self, bias: bool = True, relu: bool = False) -> None:
        super().__init__()
        self.bias = bias
        self.relu = relu

    def build(self, backbone: CLIPBackbone) -> None:
        """Create one layer per level."""
        make = nn.Linear if self.bias else xavier_linear
        self.layers = nn.ModuleList(make(backbone.patch_dim, backbone.dim) for _ in backbone.levels)

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Project patches ``(L, B, N, W)`` to ``(L, B, N, D)``, unit length; the states stay."""
        projected = torch.stack([layer(level) for layer, level in zip(self.layers, patches, strict=True)])
        projected = F.leaky_relu(projected) if self.relu else projected
        return F.normalize(projected.float(), dim=-1), states.expand(len(patches), -1, -1, -1)


class BiCMCI(Interaction):
    """Let patches attend to the texts and texts to the patches, on each level apart (Bi-CMCI).

    Both directions read what came in, so neither goes first. The formulas stand in ``heads.cross_attention``; here
    they are computed by their faster form in ``heads.folded``.

    Args:
        heads: Attention heads; must divide the width.
        width: Width of queries, keys and values. null: the joint width D, at most 192. That is a quarter of ViT-L's,
            which makes the weights of four levels 19 MB instead of 76 MB; a checkpoint also holds Adam's two moments
            of each, so 57 MB instead of 227 MB.

    Raises:
        KanoclipError: If ``heads`` does not divide the width.

    Reference:
        KAnoCLIP, section 2.3: bi-directional cross-modal cross-attention of text and multi-level local features; its
        form is not given. Ours: pre-norm, residual, unit length again afterwards, output projections zero at first,
        nothing shared between levels.
    """

    to_patches: ClassVar[bool] = True
    """Whether the patches attend to the texts."""
    to_texts: ClassVar[bool] = True
    """Whether the texts attend to the patches."""

    def __init__(self, heads: int = 8, width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.width = width

    def build(self, backbone: CLIPBackbone) -> None:
        """Create a cross-attention per direction."""
        _check_joint("bi_cmci", backbone)
        settings = len(backbone.levels), backbone.dim, self.heads, self.width or min(backbone.dim, 192)
        self.patches_look = FoldedPatchQueries(*settings) if self.to_patches else None
        self.texts_look = FoldedTextQueries(*settings) if self.to_texts else None

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return both after they attended to each other."""
        states = states.expand(len(patches), -1, -1, -1)  # (L, B, 2, D)
        return (
            self.patches_look(patches, states) if self.patches_look is not None else patches,
            self.texts_look(patches, states) if self.texts_look is not None else states,
        )


class TextToPatch(BiCMCI):
    """Half of Bi-CMCI: only the texts attend to the patches, so that they fit the image at hand."""

    to_patches = False


class PatchToText(BiCMCI):
    """Half of Bi-CMCI: only the patches attend to the texts."""

    to_texts = False


def _check_joint(name: str, backbone: CLIPBackbone) -> None:
    """Raise KanoclipError unless the backbone's patches are in the joint space."""
    if backbone.levels_at != "joint":
        raise KanoclipError(
            f"The interaction {name} takes patches that lie in the space of the texts, but levels_at is "
            f"{backbone.levels_at!r}. Use --model.backbone.levels_at joint, or --model.interaction level_projection."
        )
