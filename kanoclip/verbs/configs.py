"""The configs that ship: found by name from any folder, and listed with what each says of itself."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import kanoclip
from kanoclip.registry import did_you_mean
from kanoclip.types import MissingError

PACKAGE = Path(kanoclip.__file__).parent
FOLDER = next((one for one in (PACKAGE / "configs", PACKAGE.parent / "configs") if one.is_dir()), PACKAGE / "configs")
"""Where they are: inside the installed package (see ``pyproject.toml``), beside it in a checkout."""


def names() -> dict[str, Path]:
    """Return the name of each, such as ``rivals/winclip``, and its file; those of no subfolder first."""
    files = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (path.parent, path.stem))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in files}


def find(name: str, inside: str = "") -> str:
    """Return the file of a config: the path itself if there is such a file, else the one that ships by that name.

    Args:
        name: A path, or a name with or without ``configs/`` before and ``.yaml`` behind it.
        inside: Subfolder whose configs may be named without it: ``quickstart`` is ``benchmarks/quickstart`` there.

    Raises:
        MissingError: If there is neither.
    """
    known, short = names(), name.removeprefix("configs/").removesuffix(".yaml")
    if Path(name).exists() and not Path(name).is_dir():
        return name
    for one in (f"{inside}/{short}", short):
        if one in known:
            return str(known[one])
    hint = did_you_mean(short, known) or did_you_mean(f"{inside}/{short}", known)
    raise MissingError(
        f"No config at {name}, and none of this name ships.{hint} Those that ship: kanoclip list configs."
    )


def summary(path: Path) -> str:
    """Return the first sentence of the comment that a config begins with."""
    lines = takewhile(re.compile(r"# \S").match, path.read_text(encoding="utf-8").splitlines())  # not its commands
    return re.split(r"(?<=[\w)]{2})\. ", " ".join(line[2:] for line in lines))[0].rstrip(".")  # "Q. Zhou" is no end
