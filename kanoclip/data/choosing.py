"""Which samples are used: a limit per category and split, and a part held out, both drawn by seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from operator import itemgetter
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from kanoclip.data.loading import Sample


def limited(samples: Iterable[Sample], limit: int | None, seed: int) -> list[Sample]:
    """Keep at most ``limit`` samples of each category and split, in their order; None keeps all.

    As many of each label as there are, so that a few images still have both.
    """
    kept: list[Sample] = []
    for key, group in _groups(samples, "category", "split").items():
        if limit is None or len(group) <= limit:
            kept += group
        else:
            seen: Counter[int] = Counter()
            turns = []
            for index in _order(seed, "limit", *key, size=len(group)).tolist():
                label = group[index].label
                turns.append((seen[label], index))
                seen[label] += 1
            turns.sort(key=itemgetter(0))  # the first of each label, the second of each, ...
            kept += [group[index] for index in sorted(index for _, index in turns[:limit])]
    return kept


def held_out(samples: Iterable[Sample], share: float, seed: int) -> set[Sample]:
    """Draw a share of the samples within each category and label."""
    chosen: set[Sample] = set()
    for (category, label), group in _groups(samples, "category", "label").items():
        order = _order(seed, "holdout", category, str(label), size=len(group))
        chosen.update(group[index] for index in order[: int(share * len(group) + 0.5)])
    return chosen


def _groups(samples: Iterable[Sample], *by: str) -> dict[tuple[Any, ...], list[Sample]]:
    groups: dict[tuple[Any, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[tuple(getattr(sample, name) for name in by)].append(sample)
    return groups


def _order(seed: int, *purpose: str, size: int) -> NDArray[np.int64]:
    """An order by seed that stays the same for a category, whichever others are chosen beside it."""
    return np.random.default_rng((seed, crc32("/".join(purpose).encode()))).permutation(size)
