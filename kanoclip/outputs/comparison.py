"""One table of models on data sets: means over seeds, averages over a domain, published numbers; in four formats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.padding import Padding
from rich.table import Table

from kanoclip.outputs.intervals import Difference, over_fits
from kanoclip.outputs.latex import latex
from kanoclip.outputs.names import csv_text, markdown
from kanoclip.outputs.rows import (
    BEST,
    Row,
    Tested,
    averages,
    best,
    cells,
    compare,
    leading,
    mean_of,
    measured,
    partly,
    published_rows,
)
from kanoclip.outputs.tables import METRICS, UNDEFINED, plain_table

METRIC_HEADINGS = tuple(f"{one.level} {one.heading}" for one in METRICS.values())
HEADINGS = ("data", "model", "fitted on", *METRIC_HEADINGS, "ms/image", "trained parameters", "fit MiB", "test MiB",
            "images", "seeds")  # fmt: skip
THE_BEST = "the best"


class Compared(NamedTuple):
    """A row beside the reference.

    Attributes:
        row: The row.
        reference: Metric -> what it is compared with.
        less: Metric -> the row less that; None where that cannot be told.
    """

    row: Row
    reference: Mapping[str, Row]
    less: Mapping[str, Difference | None]


class Comparison:
    """The table of a benchmark.

    Args:
        tested: Tests in the order of the table: data sets and models appear as they come first.
        family: Family of published numbers to put beside ours; None for none.
        notes: Sentences to print below.
        reference: The model that all others are compared with; "" for the best one, in each metric.
        chosen: Model and what it is fitted on -> options that were chosen of a grid; "" for none.

    Attributes:
        sections: Rows of each data set, then of the average over each domain with two or more sets.
        compared: Section by section, each row that was measured beside the reference.
        notes: What a reader must know, one sentence or two each.
    """

    def __init__(
        self,
        tested: Sequence[Tested],
        family: str | None = None,
        notes: Iterable[str] = (),
        reference: str = "",
        chosen: Mapping[tuple[str, str], str] = MappingProxyType({}),
    ) -> None:
        rows = measured(tested)
        beside, sources = published_rows(tested, family) if family else ([], [])
        self.sections = [
            [row for row in (*rows, *beside) if row.data == data] for data in dict.fromkeys(one.data for one in tested)
        ] + averages(rows)
        self.reference, self.chosen = reference, chosen
        self.compared = [_compared(section, reference) for section in self.sections]
        self.notes = [
            f"Means over categories; {_direction()}; ± is the standard deviation over seeds; {UNDEFINED} is not "
            "defined, or not published; n is the number of sets averaged, where it is not all of them."
        ]
        if any(row.draws for row in rows):
            self.notes.append(
                f"[from, to] holds 95 % of what other images would give (bootstrap). {BEST} is better than each other "
                f"row measured here: the 95 % of each difference, over images and seeds, leave out zero."
            )
        if kinds := {kind for row in rows for _, kind in row.memory.values()}:
            what = {"device": "torch allocated on the GPU", "process": "the process held, with Python and libraries"}
            self.notes.append(f"MiB: the most that {', or '.join(what[kind] for kind in sorted(kinds))}.")
        self.notes += [*notes, *sources]
        if any(row.values["pixel_aupro"] for row in beside):
            self.notes.append("Published AUPRO takes 200 thresholds, ours is exact.")

    @property
    def differences(self) -> tuple[tuple[str, ...], list[list[list[str]]]]:
        """Headings, and for each section with a difference to tell its rows, as texts."""
        headings, sections = ("data", "model", "fitted on", "less", *METRIC_HEADINGS), []
        for section in self.compared:
            lines: list[list[str]] = []
            for row, reference, less in section:
                shown = [_difference(name, less.get(name), reference.get(name) is row) for name in METRICS]
                data = "" if lines else row.data
                lines.append([data, row.model, row.auxiliary, self.reference or THE_BEST, *shown])
            if any(found for _, _, less in section for found in less.values()):
                sections.append(lines)
        return headings, sections

    def table(self, gap: int = 3, intervals: bool = True) -> Table:
        """Lay all of it out, with some spaces between columns."""
        table = plain_table(gap)
        for at, heading in enumerate(HEADINGS):
            table.add_column(heading.replace(" ", "\n"), justify="left" if at < 3 else "right", no_wrap=True)
        for section in self.sections:
            for line in cells(section, intervals):
                table.add_row(*line)
            table.add_section()
        return table

    def differences_table(self) -> Table | None:
        """Lay out the differences; None if there are none to tell."""
        headings, sections = self.differences
        table = plain_table()
        for at, heading in enumerate(headings):
            table.add_column(heading.replace(" ", "\n"), justify="left" if at < 4 else "right", no_wrap=True)
        for section in sections:
            for line in section:
                table.add_row(*line)
            table.add_section()
        return table if sections else None

    def narrow_table(self) -> Table:
        """Lay out means and numbers of seeds alone, each data set above its models; fits 80 columns."""
        table = plain_table(1)
        for at, heading in enumerate(["", *METRIC_HEADINGS, "seeds"]):
            table.add_column(heading.replace(" ", "\n"), justify="right" if at else "left", no_wrap=bool(at))
        for section in self.sections:
            table.add_row(section[0].data)
            models, marked = [row.model for row in section], best(section)
            for row in section:
                fitted = f" ({row.auxiliary})" * (models.count(row.model) > 1)  # to tell them apart
                shown = [
                    METRICS[name].show(mean_of(row.values[name])) + BEST * (marked.get(name) is row) + part
                    for name, part in zip(METRICS, (one.replace(" ", "\n") for one in partly(row)), strict=True)
                ]
                table.add_row(Padding(row.model + fitted, (0, 0, 0, 2)), *shown, str(row.seeds or ""))
            table.add_section()
        return table

    def markdown(self) -> str:
        """Return it as Markdown: the table, what a reader must know, and the differences."""
        headings, sections = self.differences
        tables = [_markdown(HEADINGS, [cells(section) for section in self.sections], 3)]
        tables += [_markdown(headings, sections, 4)] if sections else []
        return "\n\n".join([tables[0], *map(markdown, self.notes), *tables[1:]]) + "\n"

    def latex(self) -> str:
        """Return it as LaTeX, see ``latex``."""
        return latex(self.sections, self.notes)

    def csv(self) -> str:
        """Return it as csv with full digits; empty where undefined or not known."""
        each = [f"{metric}{end}" for end in ("_std", "_sets", "_low", "_high") for metric in METRICS]
        rows: list[list[Any]] = [
            ["data", "domain", "model", "auxiliary", *METRICS, *each, "ms_per_image", "images", "seeds", "source",
             "trained_parameters", "fit_bytes", "test_bytes", "chosen"]
        ]  # fmt: skip
        for row in (row for section in self.sections for row in section):
            values = [row.values[metric] for metric in METRICS]
            means = [statistics.fmean(v) if v else "" for v in values]
            spreads = [statistics.stdev(v) if len(v) > 1 else "" for v in values]
            sets = [row.sets.get(metric, "") for metric in METRICS]
            counts = ["" if v is None else v for v in (row.milliseconds, row.images, row.seeds)]
            ends: list[list[Any]] = [over_fits(row.draws.get(metric, {})) or ["", ""] for metric in METRICS]
            costs = ["" if row.parameters is None else row.parameters]
            costs += [row.memory[stage][0] if stage in row.memory else "" for stage in ("fit", "test")]
            about, source = [row.data, row.domain, row.model, row.auxiliary], row.source or "measured here"
            lows, highs = zip(*ends, strict=True)
            rows.append(
                [
                    *about,
                    *means,
                    *spreads,
                    *sets,
                    *lows,
                    *highs,
                    *counts,
                    source,
                    *costs,
                    self.chosen.get((row.model, row.auxiliary), ""),
                ]
            )
        return csv_text(rows)

    def differences_csv(self) -> str:
        """Return the differences as csv: a line for each row and metric, with full digits."""
        rows: list[list[Any]] = [
            ["data", "model", "auxiliary", "metric", "less_model", "less_auxiliary", "difference", "low", "high"]
        ]
        for row, reference, less in (one for section in self.compared for one in section):
            for metric, found in less.items():
                if found:
                    other = reference[metric]
                    about = [row.data, row.model, row.auxiliary, metric, other.model, other.auxiliary]
                    rows.append([*about, found.value, found.low, found.high])
        return csv_text(rows)


def _compared(section: Sequence[Row], reference: str) -> list[Compared]:
    """Put each measured row of a section beside the reference, or the best row of each metric."""
    rows, found = [row for row in section if not row.source], []
    named = [row for row in rows if row.model == reference]
    for row in rows:
        others: dict[str, Row] = {}
        for metric in METRICS:
            defined = [one for one in rows if one.values[metric]]
            if reference and named:  # the one that was fitted alike, if there are several
                others[metric] = next((one for one in named if one.auxiliary == row.auxiliary), named[0])
            elif defined and not reference:
                others[metric] = leading(defined, metric)
        less = {metric: compare(row, other, metric) for metric, other in others.items() if other is not row}
        found.append(Compared(row, others, less))
    return found


def _difference(name: str, found: Difference | None, itself: bool) -> str:
    if found is None:
        return "reference" if itself else ""
    value, low, high = (f"{one:+.{METRICS[name].digits}f}" for one in found)
    return f"{value} [{low}, {high}]{BEST * found.clear}"


def _markdown(headings: Sequence[str], sections: Iterable[Sequence[Sequence[str]]], words: int) -> str:
    lines: list[Sequence[str]] = [headings, ["---"] * words + ["--:"] * (len(headings) - words)]
    lines += [list(map(markdown, line)) for section in sections for line in section]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _direction() -> str:
    lower = ", ".join(f"{one.level} {one.heading}" for one in METRICS.values() if not one.higher_is_better)
    return f"higher is better, but lower for {lower}" if lower else "higher is better"
