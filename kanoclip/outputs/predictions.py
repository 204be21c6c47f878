"""What a prediction leaves behind: for each image its map, an overlay and a row of predictions.csv."""

from __future__ import annotations

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from kanoclip.data.images import UnreadableImageError, read_image
from kanoclip.outputs.files import unit_to_uint16, write_bytes, write_image
from kanoclip.outputs.overlay import LIKELIER, overlay, photo
from kanoclip.outputs.record import run_folder
from kanoclip.types import Batch, Scores

COLUMNS = ("path", "category", "image_score", "map_max", "map", "overlay")


class PredictionWriter(Callback):
    """Writes each image's anomaly map and overlay at the size of its file, and one csv of all scores.

    Below ``maps/`` and ``overlays/`` the folders of the input are kept, from the one that all images share. The
    overlay's colour begins at 0.5, where "anomalous" becomes likelier than "normal", and is full at 1. Every batch is
    on disk before the next begins, so an interruption loses nothing that was done.

    Args:
        map_format: "png" for 16 bit grey, 65535 = 1, or "npy" for float32.
        overlays: Whether to write overlays.

    Raises:
        ValueError: If ``map_format`` is neither.
    """

    def __init__(self, map_format: str = "png", overlays: bool = True) -> None:
        if map_format not in ("png", "npy"):
            raise ValueError(f"map_format is {map_format!r}, expected png or npy.")
        self.map_format = map_format
        self.overlays = overlays
        self._root = PurePosixPath()
        self._taken: set[str] = set()
        self._count = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the folder that all images share, and start the csv."""
        data: Any = getattr(trainer, "datamodule", None)
        paths = [sample.image for sample in data.part("predict")] if hasattr(data, "part") else []
        self._root = _common([_place(path).parent for path in paths])
        self._taken, self._count = set(), 0
        self._write_rows(trainer, [COLUMNS], "w")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the files of a batch, then its rows."""
        scores: Scores = outputs
        names = [self._name(path) for path in batch.path]
        with ThreadPoolExecutor(4) as pool:  # encoding releases Python's lock; leaving the block waits for all
            writing = [pool.submit(self._write, trainer, batch, scores, i, name) for i, name in enumerate(names)]
        rows = [done.result() for done in writing if done.exception() is None]
        self._write_rows(trainer, rows, "a")  # a full disk in the middle of a batch: what is written is also listed
        self._count += len(rows)
        for done in writing:
            done.result()  # raises what went wrong

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where everything is."""
        folders = "maps/, overlays/" if self.overlays else "maps/"
        print(f"{self._count} images: {run_folder(trainer)}/predictions.csv, {folders}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what is there when the run stops early."""
        if trainer.predicting:
            print(f"Stopped; {self._count} images are done: {run_folder(trainer)}/predictions.csv")

    def _name(self, path: str) -> str:
        """Return where an image's files go below ``maps/`` and ``overlays/``, without suffix; unique."""
        place = _place(path)
        relative = place.relative_to(self._root if place.is_relative_to(self._root) else place.anchor)
        name = str(relative.with_suffix(""))
        if name.casefold() in self._taken:  # a.jpg beside a.png; some file systems take A for a
            name = str(relative.with_name(relative.name.replace(".", "_")))
        while name.casefold() in self._taken:
            name += "_"
        self._taken.add(name.casefold())
        return name

    def _write(self, trainer: Trainer, batch: Batch, scores: Scores, i: int, name: str) -> tuple[Any, ...]:
        height, width = batch.size[i].tolist()
        heat = scores.anomaly_map[i].float().cpu().numpy()
        heat = np.clip(cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
        folder = run_folder(trainer)
        map_file, overlay_file = f"maps/{name}.{self.map_format}", f"overlays/{name}.png" if self.overlays else ""
        if self.map_format == "png":
            write_image(folder / map_file, unit_to_uint16(heat))
        else:
            write_bytes(folder / map_file, _npy(heat))
        if self.overlays:
            picture = _original(batch, i)
            write_image(folder / overlay_file, overlay(picture, heat, None, *LIKELIER))
        score = float(scores.image_score[i])
        return batch.path[i], batch.category[i], f"{score:.6f}", f"{heat.max():.6f}", map_file, overlay_file

    def _write_rows(self, trainer: Trainer, rows: list[Any], mode: str) -> None:
        file = run_folder(trainer) / "predictions.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be valid UTF-8. Once closed, the rows are safe from whatever ends this process.
        with open(file, mode, newline="", encoding="utf-8", errors="surrogateescape") as target:
            csv.writer(target).writerows(rows)


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
