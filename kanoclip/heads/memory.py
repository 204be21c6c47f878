"""Memory: features of reference images that the patches of an image are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kanoclip.backbone.head import Head
from kanoclip.types import Features


class Memory(Head):
    """Compares an image with reference images."""

    learns = False

    def forward(self, features: Features, category: Sequence[str]) -> Tensor | None:
        """Return how far each patch is from what is remembered, ``(B, h, w)`` in [0, 1]; None: nothing is remembered.

        Args:
            features: Of the images.
            category: What each of them shows.
        """
        raise NotImplementedError


class NoMemory(Memory):
    """Remember nothing: zero-shot."""

    def forward(self, features: Features, category: Sequence[str]) -> Tensor | None:
        """Return None."""
        return None
