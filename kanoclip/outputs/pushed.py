"""What an earlier ``kanoclip push`` has left at a place, and what its owner has added to the card there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kanoclip.data.parsing import UnreadableTextError, read_json, read_yaml

BEGIN = "<!-- kanoclip push writes from here to its end anew each time; what stands above or below is kept -->"
END = "<!-- end of kanoclip push -->"
OURS = re.compile(rf"^{BEGIN}$(?:(?!^{BEGIN}$).)*?^{END}$", re.DOTALL | re.MULTILINE)
"""What a push has written: marks inside a line are its owner's words about them."""


def is_pushed(config: Path) -> bool:
    """Whether a ``kanoclip.json`` is there and of a push, not of another tool."""
    try:
        content = read_json(config.read_bytes())
    except (OSError, ValueError):  # none, or no JSON
        return False
    return isinstance(content, dict) and {"format", "kanoclip", "model"} <= set(content)


def with_additions(card: str, before: str) -> str:
    """Return a new card with what its owner has written into the one before: its head, and text around our own.

    Args:
        card: As a push writes it; of its head a licence alone counts more than that of the one before.
        before: The card that is there; "" for none. All text of one without our marks is kept, below ours.
    """
    head, own = split_card(card)
    old, text = split_card(before)
    above, *below = OURS.split(text)  # twice, if a card was put together of two
    if not below:
        above, below = "", [text]
    licence = {"license": head["license"]} if "license" in head else {}
    written = yaml.safe_dump({**head, **old, **licence}, sort_keys=False, allow_unicode=True)
    parts = (part.strip("\n") for part in (above, own, *below))  # a first line may be indented: code
    return f"---\n{written}---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Return the head of a card, which the hub reads, and the text below it; a head that is no YAML is text."""
    found = re.fullmatch(r"\ufeff?\s*---[ \t]*\n(.*?\n)---[ \t]*(?:\n(.*))?", card, re.DOTALL)
    try:
        head = read_yaml(found[1], "README.md") if found else None
    except UnreadableTextError:
        head = None
    return (head, found[2] or "") if found and isinstance(head, dict) else ({}, card)
