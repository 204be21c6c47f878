"""Tuning: trainable parts inside the frozen towers, as hooks between their blocks."""

from __future__ import annotations

from torch import Tensor

from kanoclip.backbone.head import Head
from kanoclip.types import Features


class Hooks:
    """What is done to the tokens of a tower between its blocks; this one does nothing.

    Tokens are ``(B, 1 + N, W)`` in the image tower and ``(K, M, W)`` in the text tower. A hook may append tokens behind
    the last one: levels, patches and the class token are read without them. Blocks are counted from 1.
    """

    def before(self, number: int, tokens: Tensor) -> Tensor:
        """Return the tokens that go into a block."""
        return tokens

    def after(self, number: int, tokens: Tensor) -> Tensor:
        """Return the tokens that come out of a block."""
        return tokens


class Tuning(Head):
    """Trainable parts inside the towers; the frozen weights stay as they are, and out of the checkpoint."""

    in_image: bool = False
    """Whether it changes the image tower: gradients then pass it, and no feature of it can be kept."""
    in_text: bool = False
    """Whether it changes the text tower."""
    needs_features: bool = False
    """Whether its hooks are made from the image's features by the untouched tower."""

    def image(self, features: Features | None) -> Hooks | None:
        """Return the hooks of the image tower for a batch; None: nothing is changed.

        Args:
            features: Of the untouched tower, if ``needs_features``.
        """
        return None

    def text(self, features: Features | None) -> Hooks | None:
        """Return the hooks of the text tower; None: nothing is changed.

        Args:
            features: As in ``image``, but of one image: with ``needs_features``, texts are encoded for each apart.
        """
        return None


class NoTuning(Tuning):
    """Leave both towers frozen."""

    learns = False
