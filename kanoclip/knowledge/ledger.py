"""Raw answers, one JSON line each, kept as they come: what is answered is never asked again."""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

KEY = ("model", "version", "question", "subject")


class Told(NamedTuple):
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
    """A file of raw answers that only grows; each line is written at once, a cut-off one is as if it were not there.

    Args:
        path: The file; made by the first ``add``.

    Raises:
        OSError: If the file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told: dict[tuple[str, ...], list[Told]] = defaultdict(list)
        self._lock = threading.Lock()
        content = path.read_bytes() if path.is_file() else b""
        self._begin = b"\n" if content and not content.endswith(b"\n") else b""  # ends the line that was cut off
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                key = tuple(str(entry[name]) for name in KEY)
                self._told[key].append(Told(str(entry["answer"]), str(entry["host"]), str(entry["date"])))
            except (ValueError, LookupError, TypeError):
                continue

    def get(self, key: tuple[str, ...]) -> list[Told]:
        """Return the answers to a question, oldest first."""
        return list(self._told.get(key, ()))

    def add(self, key: tuple[str, ...], told: Told, tokens: tuple[int, int] | None) -> None:
        """Keep an answer; it is on the disk when this returns.

        Raises:
            OSError: If the file cannot be written; names it.
        """
        entry = dict(zip(KEY, key, strict=True)) | {"answer": told.text, "host": told.host, "date": told.date}
        line = json.dumps(entry | {"tokens": tokens}).encode() + b"\n"
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "ab", buffering=0) as file:
                    file.write(self._begin + line)  # one write: two processes do not mix their lines
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(
                    f"Cannot write {self.path}: {error.strerror or error}. Choose another --output."
                ) from None
            self._begin = b""
            self._told[key].append(told)
