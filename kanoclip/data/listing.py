"""Lists the files of a large tree fast, and remembers lists and facts of files until folders or files change."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from kanoclip.data.files import read_json, write_bytes
from kanoclip.data.parsing import local_path

WORTH_CACHING = 2000  # a shorter list is made faster than it is looked up
Fact = TypeVar("Fact")
SETTLED = 2 * 10**9  # ns; a folder changed more recently may change again within the same tick of its clock

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of what is kept between runs: ``$KANOCLIP_CACHE``, or ``kanoclip`` in the user's cache folder."""
    own = os.environ.get("KANOCLIP_CACHE")
    return local_path(own or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/kanoclip", "KANOCLIP_CACHE")


def list_tree(root: Path) -> list[str]:
    """List all files below a folder as sorted paths relative to it, ``a/b.png``; hidden ones are left out.

    Links are followed, but a folder is listed once, by its own name if links lead to it too. A folder that may not be
    read is left out with a warning. The list of a large tree is cached with the time of each folder's last change:
    adding, removing or renaming a file changes its folder's time, and then the tree is listed again.
    """
    root = root.resolve()
    cached = _read("lists", root)
    match cached:
        case {"folders": {**known}, "files": [*listed]} if (
            known
            and all(isinstance(file, str) for file in listed)
            and all(_changed(root / str(folder)) == when for folder, when in known.items())
        ):
            return listed
    started = time.time_ns()
    folders, files = _walk(root)
    if len(files) >= WORTH_CACHING and all(when < started - SETTLED for when in folders.values()):
        _write("lists", root, {"folders": folders, "files": files})
    return files


def remembered(purpose: str, root: Path, paths: Iterable[str], compute: Callable[[str], Fact]) -> dict[str, Fact]:
    """Compute a fact of each file, in threads; from the second time on only of new and changed files.

    A file counts as changed if its times, size or number on the disk are others: so two files that have exchanged
    their names are seen, even if both are equally large and equally old.

    Args:
        purpose: Which fact; the folder of the cache that keeps it.
        root: Folder of the files; facts are kept in one file of the cache for each root.
        paths: Files, absolute or relative to ``root``.
        compute: Path -> fact, something that JSON can hold. What it raises passes through, and nothing is kept.
    """
    root, known = root.resolve(), _read(purpose, root.resolve())
    known = {path: fact for path, fact in known.items() if isinstance(fact, list) and fact}
    states = {path: list(_state(root / path)) for path in paths}
    missing = [path for path, state in states.items() if known.get(path, [None])[:-1] != state]
    with ThreadPoolExecutor() as pool:
        for path, fact in zip(missing, pool.map(lambda path: compute(str(root / path)), missing), strict=True):
            known[path] = [*states[path], fact]
    if missing:
        _write(
            purpose, root, {path: fact for path, fact in known.items() if path in states or os.path.exists(root / path)}
        )
    return {path: known[path][-1] for path in states}


def _walk(root: Path) -> tuple[dict[str, int], list[str]]:
    folders: dict[str, int] = {}
    files: list[str] = []
    pending, seen = [("", str(root))], set()
    while pending:
        below, folder = pending.pop()
        try:
            status, entries = os.stat(folder), list(os.scandir(folder))
        except PermissionError:
            if not below:
                raise
            _warn_left_out(folder)
            folders[below] = time.time_ns()  # not to keep the list: a right to read changes no folder's time
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue  # a link back to where we are
        seen.add((status.st_dev, status.st_ino))
        folders[below or "."] = status.st_mtime_ns
        for entry in entries:
            if not entry.name.startswith("."):
                name, link = f"{below}/{entry.name}" if below else entry.name, entry.is_symlink()
                if os.path.isdir(entry.path) if link else entry.is_dir():  # a link may lead where nobody may look
                    pending.insert(0 if link else len(pending), (name, entry.path))  # links last
                else:
                    files.append(name)
    files.sort()
    return folders, files


@cache  # warn once, though a root is listed for each set that is not below it
def _warn_left_out(folder: str) -> None:
    log.warning("%s may not be read, so it is left out.", folder)


def _changed(folder: Path) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except (OSError, ValueError):  # the second: no folder's name at all, in a cache that is damaged
        return -1


def _state(path: Path) -> tuple[int, int, int, int]:
    status = os.stat(path)  # not the device's number, which a network drive gets anew whenever it is mounted
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _file(purpose: str, root: Path) -> Path:
    return cache_folder() / purpose / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.json"


def _read(purpose: str, root: Path) -> dict[str, Any]:
    with suppress(OSError):
        return read_json(_file(purpose, root)) or {}
    return {}  # may not be read


def _write(purpose: str, root: Path, content: Any) -> None:
    with suppress(OSError):  # a cache that cannot be written must not stop a run
        write_bytes(_file(purpose, root), json.dumps(content).encode(), durable=False)  # what is cut is made anew
