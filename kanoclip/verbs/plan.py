"""A benchmark's config as jobs: which model is fitted on which set with which seed, and tested on which sets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kanoclip.data.about import same_images
from kanoclip.data.parsing import local_path
from kanoclip.data.sets.joined import Joined
from kanoclip.data.sets.tree import Tree
from kanoclip.outputs.hub import fetch, is_shared
from kanoclip.outputs.published import published, usual_family
from kanoclip.outputs.verdicts import Expected, read_expected
from kanoclip.registry import did_you_mean, load_class, name_of
from kanoclip.types import KanoclipError, MissingError
from kanoclip.verbs.build import build, learns
from kanoclip.verbs.jobs import DATA_SEED, READING, Data, Job, without
from kanoclip.verbs.specs import PlanError, Protocol, Spec, check_trainer, parse_spec, read_protocols, text
from kanoclip.verbs.sweep import Sweep, read_sweep


class Plan(NamedTuple):
    """What a benchmark does.

    Attributes:
        jobs: In the order of work: the first seed of every model, then the second.
        family: Of the published numbers to show; None for none.
        reference: Label of the model that all others are compared with; "" for the best one.
        expected: What rows should give.
        sweeps: The grids of rows.
    """

    jobs: list[Job]
    family: str | None
    reference: str = ""
    expected: Sequence[Expected] = ()
    sweeps: Sequence[Sweep] = ()

    @property
    def work(self) -> list[Job]:
        """What can be done now: choices first, then the rows that wait for none."""
        return [job for job in (*(job for one in self.sweeps for job in one.jobs), *self.jobs) if job.possible]

    @property
    def missing(self) -> list[Data]:
        """Data sets that are not on disk, to fit on or to test on."""
        return [one for one in self._data if one.problem and not one.damaged]

    @property
    def damaged(self) -> list[Data]:
        """Data sets that are there, but wrong."""
        return [one for one in self._data if one.damaged]

    @property
    def not_given(self) -> dict[str, Path]:
        """Row -> its checkpoint, of those that are not on disk."""
        return {job.label: job.given for job in self.jobs if job.given and not job.checkpoint}

    @property
    def unfitted(self) -> dict[str, list[str]]:
        """Auxiliary set that cannot be used -> models that are not fitted because of it."""
        found: dict[str, list[str]] = {}
        for job in self.jobs:
            if job.auxiliary.problem and (job.chosen is None or (job.learns and not job.fitted)):
                found.setdefault(job.auxiliary.label, []).append(job.label)
        return {label: list(dict.fromkeys(models)) for label, models in found.items()}

    @property
    def _data(self) -> list[Data]:
        without = [job.learns is False and job.chosen == "" for job in self.jobs]
        used = [one for job, no in zip(self.jobs, without, strict=True) for one in (*job.data, *[job.auxiliary][no:])]
        return list({text(one.spec): one for one in used}.values())


def read_plan(file: str, output: Path, root: str | None = None, family: str | None = None) -> Plan:
    """Read a config, check every name and option in it, and find what is on disk.

    The keys ``auxiliary``, ``data``, ``models``, ``seeds`` and ``trainer`` make one protocol. ``protocols`` lists
    several; each gives the keys in which it differs from those beside it, and may have a ``label``.

    Args:
        file: The config.
        output: Folder for the runs.
        root: Folder that contains the data sets, for those that name none; else the config's ``root``.
        family: Published numbers to show, or "none"; else the config's ``published``, else those that fit.

    Raises:
        PlanError: For keys, names or options that are wrong, or a set that is tested on what was fitted.
        UnknownNameError: For a name that is not registered.
        KanoclipError: For published numbers that are not there.
    """
    protocols, once = read_protocols(file)
    root, family = root or once.get("root"), family or once.get("published")
    if family not in (None, "none"):
        published(family, [])  # raises for an unknown family
    for one in protocols:
        check_trainer(one.trainer, file)
    learning = {
        text(spec): False if "checkpoint" in spec else learns(parse_spec("model", spec, file))
        for one in protocols
        for spec in one.models
    }
    sets = {text(spec): spec for one in protocols for spec in (one.auxiliary, *one.data)}
    data = {key: _data(spec, root, file) for key, spec in sets.items()}
    found: dict[tuple[Path, str], tuple[int, Job]] = {}
    expected: dict[Expected, None] = {}
    sweeps: dict[tuple[str, str], Sweep] = {}
    for protocol in protocols:
        auxiliary = data[text(protocol.auxiliary)]
        tested = tuple(data[key] for key in dict.fromkeys(map(text, protocol.data)))
        _check_zero_shot(auxiliary, tested, file)
        for spec in protocol.models:
            known = [one.label for one in tested]
            expected |= dict.fromkeys(read_expected(spec["label"], spec.get("expected", {}), file, known))
            does, fitted_on = learning[text(spec)], _fitted_on(protocol)
            chosen: str | None = ""
            if "grid" in spec:
                sweep = read_sweep(spec, protocol, auxiliary, fitted_on, output, file)
                sweeps[spec["label"], fitted_on] = sweep
                best = sweep.chosen
                spec, does = (best or sweep.candidates[0])[1:3]
                chosen = best.told if best else None
            row = _row(spec, does, protocol, auxiliary, output, named=len(protocols) > 1, chosen=chosen)
            for turn, job in enumerate(row):
                other = found.get((job.folder, job.label), (turn, job))[1]  # the same in several protocols
                more = tuple(one for one in tested if one not in other.data)
                found[job.folder, job.label] = turn, replace(other, data=(*other.data, *more))
    jobs = [job for _, job in sorted(found.values(), key=lambda pair: pair[0])]
    _check_rows(jobs, file)
    reference = str(once.get("reference") or "")
    if reference and reference not in (labels := [job.label for job in jobs]):
        raise PlanError(f"{file}: reference is {reference!r}, expected a row's label.{did_you_mean(reference, labels)}")
    usual = usual_family(data[text(one.auxiliary)].name for one in protocols for _ in one.data)
    return Plan(jobs, None if family == "none" else family or usual, reference, list(expected), list(sweeps.values()))


def _fitted_on(protocol: Protocol) -> str:
    return ", ".join(filter(None, (protocol.auxiliary["label"], protocol.label)))


def _row(
    spec: Spec,
    does: bool | None,
    protocol: Protocol,
    auxiliary: Data,
    output: Path,
    named: bool,
    chosen: str | None,
) -> Iterator[Job]:
    """Yield the jobs of a model, one for each seed if it may learn; without the data sets to test on.

    Args:
        spec: The model.
        does: Whether it learns; None: that will show.
        protocol: How it is fitted.
        auxiliary: On what.
        output: Folder for the runs.
        named: Whether what it is fitted on belongs to the job's name.
        chosen: As in ``Job``.
    """
    free = does is False
    model = {key: spec[key] for key in ("class_path", "init_args")}
    given = _given(str(spec["checkpoint"])) if "checkpoint" in spec else None
    fitted_on = "nothing" if free and not given and chosen == "" else _fitted_on(protocol)
    seeds = list(dict.fromkeys(protocol.seeds))[: 1 if free else None]
    for seed in seeds:
        name = spec["label"] + f" on {fitted_on}" * (named and not free) + f", seed {seed}" * (len(seeds) > 1)
        about = spec["label"], name, model, does, auxiliary, fitted_on, (), seed, protocol.trainer, output, given
        yield Job(*about, chosen=chosen)


def _given(checkpoint: str) -> Path:
    """Return the file of a row's checkpoint; that of a shared fit is fetched."""
    return fetch(checkpoint).checkpoint if is_shared(checkpoint) else local_path(checkpoint, "checkpoint")


