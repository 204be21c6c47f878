"""Asks the questions of a data set, several at once, and makes files of knowledge of the answers."""

from __future__ import annotations

import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import yaml

from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.loading import Read
from kanoclip.knowledge.answers import parse, usable, without_common
from kanoclip.knowledge.base import STATES
from kanoclip.knowledge.client import ChatClient, ChatError, QuestionError, RefusedError
from kanoclip.knowledge.images import data_url
from kanoclip.knowledge.ledger import KeptAnswer, Ledger
from kanoclip.knowledge.questions import GENERIC, Question, Template

log = logging.getLogger(__name__)

ENOUGH = {"category": 4, "image": 1}  # usable phrases; a question that has fewer is asked again
ATTEMPTS = 3  # times that it is asked at most
FAILURES = 5  # questions in a row that the server fails to answer before no more are asked

Track = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass
class Outcome:
    """What came of asking.

    Attributes:
        tokens: For each answer: tokens of its question and of itself; None where the server does not count them.
        failed: What could not be asked, and why.
    """

    tokens: list[tuple[int, int] | None] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def is_open(question: Question, ledger: Ledger) -> bool:
    """Whether to ask a question: it has too few usable phrases, and was not asked too often already."""
    enough = ENOUGH["category" if question.sample is None else "image"]
    return len(ledger.get(question.key)) < ATTEMPTS and len(texts(question, ledger)) < enough


def texts(question: Question, ledger: Ledger) -> list[str]:
    """Return the usable phrases of all answers to a question."""
    phrases = [phrase for answer in ledger.get(question.key) for phrase in parse(answer.text)]
    return usable(phrases, 2 * question.count)


def ask_all(
    questions: Sequence[Question],
    ledger: Ledger,
    client: ChatClient,
    read: Read,
    concurrency: int = 4,
    track: Track = lambda items, total: items,
) -> Outcome:
    """Ask questions until none is open, and write every answer to the ledger as it comes.

    Args:
        questions: What to ask.
        ledger: Where answers are kept.
        client: Asks the server.
        read: Reads the image of a sample.
        concurrency: Questions on their way at the same time.
        track: Wraps the finished questions, to show progress.

    Raises:
        ChatError: If the server cannot be used, or fails at several questions in a row.
        CannotWriteError: If the ledger cannot be written.
    """
    outcome, lock, failures = Outcome(), threading.Lock(), 0

    def answer(question: Question) -> None:
        nonlocal failures
        try:
            image = None if question.sample is None else data_url(read(question.sample)[0])
            while is_open(question, ledger):
                text, tokens = client.ask(question.model, question.text, image)
                ledger.add(question.key, KeptAnswer(text, client.host, date.today().isoformat()), tokens)
                with lock:
                    failures = 0
                    outcome.tokens.append(tokens)
        except UnreadableImageError as error:
            outcome.failed.append(str(error))
        except QuestionError as error:
            about = question.category if question.sample is None else question.sample.image
            outcome.failed.append(f"{about}: {error}")
            with lock:  # a refusal is no failure: it would come again in every run, at the same place
                failures += not isinstance(error, RefusedError)
                if failures >= FAILURES:
                    client.stop()
                    raise ChatError(f"{FAILURES} questions in a row have no answer. {error}") from None
        except CancelledError:
            pass  # the question that failed, or the interruption, says why
        except ChatError:
            client.stop()  # at once, or this thread would ask the next question
            raise

    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(answer, question) for question in questions]
        try:
            for future in track(as_completed(futures), len(futures)):
                future.result()
        except BaseException as error:  # an interruption too
            client.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                log.warning("Stopping; answers on their way are waited for and kept.")
            raise
    return outcome


def general_yaml(questions: Sequence[Question], ledger: Ledger, template: Template, name: str) -> tuple[str, list[str]]:
    """Make a knowledge base as ``KnowledgeBase.load`` reads it.

    Args:
        questions: The general ones.
        ledger: The answers.
        template: Where the questions came from.
        name: Of the data set.

    Returns:
        The file's content, and the categories without usable answers, which are left out.

    Raises:
        ChatError: If there are not even generic entries, without which the file could not be read.
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
    """Make the JSONL of image knowledge as ``load_image_knowledge`` reads it, a line for each image.

    Returns:
        The file's content, and the number of images without usable answers, which are left out.
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


def _provenance(questions: Sequence[Question], ledger: Ledger, template: Template) -> dict[str, Any]:
    answers = [answer for question in questions for answer in ledger.get(question.key)]
    return {
        "model": questions[0].model,
        "host": ", ".join(sorted({answer.host for answer in answers})),
        "date": max((answer.date for answer in answers), default=""),
        "prompt_version": template.version,
        "template": template.name,
    }
