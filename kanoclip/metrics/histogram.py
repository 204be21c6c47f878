"""Additive histograms of scores: the same counts for any order of the data and any number of ranks.

Fixed bins on [0, 1] fail where all scores lie within 1e-6 of each other, or crowd just below 1. So each float32 score
becomes an integer key of the same order, as fine near 1 as near 0. A bin holds ``2**shift`` neighbouring keys, with the
smallest shift at which all scores so far fit into ``BINS`` bins. When their range grows, bins merge in pairs, which
loses no count: the histogram depends on the data alone. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanoclip.types import KanoclipError

BINS = 2**20
ROWS = 3  # all, anomalous, region weight
SCORES_AT_ONCE = 2**16  # scores counted at a time, so that their keys stay in the processor's cache

Ints = NDArray[np.int64]


def keys(scores: NDArray[np.float32]) -> Ints:
    """Turn finite scores into integers of the same order; -0 and 0 get the same.

    The key of a magnitude is its bits: ``2**23`` keys from one power of 2 to the next. From 0.75 to 1, where floats are
    coarse relative to their distance from 1, it also counts the powers of 2 of that distance, down to ``2**-25``.
    """
    size = np.abs(scores)
    key = size.view(np.uint32)  # unsigned until both are added: the sum may take 32 bits
    if size.max(initial=0) > 0.75:
        # exact from 0.75 to 1, and 2**-25 is nearer to 1 than any float
        distance = np.clip(1 - size, np.float32(2**-25), np.float32(0.25))
        key -= distance.view(np.uint32)
        key += np.float32(0.25).view(np.uint32)
    signed = key.astype(np.int64)
    if (negative := scores < 0).any():
        np.negative(signed, out=signed, where=negative)
    return signed


def bounds(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the lowest and the highest score.

    Raises:
        KanoclipError: If a score is NaN or infinite.
    """
    found = np.array([scores.min(), scores.max()])
    if not np.isfinite(found).all():
        raise KanoclipError(
            f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores are NaN or infinite. The model "
            f"overflowed: use --trainer.precision 32-true, or look for NaN in its weights."
        )
    return found


@dataclass
class Histogram:
    """Counts per bin, in one array that ranks can exchange.

    Attributes:
        packed: ``(3, 1 + bins)`` int64. The first column holds ``shift`` and ``first``, the others the counts.
    """

    packed: Ints

    @classmethod
    def empty(cls, shift: int = 0, first: int = 0, bins: int = 0) -> Histogram:
        """Create one without scores."""
        packed = np.zeros((ROWS, 1 + bins), np.int64)
        packed[:2, 0] = shift, first
        return cls(packed)

    @property
    def shift(self) -> int:
        """A bin holds ``2**shift`` neighbouring keys."""
        return int(self.packed[0, 0])

    @property
    def first(self) -> int:
        """Number of the first bin: the keys of bin i are ``(first + i) << shift`` and up."""
        return int(self.packed[1, 0])

    @property
    def counts(self) -> Ints:
        """``(3, bins)``: all scores, the anomalous ones, and their summed weights; the outer bins are never empty."""
        return self.packed[:, 1:]

    def covering(self, low: int, high: int, shift: int = 0) -> Histogram:
        """Return the same counts with room for the bins ``low`` to ``high``, numbered at ``shift``."""
        last = self.first + self.counts.shape[1] - 1
        target = max(self.shift, shift)
        while True:
            ends = [(low >> (target - shift), high >> (target - shift))]
            if self.counts.shape[1]:
                ends.append((self.first >> (target - self.shift), last >> (target - self.shift)))
            first, end = min(e[0] for e in ends), max(e[1] for e in ends)
            if end - first < BINS:
                break
            target += 1
        total = Histogram.empty(target, first, end - first + 1)
        if target == self.shift:
            start = self.first - first
            total.counts[:, start : start + self.counts.shape[1]] = self.counts
        elif self.counts.shape[1]:
            bins = ((self.first + np.arange(self.counts.shape[1])) >> (target - self.shift)) - first
            for row, mine in zip(total.counts, self.counts, strict=True):
                np.add.at(row, bins, mine)
        return total

    def add(self, scores: NDArray[np.float32], anomalous: NDArray[np.bool_], weights: Ints) -> Histogram:
        """Count scores, in place where they fit into the bins there are.

        Args:
            scores: ``(n,)``.
            anomalous: ``(n,)``.
            weights: One of each anomalous score, in their order.

        Returns:
            The histogram to use from now on: this one or a larger one.

        Raises:
            KanoclipError: If a score is NaN or infinite.
        """
        if not scores.size:
            return self
        low, high = keys(bounds(scores)).tolist()
        last = self.first + self.counts.shape[1] - 1
        grown = self
        if not self.counts.shape[1] or (low >> self.shift) < self.first or (high >> self.shift) > last:
            grown = self.covering(low, high)
        total, defective, weight = grown.counts
        for start in range(0, scores.size, SCORES_AT_ONCE):
            np.add.at(total, grown._bins(scores[start : start + SCORES_AT_ONCE]), 1)
        bins = grown._bins(scores[anomalous])
        np.add.at(defective, bins, 1)
        np.add.at(weight, bins, weights)
        return grown

    def _bins(self, scores: NDArray[np.float32]) -> Ints:
        bins = keys(scores)
        bins >>= self.shift
        bins -= self.first
        return bins

    def merge(self, other: Histogram) -> Histogram:
        """Return the sum of two histograms."""
        if not self.counts.shape[1] or not other.counts.shape[1]:
            return self if self.counts.shape[1] else other
        last = other.first + other.counts.shape[1] - 1
        total = self.covering(other.first, last, other.shift)
        theirs = other.covering(total.first, total.first + total.counts.shape[1] - 1, total.shift)
        np.add(total.counts, theirs.counts, out=total.counts)
        return total

    def pack(self) -> Tensor:
        """Return a tensor ``(3, 1 + bins)`` that shares its memory."""
        return torch.from_numpy(self.packed)

    @classmethod
    def unpack(cls, packed: Sequence[Tensor]) -> Histogram:
        """Sum packed histograms; the sum of a single one shares its memory."""
        total = cls.empty()
        for tensor in packed:
            total = total.merge(cls(tensor.cpu().numpy()))
        return total
