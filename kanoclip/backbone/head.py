"""What everything that is trained beside or inside the frozen backbone has in common."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn


class Head(nn.Module):
    """A part of a model that may learn: prompts, interaction, adapter, tuning, memory.

    Attributes:
        terms: Loss terms of the last forward, by name, unweighted scalars; a head that has one sets
            ``self.terms = {"kl": ...}`` while it trains. The model takes them out, weighs and logs them by name.
    """

    learns: ClassVar[bool] = True
    """Whether it has anything to train."""
    term_weights: ClassVar[dict[str, float]] = {}
    """Published weight of each of its loss terms, by name, where the model gives none; 1 for those not named."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, Tensor] = {}

    def build(self, backbone: Any) -> None:
        """Create the weights for a ``CLIPBackbone``; the model calls it once."""

    def make_room(self, weights: dict[str, Tensor]) -> None:
        """Give buffers of any number of rows that of a checkpoint, before it is loaded.

        Args:
            weights: Of this head in the checkpoint, by their names here.
        """

    def take_terms(self) -> dict[str, Tensor]:
        """Return the loss terms of the last forward, and forget them."""
        terms, self.terms = self.terms, {}
        return terms

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "terms": {}}  # a graph can be neither copied nor pickled
