"""Results as rows: one shape for the terminal, the csv file and the benchmark."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from kanoclip.outputs.names import csv_text

UNDEFINED = "—"


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


def results_table(results: Results, title: str | None = None) -> Table:
    """Lay out results for a terminal.

    Args:
        results: As for ``results_rows``.
        title: A line above the table.

    Returns:
        Categories as rows, the mean of several last, image metrics left of pixel metrics; a dash where a value is not
        defined, and behind a mean the number of categories it is over, unless it is over all.
    """
    *rows, mean = results_rows(results)
    undefined = any(row[metric] is None for row in rows for metric in METRICS)
    notes = [f"{UNDEFINED} not defined: needs normal and anomalous images (image), masks of defects (pixel)."]
    notes += ["n: mean over n categories, those where it is defined."] * (len(rows) > 1)
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        caption="\n".join(notes) if undefined else None,
    )
    table.add_column("category", no_wrap=True)
    table.add_column("normal", justify="right", no_wrap=True)
    table.add_column("anom.", justify="right", no_wrap=True)
    level = ""
    for metric in METRICS.values():
        above, level = metric.level if metric.level != level else "", metric.level
        table.add_column(f"{above}\n{metric.heading}", justify="right", no_wrap=True)
    for row in rows:
        cells = (metric.show(row[name]) for name, metric in METRICS.items())
        table.add_row(row["category"], str(row["normal"]), str(row["anomalous"]), *cells)
    if len(rows) == 1:
        return table  # its mean is itself
    table.add_section()
    means = []
    for name, metric in METRICS.items():
        count = mean["over"][name]
        means.append(metric.show(mean[name]) + (f" n={count}" if 0 < count < len(rows) else ""))
    table.add_row(f"mean of {len(rows)}", str(mean["normal"]), str(mean["anomalous"]), *means, style="bold")
    return table


def results_csv(results: Results) -> str:
    """Write results as csv: ``results_rows`` with full digits and empty cells where undefined.

    The last two rows are ``mean`` and ``mean_over``, the number of categories behind each mean.
    """
    *rows, mean = results_rows(results)
    columns, over = ["category", "images", "normal", "anomalous", *METRICS], mean.pop("over")
    shown = [*rows, mean, {"category": "mean_over"} | over]
    return csv_text([columns, *([row.get(name) for name in columns] for row in shown)])


def table_text(table: Table, colour: bool = False) -> str:
    """Render a table at its full width: a narrow or piped output must not lose digits."""
    console = Console(file=io.StringIO(), force_terminal=colour, width=10_000)
    width = max(Console().width, console.measure(table).maximum)
    with console.capture() as captured:
        console.print(table, width=width)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def print_table(table: Table) -> None:
    """Print a table of words: folded to a terminal's width, 160 characters wide in a file or a pipe."""
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table)


def _defined(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
