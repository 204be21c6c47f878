"""The jobs of a benchmark, and whether each is done.

A job's folder is named by what it is asked to do. Whether it is done is decided by the contents of all files that it
depends on: what is done of unchanged files is never done again, and what is stale is done again in the same folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kanoclip.data.digests import file_hashes
from kanoclip.data.files import plain, read_json
from kanoclip.models.checkpoint import free_options
from kanoclip.outputs.identity import RESULTS_VERSION
from kanoclip.outputs.record import files_of, read_about, read_record
from kanoclip.registry import load_class, name_of
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError
from kanoclip.verbs.build import build
from kanoclip.verbs.specs import Spec, digest, parse_spec

DATA_SEED = 111
"""Of what is drawn in a test, such as a limit, whatever the seed of the fit: all rows are tested on the same images."""
READING = ("num_workers", "cache")
"""Options of a data set that no number depends on."""
FITTING = ("batch_size", "augment")
"""Options of a data set that a fit depends on, and no test."""
MACHINE = ("accelerator", "devices", "num_nodes", "default_root_dir", "enable_progress_bar", "enable_model_summary",
           "log_every_n_steps", "profiler")  # fmt: skip
"""Options of a trainer that no number depends on."""
TESTING = ("precision", "plugins", "limit_test_batches", "fast_dev_run")
"""Options of a trainer that a test depends on."""


@dataclass(frozen=True)
class Data:
    """A data set of a benchmark.

    Attributes:
        label: How the table calls it.
        name: Its registered name, or import path.
        spec: ``class_path`` and ``init_args`` to run with.
        key: What of that tells it from other sets, wherever its files are.
        seedless: Whether it takes a seed and the config gives none.
        domain: industrial, medical, ...
        problem: Why it cannot be used; "" if it can.
        damaged: Whether it is there, but wrong.
        module: Its data module, with the seed ``DATA_SEED``; None if there is a problem.
    """

    label: str
    name: str
    spec: Spec
    key: dict[str, Any]
    seedless: bool
    domain: str
    problem: str = ""
    damaged: bool = False
    module: Any = field(default=None, compare=False, repr=False)
    _found: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def identity(self) -> str:
        """What a checkpoint remembers of it."""
        return str(getattr(self.module, "identity", self.name))

    @property
    def whole(self) -> bool:
        """Whether as many images are tested as its publisher counts, so that published numbers may stand beside."""
        about = getattr(self.module, "about", None)
        labels = [sample.label for sample in self.module.part("test")] if about else []
        return bool(about and about.whole(labels.count(NORMAL), labels.count(ANOMALOUS)))

    def seeded(self, seed: int) -> Spec:
        """Return the spec with a seed for what is drawn, unless it has its own."""
        return {**self.spec, "init_args": self.spec["init_args"] | ({"seed": seed} if self.seedless else {})}

    def content(self, stage: str, seed: int = DATA_SEED) -> tuple[str | None, dict[str, Any]]:
        """Return the digest of the samples of a stage, and the options by which their pixels are read."""
        if (stage, seed) not in self._found:
            module = self.module if seed == DATA_SEED else build(parse_spec("data", self.seeded(seed), ""))
            self._found[stage, seed] = module.samples_digest(stage), plain(module.pixel_options())
        return self._found[stage, seed]

    def files(self, stage: str) -> set[Any]:
        """Return the image files of a stage, as a disk numbers them; of drawn images their names."""
        if stage not in self._found:
            self._found[stage] = {_file(sample.image) for sample in self.module.part(stage)} if self.module else set()
        return self._found[stage]


@dataclass(frozen=True)
class Job:
    """One model with one seed: fitted on an auxiliary set if it learns, then tested.

    Attributes:
        label: How the table calls the model.
        name: The same with auxiliary set and seed, where there are several.
        model: ``class_path`` and ``init_args``.
        learns: Whether it does; None: that shows when it is built.
        auxiliary: What it is fitted on.
        fitted_on: How the table calls that.
        data: What it is tested on.
        seed: Of the fit.
        trainer: Options of the trainer.
        output: Folder for the runs.
        given: A checkpoint to test, such as ``kanoclip import`` makes, instead of a fit; None: it is fitted.
        timed: Of the one whose first steps tell how long all will take: by what.
        chosen: Options that were chosen of the row's grid, as a reader sees them; "": it has none; None: they are not
            chosen yet, and the first ones of the grid stand in.
    """

    label: str
    name: str
    model: Spec
    learns: bool | None
    auxiliary: Data
    fitted_on: str
    data: tuple[Data, ...]
    seed: int
    trainer: dict[str, Any]
    output: Path
    given: Path | None = None
    timed: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    chosen: str | None = ""

    @property
    def folder(self) -> Path:
        """Where its tests are."""
        return self._folder(self.model)

    @property
    def fit_folder(self) -> Path:
        """Where its fit is: the same, or that of a row which differs in the image score alone."""
        return self._folder(self.heads)

    @property
    def heads(self) -> Spec:
        """The model to fit: without what no head depends on."""
        path, own = self._memory[0], getattr(load_class(self.model["class_path"]), "own_memory", None)
        free = free_options(load_class(path) if path else own)
        return {**self.model, "init_args": without(free, self.model["init_args"])}

    @property
    def available(self) -> list[Data]:
        """Data sets to test on that can be used."""
        return [one for one in self.data if not one.problem]

    @property
    def checkpoint(self) -> Path | None:
        """The one that is given, or that of its newest finished fit.

        None if there is none, or files on which it depends have changed.
        """
        if self.given:
            return self.given if self.given.is_file() else None
        records = sorted(self.fit_folder.glob("fit/**/run.json"), key=lambda path: path.stat().st_mtime)
        if not records:
            return None
        record = read_record(records[-1])
        if record is None:
            return None
        path = records[-1].parent / record["ckpt"]
        files = record.get("files")  # none in version 0.1.0
        if not path.is_file() or not isinstance(files, dict):
            return None
        if files != dict.fromkeys(files) | files_of(list(files)):  # None: it was not there
            return None
        here = not self.auxiliary.problem
        return path if not here or record.get("samples") == self.auxiliary.content("fit", self.seed)[0] else None

    @property
    def unfinished(self) -> Path | None:
        """Last checkpoint of a fit that was stopped, and is the newest; None if there is none, or it is damaged."""
        found = sorted(self.fit_folder.glob("fit/**/last.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found or read_record(found[-1].parents[1] / "run.json"):
            return None
        return found[-1] if read_about(found[-1]) else None

    @property
    def fitted(self) -> bool:
        """Whether no fit has to be done, as far as is known."""
        return self.learns is False or self.checkpoint is not None

    @property
    def possible(self) -> bool:
        """Whether something can be done with what is on disk."""
        if self.chosen is None or (self.given and not self.checkpoint):
            return False
        return bool(self.available) and not (self.learns and self.auxiliary.problem and not self.fitted)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return all(self.done(one) for one in self.available)

    @property
    def error(self) -> Path:
        """Where it is written why a run failed."""
        return self.folder / "error.txt"

    def report_path(self, data: Data) -> Path:
        """Where the report of a test is kept."""
        return self.folder / f"{data.name.rpartition('.')[2]}-{digest(without(FITTING, data.key))}.json"

    def done(self, data: Data) -> bool:
        """Whether a test is done, and all that its numbers depend on is as it was: code, pixels, weights, samples."""
        report = read_report(self.report_path(data))
        if report is None or report["results_version"] != RESULTS_VERSION:
            return False
        if report["checkpoint"] is None:
            unchanged = report["files"] == files_of(list(report["files"]))
        else:
            unchanged = report["checkpoint"].get("sha256") in file_hashes([str(self.checkpoint or "")]).values()
        if not unchanged:
            return False
        if report.get("settings", {}).get("memory.references") != self._references(data):
            return False
        samples, pixels = data.content("test")
        size = pixels["image_size"] or report["pixels"].get("image_size")  # null: the model's
        return bool(report["samples"] == samples and report["pixels"] == {**pixels, "image_size": size})

    @property
    def _memory(self) -> tuple[str | None, dict[str, Any]]:
        """Class and options of the memory that the row asks for; (None, {}): the model's own."""
        given = self.model["init_args"].get("memory")
        return (given["class_path"], given.get("init_args") or {}) if isinstance(given, dict) else (given, {})

    def _references(self, data: Data) -> str | None:
        """Return the digest of the reference images that a test would remember; None if it remembers none."""
        path, options = self._memory
        if not path:
            return None
        try:
            memory = load_class(path)(**options)
            memory.choose(data.module, self.seed)
        except KanoclipError:  # a test tells it
            return ""
        found: str | None = getattr(memory, "references", None)
        return found

    def _folder(self, model: Spec) -> Path:
        """Name a folder by all that is asked of a run of a model, and by nothing that other rows are."""
        if self.learns is False:
            asked: list[Any] = [model, {name: value for name, value in self.trainer.items() if name in TESTING}]
            asked += file_hashes([str(self.given)]).values() if self.given else []
        else:
            asked = [model, without(MACHINE, self.trainer), self.auxiliary.key]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name_of("model", model["class_path"]).rpartition(".")[2])[:60]
        seed = "" if self.learns is False else f"-seed{self.seed}"
        return self.output / f"{name}-{digest(asked)}{seed}"


def read_report(path: Path) -> dict[str, Any] | None:
    """Read the report of a test as it is kept for a benchmark; None if there is none, or it is damaged."""
    kinds = {"results": dict, "results_version": int, "files": dict, "pixels": dict}
    return read_json(path, **kinds, checkpoint=(dict, type(None)), samples=(str, type(None)))


def without(names: Collection[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options but those of these names."""
    return {name: value for name, value in options.items() if name not in names}


def _file(path: str) -> Any:
    """Return a number of a file that is the same by all of its paths, links too; of a drawn image its name."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    return found.st_dev, found.st_ino
