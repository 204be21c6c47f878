"""What a prediction leaves behind: for each image its map, an overlay and a row of predictions.csv."""

from __future__ import annotations

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from kanoclip.outputs.files import unit_to_uint16, write_bytes, write_image
from kanoclip.outputs.overlay import LIKELIER, overlay, photo
from kanoclip.outputs.record import run_folder
from kanoclip.types import Batch, Scores

COLUMNS = ("path", "category", "image_score", "map_max", "map", "overlay")


class PredictionWriter(Callback):
    """Writes each image's anomaly map and overlay at the size of its file, and one csv of all scores.

    Below ``maps/`` and ``overlays/`` the folders of the input are kept. The overlay's colour begins at 0.5, where
    "anomalous" becomes likelier than "normal", and is full at 1. Every batch is on disk before the next begins, so an
    interruption loses nothing that was done.

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
        paths = [Path(sample.image).parent for sample in data.part("predict")] if hasattr(data, "part") else []
        self._root = PurePosixPath(os.path.commonpath(paths)) if paths else PurePosixPath()
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
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda i: self._write(trainer, batch, scores, i, names[i]), range(len(names))))
        self._write_rows(trainer, rows, "a")
        self._count += len(rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where everything is."""
        print(f"{self._count} images: {run_folder(trainer)}/predictions.csv, maps/, overlays/")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what is there when the run stops early."""
        if trainer.predicting:
            print(f"Stopped; {self._count} images are done: {run_folder(trainer)}/predictions.csv")

    def _name(self, path: str) -> str:
        """Return where an image's files go below ``maps/`` and ``overlays/``, without suffix; unique."""
        place = PurePosixPath(Path(path).as_posix())
        relative = place.relative_to(self._root) if place.is_relative_to(self._root) else PurePosixPath(place.name)
        name = str(relative.with_suffix(""))
        if name in self._taken:  # a.jpg beside a.png
            name = str(relative).replace(".", "_")
        while name in self._taken:
            name += "_"
        self._taken.add(name)
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
            picture: Any = cv2.resize(photo(batch.image[i]), (width, height), interpolation=cv2.INTER_CUBIC)
            write_image(folder / overlay_file, overlay(picture, heat, None, *LIKELIER))
        score = float(scores.image_score[i])
        return batch.path[i], batch.category[i], f"{score:.6f}", f"{heat.max():.6f}", map_file, overlay_file

    def _write_rows(self, trainer: Trainer, rows: list[Any], mode: str) -> None:
        file = run_folder(trainer) / "predictions.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, mode, newline="", encoding="utf-8") as target:
            csv.writer(target).writerows(rows)


def _npy(values: NDArray[np.float32]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()
