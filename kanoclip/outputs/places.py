"""Where the files of an image go below ``maps/`` and ``overlays/``."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from itertools import chain, count

from kanoclip.outputs.names import file_name

FOLDER = 5000
"""Images whose files share a numbered folder: file systems and viewers grow slow with more."""


class Places:
    """Names the files of each image, without suffix.

    The folders of the input are kept, from the one that all images share: ``bottle/good/000``. The first ``FOLDER``
    images lie there, the next in ``001/bottle/good/...``, and so on. No two images share a name, not even on a file
    system that takes A for a.

    Args:
        paths: The images, in the order of the data.
        suffix: Of the file whose name may be longest.
        given: Names that images have from an earlier part of the run. The others then get those that they would have
            got in an unbroken one.
    """

    def __init__(self, paths: Sequence[str], suffix: str, given: Mapping[str, str] | None = None) -> None:
        self._suffix, self._names = suffix, dict(given or {})
        self._taken = {name.casefold() for name in self._names.values()}
        self._root = posixpath.commonpath({posixpath.dirname(_place(path)) for path in paths} or {"/"})
        gone = len(self._names.keys() - set(paths)) if self._names else 0
        for number, path in enumerate(paths, gone):
            if path not in self._names:
                self._name(path, number)

    def __getitem__(self, path: str) -> str:
        """Return the name of an image; one that was not announced comes last."""
        return self._names.get(path) or self._name(path, len(self._names))

    def _name(self, path: str, number: int) -> str:
        place, above = _place(path), self._root.rstrip("/") + "/"
        folder, last = posixpath.split(place.removeprefix(above).lstrip("/"))
        folder = posixpath.join(f"{number // FOLDER:03d}" if number >= FOLDER else "", folder)
        # a.jpg beside a.png
        more = (last.replace(".", "_") + "_" * underscores for underscores in count())
        for one in chain([posixpath.splitext(last)[0]], more):
            name = posixpath.join(folder, file_name(one, self._suffix).removesuffix(self._suffix))
            if name.casefold() not in self._taken:
                break
        self._taken.add(name.casefold())
        self._names[path] = name
        return name


def _place(path: str) -> str:
    """Return an absolute path without ``..``, also for a drawn image: ``surfaces://ring/1.png`` -> ``/ring/1.png``."""
    scheme, _, rest = path.partition("://")
    return posixpath.normpath(f"/{rest or os.path.abspath(scheme).replace(os.sep, '/')}".replace("//", "/"))
