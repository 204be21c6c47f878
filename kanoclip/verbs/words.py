"""The words of a command line, split into options and values; short names and paths that stand for a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from mimetypes import guess_type

from kanoclip.registry import NAMES, WHICH_DATA, UnknownNameError, did_you_mean, resolve
from kanoclip.types import KanoclipError, MissingError

Pair = tuple[str, "str | None"]


class UsageError(KanoclipError):
    """A command line or config that does not parse."""


def paths_as_folder(words: Sequence[str], root: str = "--data.root") -> list[str]:
    """Turn a path where a data set is expected into ``folder``: ``predict photo.jpg``, ``test --data my_photos``.

    Args:
        words: What follows the verb.
        root: Option that names the folder.

    Raises:
        MissingError: If a word that can only be a path leads nowhere.
        UnknownNameError: If a word is neither.
        UsageError: If there are several paths.
    """
    if words and not words[0].startswith("-") and words[0] not in NAMES["data"]:
        words = ["--data", *words]
    told: list[str] = []
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        before = words[at - 1] if at else ""
        path = value if option == "--data" and equals else word if before == "--data" else ""
        if not path or path in NAMES["data"] or path.lstrip().startswith("{"):
            told.append(word)
        elif os.path.exists(os.path.expanduser(path)):
            if at + 1 < len(words) and not words[at + 1].startswith("-"):
                raise UsageError(f"Give one path, a photo or a folder of photos; {words[at + 1]} is a second one.")
            told += ["folder" if before == "--data" else "--data=folder", f"{root}={path}"]
        elif "/" in path or os.sep in path or (guess_type(path)[0] or "").startswith("image/"):
            raise MissingError(f"There is no photo or folder at {path}, nor a data set of that name. Check the path.")
        elif path.isidentifier() and path.islower() and path != "null":
            hint = did_you_mean(path, NAMES["data"])
            nor = "There is no photo or folder of that name either."
            raise UnknownNameError(f"Unknown data {path!r}.{hint} {nor} {WHICH_DATA}")
        else:
            told.append(word)
    return told


def pairs_of(arguments: Sequence[str]) -> list[Pair]:
    """Split a command line into options and values; None for an option without a value or a stray word."""
    pairs: list[Pair] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.startswith("-") and equals:
            pairs.append((key, os.path.expanduser(value)))  # as a shell does for a word alone
        elif pairs and pairs[-1][0].startswith("-") and pairs[-1][1] is None and not re.match(r"--?[A-Za-z]", argument):
            pairs[-1] = (pairs[-1][0], os.path.expanduser(argument))
        else:
            pairs.append((argument, None))
    return pairs


def expand_argv(arguments: Iterable[str]) -> list[str]:
    """Replace short names on the command line: ``--data X``, ``--model.adapter=X``, ``--data.help X``."""
    expanded: list[str] = []
    pending: tuple[str, str] | None = None
    for argument in arguments:
        if pending:
            expanded.append(resolve(pending[0], argument, f" for {pending[1]}"))
            pending = None
            continue
        option, equals, value = argument.partition("=")
        kind = kind_of(option)
        if kind and equals:
            expanded.append(f"{option}={resolve(kind, value, f' for {option}')}")
            continue
        if kind:
            pending = (kind, option)
        expanded.append(argument)
    return expanded


def kind_of(option: str) -> str | None:
    """Return the kind that an option chooses, for --data, --model.adapter, --data.class_path and --data.help."""
    if not option.startswith("--"):
        return None
    parts = [part for part in option[2:].split(".") if part != "init_args"]
    if len(parts) > 1 and parts[-1] in ("class_path", "help"):
        parts.pop()
    inside = parts[0] in ("model", "data") and not (parts[0] == "data" and len(parts) > 1)
    return parts[-1] if inside and parts[-1] in NAMES else None
