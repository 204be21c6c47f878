"""An adapter that reads the patches of all levels (Bayes-PFL)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import Adapter
from kanoclip.heads.flows import small


class LevelFusion(Adapter):
    """Add to the global feature what stands out in the patches of all levels together, and map the sum.

    The levels of a patch, one behind the other, become a vector of half the patches' width; a softmax over the patches
    weighs these vectors. Not the identity before training.

    Reference:
        Z. Qu et al., *Bayes-PFL*, CVPR 2025, of its code alone (``Global_Feature``, ``image_mapping``).
    """

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the four layers."""
        hidden = max(1, backbone.patch_dim // 2)
        self.join = nn.Linear(len(backbone.levels) * backbone.patch_dim, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)  # a bias would change no softmax
        self.lift = nn.Linear(hidden, backbone.dim)
        self.map = nn.Linear(backbone.dim, backbone.dim)
        small(self)

    def forward(self, cls: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``(B, D)``; ``cls`` and ``patches`` may have any length, and patches any width."""
        joined = self.join(torch.cat(patches.unbind(), dim=-1))  # (B, N, hidden)
        pooled = (self.weigh(joined).softmax(1) * joined).sum(1)
        return F.normalize(self.map(cls + self.lift(pooled)).float(), dim=-1)
