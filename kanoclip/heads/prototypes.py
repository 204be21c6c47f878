"""Prototypes of the two states in an image's patches, and an autoencoder of its global feature (CoPS)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.ranks import mean
from kanoclip.types import KanoclipError


class Prototypes(nn.Module):
    """Let P learned queries of each state look at the patches of an image, all by the same attention block.

    ``x = q + MHA(LN(q), LN(u), LN(u))``, then ``x + W_2 QuickGELU(W_1 LN'(x))``.

    Args:
        dim: Width D of patches and queries.
        count: Prototypes P of each state.
        heads: Attention heads; must divide D. None: one for each 64 values.

    Raises:
        KanoclipError: If ``heads`` does not divide D.
    """

    def __init__(self, dim: int, count: int, heads: int | None = None) -> None:
        super().__init__()
        heads = next(h for h in range(max(1, dim // 64), 0, -1) if dim % h == 0) if heads is None else heads
        if heads < 1 or dim % heads:
            raise KanoclipError(
                f"prompts.heads is {heads}, expected a divisor of the joint width {dim}. Use --model.prompts.heads 1."
            )
        self.queries = nn.Parameter(0.02 * torch.randn(2, count, dim))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.first_norm, self.second_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.widen, self.narrow = nn.Linear(dim, dim), nn.Linear(dim, dim)
        _draw(self.attention.out_proj, self.widen, self.narrow)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches ``(B, N, D)`` -> prototypes ``(B, 2, P, D)``, of any length."""
        queries = self.queries.flatten(0, 1).expand(len(patches), -1, -1)  # (B, 2 * P, D); none sees another
        seen = self.first_norm(patches)
        found = queries + self.attention(self.first_norm(queries), seen, seen, need_weights=False)[0]
        inside = self.widen(self.second_norm(found))
        found = found + self.narrow(inside * (1.702 * inside).sigmoid())
        return found.unflatten(1, (2, -1)).float()


class GlobalVAE(nn.Module):
    """Encode a global feature as a normal distribution, and decode what is drawn from it.

    Args:
        dim: Width D of the feature, of the latent and of what is between.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.mean, self.log_variance = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.decode = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        _draw(self.inner, self.mean, self.log_variance, self.decode[0], self.decode[2])

    def forward(self, feature: Tensor, noise: Tensor, pairs: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is decoded ``(B, D)``, and the loss terms of it.

        ``kl`` is the divergence from N(0, 1), ``recon`` the squared distance from the feature, both means over images.

        Args:
            feature: ``(B, D)``.
            noise: ``(B, D)`` from N(0, 1).
            pairs: Whether ``recon`` compares the features of all images with what is decoded of all images, and takes
                the mean over values, as CoPS's code does, instead of each with its own and their sum.
        """
        inside = F.relu(self.inner(feature))
        center, log_variance = self.mean(inside).float(), self.log_variance(inside).float()
        decoded = self.decode(center + (log_variance / 2).exp() * noise)
        kl = (center.square() + log_variance.exp() - log_variance - 1).sum(-1) / 2  # (B,)
        lost = mean((feature - decoded[:, None]).square()) if pairs else mean((feature - decoded).square().sum(-1))
        return decoded, {"kl": mean(kl), "recon": lost}


def _draw(*layers: nn.Module) -> None:
    """Draw linear layers from N(0, 0.02), biases 0."""
    for layer in layers:
        assert isinstance(layer, nn.Linear)  # for the type checker
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
