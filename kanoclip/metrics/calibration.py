"""Thresholds: from scores to a decision, and what a threshold promises."""

from __future__ import annotations

from typing import NamedTuple

GOOD, DEFECTIVE = "good", "defective"


class Threshold(NamedTuple):
    """Where "good" ends.

    Attributes:
        image: Highest image score that is still good, in [0, 1].
        pixel: Highest score of a pixel that belongs to no region, in [0, 1]; None: regions are not looked for.
        min_area: Smallest region that counts, as a share of the picture, in [0, 1].
    """

    image: float
    pixel: float | None = None
    min_area: float = 0.0

    def decide(self, score: float) -> str:
        """Return "good" or "defective"."""
        return DEFECTIVE if score > self.image else GOOD

    def margin(self, score: float) -> float:
        """Return how far a score is above the threshold; negative for a good image."""
        return score - self.image
