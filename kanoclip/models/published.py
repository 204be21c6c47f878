"""Weights as authors publish them: files of tensors, read without running what is in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanoclip.data.parsing import local_path
from kanoclip.models.contents import SHOWN
from kanoclip.types import KanoclipError, MissingError, counted, printable

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
Shape = tuple[int | None, ...]
AS_PUBLISHED = "Give the file as its authors publish it."


def read_published(path: str | Path) -> dict[str, Any]:
    """Read a file of weights, or all those of a folder.

    Returns:
        Name of each file -> what is in it.

    Raises:
        MissingError: If there is no such file, or none in the folder.
        KanoclipError: If a file is damaged, or holds anything but tensors, numbers, texts and collections of them.
    """
    place = local_path(f"{path}", "FILE_OR_FOLDER")
    files = sorted(one for one in place.glob("*") if one.suffix in SUFFIXES) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise MissingError(
            f"No weights at {place}: expected a file of its authors, or a folder with files of {', '.join(SUFFIXES)}."
        )
    return {file.name: _read(file) for file in files}


def _read(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, of what is in the file
        if found := re.search(r"GLOBAL ([\w.]+)", f"{error}"):  # what it would have had to import and call
            raise KanoclipError(
                f"{file} holds pickled Python code ({found[1][:SHOWN]}), not tensors alone: whoever opens it runs what "
                f"is in it, so it is refused. In its authors' environment, take the tensors out: {_resave(file)}"
            ) from error
        raise KanoclipError(
            f"{file} is damaged, or no file of torch.save ({type(error).__name__}). Fetch it again; a file of a few "
            f"hundred bytes may be a Git LFS pointer."
        ) from error


def _resave(file: Path) -> str:
    """Return the line that writes the state dict of what a file holds, or of each part of it, beside it."""
    path, result = f"{file}", f"{file.with_name(f'{file.stem}_tensors{file.suffix}')}"
    code = (
        f"import torch; w = torch.load({path!r}, 'cpu', weights_only=False); "
        f"t = lambda v: v.state_dict() if hasattr(v, 'state_dict') else v; "
        f"torch.save({{k: t(v) for k, v in w.items()}} if isinstance(w, dict) else t(w), {result!r})"
    )
    return f"python -c {shlex.quote(code)}"


def only_file(files: Mapping[str, Any], such_as: str) -> tuple[str, Any]:
    """Return name and content of the one file of a method whose weights are in a single one.

    Raises:
        KanoclipError: If there are several.
    """
    if len(files) != 1:
        raise KanoclipError(f"There are {counted(len(files), 'file')}, expected one, such as {such_as}. Give its path.")
    return next(iter(files.items()))


def named(content: Any, where: str) -> dict[str, Any]:
    """Return what a file holds, checked to be a mapping of names to weights.

    Raises:
        KanoclipError: If it is none, or one of its keys is no text.
    """
    if not isinstance(content, Mapping):
        raise KanoclipError(f"{where} holds {type(content).__name__}, expected a mapping of names to weights.")
    for key in content:
        if not isinstance(key, str):
            raise KanoclipError(f"{where} has the key {_shown(key)}, expected names of weights. {AS_PUBLISHED}")
    return dict(content)


def part_of(content: Any, key: str, where: str) -> dict[str, Any]:
    """Return the mapping of names to weights under a key of a file.

    Raises:
        KanoclipError: If there is none, or one of its keys is no text.
    """
    found = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise KanoclipError(f"{where} has no {key!r}, expected a mapping of weights. It has: {_names(content)}.")
    return named(found, f"{where}: {key!r}")


def tensor_of(weights: Any, key: str, shape: Shape, where: str) -> Tensor:
    """Return a weight as float32, checked.

    Args:
        weights: Name -> weight, or what else a file holds in place of that.
        key: Name of it.
        shape: What it must have; None: of any length.
        where: The file, for the message.

    Raises:
        KanoclipError: If it is missing, no tensor of floating point numbers, of another shape or empty, or not finite.
    """
    found = weights.get(key) if isinstance(weights, Mapping) else None
    expected = f"({', '.join('any' if one is None else str(one) for one in shape)})"
    if found is None:
        raise KanoclipError(
            f"{where} lacks the weight {key!r}, of shape {expected}. {AS_PUBLISHED} It has: {_names(weights)}."
        )
    if not isinstance(found, Tensor) or not found.is_floating_point() or not _whole(found):
        raise KanoclipError(f"{where}: {key!r} is no tensor of numbers, expected shape {expected}.")
    fits = len(shape) == found.ndim and all(want in (None, have) for want, have in zip(shape, found.shape, strict=True))
    if not fits or not found.numel():
        raise KanoclipError(f"{where}: {key!r} has shape {tuple(found.shape)}, expected {expected}. {AS_PUBLISHED}")
    if not found.isfinite().all():
        raise KanoclipError(f"{where}: {key!r} holds NaN or infinite numbers. {AS_PUBLISHED}")
    return found.detach().float().clone()


def _names(content: Any) -> str:
    """Return the first keys of a mapping, or what else it is."""
    return ", ".join(map(_shown, list(content)[:8]) if isinstance(content, Mapping) else [type(content).__name__])


def _shown(key: Any) -> str:
    """Return a key of a stranger's file for a message, in one line."""
    return printable(f"{key}"[: SHOWN // 8])


def _whole(value: Tensor) -> bool:
    """Whether each number is there: neither sparse, without content, nor a few repeated without end."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()
