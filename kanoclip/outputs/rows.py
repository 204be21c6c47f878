"""Tests of a benchmark as rows: means over fits, averages over a domain, published numbers; and rows as texts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kanoclip.outputs.intervals import Difference, difference, over_fits
from kanoclip.outputs.published import FLAGS, published
from kanoclip.outputs.tables import METRICS

BEST = "*"
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
        draws: Metric -> its draws, see ``intervals``; none where there are no intervals.
    """

    data: str
    name: str
    domain: str
    model: str
    auxiliary: str
    report: dict[str, Any]
    draws: Mapping[str, NDArray[np.floating]] = MappingProxyType({})


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
        draws: Metric -> seed -> draws of the same fit; none where one of the fits has none.
        samples: Digest of what was tested: rows of other samples are not compared.
        parameters: Numbers that were trained; None: not known.
        memory: "fit" and "test" -> bytes at the peak, the most of all fits, and whether of the "process" or "device";
            what is not known is not there.
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
    draws: Mapping[str, Mapping[int | None, NDArray[np.floating]]] = MappingProxyType({})
    samples: str = ""
    parameters: int | None = None
    memory: Mapping[str, tuple[int, str]] = MappingProxyType({})

    @property
    def values(self) -> dict[str, list[float]]:
        """Metric -> one value a seed."""
        return {metric: list(found.values()) for metric, found in self.by_seed.items()}


def measured(tested: Sequence[Tested]) -> list[Row]:
    """Make a row of the tests of a model's fits on a data set."""
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
        same = len({(report.get("samples"), report["images"]) for report in reports}) == 1
        row = Row(data, model, auxiliary, values, milliseconds=milliseconds, **about)
        rows.append(
            row._replace(
                draws=_draws(found[: len(reports)], values) if same else {},
                samples=f"{reports[0].get('samples') or ''} {reports[0]['images']}" if same else "",
                parameters=reports[0].get("parameters"),
                memory=_memory(reports),
            )
        )
    return rows


def _draws(tested: Sequence[Tested], values: Values) -> dict[str, dict[int | None, NDArray[np.floating]]]:
    """Return the draws of the fits behind each metric's values, of metrics of which all fits have them."""
    found = {
        metric: {
            seed: one.draws[metric] for seed, one in zip(values[metric], tested, strict=False) if metric in one.draws
        }
        for metric in METRICS
    }
    return {metric: each for metric, each in found.items() if each.keys() == values[metric].keys() and each}


def _memory(reports: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, str]]:
    """Return "fit" and "test" -> the highest peak of all fits, and of what it is; nothing where one is not known."""
    found = {}
    for stage in ("fit", "test"):
        peaks = [(report if stage == "test" else report.get("fit") or {}).get("memory") for report in reports]
        known = [(one["bytes"], one["of"]) for one in peaks if one and one["bytes"]]
        if len(known) == len(peaks):
            found[stage] = max(known)
    return found


def averages(rows: Sequence[Row]) -> list[list[Row]]:
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
            values, sets, draws = {}, {}, {}
            for metric in METRICS:
                behind_it = [row for row in mine if row.by_seed[metric]]
                defined = [row.by_seed[metric] for row in mine if row.by_seed[metric]]
                learned = [found for found in defined if None not in found]
                first = (learned or defined or [{}])[0]
                seeds = [seed for seed in first if all(seed in found for found in learned)]  # those that all sets have
                values[metric] = {
                    seed: statistics.fmean(found[None if None in found else seed] for found in defined)
                    for seed in seeds
                }
                sets[metric] = len(defined)
                if seeds and all(row.draws.get(metric) for row in behind_it):
                    of_sets = [row.draws[metric] for row in behind_it]
                    draws[metric] = {
                        seed: np.mean([one[None if None in one else seed] for one in of_sets], 0) for seed in seeds
                    }
            fitted = ", ".join(dict.fromkeys(row.auxiliary for row in mine))
            behind = max(map(len, values.values()))
            name = f"mean of {count} {domain} sets"
            samples = ", ".join(row.samples for row in mine) if all(row.samples for row in mine) else ""
            parameters = mine[0].parameters if len({row.parameters for row in mine}) == 1 else None
            row = Row(name, model, fitted, values, sets, count, domain, seeds=behind)
            section.append(row._replace(draws=draws, samples=samples, parameters=parameters))
        sections.append(section)
    return sections


def published_rows(tested: Sequence[Tested], family: str) -> tuple[list[Row], list[str]]:
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


def cells(section: Sequence[Row], intervals: bool = True) -> list[list[str]]:
    """Return the texts of a section's rows; what is the same as in the row above, the data, is said once.

    Args:
        section: Rows of one data set.
        intervals: Whether values have theirs behind them.
    """
    lines, marked = [], best(section)
    for at, row in enumerate(section):
        shown = [
            _cell(row, name, intervals) + BEST * (marked.get(name) is row) + part
            for name, part in zip(METRICS, partly(row), strict=True)
        ]
        speed = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        peaks = [f"{row.memory[stage][0] / 2**20:.0f}" if stage in row.memory else "" for stage in ("fit", "test")]
        counts = ["" if count is None else str(count) for count in (row.images, row.seeds)]
        parameters = "" if row.parameters is None else f"{row.parameters:,}"
        lines.append(["" if at else row.data, row.model, row.auxiliary, *shown, speed, parameters, *peaks, *counts])
    return lines


def best(section: Sequence[Row]) -> dict[str, Row]:
    """Return metric -> the row that is better than each other one that was measured; none where it is not clear."""
    found = {}
    for name, metric in METRICS.items():
        rows = [row for row in section if not row.source and row.values[name]]
        if len(rows) > 1:
            first = leading(rows, name)
            less = [compare(first, row, name) for row in rows if row is not first]
            sign = 1 if metric.higher_is_better else -1
            if all(one and one.clear and sign * one.value > 0 for one in less):
                found[name] = first
    return found


def leading(rows: Sequence[Row], metric: str) -> Row:
    """Return the row with the best mean."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    return max(rows, key=lambda row: sign * statistics.fmean(row.values[metric]))


def compare(row: Row, other: Row, metric: str) -> Difference | None:
    """Return a row less another one; None unless both were tested on the same images and have intervals."""
    same = row.samples == other.samples and row.samples and row.sets.get(metric) == other.sets.get(metric)
    return (
        difference(row.values[metric], row.draws.get(metric, {}), other.values[metric], other.draws.get(metric, {}))
        if same
        else None
    )


def partly(row: Row) -> list[str]:
    """Return for each metric how many sets an average is over, where it is not all of them."""
    return [f" n={row.sets[name]}" if 0 < row.sets.get(name, 0) < row.of else "" for name in METRICS]


def _cell(row: Row, name: str, intervals: bool) -> str:
    values, show = row.values[name], METRICS[name].show
    ends = over_fits(row.draws.get(name, {})) if intervals else None
    deviation = f" ± {show(statistics.stdev(values))}" if len(values) > 1 else ""
    return show(mean_of(values)) + deviation + (f" [{show(ends[0])}, {show(ends[1])}]" if ends else "")


def mean_of(values: Sequence[float]) -> float | None:
    """Return the mean; None of none."""
    return statistics.fmean(values) if values else None
