"""What a test leaves behind: a table, results.json, results.csv, images.csv and a few overlays.

Of a validation the table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from kanoclip.data.files import write_image, write_json, write_text
from kanoclip.data.loading import gather_unreadable
from kanoclip.metrics.calibration import Threshold
from kanoclip.models.checkpoint import zero_shot
from kanoclip.outputs.costs import peak_memory, start_memory, trained_parameters
from kanoclip.outputs.examples import Example, example, panel
from kanoclip.outputs.identity import about_run, done_without, identity, references_of, scoring
from kanoclip.outputs.images import ImageTable, decided
from kanoclip.outputs.intervals import separated
from kanoclip.outputs.names import file_name, plain_name
from kanoclip.outputs.overlay import colour_note, hot, scale_of
from kanoclip.outputs.record import run_folder, say
from kanoclip.outputs.sheet import choose
from kanoclip.outputs.tables import print_results, results_csv, tell
from kanoclip.outputs.thresholds import Thresholds
from kanoclip.ranks import gather
from kanoclip.types import Batch, Scores, counted, printable

ZERO_SHOT = {
    True: "zero-shot",
    False: "NOT zero-shot",
    None: "zero-shot or not is unknown: which images it was fitted on is not known",
}


class ResultsWriter(Callback):
    """Prints the metrics of a test and writes them, with all that is needed to get the same numbers again.

    Those of ``validate`` are printed alone; in a fit they are in its log.

    Args:
        overlays: How many panels to write, spread over categories, labels and kinds of defect; 0 for none. They come
            last, and one that cannot be written is told and left out.
        thresholds: For decisions, and where colour begins; None: no decisions, and it begins at 0.5.

    Attributes:
        unwritten: Each panel that could not be written, and why; of several processes the first one has all.

    Raises:
        KanoclipError: If the thresholds are for other scores, or for none of the categories that are tested.
        CannotWriteError: If a table cannot be written.
    """

    def __init__(self, overlays: int = 16, thresholds: Thresholds | None = None) -> None:
        self.overlays = overlays
        self.thresholds = thresholds
        self._start = 0.0
        self._seconds = 0.0
        self._images = 0
        self._folder = Path()
        self._table: ImageTable | None = None
        self._chosen: dict[str, int] = {}
        self._examples: dict[int, Example] = {}
        self.unwritten: list[tuple[str, str]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: one trainer may test several sets. Choose the images to show, whatever they will score."""
        start_memory()
        self._images, self._examples, self._folder, self.unwritten = 0, {}, run_folder(trainer), []
        data: Any = getattr(trainer, "datamodule", None)
        if self.thresholds:  # refused before images are scored
            self.thresholds.check(scoring(about_run(trainer, pl_module)))
            for category in getattr(data, "categories", []):
                self.thresholds.entry(category)
        self._table = ImageTable(self._folder, trainer, self.thresholds, getattr(pl_module, "defect_names", []))
        samples = data.part("test") if hasattr(data, "part") else []
        batch_size = getattr(trainer.test_dataloaders, "batch_size", None) or 1
        reached = gather(trainer.num_test_batches[0])[0] * batch_size * trainer.world_size  # none has more batches
        samples = samples[: int(min(reached, len(samples)))]
        self._chosen = {path: turn for turn, path in enumerate(choose(samples)[: self.overlays])}

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
        names = [""] * len(batch.path)
        for i, path in enumerate(batch.path):
            turn = self._chosen.get(path) if self._chosen else len(self._examples)
            if turn is not None and turn < self.overlays and (self._chosen or trainer.is_global_zero):
                self._examples[turn] = example(batch, scores, i)
                names[i] = _picture(turn, self._examples[turn])
        assert self._table is not None  # for the type checker: a test has started
        self._table.add(batch, scores, names)
        self._seconds = time.monotonic() - self._start

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write the numbers, then the pictures, each process those of its own images."""
        self._images, self._seconds = sum(gather(self._images)), max(gather(self._seconds))
        shown = any(gather(bool(self._examples)))
        data: Any = getattr(trainer, "datamodule", None)
        paths = [sample.image for sample in data.part("test")] if hasattr(data, "part") else []
        unreadable = gather_unreadable(getattr(data, "unreadable", []), paths)
        assert self._table is not None  # for the type checker: a test has started
        places = {path: place for place, path in enumerate(paths)}
        self._table.join(places)
        results, samples = getattr(pl_module, "results", {}), digest_of(data)
        found = {
            "decisions": self._table.decisions(),
            "intervals": self._table.draws.finish(self._folder, places, results, samples),
            "memory": peak_memory(pl_module.device),
            "samples": samples,
        }
        if trainer.is_global_zero:
            report, folder = self._report(trainer, pl_module, unreadable, found), self._folder
            write_text(folder / "results.csv", results_csv(results))
            write_json(folder / "results.json", report)  # last: where it is, all numbers are
            tell(f"\n{headline(report)}")
            print_results(results, report["intervals"])
            if said := separated(report["intervals"]):
                tell(said)
            if report["decisions"]:
                tell(decided(report["decisions"]))
            tell(f"{folder}/results.json, results.csv, images.csv{', overlays/' if shown else ''}")
        self._write_overlays(trainer)
        self.unwritten = tell_unwritten(self.unwritten, "the numbers are complete")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of what is held out."""
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.is_global_zero:
            print_results(getattr(pl_module, "results", {}))

    def _report(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        unreadable: Sequence[tuple[str, str]],
        found: dict[str, Any],
    ) -> dict[str, Any]:
        data: Any = getattr(trainer, "datamodule", None)
        model: Any = pl_module
        auxiliary, seen = getattr(model, "auxiliary", None), getattr(model, "fitted_images", None)
        digests = data.image_digests("test") if hasattr(data, "image_digests") else None
        few = references_of(model)
        report = about_run(trainer, pl_module) | {
            "zero_shot": False if few else True if auxiliary is None else zero_shot(seen, digests),
            "references_tested": few.among(digests or ()) if few else 0,
            "images": self._images,
            "unreadable": unreadable,
            "left_out": getattr(data, "left_out", []),
            "seconds": round(self._seconds, 2),
            "seconds_per_image": round(self._seconds / max(1, self._images), 5),
            "results": getattr(model, "results", {}),
            "threshold": self.thresholds and self.thresholds.source,
            "parameters": trained_parameters(model),
            **found,
        }
        return report | {"identity": identity(report)}

    def _write_overlays(self, trainer: Trainer) -> None:
        """Write the kept images, and say it if all or none of them are coloured."""
        entry = self.thresholds.entry if self.thresholds else lambda category: None
        thresholds = [entry(one.category) for one in self._examples.values()]
        highest = [float(one.anomaly_map.max()) for one in self._examples.values()]
        pairs = zip(self._examples.values(), thresholds, strict=True)
        coloured = [hot(one.anomaly_map, scale_of(at).low, at.min_area if at else 0).any() for one, at in pairs]
        found = gather((sum(map(bool, coloured)), len(coloured), max(highest, default=0.0)))
        counts = sum(one[0] for one in found), sum(one[1] for one in found), max(one[2] for one in found)
        if trainer.is_global_zero and (said := colour_note(*counts, calibrated=self.thresholds is not None)):
            tell(said)

        def write(turn: int, threshold: Threshold | None) -> None:
            path = self._folder / _picture(turn, self._examples[turn])
            try:
                write_image(path, panel(self._examples[turn], threshold))
            except (OSError, cv2.error) as error:
                self.unwritten.append((path.name, str(error)))

        with ThreadPoolExecutor(4) as pool:  # drawing and encoding release Python's lock
            list(pool.map(write, self._examples, thresholds))  # the first other error is raised


