"""What there is to say of a file: that it cannot be used, or how it was understood where it may be read two ways."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from kanoclip.types import KanoclipError

log = logging.getLogger(__name__)


class UnreadableImageError(KanoclipError):
    """An image or mask file that cannot be used: missing, truncated, not an image, or of another size than its partner.

    Args:
        path: The file.
        why: What is wrong with it, and what to do.
    """

    def __init__(self, path: str, why: str = "") -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"Cannot use {self.path}: {self.why}" if self.why else self.path


class Remark(NamedTuple):
    """How a file was understood.

    Attributes:
        path: The file.
        what: The same words for all files of which it is true.
    """

    path: str
    what: str


_heard: ContextVar[list[Remark] | None] = ContextVar("remarks", default=None)


@contextmanager
def hearing() -> Iterator[list[Remark]]:
    """Collect the remarks on all files that are read in the block, in this thread; elsewhere nobody hears them."""
    heard: list[Remark] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


def remark(path: str, what: str) -> None:
    """Say how a file was understood; see ``hearing``."""
    if (heard := _heard.get()) is not None:
        heard.append(Remark(path, what))


def tell(remarks: Sequence[Remark], told: set[str]) -> None:
    """Log each kind of remark once for a data set."""
    for path, what in remarks:
        if what not in told:
            told.add(what)
            log.warning("%s: %s It may not be the only one: kanoclip data check lists them.", path, what)
