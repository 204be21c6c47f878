"""What may stand in a checkpoint: a stranger's file runs nothing, fetches nothing, and fits the model or is refused.

A config is code: it names classes, which are imported. A checkpoint is not: a class or model that it names must be part
of kanoclip, or named by the user too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kanoclip import __version__
from kanoclip.backbone.loading import HF_HUB, SCHEMES
from kanoclip.registry import NAMES
from kanoclip.types import KanoclipError

FORMAT = 2
"""Raised when what a checkpoint holds changes its meaning. 1 is that of version 0.1.0, which has no number."""
LEVELS = 20  # of options inside options
SHOWN = 200  # characters of a text of a checkpoint that a message shows
ENTRY: dict[str, Any] = {"version": str, "model": str, "backbone": dict, "components": dict, "random_state": Tensor}
"""What every checkpoint tells in its entry ``kanoclip``."""
ENTRY_2: dict[str, Any] = {"settings": dict, "data": dict, "optimiser": dict}
MAYBE = {"auxiliary": str, "images": Tensor, "samples": str, "seed": int, "knowledge": dict}
"""And what may be None."""
PROGRESS = {"epoch": int, "global_step": int, "lr_schedulers": list, "optimizer_states": list, "callbacks": dict,
            "loops": dict}  # fmt: skip
"""What Lightning goes on with."""
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""States of optimisers that have the shape of their weights."""


class CheckpointError(KanoclipError):
    """A checkpoint that is damaged, or does not belong to this model or data."""


class UnfitError(CheckpointError):
    """Weights that are not those of a model.

    Args:
        what: What is wrong, behind the name of a file.
        remedy: How to fit anew, if not as before.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"The checkpoint {what}. Give --ckpt_path another one from runs/fit, or fit anew{remedy}.")
        self.what = what


def check_entry(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the entry ``kanoclip`` of a checkpoint.

    Raises:
        CheckpointError: If it is missing or has not what it should, or the checkpoint is one of a later version.
    """
    entry = content.get("kanoclip") if isinstance(content, Mapping) else None
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} was not written by kanoclip. Give one from runs/fit with --ckpt_path.")
    number = entry.get("format", 1)
    if not isinstance(number, int):
        raise _damaged(where, "kanoclip.format")
    if number > FORMAT:
        raise CheckpointError(
            f"{where} has format {number} of checkpoints, and kanoclip {__version__} reads up to {FORMAT}. "
            f"Install a newer one: pip install --upgrade kanoclip."
        )
    for name, kind in (ENTRY | (ENTRY_2 if number > 1 else {})).items():
        if not isinstance(entry.get(name), kind):
            raise _damaged(where, f"kanoclip.{name}")
    for name, kind in MAYBE.items():
        if not isinstance(entry.get(name), (kind, type(None))) or "auxiliary" not in entry:
            raise _damaged(where, f"kanoclip.{name}")
    if not all(isinstance(one, (str, type(None))) for pair in (entry.get("knowledge") or {}).items() for one in pair):
        raise _damaged(where, "kanoclip.knowledge")
    backbone, state, images = entry["backbone"], entry["random_state"], entry.get("images")
    if not all(isinstance(backbone.get(name), str) for name in ("description", "fingerprint")):
        raise _damaged(where, "kanoclip.backbone")
    if not _dense(state) or (state.dtype, state.shape) != (torch.uint8, torch.get_rng_state().shape):
        raise _damaged(where, "kanoclip.random_state")
    if images is not None and not (
        _dense(images) and images.dtype == torch.int64 and images.ndim == 1 and images.is_contiguous()
    ):  # a list repeated without end would fill the memory
        raise _damaged(where, "kanoclip.images")
    if not re.match(r"[2-9]\.", str(content.get("pytorch-lightning_version"))):  # or Lightning would convert it
        raise _damaged(where, "pytorch-lightning_version")
    weights = content.get("state_dict")
    if not isinstance(weights, dict):
        raise _damaged(where, "state_dict")
    for name, weight in weights.items():
        if not isinstance(name, str) or not _dense(weight):
            raise _damaged(where, f"state_dict.{name}")
    options = content.get("hyper_parameters", {})
    if not isinstance(options, dict) or not isinstance(options.get("_class_path", ""), str):
        raise _damaged(where, "hyper_parameters")
    for key, value in leaves(options, "hyper_parameters", where):
        if "_class_path" in options and not isinstance(value, (str, int, float, type(None), nn.Module)):
            raise _damaged(where, key)  # the command line makes plain options; a module is one given in Python
    return entry


