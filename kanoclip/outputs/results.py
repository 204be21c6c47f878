"""What a test leaves behind: a table, results.json, results.csv and a few overlays; of a validation the table."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from kanoclip import __version__
from kanoclip.data.files import plain, sha256, write_image, write_json, write_text
from kanoclip.models.checkpoint import FREE, HEADS, backbone_of, settings, zero_shot
from kanoclip.outputs.overlay import Example, ScoreRange, example, panel
from kanoclip.outputs.record import run_folder
from kanoclip.outputs.sheet import choose
from kanoclip.outputs.tables import results_csv, results_table, table_text
from kanoclip.ranks import gather
from kanoclip.types import Batch, Scores

LIBRARIES = ("torch", "lightning", "open_clip_torch", "torchmetrics", "albumentations")
ZERO_SHOT = {
    True: "zero-shot",
    False: "NOT zero-shot",
    None: "zero-shot or not is unknown: which images it was fitted on is not known",
}
RESULTS_VERSION = 2
"""Raised when a change of the code moves numbers; a test with golden results fails until it is."""


def identity(report: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of all that the numbers of a test depend on, and of nothing else.

    That is the model and its weights (the checkpoint's content, or without one the backbone's), its heads and score,
    the precision, the content of the samples and how their pixels are read, how many were tested, and
    ``RESULTS_VERSION``; not paths, the number of workers or the device.
    """
    checkpoint = report["checkpoint"]
    scored_with = {k: v for k, v in report["settings"].items() if k.partition(".")[0] in (*HEADS, *FREE)}
    fields = [
        report["model"], checkpoint["sha256"] if checkpoint else report["backbone"], report["components"], scored_with,
        report["precision"], report["images"], report["samples"], report["pixels"], report["results_version"],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


class ResultsWriter(Callback):
    """Prints the metrics of a test and writes them, with all that is needed to get the same numbers again.

    Those of ``validate`` are printed alone; in a fit they are in its log.

    Args:
        overlays: How many panels to write, spread over categories, labels and kinds of defect; 0 for none.
    """

    def __init__(self, overlays: int = 16) -> None:
        self.overlays = overlays
        self._start = 0.0
        self._seconds = 0.0
        self._images = 0
        self._folder = Path()
        self._range = ScoreRange()
        self._chosen: dict[str, int] = {}
        self._examples: dict[int, Example] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: one trainer may test several sets. Choose the images to show, whatever they will score."""
        self._images, self._examples, self._folder = 0, {}, run_folder(trainer)
        data: Any = getattr(trainer, "datamodule", None)
        samples = data.part("test") if hasattr(data, "part") else []
        batch_size = getattr(trainer.test_dataloaders, "batch_size", None) or 1
        reached = gather(trainer.num_test_batches[0])[0] * batch_size * trainer.world_size  # none has more batches
        samples = samples[: int(min(reached, len(samples)))]
        self._chosen = {path: turn for turn, path in enumerate(choose(samples)[: self.overlays])}
        self._range = ScoreRange(len(samples) or int(min(reached, sys.maxsize)))

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock with the first batch: what an image takes does not depend on how workers are started."""
        if batch_idx == 0:
            self._start = time.monotonic()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count, and keep the images to show; of data that cannot say what will come, the first ones of one process."""
        scores: Scores = outputs
        self._images += len(batch.label)
        self._range.update(scores.anomaly_map)
        for i, path in enumerate(batch.path):
            turn = self._chosen.get(path) if self._chosen else len(self._examples)
            if turn is not None and turn < self.overlays and (self._chosen or trainer.is_global_zero):
                self._examples[turn] = example(batch, scores, i)
        self._seconds = time.monotonic() - self._start

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write; each process writes the pictures of its own images."""
        self._write_overlays(self._folder)
        self._images, self._seconds = sum(gather(self._images)), max(gather(self._seconds))
        shown = any(gather(bool(self._examples)))
        if not trainer.is_global_zero:
            return
        report, folder, results = self._report(trainer, pl_module), self._folder, getattr(pl_module, "results", {})
        write_text(folder / "results.csv", results_csv(results))
        write_json(folder / "results.json", report)  # last: where it is, the rest is too
        print(f"\n{headline(report)}")
        print(table_text(results_table(results)))
        print(f"{folder}/results.json, results.csv{', overlays/' if shown else ''}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of what is held out."""
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.is_global_zero:
            print(table_text(results_table(getattr(pl_module, "results", {}))))

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        data: Any = getattr(trainer, "datamodule", None)
        model: Any = pl_module
        checkpoint = os.fspath(trainer.ckpt_path) if trainer.ckpt_path else ""
        auxiliary, seen = getattr(model, "auxiliary", None), getattr(model, "fitted_images", None)
        digests = data.image_digests("test") if hasattr(data, "image_digests") else None
        report = {
            "model": getattr(model, "name", "") or type(model).__name__,
            "data": getattr(data, "identity", "unnamed data"),
            "auxiliary": auxiliary,
            "zero_shot": True if auxiliary is None else zero_shot(seen, digests),
            "components": getattr(model, "describe_components", dict)(),
            "checkpoint": {"path": checkpoint, "sha256": sha256(checkpoint)} if os.path.isfile(checkpoint) else None,
            "backbone": backbone_of(model)["fingerprint"],
            "seed": getattr(model, "fit_seed", None),
            "data_seed": getattr(data, "seed", None),
            "precision": str(trainer.precision),
            "images": self._images,
            "samples": data.samples_digest("test") if hasattr(data, "samples_digest") else None,
            "pixels": plain(data.pixel_options()) if hasattr(data, "pixel_options") else None,
            "settings": settings(model, free=True) if hasattr(model, "describe_components") else {},
            "seconds": round(self._seconds, 2),
            "seconds_per_image": round(self._seconds / max(1, self._images), 5),
            "results": getattr(model, "results", {}),
            "results_version": RESULTS_VERSION,
            "options": plain({"model": _options(model), "data": _settings(data)}),
            "versions": {"kanoclip": __version__, "python": platform.python_version()}
            | {name: version(name) for name in LIBRARIES},
        }
        return report | {"identity": identity(report)}

    def _write_overlays(self, folder: Path) -> None:
        """Write the kept images on the colour scale of the whole run."""
        low, high = self._range.scale()

        def write(turn: int) -> None:
            shown = self._examples[turn]
            name = re.sub(r"[^\w.-]+", "_", f"{turn:02d}_{shown.category}_{shown.defect or 'unknown'}")
            write_image(folder / "overlays" / f"{name}_{shown.score:.3f}.png", panel(shown, low, high))

        with ThreadPoolExecutor(4) as pool:  # drawing and encoding release Python's lock
            list(pool.map(write, sorted(self._examples)))  # the first error is raised


def headline(report: dict[str, Any]) -> str:
    """Say in three lines which model, on which data, by which protocol."""
    fitted, checkpoint = report["auxiliary"], report["checkpoint"]
    if fitted is None:
        protocol = f"nothing fitted -> {report['data']}"
    else:
        protocol = f"{fitted} -> {report['data']}, {ZERO_SHOT[report['zero_shot']]}"
    weights = "no checkpoint"
    if checkpoint:
        seed = "an unknown seed" if report["seed"] is None else f"seed {report['seed']}"
        weights = f"checkpoint {checkpoint['path']} (sha256 {checkpoint['sha256'][:12]}), fitted with {seed}"
    return (
        f"{report['model']}: {protocol}\n"
        f"backbone {report['components'].get('backbone', 'unknown')}; {weights}; precision {report['precision']}\n"
        f"{report['images']} images, {1000 * report['seconds_per_image']:.1f} ms an image"
    )


def _options(model: LightningModule) -> dict[str, Any]:
    return {name: value for name, value in model.hparams.items() if name != "_instantiator"}  # LightningCLI's own


def _settings(data: Any) -> dict[str, Any]:
    simple, given = (bool, int, float, str, list, tuple, type(None)), vars(data) if data else {}
    own = {"unreadable", *vars(LightningDataModule())}  # what is no option
    found = {k: v for k, v in given.items() if not k.startswith("_") and k not in own and isinstance(v, simple)}
    return {"class_path": f"{type(data).__module__}.{type(data).__qualname__}", **found}