def digest_of(data: Any) -> str | None:
    """Return the digest of the tested samples, of data that can tell it."""
    found: str | None = data.samples_digest("test") if hasattr(data, "samples_digest") else None
    return found


def _picture(turn: int, shown: Example) -> str:
    """Return where the picture of an image goes in a run's folder."""
    name = plain_name(f"{turn:02d}_{shown.category}_{shown.defect or 'unknown'}")
    return f"overlays/{file_name(name, f'_{shown.score:.3f}.png')}"


def tell_unwritten(mine: list[tuple[str, str]], rest: str) -> list[tuple[str, str]]:
    """Say in one line how many pictures could not be written. Collective.

    Args:
        mine: Name and reason of those of this process.
        rest: What is said of all else.

    Returns:
        Those of all processes in the first one, none in the others.
    """
    everything = [pair for theirs in gather(mine) for pair in theirs]
    if getattr(rank_zero_only, "rank", 0):
        return []
    if everything:
        say(f"{counted(len(everything), 'picture')} could not be written; {rest}. The first: {everything[0][1]}")
    return everything


def headline(report: dict[str, Any]) -> str:
    """Say in three lines which model, on which data, by which protocol."""
    checkpoint = report["checkpoint"]
    fitted = report["auxiliary"] and printable(report["auxiliary"])  # a stranger's checkpoint says it
    if report.get("references"):
        tested = report.get("references_tested")
        few = f"{report['references']}{f', {tested} of all are tested too' if tested else ''}"
        protocol = f"{fitted or 'nothing fitted'} -> {report['data']}, few-shot ({few}), NOT zero-shot"
    elif fitted is None:
        protocol = f"nothing fitted -> {report['data']}"
    else:
        protocol = f"{fitted} -> {report['data']}, {ZERO_SHOT[report['zero_shot']]}"
    if files := done_without(report):
        protocol += f", fitted without knowledge of images: no {', '.join(files)}"
    weights = "no checkpoint"
    if checkpoint:
        seed = "an unknown seed" if report["seed"] is None else f"seed {report['seed']}"
        weights = f"checkpoint {checkpoint['path']} (sha256 {checkpoint['sha256'][:12]}), fitted with {seed}"
    limit = report.get("options", {}).get("data", {}).get("limit")
    drawn = f" (limit {limit}, normal and anomalous in turn: AP and F1-max are not those of all)" if limit else ""
    return (
        f"{report['model']}: {protocol}\n"
        f"backbone {report['components'].get('backbone', 'unknown')}; {weights}; precision {report['precision']}\n"
        f"{counted(report['images'], 'image')}{drawn}, {1000 * report['seconds_per_image']:.1f} ms an image"
    )
