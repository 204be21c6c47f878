"""Hashes of files, classes and modules, of which the identities of data, features and results are made.

An identity changes with all that a result depends on, and with nothing else: the package's own code counts by versions
that are raised when it gives other numbers, code of a user by its text.
"""

from __future__ import annotations

import hashlib
import inspect
import marshal
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.files import sha256
from kanoclip.data.listing import remembered

READING_VERSION = 3
"""Raise it when the same file gives other pixels; tests/data/test_versions.py fails until then."""
FEATURES_VERSION = 1
"""Raise it when the same pixels give other features; the same test fails until then."""

_LIBRARIES = ("abc", "builtins", "kanoclip", "lightning", "torch", "typing")  # known by versions, not by their code
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def digest(*parts: object) -> str:
    """Hash plain values to 40 hexadecimal digits."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def is_ours(kind: Any) -> bool:
    """Whether a class or function is the package's, so that versions tell what it does; else its code must."""
    return str(kind.__module__).partition(".")[0] == "kanoclip"


def is_plain(value: object) -> bool:
    """Whether a value is none, a number, a text or a collection of them, so that its ``repr`` says all of it."""
    if isinstance(value, dict):
        return all(map(is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def file_hashes(paths: Iterable[str]) -> dict[str, str]:
    """Hash the content of files, in threads; hashes are remembered until a file changes.

    Returns:
        Path -> sha256 in hexadecimal digits. Paths that are no files are left out.

    Raises:
        UnreadableImageError: A file cannot be read.
    """
    found = {path: os.path.abspath(path) for path in paths if os.path.isfile(path)}
    root = Path(os.path.commonpath(found.values()) if found else ".")
    hashes = remembered("hashes", root, found.values(), _file_hash)
    return {path: hashes[where] for path, where in found.items()}


def content_of(paths: Iterable[Path]) -> str | None:
    """Return 12 hexadecimal digits of the content of files together; None if none of them is there."""
    hashes = file_hashes(map(str, sorted(paths)))
    return digest(*hashes.values())[:12] if hashes else None


def code_of(kind: type) -> list[object]:
    """Hash the source files of a class and its parents, as far as they are not of this package or of libraries.

    A class without a file, made in a notebook, is known by its methods' byte code and its plain attributes. Neither
    sees code that is imported or called from elsewhere.
    """
    found: list[object] = []
    for one in kind.__mro__:
        if one.__module__.partition(".")[0] not in _LIBRARIES:
            try:
                found.append((one.__qualname__, sha256(inspect.getfile(one))))
            except (TypeError, OSError):  # no file
                inside = sorted((name, part) for name, part in vars(one).items() if not name.startswith("__"))
                code = [marshal.dumps(part.__code__) for _, part in inside if inspect.isfunction(part)]
                found.append((one.__qualname__, code, [(name, part) for name, part in inside if is_plain(part)]))
    return found


def module_digest(module: nn.Module, leave_out: Collection[str] = ()) -> str | None:
    """Hash all that a module computes with: class, own attributes, weights, buffers, and the same of its parts.

    Args:
        module: Any module.
        leave_out: Attributes and parts that change nothing, or are hashed elsewhere.

    Returns:
        Hexadecimal digits; None if it has an attribute that is not plain, so that nobody can tell what it does.
    """
    own = {name: part for name, part in vars(module).items() if name not in (*_OF_EVERY_MODULE, *leave_out)}
    parts = {name: module_digest(part) for name, part in module.named_children() if name not in leave_out}
    if not is_plain(own) or None in parts.values():
        return None
    weights = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    hashed = [(name, one.dtype, tuple(one.shape), hashlib.sha256(tensor_bytes(one)).digest()) for name, one in weights]
    return digest(type(module).__qualname__, code_of(type(module)), sorted(own.items()), sorted(parts.items()), hashed)


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the values of a tensor as they lie in memory, row by row."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _file_hash(path: str) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise UnreadableImageError(path, f"{error.strerror}.") from error
