"""Options of test and predict that are neither the data's, the model's nor the trainer's. Nothing here needs torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kanoclip.data.parsing import local_path
from kanoclip.types import KanoclipError

if TYPE_CHECKING:
    from kanoclip.outputs.thresholds import Thresholds


class Option(NamedTuple):
    """An option.

    Attributes:
        kind: Type of its value.
        default: Its value if it is not given.
        about: What it does.
        verbs: Which verbs have it.
    """

    kind: Any
    default: Any
    about: str
    verbs: tuple[str, ...] = ("test", "predict")


OPTIONS = {
    "output": Option(
        str | None,
        None,
        "folder to write into, instead of a new one below --trainer.default_root_dir",
    ),
    "threshold": Option(
        float | str | None,
        None,
        "file that kanoclip calibrate has written, or a score from 0 to 1: images above it are defective",
    ),
    "overlays": Option(bool, True, "write overlays"),
    "maps": Option(bool, True, "write maps", ("predict",)),
    "report": Option(bool, True, "write report.html; not with --watch or --shard"),
    "watch": Option(bool, False, "go on for ever: score each new file of the folder once; with --output", ("predict",)),
    "shard": Option(
        str | None,
        None,
        "score every N-th image from the I-th, so that N commands share the work; the last one joins the csv; with "
        "--output",
        ("predict",),
    ),
}
OF_OTHERS = {
    "test": ("results.json", "predictions.json", "run.json"),
    "predict": ("results.json", "run.json"),
}
"""Files of a folder of results that a verb would mix with its own."""


GOES_ON = "; into that of one that was stopped it goes on"  # of predict's --output


def names(verb: str) -> list[str]:
    """Return the options of a verb."""
    return [name for name, option in OPTIONS.items() if verb in option.verbs]


def about(name: str, verb: str) -> str:
    """Return what an option does in a verb."""
    return OPTIONS[name].about + GOES_ON * ((name, verb) == ("output", "predict"))


def add_options(add: Callable[..., Any], verb: str) -> None:
    """Add the options of a verb to a parser by its ``add_argument``."""
    for name in names(verb):
        kind, default, *_ = OPTIONS[name]
        add(f"--{name}", type=kind, default=default, help=about(name, verb))


@dataclass(frozen=True)
class Chosen:
    """The options as they are meant; those that a verb does not have are at their defaults.

    Attributes:
        output: Folder to write into; None: a new one.
        thresholds: What decides between good and defective.
        overlays: Whether to write overlays.
        maps: Whether to write maps.
        report: Whether to write report.html.
        watch: Whether to go on for ever.
        shard: Number and count; (1, 1): all images.
    """

    output: Path | None = None
    thresholds: Thresholds | None = None
    overlays: bool = True
    maps: bool = True
    report: bool = False
    watch: bool = False
    shard: tuple[int, int] = (1, 1)


def read_options(verb: str, given: Any) -> Chosen:
    """Check and read the options of a verb before anything large is loaded.

    Args:
        verb: Of which verb.
        given: A mapping with their parsed values.

    Raises:
        KanoclipError: For a value that means nothing, or two options that exclude each other.
        CannotWriteError: If there is no writing to the folder.
    """
    value = {name: given.get(name) for name in names(verb)}
    if not value:
        return Chosen()
    thresholds = None
    if value["threshold"] is not None:
        from kanoclip.outputs.thresholds import Thresholds  # not for those who type no threshold

        thresholds = Thresholds.load(value["threshold"])
    shard, watch = _shard(value.get("shard")), bool(value.get("watch"))
    output = None if value["output"] is None else local_path(value["output"], "--output")
    for name in [name for name, on in (("watch true", watch), (f"shard {value.get('shard')}", shard[1] > 1)) if on]:
        if output is None:
            raise KanoclipError(f"--{name} needs a folder that stays the same: add --output FOLDER.")
    if watch and shard[1] > 1:
        raise KanoclipError("--watch true and --shard exclude each other: leave one out.")
    report = value["report"] and not watch and shard == (1, 1)  # it needs all rows
    if output is not None:
        _check_place(output, verb)
    return Chosen(output, thresholds, value["overlays"], value.get("maps", True), report, watch, shard)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    if not (match := re.fullmatch(r"(\d+)/(\d+)", text)) or not 1 <= int(match[1]) <= int(match[2]):
        raise KanoclipError(f"--shard {text}: expected I/N with 1 <= I <= N, such as 2/4.")
    return int(match[1]), int(match[2])


def _check_place(folder: Path, verb: str) -> None:
    from kanoclip.data.files import CannotWriteError  # late: it loads OpenCV, and a mistyped name needs none

    for name in OF_OTHERS[verb]:
        if (folder / name).exists():
            raise KanoclipError(f"--output {folder} has the {name} of another run. Choose another folder, or empty it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise CannotWriteError(folder, error) from error
