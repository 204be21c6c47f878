"""The images of a run, read from its csv: all their scores, and those that a report lists."""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kanoclip.outputs.names import csv_rows
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN

LABELS = {str(NORMAL): "normal", str(ANOMALOUS): "anomalous"}


class Listed(NamedTuple):
    """An image of a report.

    Attributes:
        score: Its image score.
        path: Its file.
        category: What it shows.
        label: "normal", "anomalous" or "".
        defect: Kind of defect, or "".
        decision: "good", "defective" or "".
        margin: How far the score is above the threshold; None without one.
        overlay: Its overlay in the run's folder, or "".
    """

    score: float
    path: str
    category: str
    label: str
    defect: str
    decision: str
    margin: float | None
    overlay: str


class Told(NamedTuple):
    """What the images of a run, all of them, come to.

    Attributes:
        listed: Those with the highest scores, the highest first.
        scores: ``(n,)`` of all.
        labels: ``(n,)``: 0 = normal, 1 = anomalous, -1 = unknown.
        category: ``(n,)``: place of its category among ``categories``.
        categories: Their names.
        decisions: How many are "good" and "defective".
        thresholds: Those that decided, rounded.
    """

    listed: list[Listed]
    scores: NDArray[Any]
    labels: NDArray[Any]
    category: NDArray[Any]
    categories: list[str]
    decisions: dict[str, int]
    thresholds: set[float]


def read_images(files: Iterable[Path], most: int) -> Told:
    """Read images.csv of a test, or predictions.csv, in memory of 13 bytes an image and of the ``most`` listed."""
    scores, labels, category = array("d"), array("b"), array("i")
    places, decisions, thresholds = dict[str, int](), Counter[str](), set[float]()

    def each() -> Iterator[Listed]:
        for row in (row for file in files for row in csv_rows(file)):
            score = float(row["image_score"] or math.nan)
            margin = float(row["margin"]) if row.get("margin") else None
            label, what, decision = row.get("label", ""), row.get("category", ""), row.get("decision", "")
            scores.append(score)
            labels.append(int(label or UNKNOWN))
            category.append(places.setdefault(what, len(places)))
            if decision:
                decisions[decision] += 1
            if margin is not None:
                thresholds.add(round(score - margin, 5))
            more = row.get("defect", ""), decision, margin, row.get("overlay", "")
            yield Listed(score, row["path"], what, LABELS.get(label, ""), *more)

    listed = heapq.nlargest(most, each(), key=lambda one: one[:2])
    columns = np.array(scores), np.array(labels), np.array(category)
    return Told(listed, *columns, list(places), dict(decisions), thresholds)
