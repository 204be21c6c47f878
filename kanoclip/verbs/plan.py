"""A benchmark's config as jobs: which model is fitted on which set with which seed, and tested on which sets."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from kanoclip.data.about import About, same_images
from kanoclip.data.base import AnomalyDataModule
from kanoclip.data.sets.tree import Tree
from kanoclip.outputs.published import families, usual_family
from kanoclip.registry import did_you_mean, load_class, name_of
from kanoclip.types import ANOMALOUS, NORMAL
from kanoclip.verbs.arguments import read_config
from kanoclip.verbs.build import build, learns
from kanoclip.verbs.specs import (
    PlanError,
    Spec,
    check_trainer,
    differences,
    flatten,
    name_each,
    parse_spec,
    read_spec,
    short_hash,
    text,
)

KEYS = ("auxiliary", "data", "models", "seeds", "trainer")
ONCE = ("protocols", "root", "published")
PART = ("category", "limit", "holdout")  # options that leave images out
WHOLE = (None, "all", 0)  # unless they are one of these


@dataclass(frozen=True)
class Data:
    """A data set of a benchmark.

    Attributes:
        label: How the table calls it.
        name: Its registered name, or import path.
        spec: ``class_path`` and ``init_args`` to run with.
        key: Tells it from others; the same wherever its files are.
        domain: industrial, medical, ...
        identity: What a checkpoint remembers of it.
        whole: Whether all images that its publisher counts are tested, so that published numbers may stand beside.
        missing: Why it cannot be used; "" if it is on disk.
    """

    label: str
    name: str
    spec: Spec
    key: str
    domain: str
    identity: str
    whole: bool
    missing: str


@dataclass(frozen=True)
class Job:
    """One model with one seed: fitted on an auxiliary set if it learns, then tested.

    Attributes:
        label: How the table calls the model.
        name: The same with auxiliary set and seed, where there are several.
        model: ``class_path`` and ``init_args``.
        learns: Whether it does; None: that shows when it is built.
        auxiliary: What it is fitted on.
        fitted_on: How the table calls that, with the options of the trainer in which the protocols differ.
        data: What it is tested on.
        seed: Of the fit.
        trainer: Options of the trainer.
        folder: Where its runs are.
        first: The same for the first of the seeds.
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
    folder: Path
    first: Path

    @property
    def here(self) -> list[Data]:
        """Data sets to test on that are on disk."""
        return [one for one in self.data if not one.missing]

    @property
    def fitted(self) -> bool:
        """Whether its fit is finished."""
        return any(self.folder.glob("fit/**/run.json"))

    @property
    def possible(self) -> bool:
        """Whether something can be done with what is on disk."""
        return bool(self.here) and (self.fitted or not (self.learns and self.auxiliary.missing))

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(self.folder.glob("fit/**/last.ckpt"))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; a model that learned nothing gives the same with every seed."""
        if all(self.place(one).is_file() for one in self.here):
            return True
        elsewhere = [self.place(one, self.first) for one in self.here] if self.first != self.folder else []
        return any(path.is_file() and read_report(path)["checkpoint"] is None for path in elsewhere)

    @property
    def error(self) -> Path:
        """Where it is written why a run failed."""
        return self.folder / "error.txt"

    def place(self, data: Data, folder: Path | None = None) -> Path:
        """Where the report of a test is kept."""
        return (folder or self.folder) / f"{data.name.rpartition('.')[2]}-{short_hash(data.key)}.json"


class Plan(NamedTuple):
    """What a benchmark does.

    Attributes:
        jobs: In the order of work: the first seed of every model, then the second.
        family: Of the published numbers to show; None for none.
    """

    jobs: list[Job]
    family: str | None

    @property
    def missing(self) -> list[Data]:
        """Data sets that are not on disk."""
        each = {one.label: one for job in self.jobs for one in (job.auxiliary, *job.data)}
        return [one for one in each.values() if one.missing]

    @property
    def unfitted(self) -> dict[str, list[str]]:
        """Auxiliary sets that are not on disk -> the models that cannot be fitted for that."""
        found: dict[str, list[str]] = {}
        for job in self.jobs:
            models = found.setdefault(job.auxiliary.label, []) if job.auxiliary.missing else []
            if job.learns and not job.fitted and job.label not in models:
                models.append(job.label)
        return {name: models for name, models in found.items() if models}


def read_report(path: Path) -> dict[str, Any]:
    """Read a report."""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def read_plan(file: str, output: Path, root: str | None = None, family: str | None = None) -> Plan:
    """Read a config, check every name and option in it, and find what is on disk.

    The keys ``auxiliary``, ``data``, ``models``, ``seeds`` and ``trainer`` make one protocol. ``protocols`` lists
    several; each gives the keys in which it differs from those beside it.

    Args:
        file: The config.
        output: Folder for the runs.
        root: Folder that contains the data sets, for those that name none; else the config's ``root``.
        family: Published numbers to show, or "none"; else the config's ``published``, else those that fit.

    Raises:
        PlanError: For keys, names or options that are wrong, or a set that is tested on what was fitted.
        UnknownNameError: For a name that is not registered.
    """
    config = read_config(file)
    parts = _protocols(config, file)
    root, family = root or config.get("root"), family or config.get("published")
    if family not in (None, "none", *families()):
        raise PlanError(f"No published numbers called {family!r}. Use {', '.join(families())} or none.")
    specs = [
        (
            read_spec("data", part["auxiliary"], file),
            [read_spec("data", one, file) for one in part["data"]],
            [read_spec("model", one, file) for one in part["models"]],
        )
        for part in parts
    ]
    sets = {
        key: _data(label, spec, root, file)
        for key, (label, spec) in name_each("data", (one for a, data, _ in specs for one in (a, *data)), file).items()
    }
    models = {
        key: (label, spec, learns(parse_spec("model", spec, file)))
        for key, (label, spec) in name_each("model", (one for *_, models in specs for one in models), file).items()
    }
    trainers = [flatten(part["trainer"]) for part in parts]
    jobs: dict[Path, tuple[int, Job]] = {}
    for part, trainer, (first, tested, chosen) in zip(parts, trainers, specs, strict=True):
        auxiliary, data = sets[text(first)], tuple(sets[text(one)] for one in tested)
        if same := [one.label for one in data if same_images(one.identity, auxiliary.identity)]:
            raise PlanError(
                f"{file} fits on {auxiliary.label} and tests on {same[0]}, which is not zero-shot. Test on it in a "
                f"protocol with another auxiliary set."
            )
        check_trainer(part["trainer"], file)
        fitted_on = " ".join([auxiliary.label, *differences(trainer, trainers)])
        for label, model, does_learn in (models[text(one)] for one in chosen):
            settings = [model, part["trainer"], *([] if does_learn is False else [auxiliary.key])]
            stem = f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', label)[:60]}-{short_hash(text(settings))}"
            seeds = part["seeds"][:1] if does_learn is False else part["seeds"]
            folders = [output / f"{stem}-seed{seed}" for seed in seeds]
            for turn, (seed, folder) in enumerate(zip(seeds, folders, strict=True)):
                if folder in jobs:  # what learns nothing is the same in every protocol
                    known = jobs[folder][1]
                    more = tuple(one for one in data if one not in known.data)
                    jobs[folder] = turn, replace(known, data=(*known.data, *more))
                    continue
                name = label + f" on {fitted_on}" * (len(parts) > 1 and does_learn is not False)
                name += f", seed {seed}" * (len(seeds) > 1)
                about = (label, name, model, does_learn, auxiliary, fitted_on, data, seed)
                jobs[folder] = turn, Job(*about, part["trainer"], folder, folders[0])
    ordered = [job for _, job in sorted(jobs.values(), key=lambda pair: pair[0])]
    usual = usual_family(sets[text(first)].name for first, tested, _ in specs for _ in tested)
    return Plan(ordered, None if family == "none" else family or usual)


def _protocols(config: dict[str, Any], file: str) -> list[dict[str, Any]]:
    shared = {key: value for key, value in config.items() if key not in ONCE}
    given = config.get("protocols", [{}])
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise PlanError(f"{file}: protocols should be a list of mappings, each with keys such as auxiliary and data.")
    parts = [{**shared, **one} for one in given]
    for part in parts:
        lists = all(isinstance(part.get(key), list) and part[key] for key in ("data", "models", "seeds"))
        if set(part) != set(KEYS) or not lists or not isinstance(part["trainer"], dict):
            wrong = next((f" {key!r} is unknown.{did_you_mean(key, KEYS)}" for key in part if key not in KEYS), "")
            raise PlanError(
                f"{file} should have the keys {', '.join(KEYS)}, with lists of data, models and seeds and options of "
                f"the trainer, and may have {', '.join(ONCE)}; got {', '.join(part)}.{wrong}"
            )
    return parts


def _data(label: str, spec: Spec, root: str | None, file: str) -> Data:
    key, options = text(spec), spec.get("init_args") or {}
    cls = load_class(parse_spec("data", spec, file).class_path)
    below = root if issubclass(cls, Tree) and "root" not in options else None
    if below:
        spec = {**spec, "init_args": {**options, "root": below}}
    parsed = parse_spec("data", spec, file)
    missing, whole, name = "", False, name_of("data", spec["class_path"])
    try:
        built = build(parsed)
        if isinstance(built, AnomalyDataModule):
            built.index()
            whole = _whole(built, options)
        if below and not _is_below(built.find()[0], below):  # some sets also read a root that is their own folder
            missing = f"No {name}/ in {below}, the folder that contains the data sets. Give --root another one."
    except OSError as error:
        missing = str(error)
    except ValueError as error:
        raise PlanError(f"{file}, {label}: {error}") from error
    identity = name if missing else getattr(built, "identity", name)
    return Data(label, name, spec, key, getattr(cls, "domain", ""), identity, whole, missing)


def _whole(data: AnomalyDataModule, options: dict[str, Any]) -> bool:
    about: About | None = getattr(data, "about", None)
    if about is None or any(options.get(option) not in WHOLE for option in PART):
        return False
    return not about.confirmed or about.counts in (None, _counts(data))


def _counts(data: AnomalyDataModule) -> tuple[int, int]:
    labels = [sample.label for sample in data.part("test")]
    return labels.count(NORMAL), labels.count(ANOMALOUS)


def _is_below(folder: Path, root: str) -> bool:
    above = Path(root).expanduser().resolve()
    return folder.resolve() != above and folder.resolve().is_relative_to(above)
