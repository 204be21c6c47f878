"""Read a benchmark's config: its keys, names and labels without torch, its options by the parser of the command line.

A spec is one model or data set as ``{label, class_path, init_args}``; a model may have a ``checkpoint``, instead of a
fit, ``expected`` results, and a ``grid`` to choose options from, see ``kanoclip.verbs.sweep``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, NamedTuple

from kanoclip.registry import did_you_mean, expand, name_of
from kanoclip.types import KanoclipError
from kanoclip.verbs.arguments import CommandLine, UsageError, explain, read_config

EXPECTED = {
    "auxiliary": "a data set, such as mvtec",
    "data": "a list of data sets, such as [visa, btad]",
    "models": "a list of models, such as [clip, kanoclip]",
    "seeds": "a list of whole numbers, such as [111, 112]",
    "trainer": "options of the trainer, such as {max_epochs: 15}",
}
USUAL: dict[str, Any] = {"seeds": [111], "trainer": {}}
ONCE = ("protocols", "root", "published", "reference")

Spec = dict[str, Any]
MORE = {"model": ("checkpoint", "expected", "grid", "chosen_by"), "data": ()}
"""What a spec may have beside its class, options and label."""


class PlanError(KanoclipError):
    """A benchmark config that cannot be run."""


class Protocol(NamedTuple):
    """Models that are fitted on one auxiliary set, and tested on others.

    Attributes:
        auxiliary: Spec of the set to fit on.
        data: Specs of the sets to test on.
        models: Their specs.
        seeds: Of the fits.
        trainer: Options of the trainer.
        label: Behind the auxiliary set in the column "fitted on", to tell fits apart; "" for none.
    """

    auxiliary: Spec
    data: list[Spec]
    models: list[Spec]
    seeds: list[int]
    trainer: dict[str, Any]
    label: str


def read_protocols(file: str) -> tuple[list[Protocol], dict[str, Any]]:
    """Read a config and expand its names; each row gets a label, its own or its name.

    Returns:
        Its protocols, and the keys that are given once: ``root``, ``published`` and ``reference``.

    Raises:
        PlanError: For keys that are wrong, or two rows of one label.
        UnknownNameError: For a name that is not registered.
    """
    config = read_config(file)
    shared = {key: value for key, value in config.items() if key not in ONCE}
    given = config.get("protocols", [{}])
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise PlanError(f"{file}: protocols should be a list of mappings, each with keys such as auxiliary and data.")
    protocols = []
    for part in ({**USUAL, **shared, **one} for one in given):
        part["seeds"] = [part["seeds"]] if isinstance(part["seeds"], int) else part["seeds"]
        _check_keys(part, file)
        data = [read_spec("data", one, file) for one in part["data"]]
        models = [read_spec("model", one, file) for one in part["models"]]
        label, auxiliary = str(part.get("label", "")), read_spec("data", part["auxiliary"], file)
        protocols.append(Protocol(auxiliary, data, models, part["seeds"], part["trainer"], label))
    _check_labels("data", (one.auxiliary for one in protocols), f"{file}: two rows of auxiliary")
    _check_labels("data", (spec for one in protocols for spec in one.data), f"{file}: two rows of data")
    _check_labels("model", (spec for one in protocols for spec in one.models), f"{file}: two rows of models")
    return protocols, {key: value for key, value in config.items() if key in ONCE}


def _check_keys(part: dict[str, Any], file: str) -> None:
    """Raise for a key of a protocol that is unknown, missing or not of its type."""
    known = (*EXPECTED, "label", *ONCE)
    for key in part:
        if key not in known:
            raise PlanError(f"{file}: {key!r} is unknown.{did_you_mean(key, known)} The keys are {', '.join(known)}.")
    types: dict[str, Any] = {"auxiliary": (str, dict), "trainer": dict}
    for key, expected in EXPECTED.items():
        value = part.get(key)
        right = isinstance(value, types.get(key, list)) and (value or key == "trainer")
        if not right or (key == "seeds" and not all(type(one) is int for one in part[key])):
            got = f"got {value!r:.80}" if key in part else "it is missing"
            raise PlanError(f"{file}: {key} should be {expected}; {got}.")


def read_spec(kind: str, given: Any, file: str) -> Spec:
    """Bring a name or mapping into the form of a spec, names expanded.

    Raises:
        PlanError: If it is neither.
        UnknownNameError: For a name that is not registered.
    """
    spec = expand({"class_path": given} if isinstance(given, str) else given, f" in {file}", kind)
    keys = {"class_path", "init_args", "label", *MORE[kind]}
    known = isinstance(spec, dict) and {"class_path"} <= set(spec) <= keys
    if not known or not isinstance(spec.get("init_args") or {}, dict):
        *most, last = ("init_args", "label", *MORE[kind])
        raise PlanError(
            f"{file}: a {kind} should be a name or have a class_path, and may have {', '.join(most)} and {last}, "
            f"got {given!r:.80}."
        )
    path = spec["class_path"]
    label = str(spec.get("label") or name_of(kind, path).rpartition(".")[2])
    more = {key: spec[key] for key in MORE[kind] if spec.get(key) or (key in spec and key == "grid")}
    if "chosen_by" in more and "grid" not in more:
        raise PlanError(f"{file}, {label}: chosen_by says how a grid chooses, and there is no grid. Leave it out.")
    return {"label": label, "class_path": path, "init_args": spec.get("init_args") or {}} | more


def _check_labels(kind: str, specs: Iterable[Spec], where: str) -> None:
    """Raise if two rows that differ would go by one label."""
    known: dict[str, Spec] = {}
    for spec in specs:
        label, other = spec["label"], known.setdefault(spec["label"], spec)
        if other != spec:
            more = [{key: one[key] for key in MORE[kind] if key in one} for one in (other, spec)]
            told = zip((other, spec), (f" and {text(one)}" if more[0] != more[1] else "" for one in more), strict=True)
            both = " and ".join(
                f"{name_of(kind, one['class_path'])} {text(one['init_args'])}{rest}" for one, rest in told
            )
            raise PlanError(
                f"{where} are called {label!r}: {both}. Give one of them another label: {{label: {label} 2, "
                f"class_path: {name_of(kind, spec['class_path'])}, ...}}."
            )


def parse_spec(kind: str, spec: Spec, file: str) -> Any:
    """Parse a spec as the command line would.

    Raises:
        PlanError: For a class or an option that is not there, or a value of the wrong type.
    """
    from lightning.pytorch import LightningDataModule, LightningModule

    from kanoclip.verbs.build import Parser

    parser, path = Parser(), spec["class_path"]
    base: Any = {"data": LightningDataModule, "model": LightningModule}[kind]
    parser.add_lightning_class_args(base, kind, subclass_mode=True)
    section = {"class_path": path, "init_args": deepcopy(spec["init_args"])}  # a parser changes lists inside
    parts = {name: one["class_path"] for name, one in section["init_args"].items() if _has_class(one)}
    typed = [f"--{kind}={path}", *(f"--{kind}.{name}={part}" for name, part in parts.items())]  # whose options are told
    return _parse(parser, {kind: section}, typed, file)[kind]


def check_trainer(options: dict[str, Any], file: str) -> None:
    """Check the options of the trainer, and that they ask for one device and no logger.

    Raises:
        PlanError: For an option that is not there, or one that is the benchmark's own: several devices, a logger.
    """
    from lightning.pytorch import Trainer

    from kanoclip.verbs.build import Parser

    parser = Parser()
    parser.add_lightning_class_args(Trainer, "trainer")
    _parse(parser, {"trainer": options}, [], file)
    if "logger" in options:
        raise PlanError(f"{file}: a benchmark finds its runs by their logger. Leave out trainer.logger.")
    if options.get("devices", 1) not in (1, "1") or options.get("num_nodes", 1) != 1:
        raise PlanError(
            f"{file} asks for several devices a run, but a benchmark gives each run one. Leave out trainer.devices and "
            f"num_nodes, and use all devices with --processes."
        )


def _has_class(option: Any) -> bool:
    return isinstance(option, dict) and "class_path" in option


def _parse(parser: Any, given: dict[str, Any], argv: list[str], file: str) -> Any:
    try:
        return parser.parse_object(given)
    except UsageError as error:
        raise PlanError(f"{file}: {explain(str(error), CommandLine('', argv))}") from error


def text(value: Any) -> str:
    """Write plain values so that equal ones are written alike."""
    return json.dumps(value, sort_keys=True)


def digest(value: Any) -> str:
    """Return 8 hexadecimal digits that tell plain values apart."""
    return hashlib.sha256(text(value).encode()).hexdigest()[:8]
