"""What a prediction leaves behind: for each image its map, an overlay and a row of predictions.csv."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from itertools import chain, count, takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray

from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.files import append_text, unit_to_uint16, write_bytes, write_image, write_json
from kanoclip.data.images import read_image
from kanoclip.data.loading import gather_unreadable
from kanoclip.outputs.examples import photo
from kanoclip.outputs.finding import finding
from kanoclip.outputs.names import csv_text, file_name, read_csv
from kanoclip.outputs.overlay import LIKELIER, colour_note, marked
from kanoclip.outputs.record import run_folder
from kanoclip.outputs.results import about_run, tell_unwritten
from kanoclip.outputs.tables import tell
from kanoclip.ranks import gather
from kanoclip.types import Batch, KanoclipError, Scores, counted

COLUMNS = ("path", "category", "image_score", "map_max", "map", "overlay")
AT_ONCE = 48_000_000
"""Pixels of the pictures that are written at once, at most 4; a larger one is written alone. Each takes about 20 bytes
a pixel: a gigabyte for all, and as much more as the largest picture needs that is above this."""


class PredictionWriter(Callback):
    """Writes each image's anomaly map and overlay at the size of its file, and one csv of all scores.

    Below ``maps/`` and ``overlays/`` the folders of the input are kept, from the one that all images share. The
    overlay's colour begins at 0.5, where "anomalous" becomes likelier than "normal", and is full at 1. A batch is
    written while the next one is scored, and listed when all of it is on disk; an interruption waits for that, and so
    loses nothing that was done. An overlay that cannot be written is told and left out of its row. Of several processes
    each writes the files of its images and a csv of its own, predictions-0.csv and so on, which become one at the end.
    predictions.json, which comes last, says of what run the scores are.

    Args:
        map_format: "png" for 16 bit grey, 65535 = 1, or "npy" for float32.
        overlays: Whether to write overlays.

    Attributes:
        unwritten: Each overlay that could not be written, and why; of several processes the first one has all.

    Raises:
        KanoclipError: If ``map_format`` is neither, or a score is NaN or infinite.
        CannotWriteError: If a map or the csv cannot be written; what was finished before is listed.
    """

    def __init__(self, map_format: str = "png", overlays: bool = True) -> None:
        if map_format not in ("png", "npy"):
            raise KanoclipError(f"map_format is {map_format!r}, expected png or npy.")
        self.map_format = map_format
        self.overlays = overlays
        self._folder = self._file = Path()
        self._root = PurePosixPath()
        self._names: dict[str, str] = {}  # in the order of the data
        self._taken: set[str] = set()
        self._count = self._coloured = 0  # images done, and those among them with some colour
        self._highest = 0.0  # score of a pixel
        self._batch: Future[None] | None = None  # what is being written
        self.unwritten: list[tuple[str, str]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the folder that all images share, name their files, and start the csv."""
        self._folder = run_folder(trainer)
        part = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self._file = self._folder / f"predictions{part}.csv"
        data: Any = getattr(trainer, "datamodule", None)
        paths = [sample.image for sample in data.part("predict")] if hasattr(data, "part") else []
        self._root = _common([_place(path).parent for path in paths])
        self._names, self._taken, self._batch, self.unwritten = {}, set(), None, []
        self._count = self._coloured = 0
        self._highest = 0.0
        self._pool = ThreadPoolExecutor(5)  # encoding releases Python's lock; the fifth lists what four have written
        for path in paths:
            self._name(path)
        self._file.unlink(missing_ok=True)
        append_text(self._file, csv_text([COLUMNS]))

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop when told to end (SIGTERM), which Lightning looks for in other stages only."""
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Finish the batch before, and begin to write the files of this one."""
        self._finish()
        self._batch = self._pool.submit(self._write_batch, batch, outputs, [self._name(path) for path in batch.path])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish, bring together what several processes did, and say where everything is."""
        self._finish()
        self._pool.shutdown()
        self._count, self._coloured = (sum(gather(number)) for number in (self._count, self._coloured))
        self._highest = max(gather(self._highest))
        self.unwritten = tell_unwritten(self.unwritten, "the scores and maps are complete")
        if trainer.world_size > 1:
            self._join(trainer)
        if trainer.is_global_zero:
            about = about_run(trainer, pl_module) | {"images": self._count}
            write_json(self._folder / "predictions.json", about)
            folders = "maps/, overlays/" if self.overlays else "maps/"
            tell(f"{counted(self._count, 'image')}: {self._folder}/predictions.csv, {folders}")
            if self.overlays and (said := colour_note(self._coloured, self._count, self._highest, calibrated=False)):
                tell(said)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish, and say what is there, when the run stops early."""
        if trainer.predicting:
            with suppress(Exception):  # the first error is the one to tell
                self._finish()
            if self._count:
                tell(f"Stopped; {counted(self._count, 'image is', 'images are')} done: {self._file}")

    def _finish(self) -> None:
        """Wait until the batch is written and listed; raises what went wrong."""
        if self._batch is not None:
            self._batch.result()

    def _write_batch(self, batch: Batch, scores: Scores, names: list[str]) -> None:
        """Write the files of a batch, then its rows; in a thread, where no signal comes between file and row."""
        rows: dict[int, tuple[Any, ...]] = {}
        at_once = max(1, min(4, AT_ONCE // int(batch.size.prod(1).max())))

        def write(first: int) -> None:
            for i in range(first, len(names), at_once):
                rows[i] = self._write(batch, scores, i, names[i])

        writing = [self._pool.submit(write, first) for first in range(at_once)]
        failures = [error for done in writing if (error := done.exception())]
        if rows:  # a full disk in the middle of a batch: what is written is also listed
            append_text(self._file, csv_text(rows[i] for i in sorted(rows)))
        self._count += len(rows)
        highest = [float(row[COLUMNS.index("map_max")]) for row in rows.values()]
        self._coloured += sum(score > LIKELIER[0] for score in highest)
        self._highest = max([self._highest, *highest])
        if failures:
            raise failures[0]

    def _join(self, trainer: Trainer) -> None:
        """Make one csv, and one list of unreadable files, in the order of the data; both are the first process's."""
        places = {path: place for place, path in enumerate(self._names)}
        gather_unreadable(getattr(getattr(trainer, "datamodule", None), "unreadable", []), self._names)
        files = gather(self._file)
        if trainer.is_global_zero:
            rows = [list(row.values()) for file in files for row in read_csv(file)]
            rows.sort(key=lambda row: places.get(row[0], 0))
            text = csv_text([COLUMNS, *rows]).encode("utf-8", errors="surrogateescape")
            write_bytes(self._folder / "predictions.csv", text)
            for file in files:
                file.unlink()

    def _name(self, path: str) -> str:
        """Return where an image's files go below ``maps/`` and ``overlays/``, without suffix; unique."""
        if path in self._names:
            return self._names[path]
        place = _place(path)
        relative = place.relative_to(self._root if place.is_relative_to(self._root) else place.anchor)
        # a.jpg beside a.png, and some file systems take A for a
        more = (relative.name.replace(".", "_") + "_" * number for number in count())
        for one in chain([relative.stem], more):
            last = file_name(one, f".{self.map_format}").removesuffix(f".{self.map_format}")
            name = str(relative.with_name(last))
            if name.casefold() not in self._taken:
                break
        self._taken.add(name.casefold())
        self._names[path] = name
        return name

    def _write(self, batch: Batch, scores: Scores, i: int, name: str) -> tuple[Any, ...]:
        height, width = batch.size[i].tolist()
        heat, score = scores.anomaly_map[i].float().cpu().numpy(), float(scores.image_score[i])
        found = finding(heat, score, (height, width), batch.path[i], batch.category[i])
        heat = found.anomaly_map
        map_file, overlay_file = f"maps/{name}.{self.map_format}", f"overlays/{name}.png"
        if self.map_format == "png":
            write_image(self._folder / map_file, unit_to_uint16(heat))
        else:
            write_bytes(self._folder / map_file, _npy(heat), durable=False)
        if not (self.overlays and self._write_overlay(overlay_file, batch, scores, i, heat)):
            overlay_file = ""
        return batch.path[i], batch.category[i], f"{score:.6f}", f"{heat.max():.6f}", map_file, overlay_file

    def _write_overlay(self, name: str, batch: Batch, scores: Scores, i: int, heat: NDArray[np.float32]) -> bool:
        try:
            picture = marked(_original(batch, i), heat, batch.path[i], float(scores.image_score[i]))
            write_image(self._folder / name, picture)
        except (OSError, cv2.error) as error:
            self.unwritten.append((name, str(error)))
            return False
        return True


def _place(path: str) -> PurePosixPath:
    """Return an absolute path without ``..``, also for a drawn image: ``surfaces://ring/1.png`` -> ``/ring/1.png``."""
    scheme, _, rest = path.partition("://")
    return PurePosixPath("/", rest) if rest else PurePosixPath("/", Path(os.path.abspath(scheme)).as_posix())


def _common(folders: list[PurePosixPath]) -> PurePosixPath:
    """Return the deepest folder that contains all; ``/`` of none."""
    levels = zip(*(folder.parts for folder in folders), strict=False)
    return PurePosixPath("/", *(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)))


def _original(batch: Batch, i: int) -> NDArray[np.uint8]:
    """Return the photo as it is in its file, or, where there is none, what the model saw, enlarged."""
    height, width = batch.size[i].tolist()
    try:
        image = read_image(batch.path[i])
        if image.shape[:2] == (height, width):
            return image
    except UnreadableImageError:  # drawn, or gone since
        pass
    enlarged: Any = cv2.resize(photo(batch.image[i]), (width, height), interpolation=cv2.INTER_CUBIC)
    return enlarged


def _npy(values: NDArray[np.float32]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()
