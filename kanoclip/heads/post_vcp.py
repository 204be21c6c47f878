"""Post-VCP: the texts of the two states are made anew from the patches of each level (VCP-CLIP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.interaction import Interaction
from kanoclip.types import KanoclipError


class PostVCP(Interaction):
    """Replace the states by what they find in the patches: ``t' = L2(W_o softmax(W_q t . W_k f) W_v f)``.

    The patches f, of any width and at unit length, stay; the states get the width of the patches. All levels share the
    weights. There is no residual, so it is not the identity before training.

    Args:
        heads: Attention heads; must divide the width of the patches.

    Raises:
        KanoclipError: If ``heads`` does not divide it.

    Reference:
        Z. Qu et al., *VCP-CLIP*, ECCV 2024, section 3.4, and its code, in which logits are not divided by the root of
        the width. Keys and values are linear, so they are applied to the two states and to what they find instead of to
        all patches; the bias of the keys, which a softmax does not see, is left out.
    """

    def __init__(self, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the four linear layers."""
        width = backbone.patch_dim
        if self.heads < 1 or width % self.heads:
            raise KanoclipError(
                f"interaction.heads is {self.heads}, expected a divisor of the width {width} of the patches of "
                f"{backbone.description}. Use --model.interaction.heads 1."
            )
        self.query = nn.Linear(backbone.dim, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, patches: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches ``(L, B, N, W)`` and states ``(L, B, T, W)`` for T texts ``(B, T, D)``, all unit length."""
        patches = F.normalize(patches, dim=-1)
        key, value = (layer.weight.unflatten(0, (self.heads, -1)) for layer in (self.key, self.value))  # (heads, d, W)
        query = self.query(states).unflatten(-1, (self.heads, -1))  # (B, T, heads, d)
        asked = torch.einsum("bthd,hdw->bthw", query, key).flatten(1, 2)  # (B, T * heads, W)
        asked = asked.expand(len(patches), -1, -1, -1)
        found = F.scaled_dot_product_attention(asked, patches, patches, scale=1.0)  # (L, B, T * heads, W)
        found = found.unflatten(2, (-1, self.heads))
        seen = torch.einsum("lbthw,hdw->lbthd", found, value).flatten(3) + self.value.bias  # (L, B, T, W)
        return patches, F.normalize(self.out(seen).float(), dim=-1)
