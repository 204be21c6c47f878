"""A grid over options of a row of a benchmark: the best candidate on folds of the auxiliary set is the row.

Nothing is stored of a choice: each candidate is fitted and tested on the folds as any job is, and whoever reads the
config finds the same choice in the reports of these tests.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from rich.table import Table

from kanoclip.outputs.names import csv_text, markdown
from kanoclip.outputs.tables import METRICS, word_table
from kanoclip.registry import did_you_mean, expand, load_class
from kanoclip.types import KanoclipError, MissingError, counted
from kanoclip.verbs.build import Parser, learns
from kanoclip.verbs.folds import folds_of, gives
from kanoclip.verbs.jobs import Data, Job, read_report
from kanoclip.verbs.specs import PlanError, Protocol, Spec, parse_spec, text

USUAL = "image_auroc"
HEADINGS = ("model", "fitted on", "options", "chosen by", "mean", "folds", "chosen")


class Candidate(NamedTuple):
    """One combination of the values of a grid.

    Attributes:
        options: Key of the grid -> value.
        spec: The row with these options, as it would be typed by hand.
        learns: Whether that model learns; None: that will show.
        jobs: Its fit and test for each fold; none if the auxiliary set cannot be used.
    """

    options: dict[str, Any]
    spec: Spec
    learns: bool | None
    jobs: list[Job]

    @property
    def told(self) -> str:
        """Its options as a reader sees them."""
        return ", ".join(f"{key} {one if isinstance(one, str) else text(one)}" for key, one in self.options.items())


@dataclass
class Sweep:
    """The grid of a row; what is chosen is looked up once, so a plan is read anew after work.

    Attributes:
        label: The row's.
        fitted_on: How the table calls what its folds are of.
        metric: That chooses.
        folds: What is held out in each, for a reader.
        candidates: In the order of the grid, its last key first to change.
    """

    label: str
    fitted_on: str
    metric: str
    folds: list[str]
    candidates: list[Candidate]

    @property
    def jobs(self) -> list[Job]:
        """All fits and tests that the choice needs."""
        return [job for one in self.candidates for job in one.jobs]

    @cached_property
    def values(self) -> list[list[float]]:
        """The metric of each candidate on each fold; empty unless all tests are done.

        Raises:
            PlanError: If the metric is not defined on a fold.
        """
        if not self.folds or not all(job.finished for job in self.jobs):
            return []
        return [
            [self._value(job, fold) for job, fold in zip(one.jobs, self.folds, strict=True)] for one in self.candidates
        ]

    @cached_property
    def chosen(self) -> Candidate | None:
        """The candidate with the best mean over folds, of equal ones the first; None: that will show."""
        sign = 1 if METRICS[self.metric].higher_is_better else -1
        means = [sign * statistics.fmean(values) for values in self.values]
        return self.candidates[means.index(max(means))] if means else None

    @property
    def note(self) -> str:
        """Say what was chosen and how; "" as long as nothing is."""
        if (chosen := self.chosen) is None:
            return ""
        metric = METRICS[self.metric]
        held = "; ".join(self.folds)
        return (
            f"{self.label}: {chosen.told} chosen of {counted(len(self.candidates), 'candidate')} by {metric.level} "
            f"{metric.heading}, mean over {counted(len(self.folds), 'fold')} of {self.fitted_on} (held out: {held}), "
            f"never on a set of this table."
        )

    def to_json(self) -> dict[str, Any]:
        """Return all that was tried as plain values."""
        chosen, values = self.chosen, self.values
        tried = [
            {"options": one.options, "values": mine, "mean": statistics.fmean(mine), "chosen": one is chosen}
            for one, mine in zip(self.candidates, values, strict=True)
        ] if values else []  # fmt: skip
        return {"model": self.label, "fitted_on": self.fitted_on, "chosen_by": self.metric, "folds": self.folds,
                "candidates": tried}  # fmt: skip

    def _value(self, job: Job, fold: str) -> float:
        report = read_report(job.report_path(job.data[0])) or {"results": {}}
        value = report["results"].get("mean", {}).get(self.metric)
        if value is None:
            raise _undefined(self.label, self.metric, fold)
        return float(value)


def read_sweep(spec: Spec, protocol: Protocol, auxiliary: Data, fitted_on: str, output: Path, file: str) -> Sweep:
    """Check the grid of a row, and plan what its choice needs.

    Args:
        spec: The row, with ``grid`` and perhaps ``chosen_by``.
        protocol: How it is fitted; the choice is made with its first seed.
        auxiliary: What the folds are of.
        fitted_on: How the table calls that.
        output: Folder for the runs.
        file: The config, for messages.

    Raises:
        PlanError: For a grid that is none, an option or a value that the model does not take, or a metric that there is
            not, or not on these folds; names the row and the key.
    """
    label, metric = spec["label"], spec.get("chosen_by", USUAL)
    where = f"{file}, {label}"
    if not isinstance(metric, str) or metric not in METRICS:
        raise PlanError(
            f"{where}: chosen_by {metric!r} is no metric.{did_you_mean(str(metric), METRICS)} Known: "
            f"{', '.join(METRICS)}."
        )
    folds = [] if auxiliary.problem else folds_of(auxiliary, where)
    for told, _, tested in folds:
        if not gives(metric, tested.module):
            raise _undefined(where, metric, told)
    candidates = []
    for options, candidate in _candidates(spec, where, file):
        does = learns(parse_spec("model", candidate, file))
        one = Candidate(options, candidate, does, [])
        for at, (_, fit, test) in enumerate(folds, 1):
            name = f"{label} with {one.told}, fold {at} of {len(folds)}"
            model = {key: candidate[key] for key in ("class_path", "init_args")}
            one.jobs.append(
                Job(label, name, model, does, fit, fitted_on, (test,), protocol.seeds[0], protocol.trainer, output)
            )
        candidates.append(one)
    return Sweep(label, fitted_on, metric, [told for told, *_ in folds], candidates)


def check_values(sweeps: Iterable[Sweep], file: str) -> None:
    """Build the model of each candidate that is not fitted, so that a value it refuses is told before any fit.

    Raises:
        PlanError: For such a value; names the row and the option.
    """
    from lightning.pytorch import LightningModule

    from kanoclip.backbone.loading import BackboneUnavailableError

    parser = Parser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    for one in sweeps:
        for candidate in one.candidates:
            if not all(job.fitted for job in candidate.jobs):
                try:
                    parser.instantiate_classes(Namespace(model=parse_spec("model", candidate.spec, file)))
                except ValueError as error:
                    cause: BaseException | None = error  # the parser's
                    while cause and not isinstance(cause, KanoclipError):
                        cause = cause.__cause__
                    if isinstance(cause, (MissingError, BackboneUnavailableError)):
                        break  # weights, perhaps of other rows too: each fit tells
                    if cause is None:
                        raise
                    raise PlanError(f"{file}, {one.label}: grid with {candidate.told}: {cause}") from error


def _candidates(spec: Spec, where: str, file: str) -> list[tuple[dict[str, Any], Spec]]:
    """Return the options of each combination, and the row with them; equal rows once."""
    grid, example = spec["grid"], "grid: {lr: [0.001, 0.0001], interaction.heads: [4, 8]}"
    if not isinstance(grid, dict) or not grid:
        raise PlanError(f"{where}: grid should be options with the values to try, such as {example}; got {grid!r:.80}.")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise PlanError(f"{where}: grid.{key} should be a list of the values to try, got {values!r:.80}.")
    if "checkpoint" in spec:
        raise PlanError(f"{where}: a row with a checkpoint is not fitted, so it takes no grid. Leave one of them out.")
    found: dict[str, tuple[dict[str, Any], Spec]] = {}
    known: dict[str, Any] = {}
    for values in product(*grid.values()):
        options = dict(zip(map(str, grid), values, strict=True))
        row = {key: value for key, value in spec.items() if key not in ("grid", "chosen_by")}
        for key in sorted(options, key=lambda one: one.count(".")):  # a component before its own options
            try:
                row = _with(row, key, options[key], file)
                if text(row) not in known:
                    known[text(row)] = parse_spec("model", row, file)
            except KanoclipError as error:
                raise PlanError(f"{where}: grid.{key}: {str(error).removeprefix(f'{file}: ')}") from error
        found.setdefault(text(row), (options, row))
    return list(found.values())


def _with(spec: Spec, key: str, value: Any, file: str) -> Spec:
    """Return a row with an option as it would be typed: that of a component below the component's ``init_args``."""
    *kinds, name = key.split(".")
    row = deepcopy(spec)
    inside, path = row["init_args"], row["class_path"]
    parsed: Any = parse_spec("model", spec, file)
    for kind in kinds:
        parsed = (parsed.get("init_args") or {}).get(kind) if parsed else None
        own = getattr(load_class(path), f"own_{kind}", None)  # what a model takes where none is given
        usual = f"{own.__module__}.{own.__qualname__}" if isinstance(own, type) else ""
        path = parsed.class_path if isinstance(parsed, Namespace) and "class_path" in parsed else usual
        if not path:
            raise PlanError(f"{file}: {kind} is none of the model's components that have options of their own.")
        given = inside.get(kind)
        options = given.get("init_args") if isinstance(given, dict) else None
        inside[kind] = {"class_path": path, "init_args": options or {}}
        inside = inside[kind]["init_args"]
    inside[name] = value
    row["init_args"] = expand(row["init_args"], f" in {file}")
    return row