def check_trust(options: Any, typed: Collection[str], where: str, own: bool = False) -> None:
    """Refuse the options of a checkpoint if they name what is neither kanoclip's nor named by the user.

    Args:
        options: ``{"class_path": ..., "init_args": ...}``, or ``hyper_parameters`` as Lightning keeps them.
        typed: What the user has named: such a class is imported, such a model fetched. A class of a module that is
            imported already is the user's too.
        where: The file, for the message.
        own: Whether it was found among the user's own fits: the folder of a ``local-dir:`` is then opened.

    Raises:
        CheckpointError: Naming what it is and the option that allows it.
    """
    for key, value in leaves(options, "model", where):
        kind = key.rpartition(".")[2]
        names_class = kind in ("class_path", "_class_path") or kind in NAMES
        if not isinstance(value, str) or value in typed:
            continue
        if names_class and value not in NAMES.get(kind, {}) and not _is_known(value):
            what, allow = f"the class {value[:SHOWN]}", "in Python: import its module first"
        elif value.startswith(HF_HUB if own else SCHEMES):
            what, allow = f"the model {value[:SHOWN]}", "in Python: give the backbone yourself"
        else:
            continue
        option = re.sub(r"\.(_?class_path|init_args)(?=\.|$)", "", key)[:SHOWN]
        raise CheckpointError(
            f"{where} names {what}, and nothing that a checkpoint names is imported, fetched or opened as a model. If "
            f"you trust it, name it yourself: --{option} {value[:SHOWN]} ({allow})."
        )


def leaves(options: Any, key: str, where: str) -> Iterator[tuple[str, Any]]:
    """Yield what is neither a mapping nor a list, with its dotted key."""
    if key.count(".") > LEVELS:
        raise _damaged(where, key[:80])
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from leaves(value, f"{key}.{name}", where)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from leaves(value, f"{key}.", where)
    else:
        yield key, options


def _is_known(path: str) -> bool:
    """Whether an import path is that of a registered class, or of a module that is imported already."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    registered = any(path in known.values() for known in NAMES.values())
    return registered or (isinstance(found, type) and issubclass(found, nn.Module))


def check_weights(given: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse weights that are not those of a model by their names, shapes and kinds of numbers, or are not finite.

    Raises:
        UnfitError: Naming the first weight that differs.
    """
    own = model.state_dict()
    for name in (*own, *given):
        theirs, mine = (_kind(one[name]) if name in one else "nothing" for one in (given, own))
        if theirs != mine:
            raise UnfitError(f"does not fit the model: {name[:SHOWN]} is {theirs} in it, expected {mine}")
        if given[name].data_ptr() != own[name].data_ptr() and not given[name].isfinite().all():  # not a frozen one
            raise UnfitError(f"holds NaN or infinite weights: {name}", " with a lower --model.lr")


def _dense(value: Any) -> bool:
    """Whether it is a plain tensor: neither sparse, quantised nor without content."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def _kind(weight: Tensor) -> str:
    """Return the shape, and what its numbers are unless they are of any floating precision."""
    return f"{tuple(weight.shape)}" + ("" if weight.is_floating_point() else f" of {weight.dtype}")


def check_progress(content: Mapping[str, Any], model: nn.Module, own: Mapping[str, Any], optimiser: bool) -> None:
    """Refuse a checkpoint that a fit cannot go on with: its counters or its optimiser's states are not whole.

    Args:
        content: Of the checkpoint.
        model: Whose heads are optimised, in the order of its parameters.
        own: ``loops`` and ``callbacks`` as the trainer at hand would keep them.
        optimiser: Whether there is one for all heads, as ``AnomalyModule`` has it.

    Raises:
        CheckpointError: Naming what is not as it should be.
    """
    where = "This checkpoint"
    for name, kind in PROGRESS.items():
        if not isinstance(content.get(name), kind):
            raise _damaged(where, name)
    for part, states in own.items():
        for name, state in states.items():
            given = content[part].get(name, state if part == "callbacks" else None)  # one callback more is no fault
            if (wrong := _unlike(given, state, f"{part}.{name}")) is not None:
                raise _damaged(where, wrong)
    if optimiser:
        _check_optimiser(content["optimizer_states"], model, where)


def _check_optimiser(given: list[Any], model: nn.Module, where: str) -> None:
    heads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = given[0] if len(given) == 1 and isinstance(given[0], dict) else {}
    groups, states = found.get("param_groups"), found.get("state")
    groups = groups if isinstance(groups, list) else []
    parameters = [one.get("params") if isinstance(one, dict) else None for one in groups]
    staged = bool(getattr(model, "stages", ()))  # then each parameter is a group of its own
    if parameters != ([[number] for number in range(len(heads))] if staged else [list(range(len(heads)))]):
        raise _damaged(where, "optimizer_states.param_groups")
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise _damaged(where, "optimizer_states.state")
    for number, state in states.items():
        head = heads[number].shape if number in range(len(heads)) else None
        moments = [state[name] for name in MOMENTS if name in state]
        if head is None or not all(_dense(moment) and moment.shape == head for moment in moments):
            raise _damaged(where, f"optimizer_states.state.{number}")


def _unlike(given: Any, own: Any, key: str) -> str | None:
    """Return the key of the first entry that is missing or of another type; None if all are alike."""
    if type(given) is not type(own):
        return None if own is None or (given is None and not isinstance(own, dict)) else key
    if not isinstance(own, dict):
        return None
    for name, value in own.items():
        if name not in given:
            return f"{key}.{name}"
        if (wrong := _unlike(given[name], value, f"{key}.{name}")) is not None:
            return wrong
    return None


def _damaged(where: str, key: str) -> CheckpointError:
    return CheckpointError(
        f"{where} is damaged: {key[:SHOWN]} is missing or not what it should be. Give --ckpt_path another one from "
        f"runs/fit, or fit anew."
    )
