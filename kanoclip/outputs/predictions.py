"""What a prediction leaves behind: for each image its map, an overlay and a row of predictions.csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO, StringIO
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray

from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.files import append_text, unit_to_uint16, write_bytes, write_image
from kanoclip.data.images import read_image
from kanoclip.data.loading import gather_unreadable
from kanoclip.outputs.overlay import LIKELIER, overlay, photo
from kanoclip.outputs.record import run_folder
from kanoclip.ranks import gather
from kanoclip.types import Batch, KanoclipError, Scores, counted

COLUMNS = ("path", "category", "image_score", "map_max", "map", "overlay")


class PredictionWriter(Callback):
    """Writes each image's anomaly map and overlay at the size of its file, and one csv of all scores.

    Below ``maps/`` and ``overlays/`` the folders of the input are kept, from the one that all images share. The
    overlay's colour begins at 0.5, where "anomalous" becomes likelier than "normal", and is full at 1. A batch is
    written while the next one is scored, and listed when all of it is on disk; an interruption waits for that, and so
    loses nothing that was done. Of several processes each writes the files of its images and a csv of its own,
    predictions-0.csv and so on, which become one at the end.

    Args:
        map_format: "png" for 16 bit grey, 65535 = 1, or "npy" for float32.
        overlays: Whether to write overlays.

    Raises:
        KanoclipError: If ``map_format`` is neither, or a score is NaN or infinite.
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
        self._writing: list[Future[tuple[Any, ...]]] = []  # the images of one batch

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the folder that all images share, name their files, and start the csv."""
        self._folder = run_folder(trainer)
        part = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self._file = self._folder / f"predictions{part}.csv"
        data: Any = getattr(trainer, "datamodule", None)
        paths = [sample.image for sample in data.part("predict")] if hasattr(data, "part") else []
        self._root = _common([_place(path).parent for path in paths])
        self._names, self._taken, self._writing = {}, set(), []
        self._count = self._coloured = 0
        self._pool = ThreadPoolExecutor(4)  # encoding releases Python's lock
        for path in paths:
            self._name(path)
        self._file.unlink(missing_ok=True)
        append_text(self._file, _csv([COLUMNS]))

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
        scores: Scores = outputs
        names = [self._name(path) for path in batch.path]
        self._writing = [self._pool.submit(self._write, batch, scores, i, name) for i, name in enumerate(names)]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish, bring together what several processes did, and say where everything is."""
        self._finish()
        self._pool.shutdown()
        self._count, self._coloured = (sum(gather(number)) for number in (self._count, self._coloured))
        if trainer.world_size > 1:
            self._join(trainer)
        if trainer.is_global_zero:
            folders = "maps/, overlays/" if self.overlays else "maps/"
            print(f"{counted(self._count, 'image')}: {self._folder}/predictions.csv, {folders}")
            if self.overlays and self._count and not self._coloured:
                begin = f"colour begins at {LIKELIER[0]:g}"
                print(f"No overlay is coloured: {begin} and no map reaches it. The values are in maps/ and in the csv.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish, and say what is there, when the run stops early."""
        if trainer.predicting:
            with suppress(Exception):  # the first error is the one to tell
                self._finish()
            if self._count:
                print(f"Stopped; {counted(self._count, 'image is', 'images are')} done: {self._file}")

    def _finish(self) -> None:
        """Wait for the files of a batch, then write its rows."""
        rows = [done.result() for done in self._writing if done.exception() is None]
        writing, self._writing = self._writing, []
        if rows:
            append_text(self._file, _csv(rows))  # a full disk in the middle of a batch: what is written is also listed
        self._count += len(rows)
        self._coloured += sum(float(row[COLUMNS.index("map_max")]) > LIKELIER[0] for row in rows)
        for done in writing:
            done.result()  # raises what went wrong

    def _join(self, trainer: Trainer) -> None:
        """Make one csv, and one list of unreadable files, in the order of the data; both are the first process's."""
        places = {path: place for place, path in enumerate(self._names)}
        gather_unreadable(getattr(getattr(trainer, "datamodule", None), "unreadable", []), self._names)
        files = gather(self._file)
        if trainer.is_global_zero:
            rows = [row for file in files for row in _rows(file)[1:]]
            rows.sort(key=lambda row: places.get(row[0], 0))
            text = _csv([COLUMNS, *rows]).encode("utf-8", errors="surrogateescape")
            write_bytes(self._folder / "predictions.csv", text)
            for file in files:
                file.unlink()

    def _name(self, path: str) -> str:
        """Return where an image's files go below ``maps/`` and ``overlays/``, without suffix; unique."""
        if path in self._names:
            return self._names[path]
        place = _place(path)
        relative = place.relative_to(self._root if place.is_relative_to(self._root) else place.anchor)
        name = str(relative.with_suffix(""))
        if name.casefold() in self._taken:  # a.jpg beside a.png; some file systems take A for a
            name = str(relative.with_name(relative.name.replace(".", "_")))
        while name.casefold() in self._taken:
            name += "_"
        self._taken.add(name.casefold())
        self._names[path] = name
        return name

    def _write(self, batch: Batch, scores: Scores, i: int, name: str) -> tuple[Any, ...]:
        height, width = batch.size[i].tolist()
        heat, score = scores.anomaly_map[i].float().cpu().numpy(), float(scores.image_score[i])
        if not (np.isfinite(heat).all() and np.isfinite(score)):
            raise KanoclipError(
                f"The scores of {batch.path[i]} are NaN or infinite. The model overflowed: use --trainer.precision "
                f"32-true, or look for NaN in its weights."
            )
        heat = np.clip(cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
        folder = self._folder
        map_file, overlay_file = f"maps/{name}.{self.map_format}", f"overlays/{name}.png" if self.overlays else ""
        if self.map_format == "png":
            write_image(folder / map_file, unit_to_uint16(heat))
        else:
            write_bytes(folder / map_file, _npy(heat))
        if self.overlays:
            picture = _original(batch, i)
            write_image(folder / overlay_file, overlay(picture, heat, None, *LIKELIER))
        return batch.path[i], batch.category[i], f"{score:.6f}", f"{heat.max():.6f}", map_file, overlay_file


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _rows(file: Path) -> list[list[str]]:
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as source:
        return list(csv.reader(source))


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
