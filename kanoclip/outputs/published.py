"""Published numbers of the literature, to stand beside ours; where each is from is told with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kanoclip.types import KanoclipError

FILE = Path(__file__).with_name("published.yaml")
FLAGS = {"R": "", "C": "", "B": ", not verified"}  # a public README or notes; the method's own repository; a listing


class Published(NamedTuple):
    """What one source says of one method on one data set.

    Attributes:
        method: As the literature calls it.
        data: Registered name of the data set.
        values: Metric -> value in [0, 1].
        family: Which auxiliary sets: numbers of two families are not comparable.
        auxiliary: What the method was fitted on; None: nothing.
        post_processing: Of its maps and scores; None: not known.
        source: Where the number was read.
        flag: One of ``FLAGS``.
    """

    method: str
    data: str
    values: dict[str, float]
    family: str
    auxiliary: str | None
    post_processing: str | None
    source: str
    flag: str


def families() -> dict[str, dict[str, str]]:
    """Return the families of published numbers by name: ``auxiliary``, ``itself`` to test on that, and ``about``."""
    return dict(_read()["families"])


def published(family: str, data: Iterable[str]) -> list[Published]:
    """Return what one family of papers says of some data sets, in the file's order of methods.

    Args:
        family: One of ``families()``; never two, since their numbers are not comparable.
        data: Registered names.

    Raises:
        KanoclipError: For an unknown family.
    """
    content = _read()
    if family not in content["families"]:
        raise KanoclipError(f"No published numbers called {family!r}. Use {', '.join(content['families'])} or none.")
    own, wanted, found = content["families"][family], set(data), []
    for block in content["published"]:
        for name, percent in block["percent"].items() if block["family"] == family else ():
            if name in wanted:
                which = "itself" if name == own["auxiliary"] and block.get("auxiliary", "") is not None else "auxiliary"
                auxiliary = block.get(which, own[which])
                values = {metric: round(value / 100, 6) for metric, value in percent.items()}
                about = (block[key] for key in ("post_processing", "source", "flag"))
                found.append(Published(block["method"], name, values, family, auxiliary, *about))
    return found


def usual_family(auxiliary: Iterable[str]) -> str | None:
    """Return the family whose methods are fitted on most of these sets; None if none of them is such a set.

    Args:
        auxiliary: The auxiliary set behind each set that is tested, by registered name.
    """
    names = list(auxiliary)
    count = {family: names.count(own["auxiliary"]) for family, own in families().items()}
    best = max(count, key=lambda family: count[family])
    return best if count[best] else None


def _read() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return content
