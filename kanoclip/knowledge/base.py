"""Reading a knowledge base from its YAML file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kanoclip.types import KanoclipError, MissingError

FOLDER = Path(__file__).parent
STATES = ("normal", "anomalous")
QUESTIONS = "questions"
"""Name of the file beside the bases that holds what models are asked, not what they answered."""
AUTO = "auto"
"""Instead of a base's name: the one of the data set."""
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
        Whether a plain text can be seen is said by ``visible`` of the provenance; true if it says nothing.

        Raises:
            MissingError: If there is no such file.
            KanoclipError: If the file does not have the expected shape; names file and key.
        """
        path = FOLDER / f"{name}.yaml" if name in shipped() else Path(name).expanduser()
        if not path.is_file():
            raise MissingError(
                f"No knowledge base {name!r}: expected the path of a YAML file or one of {', '.join(shipped())}. "
                f"Use --model.knowledge auto."
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise KanoclipError(f"{path} is not YAML: {str(error).splitlines()[0]}. Mend the file.") from error
        if not isinstance(content, dict) or not isinstance(content.get("categories", {}), dict):
            raise KanoclipError(f"{path}: expected the keys provenance, generic and categories at the top.")
        provenance = content.get("provenance") or {}
        if not isinstance(provenance, dict):
            raise KanoclipError(f"{path}: provenance should be a mapping, got {provenance!r}. Mend the file.")
        visible = bool(provenance.get("visible", True))
        categories = {
            str(category): _entries(path, f"categories.{category}", entry, visible)
            for category, entry in content.get("categories", {}).items()
        }
        data_sets = content.get("data_sets") or []
        if not isinstance(data_sets, list) or not all(isinstance(known, str) for known in data_sets):
            raise KanoclipError(f"{path}: data_sets should be a list of names, got {data_sets!r}. Mend the file.")
        generic = _entries(path, "generic", content.get("generic"), visible)
        return cls(path, provenance, generic, categories, tuple(data_sets))

    @classmethod
    def for_data(cls, name: str) -> KnowledgeBase:
        """Read the base that ships for a data set, by its registered name; for any other, generic entries alone."""
        found = (base for base in map(cls.load, shipped()) if name in base.data_sets)
        return next(found, None) or replace(cls.load(FALLBACK), categories={}, data_sets=())

    @classmethod
    def choose(cls, name: str, data: str) -> KnowledgeBase:
        """Read the base of a data set if the name is "auto", else the one of that name; raises as ``load``."""
        return cls.for_data(data) if name == AUTO else cls.load(name)

    def facts(self, categories: Iterable[str], state: str = "anomalous") -> list[str]:
        """Return the texts of a state for the given categories, each once; generic ones for an unknown category."""
        texts = (self.categories.get(category, self.generic)[state] for category in categories)
        return list(dict.fromkeys(text for group in texts for text in group))


def shipped() -> list[str]:
    """Return the names of the bases that ship with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem != QUESTIONS)


def _entries(path: Path, key: str, entry: Any, visible: bool) -> Entries:
    found: Entries = {}
    for state in STATES:
        texts = entry.get(state) if isinstance(entry, dict) else None
        if not isinstance(texts, list) or not texts:
            raise KanoclipError(f"{path}: {key}.{state} should be a list of at least one text. Add it to the file.")
        for number, text in enumerate(texts):
            words = text.get("text") if isinstance(text, dict) else text
            if not isinstance(words, str) or not words.strip():
                raise KanoclipError(f"{path}: entry {number + 1} of {key}.{state} should be a text, got {text!r}.")
        found[state] = [
            text["text"] if isinstance(text, dict) else text
            for text in texts
            if (text.get("visible", visible) if isinstance(text, dict) else visible)
        ]
        if not found[state]:
            raise KanoclipError(f"{path}: no text of {key}.{state} is visible in a picture. Add one that is.")
    return found
