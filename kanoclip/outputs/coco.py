"""Regions on disk: a row for each photo in regions.jsonl, and annotations.json, which labelling tools open (COCO)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip import __version__
from kanoclip.data.files import append_text, plain, write_bytes
from kanoclip.outputs.finding import Finding
from kanoclip.outputs.regions import Region

ROWS, ANNOTATIONS = "regions.jsonl", "annotations.json"
MANY = 32  # corners: a border that has more is simplified
TOLERANCE = 1.5  # pixels between a border and what it is simplified


def append_regions(file: Path, found: Iterable[Finding]) -> None:
    """Append a row for each photo, also for one without regions: as JSON, one a line.

    A row has the photo's ``path``, ``category``, ``height`` and ``width`` (pixels), ``image_score``, ``decision``,
    ``margin`` and ``regions``: of each ``box`` (left, top, width, height), ``area`` (pixels), ``share``, ``peak``,
    ``mean``, ``contour`` and ``holes``, as in ``outputs.regions.Region``, but a border of more than 32 corners is
    simplified within 1.5 pixels. A row that was cut short by the end of a process spoils no other.

    Raises:
        CannotWriteError: If it cannot be written; names the file.
    """
    rows = [json.dumps(plain(_row(one)), ensure_ascii=False) for one in found]
    text = "".join(f"\n{row}" for row in rows) + "\n"  # the first may follow one that was cut short
    append_text(file, text.encode("utf-8", "backslashreplace").decode())


def write_regions(folder: Path, parts: Sequence[Path], places: Mapping[str, int]) -> None:
    """Bring the rows of one or several files into the data's order, each photo once, and write the COCO annotations.

    Rows are read from disk and written one by one. The parts are deleted, but for ``regions.jsonl`` itself.

    Args:
        folder: Where ``regions.jsonl`` and ``annotations.json`` go.
        parts: Files of ``append_regions``; one that is not there has no rows.
        places: Path -> place in the data. Photos that are not in it come last.

    Raises:
        CannotWriteError: If one of the two cannot be written.
    """
    rows = folder / ROWS
    parts = [part for part in parts if part.exists()]
    where = {row["path"]: (number, start) for number, part in enumerate(parts) for start, row in _read(part)}
    with ExitStack() as opened:
        files = [opened.enter_context(open(part, "rb")) for part in parts]

        def line(path: str) -> bytes:
            number, start = where[path]
            files[number].seek(start)
            return files[number].readline()

        write_bytes(rows, map(line, sorted(where, key=lambda path: places.get(path, len(places)))))
    for part in parts:
        if part != rows:
            part.unlink()
    write_bytes(folder / ANNOTATIONS, _annotations(rows))


def polygon(contour: Sequence[Sequence[int]], holes: Sequence[Sequence[Sequence[int]]] = ()) -> list[int]:
    """Return a region as one polygon ``x, y, x, y, ...``, as COCO has it.

    COCO knows no holes: the border runs to each one and back over the same line, which encloses nothing.
    """
    border = [tuple(point) for point in contour]
    for hole in holes:
        start = min(range(len(border)), key=lambda i: abs(border[i][0] - hole[0][0]) + abs(border[i][1] - hole[0][1]))
        border[start : start + 1] = [border[start], *(tuple(point) for point in hole), tuple(hole[0]), border[start]]
    return [number for point in border for number in point]


def _row(found: Finding) -> dict[str, Any]:
    height, width = found.anomaly_map.shape
    row = {"path": found.path, "category": found.category, "height": height, "width": width}
    row |= {"image_score": round(found.score, 6), "decision": found.decision}
    row |= {"margin": None if found.margin is None else round(found.margin, 6)}
    return row | {"regions": [_of(region) for region in found.regions]}


def _of(region: Region) -> dict[str, Any]:
    scores = {"share": region.share, "peak": region.peak, "mean": region.mean}
    return {
        "box": region.box,
        "area": region.area,
        **{name: float(f"{value:.6g}") for name, value in scores.items()},
        "contour": _simple(region.contour),
        "holes": [_simple(hole) for hole in region.holes],
    }


def _simple(border: NDArray[np.int32]) -> NDArray[Any]:
    return border if len(border) <= MANY else cv2.approxPolyDP(border[:, None], TOLERANCE, True)[:, 0]


def _read(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield where each row starts, and the row; what was cut short is no row."""
    start = 0
    with open(file, "rb") as source:
        for line in source:
            try:
                row = json.loads(line)
            except ValueError:  # cut short, or an empty line
                row = None
            if isinstance(row, dict) and line.endswith(b"\n"):
                yield start, row
            start += len(line)


def _annotations(rows: Path) -> Iterator[bytes]:
    """Yield the COCO file in pieces, reading the rows three times instead of keeping them."""
    folder: list[str] | None = None  # that all photos share
    for _, row in _read(rows):
        parts = _parts(row)[:-1]
        pairs = zip(parts if folder is None else folder, parts, strict=False)
        folder = [part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    shared = len(folder or ())

    def images() -> Iterator[dict[str, Any]]:
        for number, (_, row) in enumerate(_read(rows), 1):
            kept = {name: row[name] for name in ("width", "height", "category", "image_score", "decision")}
            yield {"id": number, "file_name": "/".join(_parts(row)[shared:]), **kept}

    def regions() -> Iterator[dict[str, Any]]:
        count = 0
        for number, (_, row) in enumerate(_read(rows), 1):
            for region in row["regions"]:
                count += 1
                drawn = {"bbox": region["box"], "segmentation": [polygon(region["contour"], region["holes"])]}
                what = {"id": count, "image_id": number, "category_id": 1, "iscrowd": 0, "area": region["area"]}
                yield what | drawn | {"score": region["peak"]}

    info = {"description": f"Regions found by kanoclip {__version__}", "folder": "/".join(folder or ())}
    categories = [{"id": 1, "name": "anomaly", "supercategory": ""}]
    head = json.dumps({"info": info, "licenses": [], "categories": categories}).removesuffix("}")
    yield f'{head},\n"images": ['.encode()
    yield from _list(images())
    yield b'],\n"annotations": ['
    yield from _list(regions())
    yield b"]}\n"


def _parts(row: dict[str, Any]) -> list[str]:
    return PurePath(row["path"]).as_posix().split("/")


def _list(items: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for number, item in enumerate(items):
        text = json.dumps(item, ensure_ascii=False).encode("utf-8", "backslashreplace")
        yield (b",\n" if number else b"\n") + text
