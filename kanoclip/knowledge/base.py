"""Reading a knowledge base from its YAML file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kanoclip.data.parsing import read_yaml
from kanoclip.registry import did_you_mean
from kanoclip.types import KanoclipError, MissingError

FOLDER = Path(__file__).parent
SHIPPED = "knowledge:"
STATES = ("normal", "anomalous")
QUESTIONS = "questions"
"""Name of the file beside the bases that holds what models are asked, not what they answered."""
AUTO = "auto"
"""Instead of a base's name: the one of the data set."""
NONE = "none"
"""Instead of a base's name: no texts of categories."""
SHUFFLED = "shuffled"
"""Instead of a base's name: the one of the data set, with its words dealt out anew; see ``facts.shuffled``."""
FALLBACK = "mvtec"
"""The base whose generic entries serve a data set that has no base."""

Entries = dict[str, list[str]]


@dataclass(frozen=True)
class KnowledgeBase:
    """Descriptions of normal and anomalous objects, as texts ready for the text encoder.

    Attributes:
        path: File it was read from.
        provenance: Who or what wrote it, when, from which question.
        generic: State -> texts for a category that has no entry.
        categories: Category -> state -> texts.
        data_sets: Registered names of the data sets that it describes.
    """

    path: Path
    provenance: dict[str, Any]
    generic: Entries
    categories: dict[str, Entries]
    data_sets: tuple[str, ...] = ()

    @classmethod
    def load(cls, name: str) -> KnowledgeBase:
        """Read a base that ships with the package, by name, or any YAML file, by path.

        Entries are texts, or mappings ``{text: ..., visible: false}``; what cannot be seen in a picture is left out.
        ``visible`` in the provenance is the default for plain texts; without it they count as visible.

        Raises:
            MissingError: If there is no such file.
            KanoclipError: If the file does not have the expected shape; names file and key.
        """
        path = FOLDER / f"{name}.yaml" if name in shipped() else Path(os.path.expanduser(name))
        if not path.is_file():
            raise MissingError(
                f"No knowledge base {name!r}: expected the path of a YAML file or one of {', '.join(shipped())}."
                f"{did_you_mean(name, shipped())} Use --model.knowledge auto."
            )
        content = read_mapping(path, "provenance, generic and categories")
        categories = content.get("categories", {})
        provenance = content.get("provenance") or {}
        data_sets = content.get("data_sets") or []
        names = isinstance(data_sets, list) and all(isinstance(name, str) for name in data_sets)
        check(path, "categories", categories, isinstance(categories, dict), "a mapping")
        check(path, "provenance", provenance, isinstance(provenance, dict), "a mapping")
        check(path, "data_sets", data_sets, names, "a list of names")
        visible = bool(provenance.get("visible", True))
        generic = _entries(path, "generic", content.get("generic"), visible)
        described = {
            str(category): _entries(path, f"categories.{category}", entry, visible)
            for category, entry in categories.items()
        }
        return cls(path, provenance, generic, described, tuple(data_sets))

    @classmethod
    def for_data(cls, name: str) -> KnowledgeBase:
        """Read the base that ships for a data set, by its registered name; for any other, generic entries alone."""
        found = (base for base in map(cls.load, shipped()) if name in base.data_sets)
        return next(found, None) or replace(cls.load(FALLBACK), categories={}, data_sets=())

    @classmethod
    def choose(cls, name: str, data: str) -> KnowledgeBase:
        """Read the base of a data set if the name is "auto", else the one of that name; raises as ``load``."""
        return cls.for_data(data) if name == AUTO else cls.load(name)

    @property
    def reference(self) -> str:
        """Where it is, the same on every machine: ``knowledge:NAME`` for a base that ships, else its path."""
        return f"{SHIPPED}{self.path.stem}" if self.path.parent == FOLDER else str(self.path)

    def facts(self, categories: Iterable[str], state: str = "anomalous") -> list[str]:
        """Return the texts of a state for the given categories, each once; generic ones for an unknown category."""
        texts = (self.categories.get(category, self.generic)[state] for category in categories)
        return list(dict.fromkeys(text for group in texts for text in group))


def shipped() -> list[str]:
    """Return the names of the bases that ship with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem != QUESTIONS)


def read_mapping(path: Path, keys: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        keys: Expected at the top, named if there is no mapping.

    Raises:
        UnreadableTextError: If it is not YAML, or stands for too much; names the file.
        KanoclipError: If it is not a mapping.
    """
    content = read_yaml(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise KanoclipError(f"{path}: expected the keys {keys} at the top.")
    return content


def is_text(value: object) -> bool:
    """Return whether a value is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def check(file: Path, key: str, value: object, valid: bool, expected: str) -> None:
    """Refuse a value of a YAML file that is not valid.

    Raises:
        KanoclipError: Names file, key and value, and what was expected.
    """
    if not valid:
        raise KanoclipError(f"{file}: {key} should be {expected}, got {value!r:.80}. Mend the file.")


def _entries(path: Path, key: str, entry: Any, visible: bool) -> Entries:
    found: Entries = {}
    for state in STATES:
        texts = entry.get(state) if isinstance(entry, dict) else None
        if not isinstance(texts, list) or not texts:
            raise KanoclipError(f"{path}: {key}.{state} should be a list of at least one text. Add it to the file.")
        found[state] = []
        for number, text in enumerate(texts, 1):
            item = text if isinstance(text, dict) else {"text": text}
            check(path, f"entry {number} of {key}.{state}", text, is_text(item.get("text")), "a text")
            if item.get("visible", visible):
                found[state].append(item["text"])
        if not found[state]:
            raise KanoclipError(f"{path}: no text of {key}.{state} is visible in a picture. Add one that is.")
    return found