def _check_rows(jobs: Sequence[Job], file: str) -> None:
    """Raise if two rows of the table would have the same names."""
    known: dict[tuple[str, str], str] = {}
    for job in jobs:
        row = job.folder.name.removesuffix(f"-seed{job.seed}")
        if known.setdefault((job.label, job.fitted_on), row) != row:
            raise PlanError(
                f"{file}: two rows are called {job.label!r}, fitted on {job.fitted_on}, and have other trainers or "
                f"auxiliary sets. Give one {'model' if job.learns is False else 'protocol'} a label of its own."
            )


def _data(spec: Spec, root: str | None, file: str) -> Data:
    path, options, label = spec["class_path"], spec["init_args"], spec["label"]
    cls, name = load_class(path), name_of("data", path)
    below = root if issubclass(cls, (Tree, Joined)) and "root" not in options else None
    given = {"class_path": path, "init_args": {**options, "root": below} if below else options}
    parsed = parse_spec("data", given, file)
    key = {"class_path": path, **without(READING, options)}
    seedless = "seed" in parsed.init_args and options.get("seed") is None
    data = Data(label, name, given, key, seedless, getattr(cls, "domain", ""))
    try:
        module = build(parse_spec("data", data.seeded(DATA_SEED), file))
    except KanoclipError as error:
        raise PlanError(f"{file}, {label}: {error}") from error
    try:
        module.index()
        # some sets also read a root that is their own folder
        if below and isinstance(module, Tree) and not _is_below(module.find()[0], below):
            raise MissingError(
                f"No {name}/ in {below}, the folder that contains the data sets. Give --root another one."
            )
    except FileNotFoundError as error:
        return replace(data, problem=str(error))
    except (KanoclipError, OSError) as error:
        return replace(data, problem=f"{file}, {label}: {error}", damaged=True)
    return replace(data, module=module)


def _is_below(folder: Path, root: str) -> bool:
    above = Path(os.path.expanduser(root)).resolve()
    return folder.resolve() != above and folder.resolve().is_relative_to(above)


def _check_zero_shot(auxiliary: Data, tested: Sequence[Data], file: str) -> None:
    """Raise if a set is tested on what was fitted, as far as can be seen before any image is read."""
    for one in tested:
        if same_images(one.identity, auxiliary.identity) or auxiliary.files("fit") & one.files("test"):
            raise PlanError(
                f"{file} fits on {auxiliary.label} and tests on {one.label}, which is not zero-shot. Test on it in a "
                f"protocol with another auxiliary set."
            )
