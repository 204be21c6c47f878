"""The template of questions, and the questions that it makes of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.heads.prompts import readable
from kanoclip.knowledge.base import FOLDER, QUESTIONS, STATES, check, is_text, read_mapping
from kanoclip.knowledge.images import image_hash, image_hashes
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, KanoclipError, MissingError

GENERIC = "generic"


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
        """Identity of the question: an answer that was kept under this key answers it."""
        return self.model, self.version, self.text, self.subject


@dataclass(frozen=True)
class Template:
    """The questions of a file such as ``questions.yaml``, which explains its keys.

    Attributes:
        name: Of the file.
        version: To be raised when a question changes.
        general: State -> question to the language model.
        image: State -> questions to the vision model.
        generic: Word for "any category" in the questions that serve unknown categories.
        answer: How to answer; follows every question.
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
        file = Path(os.path.expanduser(path)) if path else FOLDER / f"{QUESTIONS}.yaml"
        if not file.is_file():
            raise MissingError(f"No file of questions {file}. Leave --questions out for the one that ships.")
        content = read_mapping(file, "version, count, answer, generic, general and image")
        general, image = ({state: _at(file, content, kind, state) for state in STATES} for kind in ("general", "image"))
        for state in STATES:
            check(file, f"general.{state}", general[state], is_text(general[state]), "a question")
            questions = image[state]
            valid = isinstance(questions, list) and all(map(is_text, questions))
            check(file, f"image.{state}", questions, valid, "a list of questions, perhaps empty")
        count = {kind: _at(file, content, "count", kind) for kind in ("general", "image")}
        for kind, number in count.items():
            check(file, f"count.{kind}", number, isinstance(number, int) and number > 0, "a number of phrases")
        for key in ("answer", "generic"):
            check(file, key, content.get(key), is_text(content.get(key)), "a text")
        version = content.get("version")
        check(file, "version", version, isinstance(version, (int, str)), "a number or a text")
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
    count, found = template.count["general"], []
    for category in (GENERIC, *data.categories):
        for state in STATES:
            text = template.fill("general", template.general[state], category, data.domain)
            found.append(Question(model, template.version, text, category, category, state, count))
    return found


def image_questions(
    template: Template, model: str, data: AnomalyDataModule, samples: Iterable[Sample]
) -> list[Question]:
    """Return what the vision model is asked about each image; copies of one image count once.

    Args:
        template: The questions.
        model: Who is asked.
        data: Data set of the images.
        samples: The images, of its part ``fit``.

    Raises:
        KanoclipError: If an image has no label: the question depends on it.
    """
    states, count = {NORMAL: "normal", ANOMALOUS: "anomalous"}, template.count["image"]
    found: dict[tuple[str, str, str, str], Question] = {}
    samples = list(samples)
    for sample in samples:
        if sample.label == UNKNOWN:
            raise KanoclipError(f"{sample.image} has no label, and the questions depend on it. Leave --vqa_model out.")
    samples = [sample for sample in samples if template.image[states[sample.label]]]
    for sample, subject in zip(samples, image_hashes(samples, data), strict=True):
        state, subject = states[sample.label], subject or image_hash(sample, data.read)  # raises, as it did before
        for question in template.image[state]:
            text = template.fill("image", question, sample.category, data.domain)
            asked = Question(model, template.version, text, subject, sample.category, state, count, sample)
            found.setdefault(asked.key, asked)
    return list(found.values())


def _at(file: Path, content: dict[str, Any], key: str, inner: str) -> Any:
    part = content.get(key)
    if not isinstance(part, dict) or inner not in part:
        raise KanoclipError(f"{file}: {key}.{inner} is missing. Add it to the file.")
    return part[inner]
