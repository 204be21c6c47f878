"""The cross-attention of ``heads.cross_attention`` with fewer products: same weights, same result up to rounding.

A level has many patches and two states. As ``q . (W x) = (W' q) . x``, a projection W of the patches can be applied to
the states instead: ``2 * heads`` products of length D per patch and projection, where W takes D (16 and 128 on the
embedded backbone, where an epoch on cached features takes 1 / 1.6 of the time). The scale of the patches' norm moves
to the states in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.heads.cross_attention import PatchQueries, TextQueries


class FoldedPatchQueries(PatchQueries):
    """Patches attend to the texts; the projections of queries and outputs are applied to the keys and values."""

    def forward(self, patches: Tensor, states: Tensor) -> Tensor:
        """Return the patches ``(L, B, N, D)``."""
        k, v = self.key_value(self.norm_states(states)).unflatten(-1, (2, self.heads, -1)).unbind(3)
        k = k * k.shape[-1] ** -0.5  # (L, B, 2, heads, d)
        keys = torch.einsum("lbshd,lhdw->lbshw", k, self.query.weight.unflatten(1, (self.heads, -1)))
        bias = torch.einsum("lbshd,lhd->lbsh", k, self.query.bias.unflatten(1, (self.heads, -1)))
        bias = bias + torch.einsum("lbshw,lw->lbsh", keys, self.norm_patches.bias)
        keys = keys * self.norm_patches.weight[:, None, None, None]  # (L, B, 2, heads, D)
        logits = (keys.flatten(2, 3) @ _standardized(patches).mT).unflatten(2, (-1, self.heads)) + bias[..., None]
        weights = logits.softmax(2).flatten(2, 3)  # (L, B, 2 * heads, N); states not last, or the softmax is slow
        values = torch.einsum("lbshd,lwhd->lbshw", v, self.out.weight.unflatten(2, (self.heads, -1)))
        values = values + self.out.bias[:, None, None, None] / self.heads  # the weights of each head sum to 1
        return F.normalize(patches + weights.mT @ values.flatten(2, 3), dim=-1)


class FoldedTextQueries(TextQueries):
    """Texts attend to the patches; the projections of keys and values are applied to the queries and to what is found.

    The bias of the keys and that of the norm before them add the same to all logits of a query, so the softmax drops
    them.
    """

    def forward(self, patches: Tensor, states: Tensor) -> Tensor:
        """Return the states ``(L, B, 2, D)``."""
        key, value = self.key_value.weight.unflatten(1, (2, self.heads, -1)).unbind(1)  # (L, heads, d, D)
        value_bias = self.key_value.bias.chunk(2, dim=1)[1]
        scale, shift = self.norm_patches.weight[:, None, None, None], self.norm_patches.bias[:, None, None, None]
        context = _standardized(patches)
        q = self.query(self.norm_states(states)).unflatten(-1, (self.heads, -1))  # (L, B, 2, heads, d)
        q = torch.einsum("lbshd,lhdw->lbshw", q * q.shape[-1] ** -0.5, key) * scale  # (L, B, 2, heads, D)
        weights = (q.flatten(2, 3) @ context.mT).softmax(-1)  # (L, B, 2 * heads, N)
        found = (weights @ context).unflatten(2, (-1, self.heads)) * scale + shift  # (L, B, 2, heads, D)
        found = torch.einsum("lbshw,lhdw->lbshd", found, value).flatten(3) + value_bias[:, None, None]
        return F.normalize(states + self.out(found), dim=-1)


def _standardized(patches: Tensor) -> Tensor:
    """Bring each patch to mean 0 and variance 1: a layer norm before its scale and shift."""
    return F.layer_norm(patches, patches.shape[-1:])
