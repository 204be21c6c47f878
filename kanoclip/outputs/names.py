"""Text from strangers (file names, categories, labels) as names of our files, and as cells of csv and of pages."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

LONGEST = 255  # bytes of a name, on all usual file systems
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""A cell that begins so may be run by a spreadsheet (OWASP, *CSV Injection*); the last is the sign that we put."""


def file_name(text: str, ending: str = "") -> str:
    """Cut a name where with its ending it would be too long; a digest of the whole then keeps it apart from others.

    Args:
        text: A name without slashes, of any length.
        ending: Suffix, kept whole.
    """
    data, room = text.encode("utf-8", "surrogateescape"), LONGEST - len(ending.encode())
    if len(data) > room:
        mark = f"-{sha256(data).hexdigest()[:12]}"
        text = data[: room - len(mark)].decode("utf-8", "ignore") + mark
    return text + ending


def plain_name(text: str) -> str:
    """Replace what is no letter, digit, dot, dash or underscore, for a name that is legal on every system."""
    return re.sub(r"[^\w.-]+", "_", text)


def safe_cell(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet might take for a formula; ``true_text`` takes it off."""
    return f"'{text}" if text.startswith(FORMULA) else text


def true_text(cell: str) -> str:
    """Return the text behind a cell of a csv of ours: without the one leading apostrophe, if there is one."""
    return cell.removeprefix("'")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Write rows as csv by RFC 4180; texts are made safe, numbers (no strings) are left as they are."""
    text = io.StringIO()
    csv.writer(text).writerows([safe_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def read_csv(file: str | Path) -> list[dict[str, str]]:
    """Read a csv that kanoclip has written, such as predictions.csv, with every text as it was.

    Args:
        file: Its path. Undecodable bytes of file names come back as the system gives them (``surrogateescape``).

    Returns:
        A mapping heading -> text for each row.
    """
    return list(csv_rows(file))


def csv_rows(file: str | Path) -> Iterator[dict[str, str]]:
    """Read as ``read_csv`` does, one row at a time; what a row that was cut short lacks is empty."""
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as source:
        for row in csv.DictReader(source):
            yield {name: true_text(cell or "") for name, cell in row.items() if name}


def markdown(text: str) -> str:
    """Write a text so that Markdown shows it as it is, also in a cell of a table: no HTML, link or emphasis."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*|]|(?<!\w)_|_(?!\w)|\](?=\()", r"\\\g<0>", flat)
