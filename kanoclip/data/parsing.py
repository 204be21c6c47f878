"""YAML, JSON, paths and options as others write them, within bounds: a few aliases may stand for gigabytes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from kanoclip.types import KanoclipError

LEVELS = 100  # of lists and mappings inside each other
CHARACTERS = 10_000_000  # of all values, counted wherever an alias repeats them
NAMED = ("category", "categories", "label")
"""Keys below which 01, 1e3 and no are names, as on the command line, and not numbers or truth values."""

_FLOAT, _TEXT, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("float", "str", "null"))
_NUMBER = (
    r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN)"
)


class UnreadableTextError(KanoclipError):
    """A text that is not YAML, or stands for more than is read."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # builds plain values alone
    """Reads 1e-3 as a number and dates as texts, as jsonargparse does."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own way
        letter: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] not in ("float", "timestamp")]
        for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_FLOAT, re.compile(rf"^(?:{_NUMBER})$"), list("-+.0123456789"))


def read_yaml(text: str | bytes, where: str) -> Any:
    """Read YAML as plain values; ``~/`` at the beginning of a text is the home folder, whatever the key.

    Args:
        text: What to read, in UTF-8.
        where: It came from, for the message.

    Raises:
        UnreadableTextError: If it is not YAML, is nested too deeply, has a number of too many digits, or stands for
            too much.
    """
    try:
        loader = _Loader(text.decode() if isinstance(text, bytes) else text)
        try:
            if (node := loader.get_single_node()) is None:
                return None
            _prepare(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise _too_much(where, f"is nested more than {LEVELS} levels deep") from None
    except OverflowError as error:
        raise _too_much(where, str(error)) from None
    except UnicodeDecodeError as error:
        raise UnreadableTextError(f"{where} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError) as error:  # int() refuses thousands of digits
        raise UnreadableTextError(f"{where} is not YAML: {' '.join(str(error).split())[:300]}. Mend it.") from error


def read_json(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, or has a number of too many digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit for the digits of a number
        raise ValueError("a number has thousands of digits") from None


def local_path(given: str | Path, option: str) -> Path:
    """Return a path with the home folder for ``~``.

    Args:
        given: As it was typed.
        option: Of what, for the message.

    Raises:
        KanoclipError: If it is an address such as ``s3://bucket``, as files are read and replaced on a disk, or in the
            home folder of somebody who is not known here.
    """
    if "://" in str(given):
        raise KanoclipError(f"{option} {given} is an address. Give a folder or file of this machine, or mount it.")
    path = os.path.expanduser(given)
    if path.startswith("~"):
        user = Path(path).parts[0]
        raise KanoclipError(f"{option} {given}: there is no user {user[1:]} here. For a folder of that name: ./{user}.")
    return Path(path)


def check_option(name: str, value: object, valid: bool, expected: str) -> None:
    """Raise a ``KanoclipError`` that names an option of the data set and what was expected, unless it is valid."""
    if not valid:
        raise KanoclipError(f"{name} is {value}, expected {expected}. Set --data.{name}.")


def _too_much(where: str, why: str) -> UnreadableTextError:
    return UnreadableTextError(f"{where} {why}, which is not read. Mend it.")


def _prepare(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many characters a node stands for and its levels, and bring its names and home folders into form.

    Raises:
        OverflowError: If that is too much.
    """
    if (found := known.get(id(node))) is not None:
        return found
    known[id(node)] = CHARACTERS + 1, LEVELS + 1  # if it stands within itself
    inner: list[yaml.Node] = []
    own = 1
    if isinstance(node, yaml.ScalarNode):
        own += len(node.value)
        if node.tag == _TEXT and node.value.startswith("~/"):
            node.value = os.path.expanduser(node.value)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in NAMED:
                _name(value)
            inner += [key, value]
    else:
        inner = node.value
    sizes = [_prepare(one, known) for one in inner]
    size, levels = own + sum(one for one, _ in sizes), 1 + max((deep for _, deep in sizes), default=0)
    if levels > LEVELS:
        raise OverflowError(f"is nested more than {LEVELS} levels deep")
    if size > CHARACTERS:
        raise OverflowError(f"stands for more than {CHARACTERS:,} characters, as its aliases repeat them")
    known[id(node)] = size, levels
    return size, levels


def _name(value: yaml.Node) -> None:
    """Make texts of a scalar, of the items of a list, or of the keys of a mapping; a null stays one."""
    if isinstance(value, yaml.ScalarNode):
        value.tag = value.tag if value.tag == _NULL else _TEXT
    else:
        for one in value.value:
            item = one[0] if isinstance(value, yaml.MappingNode) else one
            if isinstance(item, yaml.ScalarNode):
                item.tag = _TEXT
