"""Asks a data set's questions, several at once, and turns the answers into files of knowledge."""

from __future__ import annotations

import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import yaml

from kanoclip.data.images import UnreadableImageError
from kanoclip.knowledge.answers import parse, usable, without_common
from kanoclip.knowledge.base import STATES
from kanoclip.knowledge.client import ChatClient, ChatError, QuestionError, RefusedError
from kanoclip.knowledge.images import Read, data_url
from kanoclip.knowledge.ledger import Ledger, Told
from kanoclip.knowledge.questions import GENERIC, Question, Template

log = logging.getLogger(__name__)

ATTEMPTS = 3  # times that a question without usable answer is asked
PATIENCE = 5  # questions at which the server fails one after another before all is given up

Track = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass
class Outcome:
    """How asking went.

    Attributes:
        asked: Answers received.
        tokens: Of the questions and of the answers, as far as they were told.
        untold: Answers whose tokens the server did not tell.
        failed: What could not be asked, and why.
    """

    asked: int = 0
    tokens: tuple[int, int] = (0, 0)
    untold: int = 0
    failed: list[str] = field(default_factory=list)


def open_questions(questions: Iterable[Question], ledger: Ledger) -> list[Question]:
    """Return the questions that are still to be asked: too little usable is known, and it was not asked too often."""
    return [question for question in questions if _is_open(question, ledger)]


def texts(question: Question, ledger: Ledger) -> list[str]:
    """Return the usable phrases of all answers to a question."""
    phrases = [phrase for told in ledger.get(question.key) for phrase in parse(told.text)]
    return usable(phrases, 2 * question.count)


def ask_all(
    questions: Sequence[Question],
    ledger: Ledger,
    client: ChatClient,
    read: Read,
    concurrency: int = 4,
    track: Track = lambda items, total: items,
) -> Outcome:
    """Ask what is open, and keep every answer in the ledger at once.

    Args:
        questions: All of them; those with an answer are not asked.
        ledger: Where answers are kept.
        client: Who asks.
        read: Reads the image of a sample.
        concurrency: Questions on their way at the same time.
        track: Wraps the finished questions, to show how far it is.

    Raises:
        ChatError: If the server cannot be used, or fails at several questions in a row.
        OSError: If the ledger cannot be written.
    """
    outcome, lock, row = Outcome(), threading.Lock(), [0]
    causes: list[ChatError] = []

    def one(question: Question) -> None:
        try:
            answer(question)
        except ChatError as error:
            causes.append(error)  # before the others are stopped: the first is why
            client.stop()
            raise

    def answer(question: Question) -> None:
        try:
            image = None if question.sample is None else data_url(read(question.sample)[0])
            while _is_open(question, ledger):
                said = client.ask(question.model, question.text, image)
                told = Told(said.text, client.host, date.today().isoformat())
                ledger.add(question.key, told, said.tokens)
                with lock:
                    row[0] = 0
                    outcome.asked += 1
                    outcome.untold += said.tokens is None
                    outgoing, incoming = said.tokens or (0, 0)
                    outcome.tokens = outcome.tokens[0] + outgoing, outcome.tokens[1] + incoming
        except UnreadableImageError as error:
            outcome.failed.append(str(error))
        except QuestionError as error:
            with lock:
                row[0] += not isinstance(error, RefusedError)  # or these would stop every run at the same place
                outcome.failed.append(f"{_about(question)}: {error}")
                if row[0] >= PATIENCE:
                    raise ChatError(f"{PATIENCE} questions in a row have no answer. {error}") from None

    pending = open_questions(questions, ledger)
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(one, question) for question in pending]
        try:
            for future in track(as_completed(futures), len(futures)):
                future.result()
        except BaseException as error:  # an interruption too
            client.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                log.warning("Stopping; answers on their way are waited for and kept.")
            if isinstance(error, ChatError):
                raise causes[0] from None
            raise
    return outcome


def general_yaml(questions: Sequence[Question], ledger: Ledger, template: Template, name: str) -> tuple[str, list[str]]:
    """Make a knowledge base as ``KnowledgeBase.load`` reads it.

    Args:
        questions: What was asked, general ones.
        ledger: The answers.
        template: The questions came from.
        name: Of the data set.

    Returns:
        The file's content, and the categories of which too little is known: they are left out.

    Raises:
        ChatError: If even the generic entries are missing; the file could not be read without them.
    """
    said: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for question in questions:
        said[question.category][question.state] = texts(question, ledger)
    entries = {}
    for category, states in said.items():
        pair = without_common(states["normal"], states["anomalous"])
        entries[category] = dict(zip(STATES, pair, strict=True))
    missing = [category for category, states in entries.items() if not all(states.values())]
    if GENERIC in missing:
        raise ChatError(f"{questions[0].model} said nothing usable. Read its answers: {ledger.path}")
    provenance = {
        "author": "kanoclip knowledge build",
        **_provenance(questions, ledger, template),
        "prompt": {state: " ".join(template.general[state].split()) for state in STATES},
        "visible": True,
    }
    content = {
        "data_sets": [name],
        "provenance": provenance,
        "generic": entries.pop(GENERIC),
        "categories": {category: states for category, states in entries.items() if category not in missing},
    }
    head = f"# What pictures of normal and of anomalous objects show: {name}. Each run writes this file anew.\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=118), missing


def image_jsonl(questions: Sequence[Question], ledger: Ledger, template: Template) -> tuple[str, int]:
    """Make the file of what is known of single images: a line for each.

    Returns:
        The file's content, and the number of images of which nothing usable is known: they are left out.
    """
    groups: dict[tuple[str, str, str], list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.subject, question.category, question.state].append(question)
    lines = []
    for (image, category, state), asked in groups.items():
        answers = usable((text for question in asked for text in texts(question, ledger)), 2 * asked[0].count)
        if answers:
            entry = {"image": image, "category": category, "state": state, "answers": answers}
            entry |= {"question": [question.text for question in asked], **_provenance(asked, ledger, template)}
            lines.append(json.dumps(entry) + "\n")
    return "".join(lines), len(groups) - len(lines)


def _is_open(question: Question, ledger: Ledger) -> bool:
    return len(ledger.get(question.key)) < ATTEMPTS and len(texts(question, ledger)) < question.least


def _about(question: Question) -> str:
    return question.category if question.sample is None else question.sample.image


def _provenance(questions: Sequence[Question], ledger: Ledger, template: Template) -> dict[str, Any]:
    answers = [told for question in questions for told in ledger.get(question.key)]
    return {
        "model": questions[0].model,
        "host": ", ".join(sorted({told.host for told in answers})),
        "date": max((told.date for told in answers), default=""),
        "prompt_version": template.version,
        "template": template.name,
    }
