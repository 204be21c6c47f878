"""A reproduction that judges itself: what a row should give, what it gives, and whether that is the same."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from kanoclip.outputs.intervals import over_fits
from kanoclip.outputs.names import csv_text
from kanoclip.outputs.rows import Row
from kanoclip.outputs.tables import METRICS, UNDEFINED, word_table
from kanoclip.registry import did_you_mean
from kanoclip.types import KanoclipError

REPRODUCED, NOT_REPRODUCED, NOT_MEASURED = "reproduced", "NOT reproduced", "not measured"
HEADINGS = ("data", "model", "metric", "expected", "tolerance", "measured", "verdict", "source")


class Expected(NamedTuple):
    """What a row should give.

    Attributes:
        model: The row's label.
        data: The data set's label.
        metric: One of ``METRICS``.
        value: In percent.
        tolerance: How far the measured value may be away, in percent points.
        source: Who says so.
    """

    model: str
    data: str
    metric: str
    value: float
    tolerance: float
    source: str


class Verdict(NamedTuple):
    """What came of it.

    Attributes:
        expected: What the row should give.
        measured: Mean over seeds in percent; None: not measured, or not defined.
        interval: Both ends of its interval over images in percent; None: there is none.
    """

    expected: Expected
    measured: float | None
    interval: tuple[float, float] | None

    @property
    def says(self) -> str:
        """One of "reproduced", "NOT reproduced" and "not measured"."""
        if self.measured is None:
            return NOT_MEASURED
        near = abs(self.measured - self.expected.value) <= self.expected.tolerance + 1e-9  # 91.5 - 91 is a bit more
        return REPRODUCED if near else NOT_REPRODUCED


def read_expected(model: str, given: Any, file: str, data: Iterable[str]) -> list[Expected]:
    """Read the key ``expected`` of a row.

    Args:
        model: The row's label.
        given: Data set -> metric -> percent, with ``tolerance`` in percent points and ``source`` beside them.
        file: The config, for messages.
        data: Labels of the data sets that the row is tested on.

    Raises:
        KanoclipError: Naming what is wrong.
    """
    example = "expected: {mvtec: {image_auroc: 91.5, tolerance: 0.5, source: where it is printed}}"
    known, where = list(data), f"{file}, {model}"
    if not isinstance(given, Mapping) or not all(isinstance(one, Mapping) for one in given.values()):
        raise KanoclipError(f"{where}: expected should be such as {example}; got {given!r:.80}.")
    found = []
    for name, numbers in given.items():
        if name not in known:
            raise KanoclipError(
                f"{where}: expected names {name!r}, but is tested on {', '.join(known)}."
                f"{did_you_mean(str(name), known)}"
            )
        values = {key: value for key, value in numbers.items() if key not in ("tolerance", "source")}
        if unknown := [key for key in values if key not in METRICS]:
            raise KanoclipError(
                f"{where}: expected has no metric {unknown[0]!r}.{did_you_mean(str(unknown[0]), METRICS)} Known: "
                f"{', '.join(METRICS)}."
            )
        tolerance, source = numbers.get("tolerance"), numbers.get("source")
        right = [type(one) in (int, float) and 0 <= one <= 100 for one in (tolerance, *values.values())]
        if not all(right) or not values or not source:
            raise KanoclipError(
                f"{where}: expected needs percents, a tolerance in percent points and a source, such as {example}; got "
                f"{dict(numbers)!r:.200}."
            )
        found += [Expected(model, name, key, value, tolerance, str(source)) for key, value in values.items()]
    return found


def judge(expected: Iterable[Expected], rows: Sequence[Row]) -> list[Verdict]:
    """Compare what rows should give with what they give; a row of several fits gets a verdict for each."""
    found = []
    for one in expected:
        mine: list[Row | None] = []
        mine += [row for row in rows if (row.model, row.data) == (one.model, one.data) and not row.source]
        for row in mine or [None]:
            values = row.values[one.metric] if row else []
            ends = over_fits(row.draws.get(one.metric, {})) if row else None
            interval = (100 * ends[0], 100 * ends[1]) if ends else None
            found.append(Verdict(one, 100 * statistics.fmean(values) if values else None, interval))
    return found


def verdict_rows(verdicts: Iterable[Verdict]) -> list[list[str]]:
    """Write verdicts as rows of ``HEADINGS``."""
    rows = []
    for one in verdicts:
        wanted, measured = one.expected, UNDEFINED if one.measured is None else f"{one.measured:.1f}"
        ends = f" [{one.interval[0]:.1f}, {one.interval[1]:.1f}]" if one.interval else ""
        about = [wanted.data, wanted.model, wanted.metric, f"{wanted.value:g}", f"{wanted.tolerance:g}"]
        rows.append([*about, measured + ends, one.says, wanted.source])
    return rows


def verdict_table(verdicts: Iterable[Verdict], without: Sequence[str] = ()) -> Table:
    """Lay verdicts out, but for some columns."""
    return word_table(HEADINGS, verdict_rows(verdicts), without)


def verdict_csv(verdicts: Iterable[Verdict]) -> str:
    """Write verdicts as csv, with full digits; empty where nothing was measured."""
    rows: list[list[Any]] = [[*HEADINGS[:3], "expected_percent", "tolerance_points", "measured_percent", *HEADINGS[6:]]]
    for one in verdicts:
        wanted, measured = one.expected, "" if one.measured is None else one.measured
        about = [wanted.data, wanted.model, wanted.metric, wanted.value, wanted.tolerance]
        rows.append([*about, measured, one.says, wanted.source])
    return csv_text(rows)
