"""What a prediction leaves behind: for each image its map, an overlay and a row of predictions.csv."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray

from kanoclip.data.digests import digest
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.files import CannotWriteError, append_text, unit_to_uint16, write_bytes, write_image
from kanoclip.data.images import read_image
from kanoclip.data.loading import gather_unreadable
from kanoclip.outputs.coco import ANNOTATIONS, ROWS, append_regions
from kanoclip.outputs.examples import photo
from kanoclip.outputs.finding import Finding, defect_cells, defects_of, finding
from kanoclip.outputs.identity import about_run, scoring
from kanoclip.outputs.names import csv_text
from kanoclip.outputs.overlay import colour_note, marked, scale_of
from kanoclip.outputs.places import Places
from kanoclip.outputs.record import run_folder, say
from kanoclip.outputs.results import tell_unwritten
from kanoclip.outputs.resuming import COLUMNS, NAMING, Listing, Shard
from kanoclip.outputs.tables import tell
from kanoclip.outputs.thresholds import Thresholds
from kanoclip.ranks import gather
from kanoclip.types import Batch, KanoclipError, Scores, counted

AT_ONCE = 48_000_000
"""Pixels of the pictures that are written at once, at most 4; a larger one is written alone. Each takes about 20 bytes
a pixel: a gigabyte for all, and as much more as the largest picture needs that is above this."""
MANY = 1000
"""Images from which on it is told how much their files will take."""


class PredictionWriter(Callback):
    """Writes each image's anomaly map and overlay at the size of its file, and one csv of all scores.

    Below ``maps/`` and ``overlays/`` the folders of the input are kept, see ``Places``. The overlay's colour begins at
    0.5, where "anomalous" becomes likelier than "normal", and is full at 1. A batch is written while the next one is
    scored, and listed when all of it is on disk; an interruption waits for that, and so loses nothing that was done. An
    overlay that cannot be written is told and left out of its row, or stops a run that can go on. Of several processes
    each writes the files of its images and a csv of its own, which become one at the end; see ``Listing``.
    predictions.json says of what run the scores are, and whether it is complete.

    Args:
        map_format: "png" for 16 bit grey, 65535 = 1, or "npy" for float32.
        overlays: Whether to write overlays.
        maps: Whether to write maps.
        thresholds: What decides between good and defective, and where regions end, which go to regions.jsonl and
            annotations.json; None: the rows have no decision, and there are no regions.
        resume: Go on with the rows that the folder has, if they are of the same run, and score only images without
            one. The data must be an ``AnomalyDataModule``.
        shard: Score this share of the images alone; the last shard joins the rows. With ``resume``.
        sort: Whether ``resume`` ends with all rows in the order of the data; else each is where it was appended.

    Attributes:
        unwritten: Each overlay that could not be written, and why; of several processes the first one has all.
        waiting: Images that are not to be scored yet. With ``resume``.

    Raises:
        KanoclipError: If ``map_format`` is neither, a score is NaN or infinite, the threshold is for other scores, or
            the folder has rows of another run.
        CannotWriteError: If a map or the csv cannot be written; what was finished before is listed.
    """

    def __init__(
        self,
        map_format: str = "png",
        overlays: bool = True,
        maps: bool = True,
        thresholds: Thresholds | None = None,
        resume: bool = False,
        shard: Shard = Shard(),  # noqa: B008  # a tuple
        sort: bool = True,
    ) -> None:
        if map_format not in ("png", "npy"):
            raise KanoclipError(f"map_format is {map_format!r}, expected png or npy.")
        self.map_format, self.maps, self.overlays = map_format, maps, overlays
        self.thresholds, self.resume, self.shard, self.sort = thresholds, resume, shard, sort
        self._folder = Path()
        self._paths: list[str] = []  # in the order of the data
        self._left = self._count = self._coloured = 0  # images to do and done, and those among them with some colour
        self._highest = 0.0  # score of a pixel
        self._batch: Future[None] | None = None  # what is being written
        self.unwritten: list[tuple[str, str]] = []
        self.waiting: Collection[str] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read what is done already, leave it out, and name the files of all other images."""
        if stage != "predict":
            return
        data: Any = getattr(trainer, "datamodule", None)
        self._folder, self._batch, self.unwritten = run_folder(trainer), None, []
        self._names: list[str] = getattr(pl_module, "defect_names", [])
        self._listing = Listing(self._folder, self.shard, self.resume, NAMING if self._names else COLUMNS)
        done = self._listing.open()
        self._paths = [sample.image for sample in data.part("predict")] if hasattr(data, "part") else []
        mine = self._paths[self.shard.number - 1 :: self.shard.of]
        if self.resume:
            data.leave_out = {*done, *self.waiting, *(set(self._paths) - set(mine) if self.shard.of > 1 else ())}
        self._left = sum(path not in done for path in mine)
        self._count, self._coloured, self._highest = 0, 0, 0.0
        self._places = Places(self._paths if self.maps or self.overlays else [], f".{self.map_format}", done)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with what is there already, and start the csv."""
        about = about_run(trainer, pl_module)
        if self.thresholds is not None:
            self.thresholds.check(scoring(about))
        self._task = self._describe(about, getattr(trainer, "datamodule", None))
        self._listing.begin(about, self._task)
        self._pool = ThreadPoolExecutor(5)  # encoding releases Python's lock; the fifth lists what four have written

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
        self._batch = self._pool.submit(self._write_batch, batch, outputs, [self._places[path] for path in batch.path])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish, bring together what several processes did, and say where everything is."""
        self._finish()
        self._pool.shutdown()
        self._count, self._coloured = (sum(gather(number)) for number in (self._count, self._coloured))
        self._highest = max(gather(self._highest))
        self.unwritten = tell_unwritten(self.unwritten, "the scores and maps are complete")
        unreadable = gather_unreadable(getattr(getattr(trainer, "datamodule", None), "unreadable", []), self._paths)
        if trainer.is_global_zero:
            left = self._left - self._count - len(unreadable)
            about = about_run(trainer, pl_module)
            decisions, waiting = self._listing.finish(
                about, self._task, self._paths, left, self.sort, self.thresholds is not None
            )
            self._tell_done(decisions, waiting)
        self._listing.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish, and say what is there, when the run stops early."""
        if trainer.predicting:
            with suppress(Exception):  # the first error is the one to tell
                self._finish()
            if self._count:
                more = " To go on: the same command." if self.resume else ""
                file = self._listing.file
                tell(f"Stopped; {counted(self._count, 'image is', 'images are')} done: {file}{more}")
            self._listing.close()

    def _describe(self, about: dict[str, Any], data: Any) -> dict[str, Any]:
        """Return all that must be the same when a stopped run goes on, beside the images."""
        limits = {name: self.thresholds.entry(name)._asdict() for name in data.categories} if self.thresholds else None
        # the root as it was given, by which rows name their images
        options = {"root": f"{data.place}", **data.fit_options()} if hasattr(data, "fit_options") else {}
        return {
            "scoring": scoring(about),
            "data": {"identity": about["data"], **options},
            "map_format": self.map_format,
            "maps": self.maps,
            "overlays": self.overlays,
            "threshold": limits,
            "shards": self.shard.of,
            # shards must agree on which image is whose
            "images": digest(*self._paths) if self.shard.of > 1 else None,
        }

    def _tell_done(self, decisions: Mapping[str, int], waiting: list[int]) -> None:
        decided, images = self.thresholds is not None, sum(decisions.values())
        kinds = {
            "maps/": self.maps,
            "overlays/": self.overlays,
            ROWS: decided and not waiting,
            ANNOTATIONS: decided and self.sort and not waiting,
        }
        more = [name for name, there in kinds.items() if there]
        now = f", {self._count} of them now" if self._count != images else ""
        file = self._listing.whole if waiting else self._listing.joined
        parts = ", ".join(f"{number} {decision}" for decision, number in sorted(decisions.items()))
        tell(f"{counted(images, 'image')}{now}{f' ({parts})' * decided}: {', '.join([str(file), *more])}")
        if waiting and self.shard.of > 1:
            tell(f"predictions.csv is made when all {self.shard.of} shards are complete; missing: {waiting}")
        counts = self._coloured, self._count, self._highest
        if self.overlays and (said := colour_note(*counts, calibrated=self.thresholds is not None)):
            tell(said)

    def _finish(self) -> None:
        """Wait until the batch is written and listed; raises what went wrong."""
        if self._batch is not None:
            self._batch.result()

    def _write_batch(self, batch: Batch, scores: Scores, names: list[str]) -> None:
        """Write the files of a batch, then its rows; in a thread, where no signal comes between file and row."""
        done: dict[int, tuple[tuple[Any, ...], Finding]] = {}
        at_once = max(1, min(4, AT_ONCE // int(batch.size.prod(1).max())))

        def write(first: int) -> None:
            for i in range(first, len(names), at_once):
                done[i] = self._write(batch, scores, i, names[i])

        writing = [self._pool.submit(write, first) for first in range(at_once)]
        failures = [error for one in writing if (error := one.exception())]
        rows, found = [done[i][0] for i in sorted(done)], [done[i][1] for i in sorted(done)]
        if rows:  # a full disk in the middle of a batch: what is written is also listed
            if self.thresholds:
                append_regions(self._listing.regions, found)
            append_text(self._listing.file, csv_text(rows))
        if not self._count and self._left > MANY and not failures and not getattr(rank_zero_only, "rank", 0):
            self._tell_size([name for row in rows for name in row[4:6] if name], len(rows))
        self._count += len(rows)
        highest = [float(row[COLUMNS.index("map_max")]) for row in rows]
        scales = [scale_of(one.threshold) for one in found]
        self._coloured += sum(
            bool(one.regions) if scale.calibrated else score > scale.low
            for one, scale, score in zip(found, scales, highest, strict=True)
        )
        self._highest = max([self._highest, *highest])
        if failures:
            raise failures[0]

    def _tell_size(self, written: list[str], images: int) -> None:
        """Say what the files of all images will take, by those of the first batch."""
        needed = sum((self._folder / name).stat().st_size for name in written) / images * self._left
        free = shutil.disk_usage(self._folder).free
        if written:
            least = "" if needed < free else " THAT IS TOO LITTLE."
            say(
                f"maps and overlays of {self._left} images will take about {needed / 1e9:.2g} GB; {free / 1e9:.2g} GB "
                f"are free.{least} Rows alone: --maps false --overlays false"
            )

    def _write(self, batch: Batch, scores: Scores, i: int, name: str) -> tuple[tuple[Any, ...], Finding]:
        height, width = batch.size[i].tolist()
        heat, score = scores.anomaly_map[i].float().cpu().numpy(), float(scores.image_score[i])
        path, category, kinds = batch.path[i], batch.category[i], defects_of(self._names, scores, i)
        threshold = self.thresholds.entry(category) if self.thresholds else None
        found = finding(heat, score, (height, width), path, category, threshold, defects=kinds)
        heat, map_file, overlay_file = found.anomaly_map, "", ""
        if self.maps:
            map_file = f"maps/{name}.{self.map_format}"
            if self.map_format == "png":
                write_image(self._folder / map_file, unit_to_uint16(heat))
            else:
                buffer = BytesIO()
                np.save(buffer, heat, allow_pickle=False)
                write_bytes(self._folder / map_file, buffer.getvalue(), durable=False)
        if self.overlays and self._write_overlay(f"overlays/{name}.png", batch, i, found):
            overlay_file = f"overlays/{name}.png"
        margin = "" if found.margin is None else round(found.margin, 6)  # as text, -1 would look like a formula
        scored = (f"{score:.6f}", f"{heat.max():.6f}")
        named = defect_cells(self._names, found.defect, found.defect_probability)
        row = path, category, *scored, map_file, overlay_file, found.decision or "", margin, *named
        # of the map its shape alone is wanted from here on, and a batch of them may be gigabytes
        return row, replace(found, anomaly_map=np.broadcast_to(np.float32(0), heat.shape))

    def _write_overlay(self, name: str, batch: Batch, i: int, found: Finding) -> bool:
        try:
            picture = marked(_original(batch, i), found.anomaly_map, found.path, found.score, found.threshold)
            write_image(self._folder / name, picture)
        except (OSError, cv2.error) as error:
            if self.resume and isinstance(error, CannotWriteError):  # what goes on later can write it then
                raise
            self.unwritten.append((name, str(error)))
            return False
        return True


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
