"""Projections into the joint space that learn, in place of CLIP's own: of levels, image and texts (AA-CLIP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.residual import xavier_linear
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.adapter import Adapter
from kanoclip.heads.prompts import Prompts, autocast_type, readable, same_weights
from kanoclip.types import Features

NORMAL_PHRASES = ["{}", "a {}", "the {}"]
ANOMALOUS_PHRASES = ["a damaged {}", "a broken {}", "a {} with flaw", "a {} with defect", "a {} with damage"]
SENTENCES = ["{}.", "a photo of {}."]


class PatchMean(Adapter):
    """Take the mean of the projected patches of the last level as the global feature, instead of the class token's.

    Args:
        relu: Whether a LeakyReLU follows the projection.

    Reference:
        W. Ma et al., *AA-CLIP*, CVPR 2025, whose code calls it det_proj. As there, each patch has unit length and
        their mean does not: the less patches agree, the nearer both cosines are to 0.
    """

    def __init__(self, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the matrix, Xavier uniform."""
        self.projection = xavier_linear(backbone.patch_dim, backbone.dim)

    def forward(self, cls: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``(B, D)``, at most of unit length."""
        projected = self.projection(patches[-1])  # (B, N, D)
        return F.normalize(F.leaky_relu(projected) if self.relu else projected, dim=-1).mean(1)


class ProjectedPrompts(Prompts):
    """Describe the two states by hand, and learn how the text encoder's last token is projected.

    3 normal and 5 anomalous phrases in 2 sentences; each unit length, averaged per state. What the text tower returns
    behind its last norm passes ``LeakyReLU(W x)`` instead of CLIP's projection. While nothing of it learns, the states
    of a category are computed once and kept.

    Args:
        names: What to call a category in the sentences, such as {capsule: black and orange capsule}; null: its own
            name, in words. Any may be given at a test too: no weight depends on them.

    Reference:
        W. Ma et al., *AA-CLIP*, CVPR 2025, and its code, which has a description by hand for each category of its data
        sets, and refuses a category without one.
    """

    def __init__(self, names: dict[str, str] | None = None) -> None:
        super().__init__()
        self.names = dict(names or {})
        # weights -> category and precision -> states (2, D)
        self._kept: tuple[list[Tensor], dict[tuple[str, torch.dtype | None], Tensor]] = [], {}

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the projection, Xavier uniform."""
        self.projection = xavier_linear(backbone.text_width, backbone.dim)

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, 2, D)``."""
        inside: list[Tensor] = list(hooks.parameters()) if isinstance(hooks, nn.Module) else []
        weights = [*self.parameters(), *inside]
        fresh = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        known = {} if fresh or (hooks is not None and not inside) else self._states_of(weights)
        asked = [(name, autocast_type(backbone.mean)) for name in category]
        for name, precision in set(asked) - set(known):
            known[name, precision] = self._encode(name, backbone, hooks)
        return torch.stack([known[one] for one in asked])

    def _states_of(self, weights: list[Tensor]) -> dict[tuple[str, torch.dtype | None], Tensor]:
        """Return the states that were kept for these weights: comparing with copies notices every change."""
        kept, known = self._kept
        if not same_weights(kept, weights):
            known = {}
            self._kept = [weight.detach().clone() for weight in weights], known
        return known

    def _encode(self, category: str, backbone: CLIPBackbone, hooks: Hooks | None) -> Tensor:
        """Return the states of one category ``(2, D)``."""
        name = self.names.get(category) or readable(category)
        states = []
        for phrases in (NORMAL_PHRASES, ANOMALOUS_PHRASES):
            texts = [sentence.format(phrase.format(name)) for phrase in phrases for sentence in SENTENCES]
            tokens = backbone.token_embeddings(texts)
            states.append(backbone.text(*tokens, hooks=hooks, projection=self._project).mean(0))
        return F.normalize(torch.stack(states), dim=-1)

    def _project(self, read: Tensor) -> Tensor:
        return F.leaky_relu(F.linear(read, self.projection.weight.to(read.dtype)))
