"""Results as rows: one shape for the terminal, the csv file and the benchmark."""

from __future__ import annotations

import io
import math
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from kanoclip.outputs.names import csv_text
from kanoclip.types import printable

UNDEFINED = "—"
CELL = 1000  # characters of a cell's line; a path is shorter
ENDLESS = 10_000  # characters a line, in a file or a pipe


class Metric(NamedTuple):
    """How a metric is shown.

    Attributes:
        level: What is ranked, "image" or "pixel".
        heading: Its name in a heading, below the level's.
        higher_is_better: Its direction.
        digits: Digits behind the point.
    """

    level: str
    heading: str
    higher_is_better: bool = True
    digits: int = 3

    def show(self, value: float | None) -> str:
        """Write a value for a reader; a dash where it is undefined."""
        return UNDEFINED if value is None or not math.isfinite(value) else f"{value:.{self.digits}f}"


METRICS = {
    "image_auroc": Metric("image", "AUROC"),
    "image_ap": Metric("image", "AP"),
    "image_f1_max": Metric("image", "F1-max"),
    "pixel_auroc": Metric("pixel", "AUROC"),
    "pixel_ap": Metric("pixel", "AP"),
    "pixel_f1_max": Metric("pixel", "F1-max"),
    "pixel_aupro": Metric("pixel", "AUPRO"),
}
"""The one list of metrics, by their names in results, in the order of all tables; those of a level side by side."""

Results = Mapping[str, Mapping[str, Any]]
Row = dict[str, Any]


def results_rows(results: Results) -> list[Row]:
    """Bring results into order: categories by name, ``mean`` last.

    Args:
        results: Category -> metric -> value, as ``AnomalyModule.results``; None or NaN = undefined. The entry
            ``mean`` is no category: it is computed anew, over the categories where a metric is defined.

    Returns:
        Rows with ``category``, ``images``, ``normal``, ``anomalous`` and each of ``METRICS`` (a float, or None where
        undefined). The row ``mean`` holds sums of the counts, and under ``over`` a mapping metric -> number of
        categories behind the mean.
    """
    rows: list[Row] = []
    for category in sorted(name for name in results if name != "mean"):
        found = results[category]
        images, anomalous = int(found.get("images") or 0), int(found.get("anomalous") or 0)
        row: Row = {"category": category, "images": images, "normal": images - anomalous, "anomalous": anomalous}
        rows.append(row | {metric: _defined(found.get(metric)) for metric in METRICS})
    mean: Row = {"category": "mean"} | {key: sum(row[key] for row in rows) for key in ("images", "normal", "anomalous")}
    over = {}
    for metric in METRICS:
        values = [row[metric] for row in rows if row[metric] is not None]
        mean[metric] = math.fsum(values) / len(values) if values else None
        over[metric] = len(values)
    return [*rows, mean | {"over": over}]


def results_table(
    results: Results, gap: int = 3, counts: bool = True, intervals: Mapping[str, Mapping[str, Any]] | None = None
) -> Table:
    """Lay out results for a terminal.

    Args:
        results: As for ``results_rows``.
        gap: Spaces between columns.
        counts: Whether to show how many images a category has.
        intervals: "mean" -> metric -> both ends of its interval; a row below the mean.

    Returns:
        Categories as rows, the mean of several last and its interval, image metrics left of pixel metrics; a dash where
        a value is not defined, and with a mean the number of categories it is over, unless it is over all.
    """
    *rows, mean = results_rows(results)
    undefined = any(row[metric] is None for row in rows for metric in METRICS)
    notes = [f"{UNDEFINED} not defined: needs normal and anomalous images (image), masks of defects (pixel)."]
    notes += ["n: mean over n categories, those where it is defined."] * (len(rows) > 1)
    table = plain_table(gap)
    table.caption = "\n".join(notes) if undefined else None
    table.add_column("category")
    for heading in ("normal", "anom.") if counts else ():
        table.add_column(heading, justify="right", no_wrap=True)
    level = ""
    for metric in METRICS.values():
        above, level = metric.level if metric.level != level else "", metric.level
        table.add_column(f"{above}\n{metric.heading}", justify="right", no_wrap=True)
    several = len(rows) > 1  # or the mean is the row itself
    for row in [*rows, mean | {"category": f"mean of {len(rows)}"}] if several or not rows else rows:
        partly = {name: count for name, count in row.get("over", {}).items() if 0 < count < len(rows)}
        apart = " " if gap > 1 else "\n"
        shown = (METRICS[name].show(row[name]) + f"{apart}n={partly.get(name)}" * (name in partly) for name in METRICS)
        if "over" in row:
            table.add_section()
        table.add_row(row["category"], *(str(row[key]) for key in ("normal", "anomalous") if counts), *shown)
    if ends := (intervals or {}).get("mean"):
        for at, name in ((0, "95 % from"), (1, "to")):
            cells = (METRICS[metric].show(ends[metric][at]) if metric in ends else "" for metric in METRICS)
            table.add_row(name, *[""] * (2 * counts), *cells)
    return table


def print_results(results: Results, intervals: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Print results as wide as the terminal allows; all of them are in the files of a run."""
    print_table(*(results_table(results, *how, intervals) for how in ((3, True), (2, True), (1, True), (1, False))))


def results_csv(results: Results) -> str:
    """Write results as csv: ``results_rows`` with full digits and empty cells where undefined.

    The last two rows are ``mean`` and ``mean_over``, the number of categories behind each mean.
    """
    *rows, mean = results_rows(results)
    columns, over = ["category", "images", "normal", "anomalous", *METRICS], mean.pop("over")
    shown = [*rows, mean, {"category": "mean_over"} | over]
    return csv_text([columns, *([row.get(name) for name in columns] for row in shown)])


def plain_table(gap: int = 3) -> Table:
    """Return an empty table with a line below its headings and some spaces between its columns."""
    left = gap // 2
    return Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1 - left, 0, left), caption_justify="left")


def word_table(headings: Sequence[str], rows: Iterable[Sequence[str]], without: Collection[str] = ()) -> Table:
    """Lay out rows of words; what is too long is folded, and the columns ``without`` are left out.

    A cell may have lines; nothing else in it can break a row.
    """
    kept = [at for at, heading in enumerate(headings) if heading not in without]
    table = plain_table()
    for at in kept:
        table.add_column(headings[at], overflow="fold")
    for row in rows:
        table.add_row(*("\n".join(printable(line, CELL) for line in row[at].split("\n")) for at in kept))
    return table


def table_text(*layouts: Table, width: int = ENDLESS) -> str:
    """Render the first of some layouts of a table that fits, else the last one: folded, but with all its digits.

    What a cell says is never taken for markup.

    Args:
        layouts: The widest first.
        width: In characters.
    """
    console = Console(file=io.StringIO(), width=ENDLESS, force_jupyter=False, color_system=None, markup=False,
                      emoji=False)  # fmt: skip
    table = next((one for one in layouts if console.measure(one).maximum <= width), layouts[-1])
    least = console.measure(table).minimum if any(column.no_wrap for column in table.columns) else 0
    with console.capture() as captured:
        console.print(table, width=min(max(width, least), console.measure(table).maximum))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def print_table(*layouts: Table) -> None:
    """Print the first of some layouts of a table that fits the terminal; a file or a pipe gets the first."""
    tell(table_text(*layouts, width=shutil.get_terminal_size((ENDLESS, 24)).columns))


def tell(text: str) -> None:
    """Print lines in one piece: in a notebook with a progress bar, rich calls itself without end on half a line."""
    sys.stdout.write(f"{text}\n")


def _defined(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
