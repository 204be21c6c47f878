"""The template of questions, and which of them a data set gives rise to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.heads.prompts import readable
from kanoclip.knowledge.base import FOLDER, QUESTIONS, STATES
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, KanoclipError, MissingError

GENERIC = "generic"
LEAST = {"general": 4, "image": 1}  # usable phrases that a question should yield, or it is asked again


@dataclass(frozen=True)
class Question:
    """One question, asked once: who is asked, what, and about what.

    Attributes:
        model: Who is asked.
        version: Of the template.
        text: The whole prompt.
        subject: Category, or hash of the image.
        category: Category as the data set names it, or ``generic``.
        state: "normal" or "anomalous".
        count: Phrases asked for.
        sample: The image that goes with it; None for general knowledge.
    """

    model: str
    version: str
    text: str
    subject: str
    category: str
    state: str
    count: int
    sample: Sample | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes an answer that is there already the answer to this question."""
        return self.model, self.version, self.text, self.subject

    @property
    def least(self) -> int:
        """Usable phrases that are enough."""
        return LEAST["general" if self.sample is None else "image"]


@dataclass(frozen=True)
class Template:
    """The questions of a file such as ``questions.yaml``, which explains its keys.

    Attributes:
        name: Of the file.
        version: To be raised when a question changes.
        general: State -> question to the language model.
        image: State -> questions to the vision model.
        generic: What stands for a category in the questions for unknown categories.
        answer: What follows every question.
        count: "general" and "image" -> phrases asked for.
    """

    name: str
    version: str
    general: dict[str, str]
    image: dict[str, list[str]]
    generic: str
    answer: str
    count: dict[str, int]

    @classmethod
    def load(cls, path: str | None = None) -> Template:
        """Read a template; None: the one that ships.

        Raises:
            MissingError: If there is no such file.
            KanoclipError: If a key is missing or of the wrong kind; names file and key.
        """
        file = Path(path).expanduser() if path else FOLDER / f"{QUESTIONS}.yaml"
        if not file.is_file():
            raise MissingError(f"No file of questions {file}. Leave --questions out for the one that ships.")
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise KanoclipError(f"{file} is not YAML: {str(error).splitlines()[0]}. Mend the file.") from error
        if not isinstance(content, dict):
            raise KanoclipError(
                f"{file}: expected the keys version, count, answer, generic, general and image at the top."
            )
        general, image = ({state: _at(file, content, kind, state) for state in STATES} for kind in ("general", "image"))
        for state in STATES:
            _check(file, f"general.{state}", general[state], _text(general[state]), "a question")
            questions = image[state]
            valid = isinstance(questions, list) and all(map(_text, questions))
            _check(file, f"image.{state}", questions, valid, "a list of questions, perhaps empty")
        count = {kind: _at(file, content, "count", kind) for kind in ("general", "image")}
        for kind, number in count.items():
            _check(file, f"count.{kind}", number, isinstance(number, int) and number > 0, "a number of phrases")
        for key in ("answer", "generic"):
            _check(file, key, content.get(key), _text(content.get(key)), "a text")
        version = content.get("version")
        _check(file, "version", version, isinstance(version, (int, str)), "a number or a text")
        return cls(file.name, str(version), general, image, content["generic"], content["answer"], count)

    def fill(self, kind: str, question: str, category: str, domain: str) -> str:
        """Return the whole prompt of a question of the kind "general" or "image"."""
        words = self.generic if category == GENERIC else readable(category)
        parts = {"category": words, "domain": domain, "count": str(self.count[kind])}
        text = f"{question.strip()} {self.answer.strip()}"
        for key, value in parts.items():  # not str.format: a template may show JSON, with its braces
            text = text.replace(f"{{{key}}}", value)
        return " ".join(text.split())


def general_questions(template: Template, model: str, data: AnomalyDataModule) -> list[Question]:
    """Return what the language model is asked: both states of each category, and of the generic one."""
    return [
        Question(model, template.version, template.fill("general", template.general[state], category, data.domain),
                 category, category, state, template.count["general"])
        for category in (GENERIC, *data.categories) for state in STATES
    ]  # fmt: skip


def image_questions(
    template: Template,
    model: str,
    data: AnomalyDataModule,
    hashed: Callable[[Sample], str],
    track: Callable[[Iterable[Sample]], Iterable[Sample]] = iter,
) -> list[Question]:
    """Return what the vision model is asked about each auxiliary training image, each once.

    Args:
        template: The questions.
        model: Who is asked.
        data: Its ``fit`` part is asked about.
        hashed: Hash of an image's content.
        track: Wraps the images, to show how far it is.

    Raises:
        KanoclipError: If an image has no label: the question depends on it.
    """
    states = {NORMAL: "normal", ANOMALOUS: "anomalous"}
    found: dict[tuple[str, str, str, str], Question] = {}
    for sample in track(data.part("fit")):
        if sample.label == UNKNOWN:
            raise KanoclipError(f"{sample.image} has no label, and the questions depend on it. Leave --vqa_model out.")
        state = states[sample.label]
        if not template.image[state]:
            continue
        subject = hashed(sample)
        for question in template.image[state]:
            text = template.fill("image", question, sample.category, data.domain)
            asked = Question(model, template.version, text, subject, sample.category, state, template.count["image"],
                             sample)  # fmt: skip
            found.setdefault(asked.key, asked)
    return list(found.values())


def _at(file: Path, content: dict[str, Any], key: str, inner: str) -> Any:
    part = content.get(key)
    if not isinstance(part, dict) or inner not in part:
        raise KanoclipError(f"{file}: {key}.{inner} is missing. Add it to the file.")
    return part[inner]


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check(file: Path, key: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise KanoclipError(f"{file}: {key} should be {expected}, got {value!r}. Mend the file.")
