"""Counts of scores by value: the same for any order of the data and any number of ranks.

Each float32 score becomes an integer key of the same order, as fine near 1 as near 0. A bin holds ``2**shift``
neighbouring keys, with the smallest shift at which no more than ``LIMIT`` bins hold any score; at shift 0 the counts
are exact. A coarser shift joins bins and loses no count, and more scores never need a finer one: shift and counts
follow from the scores alone. One score far from all others takes one bin, whatever lies between. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kanoclip.types import KanoclipError

LIMIT = 2**17  # most bins that hold scores
ROWS = 4  # all, anomalous, and the weight in two parts
HALF = 19  # bits of the lower part of a weight
HEAD = 12  # numbers at the start of a packed histogram: shift, first bin, and two of each of its five columns
DENSE = 2**23  # bins from the lowest to the highest score, up to which an array over all of them is faster
SCORES_AT_ONCE = 2**18  # scores counted at a time: fewer pass Python's lock to and fro, more overflow the cache

EDGES = np.linspace(0, 1, 127, dtype=np.float32)
"""Scores from which those above are counted to draw curves: as many as TensorBoard takes."""

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
    """Counts of the bins that hold scores.

    Attributes:
        shift: A bin holds ``2**shift`` neighbouring keys.
        bins: ``(n,)``, rising: the keys of bin b are ``b << shift`` and up.
        counts: ``(4, n)``: all scores, the anomalous ones, and their summed weights as ``weight >> HALF`` and the rest:
            sums of 64 bits that ``2**44`` anomalous scores do not overflow.
    """

    shift: int
    bins: Ints
    counts: Ints

    @classmethod
    def empty(cls) -> Histogram:
        """Create one without scores."""
        return cls(0, np.zeros(0, np.int64), np.zeros((ROWS, 0), np.int64))

    @property
    def weights(self) -> NDArray[np.float64]:
        """``(n,)``: the summed weights of the anomalous scores of each bin."""
        return self.counts[2] * 2.0**HALF + self.counts[3]

    def add(self, scores: NDArray[np.float32], anomalous: NDArray[np.bool_], weights: Ints) -> Histogram:
        """Return this one with more scores.

        Args:
            scores: ``(n,)``.
            anomalous: ``(n,)``.
            weights: One of each anomalous score, in their order, from 0 to ``2**38``.

        Raises:
            KanoclipError: If a score is NaN or infinite.
        """
        if not scores.size:
            return self
        ends = keys(bounds(scores))
        grown = self
        if not self.bins.size and grown._span(ends) > DENSE:  # a part may show already that bins must be coarser
            some = np.sort(scores[:: max(1, len(scores) // (2 * LIMIT))])
            grown = _joined(self.shift, self.bins, self.counts, _excess(keys(some) >> self.shift))
        if grown._span(ends) > DENSE:
            return grown._add_far(scores, anomalous, weights)
        shift, low = grown.shift, min([*(ends >> grown.shift), *grown.bins[:1]])
        held = np.zeros(grown._span(ends), np.int64)  # first the count of each bin, then where it is among all
        held[grown.bins - low] = grown.counts[0]
        for start in range(0, scores.size, SCORES_AT_ONCE):
            _count(held, (keys(scores[start : start + SCORES_AT_ONCE]) >> shift) - low)
        bins = np.flatnonzero(held)
        counts = np.zeros((ROWS, len(bins)), np.int64)
        counts[0] = held[bins]
        held[bins] = np.arange(len(bins))
        counts[1:, held[grown.bins - low]] = grown.counts[1:]
        _weigh(counts, held[(keys(scores[anomalous]) >> shift) - low], weights)
        bins += low
        return _joined(shift, bins, counts, _excess(bins))

    def _add_far(self, scores: NDArray[np.float32], anomalous: NDArray[np.bool_], weights: Ints) -> Histogram:
        """Do the same without an array over all bins between the lowest and the highest score: by searching."""
        found = np.zeros(len(scores), np.int64)
        for start in range(0, scores.size, SCORES_AT_ONCE):
            part = slice(start, start + SCORES_AT_ONCE)
            np.right_shift(keys(scores[part]), self.shift, out=found[part])
        bins, place = self.bins, np.searchsorted(self.bins, found)
        new = np.append(bins, 2**62)[place] != found
        if new.any():
            bins = np.union1d(bins, found[new])
            place = np.searchsorted(bins, found)
        counts = np.zeros((ROWS, len(bins)), np.int64)
        counts[:, np.searchsorted(bins, self.bins)] = self.counts
        counts[0] += np.bincount(place, minlength=len(bins))
        _weigh(counts, place[anomalous], weights)
        return _joined(self.shift, bins, counts, _excess(bins))

    def _span(self, ends: Ints) -> int:
        """Count the bins from the lowest to the highest, of keys ``ends`` and of those that are here."""
        everything = [*(ends >> self.shift), *self.bins[:1], *self.bins[-1:]]
        return int(max(everything) - min(everything)) + 1

    def merge(self, other: Histogram) -> Histogram:
        """Return the sum of two histograms."""
        if not self.bins.size or not other.bins.size:
            return self if self.bins.size else other
        shift = max(self.shift, other.shift)
        bins = np.concatenate([one.bins >> (shift - one.shift) for one in (self, other)])
        order = np.argsort(bins, kind="stable")  # of two sorted halves, which it merges
        bins = bins[order]
        return _joined(shift, bins, np.concatenate([self.counts, other.counts], 1)[:, order], _excess(bins))

    def above(self, edges: NDArray[np.float32] = EDGES) -> Ints:
        """Count the normal and the anomalous scores from each edge up: ``(2, n)``; an edge is as fine as a bin."""
        from_here = np.cumsum(np.pad(self.counts[:2], ((0, 0), (0, 1)))[:, ::-1], 1)[:, ::-1]
        everything, anomalous = from_here[:, np.searchsorted(self.bins, keys(edges) >> self.shift)]
        return np.stack([everything - anomalous, anomalous])

    def pack(self) -> Tensor:
        """Return all of it as bytes ``(n,)`` for ranks to exchange, in the narrowest types that hold its numbers."""
        some = self.counts[1] > 0
        columns = [np.diff(self.bins), *self.counts[:2], *self.counts[2:, some]]
        narrow = [column.astype(np.min_scalar_type(column.max(initial=0))) for column in columns]
        sizes = [number for column in narrow for number in (column.itemsize, column.nbytes)]
        head = np.array([self.shift, self.bins[0] if len(self.bins) else 0, *sizes], np.int64)
        return torch.frombuffer(bytearray(b"".join(part.tobytes() for part in (head, *narrow))), dtype=torch.uint8)

    @classmethod
    def unpack(cls, packed: Sequence[Tensor]) -> Histogram:
        """Sum packed histograms."""
        total = cls.empty()
        for content in (tensor.cpu().numpy().tobytes() for tensor in packed):
            shift, first, *sizes = np.frombuffer(content, np.int64, HEAD).tolist()
            columns, start = [], 8 * HEAD
            for itemsize, nbytes in zip(sizes[::2], sizes[1::2], strict=True):
                columns.append(np.frombuffer(content[start : start + nbytes], f"u{itemsize}").astype(np.int64))
                start += nbytes
            gaps, scored, anomalous, *weights = columns
            counts = np.zeros((ROWS, len(scored)), np.int64)
            counts[0], counts[1] = scored, anomalous
            counts[2:, anomalous > 0] = weights
            bins = np.cumsum(np.concatenate([[first], gaps]))[: len(scored)]
            total = total.merge(cls(shift, bins, counts))
        return total


def _count(counts: Ints, place: Ints) -> None:
    """Add 1 at each place; by torch, since ``numpy.add.at`` keeps Python's lock, which the next batch's pass needs."""
    ones = torch.ones((), dtype=torch.int64, device="cpu").expand(len(place))
    torch.from_numpy(counts).index_add_(0, torch.from_numpy(place), ones)


def _weigh(counts: Ints, place: Ints, weights: Ints) -> None:
    """Count anomalous scores where they are among the bins."""
    for row, more in zip(counts[1:], (1, weights >> HALF, weights & (2**HALF - 1)), strict=True):
        np.add.at(row, place, more)


def _joined(shift: int, bins: Ints, counts: Ints, more: int) -> Histogram:
    """Make bins, given in order, coarser by ``more``, and add up those that are equal then."""
    bins = bins >> more
    starts = _starts(bins)
    if len(starts) < len(bins):
        bins, counts = bins[starts], np.add.reduceat(counts, starts, axis=1)
    return Histogram(shift + more, bins, counts)


def _excess(bins: Ints) -> int:
    """Return by how many bits to shift bins, given in order, so that no more than ``LIMIT`` different ones are left."""
    more = 0
    while len(bins) > LIMIT and len(bins := bins[_starts(bins)]) > LIMIT:
        bins, more = bins >> 1, more + 1
    return more


def _starts(bins: Ints) -> NDArray[np.intp]:
    """Return where each run of equal bins starts."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(bins)), np.bool_), bins[1:] != bins[:-1]]))
