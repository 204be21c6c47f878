"""In what two runs differ, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

WORDS = {
    "weights": "weights (sha256)",
    "pixels.image_size": "image size",
    "pixels.tile": "tile",
    "results_version": "version of the scores",
}
"""How a difference is named, where the key does not say it."""


class Difference(NamedTuple):
    """One difference, in words.

    Attributes:
        name: What differs.
        before: Its first value.
        now: Its second value.
    """

    name: str
    before: str
    now: str


def difference(before: Any, now: Any, name: str = "") -> Difference | None:
    """Find the first thing in which two mappings of plain values, however deep, differ; None if they are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        found = (difference(before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in keys)
        return next((one for one in found if one), None)
    name = name.removeprefix("scoring.")
    return None if before == now else Difference(WORDS.get(name, name), _short(before), _short(now))


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:12]}...{text[-24:]}"  # paths differ at the end
