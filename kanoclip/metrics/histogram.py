"""Histograms of scores that add up: the same state for any order of the data and any number of processes.

Fixed bins on [0, 1] fail where all scores lie within 1e-6 of each other, or crowd just below 1. So scores are counted
by integers that order float32 numbers as the numbers themselves are ordered, as fine near 1 as they are near 0. Bins
are aligned groups of ``2**shift`` such integers, with the smallest shift at which all scores seen fit into ``BINS``
bins. When the range grows, bins merge in pairs, which is exact, so the state depends on the data alone. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 2**20
ROWS = 3  # all, anomalous, region weight
CHUNK = 2**16  # scores counted at a time, so that what is made of them stays in the processor's cache

Ints = NDArray[np.int64]


def keys(scores: NDArray[np.float32]) -> Ints:
    """Turn finite scores into integers of the same order; -0 and 0 become one.

    The key of a magnitude is its bits, of which an octave, from one power of 2 to the next, has ``2**23``. From 0.75
    to 1, where floats are coarse beside their distance to 1, it counts the 23 octaves of that distance too.
    """
    size = np.abs(scores)
    key = size.view(np.uint32)  # 33 bits with the sign, so unsigned until all is added
    if size.max(initial=0) > 0.75:
        # exact from 0.75 to 1, and 2**-25 is nearer to 1 than any float
        distance = np.clip(1 - size, np.float32(2**-25), np.float32(0.25))
        key -= distance.view(np.uint32)
        key += np.float32(0.25).view(np.uint32)
    signed = key.astype(np.int64)
    if (negative := scores < 0).any():
        np.negative(signed, out=signed, where=negative)
    return signed


@dataclass
class Histogram:
    """Counts per bin.

    Attributes:
        shift: A bin holds ``2**shift`` neighbouring floats.
        first: Number of the first bin: the keys of bin i are ``(first + i) << shift`` and up.
        counts: ``(3, bins)`` int64: all, the anomalous among them, and summed weights of these; the outer bins are
            never empty.
    """

    shift: int
    first: int
    counts: Ints

    @classmethod
    def empty(cls) -> Histogram:
        """Make one without scores."""
        return cls(0, 0, np.zeros((ROWS, 0), np.int64))

    def covering(self, low: int, high: int, shift: int = 0) -> Histogram:
        """Return the same counts with room for the bins low to high of another shift."""
        last = self.first + self.counts.shape[1] - 1
        target = max(self.shift, shift)
        while True:
            bounds = [(low >> (target - shift), high >> (target - shift))]
            if self.counts.shape[1]:
                bounds.append((self.first >> (target - self.shift), last >> (target - self.shift)))
            first, end = min(b[0] for b in bounds), max(b[1] for b in bounds)
            if end - first < BINS:
                break
            target += 1
        counts = np.zeros((ROWS, end - first + 1), np.int64)
        if target == self.shift:
            start = self.first - first
            counts[:, start : start + self.counts.shape[1]] = self.counts
        elif self.counts.shape[1]:
            place = ((self.first + np.arange(self.counts.shape[1])) >> (target - self.shift)) - first
            for row, mine in zip(counts, self.counts, strict=True):
                np.add.at(row, place, mine)
        return Histogram(target, first, counts)

    def add(self, scores: NDArray[np.float32], anomalous: NDArray[np.bool_], weights: Ints) -> Histogram:
        """Count scores ``(n,)``; ``weights`` has one entry per anomalous score. Returns the histogram to go on with.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        if not scores.size:
            return self
        bounds = np.array([scores.min(), scores.max()])
        if not np.isfinite(bounds).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores are NaN or infinite. The model "
                f"overflowed: use --trainer.precision 32-true, or look for NaN in its weights."
            )
        low, high = keys(bounds).tolist()
        last = self.first + self.counts.shape[1] - 1
        grown = self
        if not self.counts.shape[1] or (low >> self.shift) < self.first or (high >> self.shift) > last:
            grown = self.covering(low, high)
        total, defective, weight = grown.counts
        for start in range(0, scores.size, CHUNK):
            np.add.at(total, grown._bins(scores[start : start + CHUNK]), 1)
        there = grown._bins(scores[anomalous])
        np.add.at(defective, there, 1)
        np.add.at(weight, there, weights)
        return grown

    def _bins(self, scores: NDArray[np.float32]) -> Ints:
        place = keys(scores)
        place >>= self.shift
        place -= self.first
        return place

    def merge(self, other: Histogram) -> Histogram:
        """Return the sum of two histograms."""
        if not self.counts.shape[1] or not other.counts.shape[1]:
            return self if self.counts.shape[1] else other
        last = other.first + other.counts.shape[1] - 1
        total = self.covering(other.first, last, other.shift)
        theirs = other.covering(total.first, total.first + total.counts.shape[1] - 1, total.shift)
        return Histogram(total.shift, total.first, total.counts + theirs.counts)

    def pack(self) -> Tensor:
        """Lay it out as one tensor ``(3, 1 + bins)``, which processes can exchange."""
        header = np.array([[self.shift], [self.first], [0]], np.int64)
        return torch.from_numpy(np.concatenate([header, self.counts], 1))

    @classmethod
    def unpack(cls, packed: Sequence[Tensor]) -> Histogram:
        """Sum what several processes packed."""
        total = cls.empty()
        for tensor in packed:
            values = tensor.cpu().numpy()
            total = total.merge(cls(int(values[0, 0]), int(values[1, 0]), values[:, 1:]))
        return total
