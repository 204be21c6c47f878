"""The rows of a prediction that may be stopped and go on, in one folder, by several processes and several commands."""

from __future__ import annotations

import csv
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from kanoclip.data.files import CannotWriteError, append_text, plain, read_json, write_bytes, write_json
from kanoclip.outputs.coco import write_regions
from kanoclip.outputs.difference import difference
from kanoclip.outputs.names import csv_text, true_text
from kanoclip.ranks import gather, rank_of
from kanoclip.types import KanoclipError

COLUMNS = ("path", "category", "image_score", "map_max", "map", "overlay", "decision", "margin")
NAMING = (*COLUMNS, "defect", "defect_probability")
"""Columns of a model that names kinds of defect."""
KINDS = {"task": dict, "finished": list, "images": int}
"""What predictions.json must hold for a run to go on."""
PATIENCE = 10.0
"""Seconds to wait for a folder that another command holds: one that was killed leaves workers for a second or two."""


class Shard(NamedTuple):
    """Which of several commands this one is that share the images: every N-th image, from the I-th.

    Attributes:
        number: I, from 1.
        of: N.
    """

    number: int = 1
    of: int = 1


class Listing:
    """The csv files of a prediction.

    Each process appends to a file of its own: ``predictions.csv`` if it is the only one, else ``predictions-R.csv``;
    of a shard ``predictions-I-of-N.csv`` and ``predictions-I-of-N-R.csv``. They become ``predictions.csv`` in the order
    of the data when all are complete. Regions are in ``regions.jsonl`` and files named alike. predictions.json says of
    what run they are. Rank 0 of each command holds a lock until it ends; a second lock guards predictions.json and the
    join.

    Args:
        folder: Where they are.
        shard: This command's share.
        resume: Go on with the rows that are there; else they are deleted.
        columns: Those of the rows, ``COLUMNS`` or ``NAMING``.
    """

    def __init__(
        self,
        folder: Path,
        shard: Shard = Shard(),  # noqa: B008  # a tuple
        resume: bool = False,
        columns: tuple[str, ...] = COLUMNS,
    ) -> None:
        self.folder, self.shard, self.resume, self.columns = folder, shard, resume, columns
        self.resumed = False  # whether there were rows
        self._rank, self._world = rank_of()
        self._stem = "predictions" if shard.of == 1 else f"predictions-{shard.number}-of-{shard.of}"
        self.joined = folder / "predictions.csv"
        self.whole = folder / f"{self._stem}.csv"
        self.file = folder / f"{self._stem}-{self._rank}.csv" if self._world > 1 else self.whole
        self.regions = self._regions_of(self.file)
        self._state = folder / "predictions.json"
        self._held = ExitStack()

    def open(self) -> dict[str, str]:
        """Lock the folder and read what is done; collective.

        A row that was cut by a kill or a full disk is dropped, so that its image is scored again.

        Returns:
            Path of each image that has a row -> name of its files below ``maps/`` and ``overlays/``, "" without any.

        Raises:
            CannotWriteError: If the folder cannot be written to.
            KanoclipError: If another command is at it, or the rows there are of something else.
        """
        if self._rank == 0:
            self._hold(self._stem)
            with self._guard():
                for file in self._files():
                    if self.resume:
                        _repair(file)
                    else:
                        file.unlink()
                        self._regions_of(file).unlink(missing_ok=True)
        gather(None)  # nobody reads before all is mended
        done: dict[str, str] = {}
        for file in self._files():
            for _, _, cells in rows_of(file):
                name = cells[4].partition("/")[2] or cells[5].partition("/")[2]
                done[true_text(cells[0])] = name.rpartition(".")[0]
        gather(None)  # nobody writes before all have read
        self.resumed = bool(done)
        return done

    def begin(self, about: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        """Compare the run with that of the rows, note what run it is, and start the csv.

        Args:
            about: What predictions.json is to say.
            task: What must be the same when the run goes on.

        Raises:
            KanoclipError: If the rows are of another run; names the first difference.
        """
        if self._rank == 0:
            with self._guard():
                before = read_json(self._state, **KINDS) if self.resume and self._state.exists() else None
                if before is None and self.resumed:
                    raise KanoclipError(
                        f"{self.folder} has predictions, but no predictions.json that says how they were made. Choose "
                        f"another --output, or delete them."
                    )
                if before is not None and (found := difference(before["task"], plain(task))):
                    raise KanoclipError(
                        f"{self.folder} has predictions of another run: {found.name} was {found.before} and is "
                        f"{found.now}. Run it as before, or choose another --output."
                    )
                finished = [one for one in (before or {}).get("finished", []) if one != self.shard.number]
                self._write_state(about, task, (before or {}).get("images", 0), finished)
        if not self.file.exists() or not self.file.stat().st_size:
            append_text(self.file, csv_text([self.columns]))

    def finish(
        self,
        about: Mapping[str, Any],
        task: Mapping[str, Any],
        paths: Sequence[str],
        left: int,
        sort: bool = True,
        regions: bool = False,
    ) -> tuple[Counter[str], list[int]]:
        """Make one csv of all processes, in the order of the data, and one of all shards after the last; by rank 0.

        Args:
            about: What predictions.json is to say.
            task: As in ``begin``.
            paths: All images, in order.
            left: How many images of this shard are neither listed nor unreadable.
            sort: Bring rows into the order of the data that an earlier part of the run has left in another.
            regions: Likewise bring the rows of regions together, and write them as annotations; with ``sort``.

        Returns:
            How many rows there are of each decision ("" without a threshold), and the numbers of the shards that are
            not finished.
        """
        if (self.resumed and sort) or self._world > 1:
            _join([self.whole, *self._parts()], paths, self.whole, self.columns)
        every = range(1, self.shard.of + 1)
        with self._guard():
            finished = {*(read_json(self._state) or {}).get("finished", []), *([] if left else [self.shard.number])}
            waiting = sorted(set(every) - finished)
            if self.shard.of > 1 and not waiting:
                shards = [self.folder / f"predictions-{number}-of-{self.shard.of}.csv" for number in every]
                _join([self.joined, *shards], paths, self.joined, self.columns)
            if regions and sort and not waiting:
                parts = sorted(self.folder.glob("regions*.jsonl"))
                write_regions(self.folder, parts, {path: place for place, path in enumerate(paths)})
            rows = rows_of(self.whole if waiting else self.joined)
            decisions = Counter(cells[COLUMNS.index("decision")] for _, _, cells in rows)
            self._write_state(about, task, decisions.total(), sorted(finished))
        return decisions, waiting

    def close(self) -> None:
        """Let others at the folder."""
        self._held.close()

    def _write_state(self, about: Mapping[str, Any], task: Mapping[str, Any], images: int, finished: list[int]) -> None:
        state = {"images": images, "complete": len(finished) == self.shard.of, "finished": finished, "task": task}
        write_json(self._state, {**about, **state})

    def _parts(self) -> list[Path]:
        """The files of single processes, also of an earlier part of the run with more of them."""
        return sorted(p for p in self.folder.glob("predictions-*.csv") if re.fullmatch(rf"{self._stem}-\d+", p.stem))

    def _files(self) -> list[Path]:
        """All files with rows of this command's images."""
        return [file for file in dict.fromkeys([self.joined, self.whole, *self._parts()]) if file.exists()]

    def _regions_of(self, file: Path) -> Path:
        return file.with_name(file.name.replace("predictions", "regions")).with_suffix(".jsonl")

    def _guard(self) -> FileLock:
        return FileLock(self.folder / ".predictions.json.lock")

    def _hold(self, name: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWriteError(self.folder, error) from error
        try:
            self._held.enter_context(FileLock(self.folder / f".{name}.lock", timeout=PATIENCE))
        except Timeout as error:
            raise KanoclipError(
                f"Another command is predicting into {self.folder}. Wait for it, choose another --output, or share the "
                f"images with --shard I/N."
            ) from error


def rows_of(file: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Yield where each row of a csv of ours begins and ends, in bytes, and its cells; up to one that is not whole.

    Raises:
        KanoclipError: If the file has other columns.
    """
    end, line = 0, b""

    def lines() -> Iterator[str]:
        nonlocal end, line
        with open(file, "rb") as source:
            for line in source:
                end += len(line)
                yield line.decode("utf-8", "surrogateescape")

    begin, width, reader = 0, 0, csv.reader(lines(), strict=True)
    with suppress(csv.Error):  # a quote that is not closed
        for cells in reader:
            width = width or len(cells)
            if begin == 0 and line.endswith(b"\n") and tuple(cells) not in (COLUMNS, NAMING):
                raise KanoclipError(f"{file} is of another version of kanoclip, or none of its csv. Move it away.")
            if len(cells) != width or not line.endswith(b"\n"):  # an editor may have changed all line ends
                return
            if begin > 0:
                yield begin, end, cells
            begin = end


def _repair(file: Path) -> None:
    """Cut off a row that is not whole, and what follows it."""
    with open(file, "rb") as source:
        first = source.readline().decode("utf-8", "surrogateescape")
    whole = first in (csv_text([COLUMNS]), csv_text([NAMING]))
    end = max((end for _, end, _ in rows_of(file)), default=len(first) if whole else 0)
    size = file.stat().st_size
    if size != end:
        with open(file, "r+b") as cut:
            cut.truncate(end)


def _join(files: Sequence[Path], paths: Sequence[str], target: Path, columns: tuple[str, ...]) -> None:
    """Write the rows of several csv files into one, once each, in the order of the data, and delete the others.

    Rows of images that are gone come first. Of each row its place alone is in memory.
    """
    places = {path: place for place, path in enumerate(paths)}
    files = [file for file in files if file.exists()]
    gone: dict[str, tuple[int, int, int]] = {}
    source, begins, ends = (array(kind, [0]) * len(paths) for kind in "iqq")
    for number, file in enumerate(files, 1):  # 0: there is no row
        for begin, end, cells in rows_of(file):
            place = places.get(path := true_text(cells[0]))
            if place is None:
                gone[path] = number, begin, end
            else:
                source[place], begins[place], ends[place] = number, begin, end

    def pieces() -> Iterator[bytes]:
        yield csv_text([columns]).encode()
        with ExitStack() as held:
            opened = [held.enter_context(open(file, "rb")) for file in files]
            for number, begin, end in chain(gone.values(), zip(source, begins, ends, strict=True)):
                if number:
                    opened[number - 1].seek(begin)
                    yield opened[number - 1].read(end - begin)

    write_bytes(target, pieces())
    for file in files:
        if file != target:
            file.unlink()