def _undefined(where: str, metric: str, fold: str) -> PlanError:
    lacks = "masks" if METRICS[metric].level == "pixel" else "normal and anomalous images of one category"
    return PlanError(
        f"{where}: chosen_by {metric} is not defined where {fold} is held out, as there are no {lacks}. Choose by "
        f"another metric, or take an auxiliary set that has them."
    )


def notes(sweeps: Iterable[Sweep]) -> list[str]:
    """Say of each row with a grid what was chosen and how, or that nothing is yet."""
    waits = "its options are not chosen, as not all candidates are done on the folds of"
    return [one.note or f"{one.label}: {waits} {one.fitted_on}." for one in sweeps]


def rows(sweeps: Iterable[Sweep]) -> list[list[str]]:
    """Write all candidates of the choices that are made as rows of ``HEADINGS``."""
    found = []
    for one in sweeps:
        chosen, show = one.chosen, METRICS[one.metric].show
        for candidate, values in zip(one.candidates, one.values, strict=False):
            each, mark = ", ".join(map(show, values)), "chosen" if candidate is chosen else ""
            mean = show(statistics.fmean(values))
            found.append([one.label, one.fitted_on, candidate.told, one.metric, mean, each, mark])
    return found


def table(sweeps: Sequence[Sweep]) -> Table:
    """Lay the candidates out."""
    return word_table(HEADINGS, rows(sweeps))


def to_markdown(sweeps: Sequence[Sweep]) -> str:
    """Write the candidates as a table in Markdown."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *([markdown(cell) for cell in row] for row in rows(sweeps))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_csv(sweeps: Iterable[Sweep]) -> str:
    """Write each candidate on each fold as csv, with full digits."""
    lines: list[list[Any]] = [["model", "fitted_on", "options", "metric", "held_out", "value", "chosen"]]
    for one in sweeps:
        chosen = one.chosen
        for candidate, values in zip(one.candidates, one.values, strict=False):
            about = [one.label, one.fitted_on, candidate.told, one.metric]
            lines += [[*about, fold, value, candidate is chosen] for fold, value in zip(one.folds, values, strict=True)]
    return csv_text(lines)
