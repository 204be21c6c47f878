"""Which samples are used: a limit, a part held out by seed; and whether a stage can use what is left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from kanoclip.data.loading import Sample
from kanoclip.types import UNKNOWN, KanoclipError

NAMED = 3  # files named for each reason


def limited(samples: Iterable[Sample], limit: int | None, seed: int) -> list[Sample]:
    """Keep at most ``limit`` samples of each category and split, in their order; None keeps all.

    Labels are taken in turn, so that even a small limit keeps normal and anomalous images.
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


def check_samples(samples: Sequence[Sample], stage: str, where: str, holdout: float, label_remedy: str) -> None:
    """Check that a stage can use its samples.

    Args:
        samples: What the stage would use.
        stage: "fit", "validate", "test" or "predict".
        where: Categories and place, for the errors.
        holdout: Share that fit leaves out.
        label_remedy: What to do about an image without a label.

    Raises:
        KanoclipError: Nothing is held out for validate, there are no samples, or one has no label.
    """
    if stage == "validate" and not holdout:
        raise KanoclipError("validate uses the held-out part, and holdout is 0. Set --data.holdout 0.2, or run test.")
    if not samples and stage in ("fit", "validate") and holdout:
        raise KanoclipError(
            f"Nothing is left for {stage} of the test images of {where} with holdout {holdout}. "
            f"Set another --data.holdout, or choose more categories."
        )
    if not samples:
        raise KanoclipError(
            f"No test images of {where}: {stage} uses the test split. Add test images, or run predict, which uses all."
        )
    unlabelled = next((sample for sample in samples if sample.label == UNKNOWN), None)
    if unlabelled is not None and stage != "predict":
        raise KanoclipError(f"{stage} needs labels, and {unlabelled.image} has none. {label_remedy}")


def left_out_notes(left_out: Iterable[tuple[str, str]]) -> list[str]:
    """Say what was left out of a data set: for each reason a few of the paths, and how many more there are."""
    paths: dict[str, list[str]] = defaultdict(list)
    for path, why in left_out:
        paths[why].append(path)
    return [
        f"left out {', '.join(held[:NAMED])}{f' and {len(held) - NAMED} more' * (len(held) > NAMED)}: {why}"
        for why, held in paths.items()
    ]


def _groups(samples: Iterable[Sample], *by: str) -> dict[tuple[Any, ...], list[Sample]]:
    groups: dict[tuple[Any, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[tuple(getattr(sample, name) for name in by)].append(sample)
    return groups


def _order(seed: int, *purpose: str, size: int) -> NDArray[np.int64]:
    """An order by seed that stays the same for a category, whichever others are chosen beside it."""
    return np.random.default_rng((seed, crc32("/".join(purpose).encode()))).permutation(size)
