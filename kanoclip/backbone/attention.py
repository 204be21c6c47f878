"""Attentions of the second path of the image tower: what sets CLIP, CLIP Surgery and SCLIP apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from kanoclip.types import KanoclipError


class Attention(nn.Module, ABC):
    """Attention of the second path, without weights: it mixes the q, k, v that CLIP's own block projects.

    Args:
        first: Block where the second path begins, counted from 1. None: all but the first 5/24 of the blocks, as
            AnomalyCLIP does (6 of 24, 3 of 12, 2 of 6).

    Shapes:
        q, k and v ``(B, heads, N, d)`` -> ``(B, heads, N, d)``; logits are divided by ``sqrt(d)``.

    Raises:
        KanoclipError: If ``first`` is below 1, or (from ``start``) above the depth of the backbone.
    """

    in_place: ClassVar[bool] = False
    """Whether it takes the place of CLIP's own attention, feed-forward and all, instead of running beside it."""

    def __init__(self, first: int | None = None) -> None:
        super().__init__()
        if first is not None and first < 1:
            raise KanoclipError(
                f"attention.first is {first}, but blocks are counted from 1. Use 1 to change every block."
            )
        self.first = first

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attended values."""

    def start(self, depth: int) -> int | None:
        """Number of the first block with a second path in a backbone of ``depth`` blocks; None for no second path."""
        if self.first is None:
            return depth * 5 // 24 + 1
        if self.first > depth:
            raise KanoclipError(
                f"attention.first is {self.first}, but the backbone has {depth} blocks. "
                f"Use 1 to {depth}, such as --model.attention.first {-(-depth // 4)}, "
                f"or --model.attention qkv for no second path."
            )
        return self.first


class QKV(Attention):
    """CLIP as it is: no second path; patch features come from CLIP's own attention.

    Reference:
        A. Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries attend to keys."""
        return scaled_dot_product_attention(q, k, v)

    def start(self, depth: int) -> int | None:
        """None: CLIP's own path is the only one."""
        return None


class VV(Attention):
    """Values attend to values: a patch gathers from patches with the same content, so local meaning stays local.

    Reference:
        Y. Li et al., *CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks*,
        arXiv 2304.05653, 2023, as used by AnomalyCLIP (ICLR 2024) and KAnoCLIP (ICASSP 2025). CLIP Surgery begins at
        the last 6 or 7 blocks; the default ``first`` here is AnomalyCLIP's.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Values attend to values."""
        return scaled_dot_product_attention(v, v, v)


class QQ(Attention):
    """Queries attend to queries.

    Reference:
        Q. Zhou et al., *AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection*, ICLR 2024,
        which compares q-q, k-k and v-v.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries attend to queries."""
        return scaled_dot_product_attention(q, q, v)


class KK(Attention):
    """Keys attend to keys.

    Reference:
        Q. Zhou et al., *AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection*, ICLR 2024,
        which compares q-q, k-k and v-v.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keys attend to keys."""
        return scaled_dot_product_attention(k, k, v)


class CSA(Attention):
    """Correlative self-attention: the sum of q-q and k-k attention, so each row of weights sums to 2.

    Reference:
        F. Wang et al., *SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference*, ECCV 2024.
        The paper changes CLIP's last block in place; here it is the attention of the second path, from ``first`` on.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add the values attended by q-q and by k-k."""
        return scaled_dot_product_attention(q, q, v) + scaled_dot_product_attention(k, k, v)
