"""One table of models on data sets: means over seeds, averages over a domain, published numbers; in four formats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.padding import Padding
from rich.table import Table

from kanoclip.outputs.names import csv_text, markdown
from kanoclip.outputs.published import FLAGS, published
from kanoclip.outputs.tables import METRICS, UNDEFINED, plain_table

HEADINGS = ("data", "model", "fitted on", *(f"{one.level} {one.heading}" for one in METRICS.values()), "ms/image",
            "images", "seeds")  # fmt: skip
PAGE = 50  # rows of a LaTeX table that fit on a page
TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "—": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
TEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
Values = dict[str, dict[int | None, float]]  # metric -> seed -> value


class Tested(NamedTuple):
    """One test with the names of its row.

    Attributes:
        data: How the table calls the data set.
        name: Its registered name if published numbers may stand beside it (all of its images were tested), else "".
        domain: Its domain: sets of one are averaged.
        model: How the table calls the model.
        auxiliary: How it calls what the model was fitted on, so that other fits are other rows; "nothing".
        report: What the test wrote as results.json.
    """

    data: str
    name: str
    domain: str
    model: str
    auxiliary: str
    report: dict[str, Any]


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        data: Data set, or what is averaged.
        model: Model, or method with the number of its source.
        auxiliary: What it was fitted on.
        by_seed: Metric -> seed -> value; none where it is not defined. The seed None stands for any: nothing was
            learned, or it is not known.
        sets: Of an average: metric -> number of sets behind it, those where it is defined.
        of: Of an average: number of sets in all.
        domain: Domain of the data.
        milliseconds: For an image, the median over seeds; None: not known, or with cached features.
        images: Images tested; None: not known.
        seeds: Fits behind it.
        source: Where a published number was read; "": measured here.
    """

    data: str
    model: str
    auxiliary: str
    by_seed: Values
    sets: Mapping[str, int] = MappingProxyType({})
    of: int = 0
    domain: str = ""
    milliseconds: float | None = None
    images: int | None = None
    seeds: int | None = None
    source: str = ""

    @property
    def values(self) -> dict[str, list[float]]:
        """Metric -> one value a seed."""
        return {metric: list(found.values()) for metric, found in self.by_seed.items()}


