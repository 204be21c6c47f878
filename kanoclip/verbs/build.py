"""From words to objects: the parser, and what a parsed ``class_path`` with ``init_args`` stands for."""

from __future__ import annotations

from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from kanoclip.registry import NAMES, load_class, name_of
from kanoclip.verbs.arguments import UsageError


class Parser(LightningArgumentParser):
    """A parser that raises what is wrong, for the edge to put into one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing a usage dump."""
        raise UsageError(message) from ex


def model_name(path: str) -> str:
    """Return the name of a model by its import path: the registered one, or the class's ``name``, or the class."""
    name = name_of("model", path)
    return name if name != path else getattr(load_class(path), "name", "") or path.rpartition(".")[2]


def build(section: Namespace) -> Any:
    """Build what a parsed ``class_path`` with ``init_args`` names."""
    return load_class(section.class_path)(**section.get("init_args", Namespace()).as_dict())


def learns(model: Namespace) -> bool | None:
    """Tell by the classes of its heads, before it is built, whether a model learns; None if that will show then."""
    options = model.get("init_args") or Namespace()
    heads = {kind: load_class(options[kind].class_path) for kind in NAMES if options.get(kind)}
    tell = getattr(load_class(model.class_path), "learns", None)  # a model that is not ours cannot tell
    found: bool | None = tell(heads) if tell else None
    return found
