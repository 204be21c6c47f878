"""Prompts that are shifted by what looks normal and what looks anomalous in the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.prompts import ObjectAgnosticPrompts, of_image
from kanoclip.heads.scoring import dot
from kanoclip.types import ANOMALOUS, NORMAL, Features, KanoclipError


class RegionalPrompts(ObjectAgnosticPrompts):
    """Learn object-agnostic prompts, and shift each by the mean patch of the image's region in its state.

    ``[V1 + n]..[VE + n] object.`` and ``[W1 + a]..[WE + a] damaged object.``, n a linear layer of the mean of the
    patches that look normal, a another one of the mean of those that look anomalous, 0 in place of a mean of none.

    Args:
        **options: As in ``ObjectAgnosticPrompts``.

    Reference:
        C. Xu et al., *MRAD: Zero-Shot Anomaly Detection with Memory-Driven Retrieval*, ICLR 2026, arXiv 2602.00522
        (MRAD-CLIP), and its code. There a memory says what looks anomalous; in a model without one, the prompts say it
        themselves, before they are shifted.
    """

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the learned vectors, and create the layer of each state."""
        super().build(backbone)
        self.shift = nn.ModuleList(nn.Linear(backbone.dim, backbone.text_width) for _ in (NORMAL, ANOMALOUS))

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, 2, D)``, shifted by regions of patches of the last level that the prompts tell apart.

        Raises:
            KanoclipError: Without features, or if they are not in the joint space.
        """
        features = of_image(features, "regional")
        if backbone.levels_at != "joint":
            raise KanoclipError(
                f"The prompts regional are shifted by patches in the joint space, and levels_at is "
                f"{backbone.levels_at!r}. Use --model.backbone.levels_at joint, or --model.prompts object_agnostic."
            )
        with torch.no_grad():
            states = super().forward(category, backbone, hooks=hooks)  # (B, 2, D)
        patches = features.patches[-1]  # (B, N, D)
        anomalous = dot(patches, (states[:, ANOMALOUS] - states[:, NORMAL])[:, None]) > 0
        return self.shifted(patches, anomalous, backbone, hooks)

    def shifted(self, patches: Tensor, anomalous: Tensor, backbone: CLIPBackbone, hooks: Hooks | None = None) -> Tensor:
        """Return the states ``(B, 2, D)`` of images, unit length.

        Args:
            patches: ``(B, N, D)``, in the joint space.
            anomalous: ``(B, N)``, bool: which of them look so.
            backbone: Whose text tower encodes the prompts.
            hooks: What is trained inside it.
        """
        inside = torch.stack([~anomalous, anomalous], 1).to(patches)  # (B, 2, N)
        means = inside @ patches / inside.sum(-1, keepdim=True).clamp_min(1)  # (B, 2, D)
        shift = torch.stack([layer(means[:, state]) for state, layer in enumerate(self.shift)], 1)  # (B, 2, W)
        every = (len(means), -1, -1, -1)
        vectors = self.vectors + shift[:, :, None]  # (B, 2, E, W)
        prompts = torch.cat([self.begin.expand(every), vectors, self.end.expand(every)], 2)  # (B, 2, M, W)
        eot = self.eot.repeat(len(prompts))
        return backbone.encode_embeddings(prompts.flatten(0, 1), eot, self.deep, hooks).unflatten(0, (-1, 2))
