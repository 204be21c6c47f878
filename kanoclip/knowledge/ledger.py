"""Raw answers, one JSON line each, written as they come: what is answered is never asked again."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from kanoclip.data.files import append_text
from kanoclip.data.parsing import read_json

KEY = ("model", "version", "question", "subject")


class KeptAnswer(NamedTuple):
    """One answer.

    Attributes:
        text: As the model sent it.
        host: Who served it.
        date: When, ISO 8601.
    """

    text: str
    host: str
    date: str


class Ledger:
    """A file of raw answers that only grows. Lines that were cut off, or are something else, are ignored. Thread-safe.

    Args:
        path: The file; made by the first ``add``.

    Raises:
        OSError: If the file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[tuple[str, ...], list[KeptAnswer]] = defaultdict(list)
        self._lock = threading.Lock()
        content = path.read_bytes() if path.is_file() else b""
        self._start = "\n" if content and not content.endswith(b"\n") else ""  # ends the line that was cut off
        for line in content.splitlines():
            try:
                entry = read_json(line)
                key = tuple(str(entry[name]) for name in KEY)
                answer = KeptAnswer(str(entry["answer"]), str(entry["host"]), str(entry["date"]))
            except (ValueError, LookupError, TypeError):
                continue
            self._answers[key].append(answer)

    def get(self, key: tuple[str, ...]) -> list[KeptAnswer]:
        """Return the answers to a question, oldest first."""
        return list(self._answers.get(key, ()))

    def add(self, key: tuple[str, ...], answer: KeptAnswer, tokens: tuple[int, int] | None) -> None:
        """Write an answer to the file, all of it or nothing.

        Raises:
            CannotWriteError: If the file cannot be written; names it.
        """
        entry = dict(zip(KEY, key, strict=True)) | {"answer": answer.text, "host": answer.host, "date": answer.date}
        with self._lock:
            append_text(self.path, f"{self._start}{json.dumps(entry | {'tokens': tokens})}\n")
            self._start = ""
            self._answers[key].append(answer)
