"""Reads the phrases out of a model's answer, cleans them, and drops those that describe nothing visible."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import islice

WORDS = range(3, 17)  # of one phrase
BRACKETS = 100  # of an answer that may begin its list; nothing but brackets would take hours
LETTERS = 0.9  # share of a phrase's characters that are plain letters or spaces

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u00a0": " ", "×": "x"})
_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e\w*|cannot|can ?not|can't|unable|won't|as an ai|language model|i|i'm|i'd|i'll|we|you"
    r"|here (?:is|are)|sure|certainly|please|unclear|unknown|not (?:possible|visible|provided|applicable|clear)|n/a"
    r"|no (?:\w+ ){0,3}(?:visible|damage|defects?|anomal\w*|image|signs?)|there (?:is|are) no|none|nothing)\b"
)
# Words that say that something is wrong but not what it looks like, or that name what no image shows.
_VAGUE = re.compile(
    r"\b(un)?(damag\w*|defect\w*|anomal\w*|abnormal\w*|fault\w*|flaw\w*|unusual|imperfect\w*|malfunction\w*|problem\w*"
    r"|odou?r\w*|smell\w*|sounds?|noises?|rattl\w*|temperature|warm|hot|weight|heavy|taste\w*)\b"
)
# Common small words of other languages in plain letters, none of which is an English word.
_FOREIGN = re.compile(
    r"\b(une|avec|dans|les|sur|aux|est|sont|eine[mnrs]?|mit|und|auf|oder|der|das|ist|nicht|von|una|unos|unas|las|los|con"
    r"|del|para|por|sobre|della|nella|sulla|sul|uma|com|tem)\b"
)


def parse(text: str) -> list[str]:
    """Read the phrases of an answer: a JSON list, alone or within other text, or one phrase a line.

    Args:
        text: As the model sent it. Reasoning between ``<think>`` tags is skipped.
    """
    text = _THOUGHT.sub("", text)
    listed = _json_list(text)
    if listed is not None:
        return listed
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("```")]
    bulleted = [_BULLET.sub("", line) for line in lines if _BULLET.match(line)]
    return [line.strip() for line in bulleted or lines]


def clean(phrase: str) -> str:
    """Normalise a phrase: lower case, ASCII punctuation, single spaces, no full stop."""
    phrase = " ".join(phrase.translate(_TYPOGRAPHY).lower().split())
    return phrase.strip(" \"'`*.,;:!")


def usable(phrases: Iterable[str], most: int) -> list[str]:
    """Clean phrases and keep those that say in English what is seen, each once.

    Args:
        phrases: From ``parse``.
        most: How many to keep at most: some models do not stop.
    """
    kept: dict[str, str] = {}
    for phrase in map(clean, phrases):
        if _says_something(phrase):
            kept.setdefault(_essence(phrase), phrase)
    return list(kept.values())[:most]


def without_common(first: list[str], second: list[str]) -> tuple[list[str], list[str]]:
    """Drop the phrases that are in both lists: what is true of both states does not tell them apart."""
    common = set(map(_essence, first)) & set(map(_essence, second))
    return [t for t in first if _essence(t) not in common], [t for t in second if _essence(t) not in common]


def _says_something(phrase: str) -> bool:
    plain = sum(character in " abcdefghijklmnopqrstuvwxyz" for character in phrase)
    return (
        len(phrase.split()) in WORDS
        and plain >= LETTERS * len(phrase)
        and not _FOREIGN.search(phrase)
        and not _REFUSAL.search(phrase)
        and not _VAGUE.search(phrase)
    )


def _essence(phrase: str) -> str:
    """Return what stays equal when only articles and punctuation differ."""
    return " ".join(word for word in re.findall(r"[a-z0-9]+", phrase) if word not in ("a", "an", "the"))


def _json_list(text: str) -> list[str] | None:
    """Return the strings of the first JSON list in the text that is empty or has strings; None without one."""
    decoder = json.JSONDecoder()
    for start in islice((match.start() for match in re.finditer(r"\[", text)), BRACKETS):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        texts = [item for item in found if isinstance(item, str)]
        if texts or not found:
            return texts
    return None