class Comparison:
    """The table of a benchmark.

    Args:
        tested: Tests in the order of the table: data sets and models appear as they come first.
        family: Family of published numbers to put beside ours; None for none.
        notes: Sentences to print below.

    Attributes:
        sections: Rows of each data set, then of the average over each domain with two or more sets.
        notes: What a reader must know, one sentence or two each.
    """

    def __init__(self, tested: Sequence[Tested], family: str | None = None, notes: Iterable[str] = ()) -> None:
        rows = _rows(tested)
        beside, sources = _published(tested, family) if family else ([], [])
        self.sections = [
            [row for row in (*rows, *beside) if row.data == data] for data in dict.fromkeys(one.data for one in tested)
        ] + _averages(rows)
        self.notes = [
            f"Means over categories; {_direction()}; ± is the standard deviation over seeds; {UNDEFINED} is not "
            "defined, or not published; n is the number of sets averaged, where it is not all of them.",
            *notes,
            *sources,
        ]
        if any(row.values["pixel_aupro"] for row in beside):
            self.notes.append("Published AUPRO takes 200 thresholds, ours is exact.")

    def table(self, gap: int = 3) -> Table:
        """Lay all of it out, with some spaces between columns."""
        table = plain_table(gap)
        for at, heading in enumerate(HEADINGS):
            table.add_column(heading.replace(" ", "\n"), justify="left" if at < 3 else "right", no_wrap=True)
        for section in self.sections:
            for line in cells(section):
                table.add_row(*line)
            table.add_section()
        return table

    def narrow_table(self) -> Table:
        """Lay out the means alone, each data set above its models; fits 80 columns."""
        table = plain_table(1)
        for at, heading in enumerate(["", *HEADINGS[3 : 3 + len(METRICS)]]):
            table.add_column(heading.replace(" ", "\n"), justify="right" if at else "left", no_wrap=bool(at))
        for section in self.sections:
            table.add_row(section[0].data)
            models = [row.model for row in section]
            for row in section:
                fitted = f" ({row.auxiliary})" * (models.count(row.model) > 1)  # to tell them apart
                means = (metric.show(_mean(row.values[name])) for name, metric in METRICS.items())
                cells = (mean + partly.replace(" ", "\n") for mean, partly in zip(means, _partly(row), strict=True))
                table.add_row(Padding(row.model + fitted, (0, 0, 0, 2)), *cells)
            table.add_section()
        return table

    def markdown(self) -> str:
        """Return it as a Markdown table."""
        lines = [list(HEADINGS), ["---"] * 3 + ["--:"] * (len(HEADINGS) - 3)]
        lines += [list(map(markdown, line)) for section in self.sections for line in cells(section)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([table, *map(markdown, self.notes)]) + "\n"

    def latex(self) -> str:
        """Return it as LaTeX for the package booktabs, and longtable if it is longer than a page."""
        long = sum(map(len, self.sections)) > PAGE
        kind, last = ("longtable" if long else "tabular"), 3 + len(METRICS)
        headings = ["data", "model", "fitted on", *(metric.heading for metric in METRICS.values()), "seeds"]
        above, rules, first = "", [], 4
        for level, metrics in groupby(METRICS.values(), key=lambda metric: metric.level):
            count = len(list(metrics))
            above += rf" & \multicolumn{{{count}}}{{c}}{{{level}}}"
            rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
            first += count
        lines = [
            r"% \usepackage{booktabs}" + (r" \usepackage{longtable}" if long else ""),
            rf"\begin{{{kind}}}{{@{{}}lll{'r' * (len(METRICS) + 1)}@{{}}}}",
            r"\toprule",
            rf" & &{above} & \\",
            " ".join(rules),
            " & ".join(headings) + r" \\",
            *([r"\midrule", r"\endhead"] if long else []),
        ]
        for at, section in enumerate(self.sections):
            lines += [r"\midrule"] if at or not long else []
            for line in cells(section):
                lines.append(" & ".join(map(_tex, [*line[:last], line[-1]])) + r" \\")
        lines += [r"\bottomrule", rf"\end{{{kind}}}", "", r"{\footnotesize"]
        return "\n".join([*lines, *(_tex(note) + r"\par" for note in self.notes), "}"]) + "\n"

    def csv(self) -> str:
        """Return it as csv with full digits; empty where undefined or not known."""
        each = [f"{metric}{end}" for end in ("_std", "_sets") for metric in METRICS]
        rows: list[list[Any]] = [
            ["data", "domain", "model", "auxiliary", *METRICS, *each, "ms_per_image", "images", "seeds", "source"]
        ]
        for row in (row for section in self.sections for row in section):
            values = [row.values[metric] for metric in METRICS]
            means = [statistics.fmean(v) if v else "" for v in values]
            spreads = [statistics.stdev(v) if len(v) > 1 else "" for v in values]
            sets = [row.sets.get(metric, "") for metric in METRICS]
            counts = ["" if v is None else v for v in (row.milliseconds, row.images, row.seeds)]
            about = [row.data, row.domain, row.model, row.auxiliary]
            rows.append([*about, *means, *spreads, *sets, *counts, row.source or "measured here"])
        return csv_text(rows)


def _rows(tested: Sequence[Tested]) -> list[Row]:
    groups: dict[tuple[str, str, str], list[Tested]] = {}
    for one in tested:
        groups.setdefault((one.data, one.model, one.auxiliary), []).append(one)
    rows = []
    for (data, model, auxiliary), found in groups.items():
        free = all(one.report["checkpoint"] is None for one in found)
        reports = [one.report for one in (found[:1] if free else found)]  # nothing was learned: seeds give the same
        values: Values = {
            metric: {
                None if free else report["seed"]: value
                for report in reports
                if (value := report["results"]["mean"].get(metric)) is not None
            }
            for metric in METRICS
        }
        cached = any(report["options"]["data"].get("cache") for report in reports)  # what is left out takes the time
        milliseconds = None if cached else 1000 * statistics.median(r["seconds_per_image"] for r in reports)
        about = {"domain": found[0].domain, "images": reports[0]["images"], "seeds": len(reports)}
        rows.append(Row(data, model, auxiliary, values, milliseconds=milliseconds, **about))
    return rows


def _averages(rows: Sequence[Row]) -> list[list[Row]]:
    """Average over the sets of each domain that has several: first over the sets of a seed, then over seeds."""
    sections = []
    for domain in dict.fromkeys(row.domain for row in rows):
        inside = [row for row in rows if row.domain == domain]
        count = len({row.data for row in inside})
        if count < 2:
            continue
        pairs = [(row.model, row.data) for row in inside]
        rivals = {model for model, data in pairs if pairs.count((model, data)) > 1}  # of fits
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in inside:
            groups.setdefault((row.model, row.auxiliary if row.model in rivals else ""), []).append(row)
        section = []
        for (model, _), mine in groups.items():
            values, sets = {}, {}
            for metric in METRICS:
                defined = [row.by_seed[metric] for row in mine if row.by_seed[metric]]
                learned = [found for found in defined if None not in found]
                first = (learned or defined or [{}])[0]
                seeds = [seed for seed in first if all(seed in found for found in learned)]  # those that all sets have
                values[metric] = {
                    seed: statistics.fmean(found[None if None in found else seed] for found in defined)
                    for seed in seeds
                }
                sets[metric] = len(defined)
            fitted = ", ".join(dict.fromkeys(row.auxiliary for row in mine))
            behind = max(map(len, values.values()))
            name = f"mean of {count} {domain} sets"
            section.append(Row(name, model, fitted, values, sets, count, domain, seeds=behind))
        sections.append(section)
    return sections


def _published(tested: Sequence[Tested], family: str) -> tuple[list[Row], list[str]]:
    """Make rows of published numbers, and a note on each source."""
    shown = {one.name: one for one in tested if one.name}
    rows, sources = [], dict[tuple[str, str], str]()
    for one in published(family, shown):
        key = (one.method, one.source)
        number = [*sources, key].index(key) + 1
        sources[key] = (
            f"[{number}] {one.method}, as published: {one.source}{FLAGS[one.flag]}. Family {family}. Maps and scores: "
            f"{one.post_processing or 'not known'}."
        )
        values: Values = {metric: {None: one.values[metric]} if metric in one.values else {} for metric in METRICS}
        data, domain = shown[one.data].data, shown[one.data].domain
        auxiliary = one.auxiliary or "nothing"
        method = f"{one.method}, published [{number}]"
        rows.append(Row(data, method, auxiliary, values, domain=domain, source=one.source))
    return rows, list(sources.values())


def cells(section: Sequence[Row]) -> list[list[str]]:
    """Return the texts of a section's rows; what is the same as in the row above, the data, is said once."""
    lines = []
    for at, row in enumerate(section):
        shown = [_cell(name, row.values[name]) + partly for name, partly in zip(METRICS, _partly(row), strict=True)]
        speed = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        counts = ["" if count is None else str(count) for count in (row.images, row.seeds)]
        lines.append(["" if at else row.data, row.model, row.auxiliary, *shown, speed, *counts])
    return lines


def _partly(row: Row) -> list[str]:
    """Return for each metric how many sets an average is over, where it is not all of them."""
    return [f" n={row.sets[name]}" if 0 < row.sets.get(name, 0) < row.of else "" for name in METRICS]


def _cell(name: str, values: Sequence[float]) -> str:
    show = METRICS[name].show
    return show(_mean(values)) + (f" ± {show(statistics.stdev(values))}" if len(values) > 1 else "")


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _direction() -> str:
    lower = ", ".join(f"{one.level} {one.heading}" for one in METRICS.values() if not one.higher_is_better)
    return f"higher is better, but lower for {lower}" if lower else "higher is better"


def _tex(text: str) -> str:
    text = " ".join(text.split())
    options = "{}" if text.startswith(("[", "*")) else ""  # of the line break above
    return options + "".join(TEX.get(sign, sign) for sign in text)
