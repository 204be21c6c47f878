"""Which images to show of many, and a contact sheet: those of a data set at a glance, with outlined masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.data.base import Sample
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.loading import Read
from kanoclip.outputs.overlay import overlay
from kanoclip.types import ANOMALOUS

TILE = 192  # longer side of a picture, pixels
CAPTION = 22  # height of the line above it, pixels
COLUMNS = 6

Item = TypeVar("Item")


def contact_sheet(samples: Sequence[Sample], read: Read) -> tuple[NDArray[np.uint8], list[str]]:
    """Draw samples in a grid, each below a line with its category and kind of defect.

    Args:
        samples: What to show, in this order.
        read: Sample -> image ``(H, W, 3)`` and mask ``(H, W)`` or None.

    Returns:
        ``(H', W', 3)`` RGB, 0-255, and what was wrong with each file that could not be read.
    """
    pictures, skipped = [], []
    for sample in samples:
        try:
            pictures.append(_picture(sample, *read(sample)[:2]))
        except UnreadableImageError as error:
            skipped.append(str(error))
    columns = min(COLUMNS, max(1, len(pictures)))
    blank = np.full((TILE + CAPTION, TILE, 3), 32, np.uint8)
    pictures += [blank] * (-len(pictures) % columns or (columns if not pictures else 0))
    rows = [np.hstack(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    return np.vstack(rows), skipped


def varied(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose samples of as many categories and kinds of defect as possible.

    Args:
        samples: What there is; training images are chosen only if there are no others.
        count: How many to choose at most.
    """
    groups: dict[str, dict[tuple[str, str], list[Sample]]] = {}
    for sample in samples:
        if sample.split != "train":
            groups.setdefault(sample.category, {}).setdefault((sample.split, sample.defect), []).append(sample)
    if not groups:
        return list(samples[:count])
    queues = []
    for number, kinds in enumerate(groups.values()):
        share = -(-count // len(kinds))
        spread = [group[:: max(1, len(group) // share)][:share] for group in kinds.values()]
        first = number % len(spread)  # not with the same kind of defect in every category
        queues.append(_in_turn([*spread[first:], *spread[:first]]))
    return sorted(_in_turn(queues)[:count], key=lambda sample: (sample.category, sample.defect))


def choose(samples: Sequence[Sample]) -> list[str]:
    """Bring images into the order in which a reader should see them: any first few of them show a bit of everything.

    Categories take turns, one anomalous image for each normal one, and within a category the kinds of defect do. The
    order depends neither on scores nor on a seed, so that the same images are shown of all models.

    Args:
        samples: What there is.

    Returns:
        The paths of all of them.
    """
    groups: dict[str, dict[bool, dict[str, list[str]]]] = {}
    for sample in samples:
        labels = groups.setdefault(sample.category, {False: {}, True: {}})
        labels[sample.label == ANOMALOUS].setdefault(sample.defect, []).append(sample.image)
    queues = []
    for number, category in enumerate(sorted(groups)):
        normal, anomalous = (_in_turn([kinds[k] for k in sorted(kinds)]) for kinds in groups[category].values())
        # Every other category begins with a normal image, and not with the same kind of defect.
        shift = number % max(1, len(groups[category][True]))
        anomalous = anomalous[shift:] + anomalous[:shift]
        queues.append(_in_turn([normal, anomalous] if number % 2 else [anomalous, normal]))
    return _in_turn(queues)


def _in_turn(queues: Sequence[Sequence[Item]]) -> list[Item]:
    return [item for turn in zip_longest(*queues) for item in turn if item is not None]


def _picture(sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    factor = TILE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    outline: Any = None if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    drawn = overlay(small, np.zeros(small.shape[:2]), outline, low=1, high=1)  # no heat, the outline alone
    tile = np.full((TILE + CAPTION, TILE, 3), 32, np.uint8)
    top, left = CAPTION + (TILE - size[1]) // 2, (TILE - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = drawn
    text = f"{sample.category} {sample.defect or 'unlabelled'}"[:30].encode("ascii", "replace").decode()
    cv2.putText(tile, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (235, 235, 235), 1, cv2.LINE_AA)
    return tile
