"""Run folders: which fit a test should take, and whether a checkpoint agrees with what the command line asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kanoclip.data.about import same_images
from kanoclip.types import KanoclipError, MissingError

Config = dict[str, Any]


class NoFitError(KanoclipError):
    """No finished fit that could be tested."""


class ContradictionError(KanoclipError):
    """A checkpoint and the command line name different values."""


def newest_fit(folder: Path, model: str, auxiliary: str | None = None, but_not: str | None = None) -> Path | None:
    """Return the checkpoint of the newest fit of a model.

    Args:
        folder: The run folder (``--trainer.default_root_dir``).
        model: Registered name or class path.
        auxiliary: Only fits on this data set, finished or not; else only finished ones.
        but_not: Not those that were fitted on the images of this data set.
    """
    if auxiliary is not None:
        begun = (folder / "fit" / model / folder_name(auxiliary)).glob("*/checkpoints/last.ckpt")
        newest = sorted(begun, key=lambda path: path.stat().st_mtime, reverse=True)
        # sets of one name share a folder, wherever they are
        return next((path for path in newest if read_checkpoint(path)[0]["auxiliary"] == auxiliary), None)
    found: list[tuple[float, Path]] = []
    for record in (*(folder / "fit").glob("**/run.json"), *folder.glob("run.json")):  # the last: without a logger
        content = json.loads(record.read_text(encoding="utf-8"))
        path = record.parent / content["ckpt"]
        if content["model"] == model and not same_images(content["auxiliary"], but_not) and path.is_file():
            found.append((record.stat().st_mtime, path))
    return max(found)[1] if found else None


def folder_name(identity: str) -> str:
    """Turn a data set's identity into a folder's name: ``folder /home/me/photos`` -> ``folder-photos``."""
    name, _, path = identity.partition(" ")
    return f"{name}-{Path(path).stem}" if path else name


def next_version(folder: Path) -> Path:
    """Return ``version_N`` in a folder, N one above those that are there."""
    there = [int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()]
    return folder / f"version_{max(there, default=-1) + 1}"


def read_checkpoint(path: str | Path) -> tuple[Config, Config]:
    """Read what a checkpoint says of itself and of its model's options, without running anything in it.

    Returns:
        The ``kanoclip`` entry and the model as ``{"class_path": ..., "init_args": ...}``, empty for a model that was
        built in Python.

    Raises:
        MissingError: If there is no such file.
        KanoclipError: If it is damaged, or no checkpoint of kanoclip.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingError(f"No checkpoint at {file}. Give --ckpt_path a file such as runs/fit/.../last.ckpt.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        about, given = content["kanoclip"], dict(content.get("hyper_parameters", {}))
    except Exception as error:
        raise KanoclipError(
            f"{file} is damaged, or no checkpoint of kanoclip ({type(error).__name__}). Give --ckpt_path another one "
            f"from runs/fit, or fit anew."
        ) from error
    given.pop("_instantiator", None)
    class_path = given.pop("_class_path", None)
    return about, {"class_path": class_path, "init_args": given} if class_path else {}


def check_agreement(asked: Any, stored: Any, components: Mapping[str, str], checkpoint: Path, option: str) -> None:
    """Compare the options that were asked for with those of a checkpoint, key by key.

    Args:
        asked: What the command line and config ask for, with import paths instead of short names.
        stored: The same part of the checkpoint's model.
        components: Kind -> class name of the components that were built, for those that were left to the model.
        checkpoint: For the message.
        option: Name of the option so far, for the message.

    Raises:
        ContradictionError: Naming the option and both values.
    """
    kind = option.rpartition(".")[2]
    if isinstance(asked, dict):
        if "class_path" in asked:
            here = stored["class_path"] if isinstance(stored, dict) and "class_path" in stored else None
            check_agreement(asked["class_path"], here, components, checkpoint, option)
            asked = asked.get("init_args") or {}
            stored = (stored.get("init_args") or {}) if isinstance(stored, dict) else {}
        for key, value in asked.items():
            if isinstance(stored, dict) and key in stored:
                check_agreement(value, stored[key], components, checkpoint, f"{option}.{key}")
        return
    if isinstance(stored, dict) and "class_path" in stored:
        stored = stored["class_path"]
    asked = list(asked) if isinstance(asked, tuple) else asked  # as it is stored
    if asked is None or asked == stored:
        return
    if isinstance(asked, str) and "." in asked and asked.rpartition(".")[2] == components.get(kind):
        return
    fitted = components.get(kind, "null") if stored is None else stored
    raise ContradictionError(
        f"The checkpoint {checkpoint} was fitted with {option} {fitted}, but {asked} is asked for. "
        f"Leave out --{option}, or fit anew."
    )
