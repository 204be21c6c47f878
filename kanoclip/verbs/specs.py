"""What a benchmark's config says of single models and data sets: checked, and called by names that tell them apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from kanoclip.registry import NAMES, expand, name_of
from kanoclip.types import KanoclipError
from kanoclip.verbs.arguments import CommandLine, UsageError, explain
from kanoclip.verbs.build import Parser

Spec = dict[str, Any]
BASES: dict[str, type] = {"data": LightningDataModule, "model": LightningModule}


class PlanError(KanoclipError):
    """A benchmark config that cannot be run."""


def read_spec(kind: str, given: Any, file: str) -> Spec:
    """Bring a name or mapping into the form ``{class_path, init_args}``, names expanded.

    Raises:
        PlanError: If it is neither.
        UnknownNameError: For a name that is not registered.
    """
    spec = expand({"class_path": given} if isinstance(given, str) else given, f" in {file}", kind)
    if not isinstance(spec, dict) or "class_path" not in spec or set(spec) - {"class_path", "init_args", "label"}:
        raise PlanError(
            f"{file}: a {kind} should be a name or have a class_path, and may have init_args and a label, "
            f"got {given!r}."
        )
    return spec


def name_each(kind: str, specs: Iterable[Spec], file: str) -> dict[str, tuple[str, Spec]]:
    """Call each spec by its label, or by its name with the options in which it differs from others of that name.

    Returns:
        The ``text`` of each -> its name, and itself without a label.

    Raises:
        PlanError: If two that differ would go by the same name.
    """
    each = {text(spec): spec for spec in specs}
    short = {
        k: str(spec.get("label") or name_of(kind, spec["class_path"]).rpartition(".")[2]) for k, spec in each.items()
    }
    options = {key: flatten(spec.get("init_args") or {}) for key, spec in each.items()}
    names = {}
    for key, spec in each.items():
        alike = [options[other] for other in each if short[other] == short[key]]
        names[key] = " ".join([short[key], *(differences(options[key], alike) if "label" not in spec else ())])
    for name in names.values():
        if list(names.values()).count(name) > 1:
            raise PlanError(f"{file}: two rows of {kind} are called {name!r}. Give each a label of its own.")
    return {key: (names[key], {k: v for k, v in spec.items() if k != "label"}) for key, spec in each.items()}


def differences(own: dict[str, str], others: Sequence[dict[str, str]]) -> list[str]:
    """List the options, as ``flatten`` returns them, in which one differs from any of the others."""
    return [f"{key}={value}" for key, value in own.items() if any(other.get(key) != value for other in others)]


def flatten(given: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten options for a name: ``{"adapter": {"class_path": ...}}`` -> ``{"adapter": "linear"}``."""
    found: dict[str, str] = {}
    for key, value in given.items():
        chosen = value.get("class_path", value) if isinstance(value, dict) else value
        path = chosen if key in NAMES and isinstance(chosen, str) else None
        found[prefix + key] = name_of(key, path).rpartition(".")[2] if path else str(chosen)
        if isinstance(value, dict):
            found |= flatten(value.get("init_args") or {}, f"{prefix}{key}.")
    return found


def parse_spec(kind: str, spec: Spec, file: str) -> Any:
    """Parse a spec as the command line would.

    Raises:
        PlanError: For a class or an option that is not there, or a value of the wrong type.
    """
    parser = Parser()
    parser.add_lightning_class_args(BASES[kind], kind, subclass_mode=True)  # type: ignore[arg-type]
    return _parse(parser, {kind: spec}, [f"--{kind}={spec['class_path']}"], file)[kind]


def check_trainer(options: dict[str, Any], file: str) -> None:
    """Check the options of the trainer, and that they ask for one device and no logger.

    Raises:
        PlanError: For an option that is not there, or one that is the benchmark's own: several devices, a logger.
    """
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


def _parse(parser: Parser, given: dict[str, Any], argv: Sequence[str], file: str) -> Any:
    try:
        return parser.parse_object(given)
    except UsageError as error:
        raise PlanError(f"{file}: {explain(str(error), CommandLine('', list(argv)))}") from error


def text(value: Any) -> str:
    """Write a spec so that equal ones are written alike."""
    return json.dumps(value, sort_keys=True)


def short_hash(content: str) -> str:
    """Return 8 hexadecimal digits that tell contents apart."""
    return hashlib.sha256(content.encode()).hexdigest()[:8]
