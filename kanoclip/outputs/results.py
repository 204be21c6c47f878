"""What a test leaves behind: a table, results.json, results.csv and a few overlays."""

from __future__ import annotations

import platform
import re
import time
from collections import defaultdict
from importlib.metadata import version
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kanoclip import __version__
from kanoclip.outputs.files import plain, sha256, write_image, write_json, write_text
from kanoclip.outputs.overlay import Example, ScoreRange, example, panel
from kanoclip.outputs.record import run_folder
from kanoclip.outputs.tables import results_csv, results_table, table_text
from kanoclip.types import Batch, Scores

LIBRARIES = ("torch", "lightning", "open_clip_torch", "torchmetrics", "albumentations")


class ResultsWriter(Callback):
    """Prints the metrics of a test and writes them, with all that is needed to get the same numbers again.

    Args:
        overlays: How many panels to write, spread over categories and labels; 0 for none.
    """

    def __init__(self, overlays: int = 16) -> None:
        self.overlays = overlays
        self._start = 0.0
        self._seconds = 0.0
        self._images = 0
        self._range = ScoreRange()
        self._examples: dict[tuple[str, int], list[Example]] = defaultdict(list)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: one trainer may test several sets."""
        self.__init__(self.overlays)  # type: ignore[misc]
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
        """Count, and keep the first images of each category and label."""
        scores: Scores = outputs
        self._images += len(batch.label)
        self._range.update(scores.anomaly_map)
        for i, (category, label) in enumerate(zip(batch.category, batch.label.tolist(), strict=True)):
            kept = self._examples[category, label]
            if len(kept) * len(self._examples) < 2 * self.overlays and self.overlays:
                kept.append(example(batch, scores, i))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write."""
        self._seconds = time.monotonic() - self._start
        if not trainer.is_global_zero:
            return
        report = self._report(trainer, pl_module)
        folder, results = run_folder(trainer), getattr(pl_module, "results", {})
        write_json(folder / "results.json", report)
        write_text(folder / "results.csv", results_csv(results))
        self._write_overlays(trainer)
        print(f"\n{headline(report)}")
        print(table_text(results_table(results), colour=False))
        print(f"{folder}/results.json, results.csv, overlays/")

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        data: Any = getattr(trainer, "datamodule", None)
        checkpoint = trainer.ckpt_path if isinstance(trainer.ckpt_path, str) else None
        auxiliary, tested = getattr(pl_module, "auxiliary", None), getattr(data, "identity", "unnamed data")
        describe = getattr(pl_module, "describe_components", dict)
        return {
            "model": getattr(pl_module, "name", "") or type(pl_module).__name__,
            "data": tested,
            "auxiliary": auxiliary,
            "zero_shot": auxiliary != tested,
            "components": describe(),
            "checkpoint": {"path": checkpoint, "sha256": sha256(checkpoint)} if checkpoint else None,
            "seed": getattr(data, "seed", None),
            "images": self._images,
            "seconds": round(self._seconds, 2),
            "seconds_per_image": round(self._seconds / max(1, self._images), 5),
            "results": getattr(pl_module, "results", {}),
            "options": plain({"model": pl_module.hparams, "data": _settings(data)}),
            "versions": {"kanoclip": __version__, "python": platform.python_version()}
            | {name: version(name) for name in LIBRARIES},
        }

    def _write_overlays(self, trainer: Trainer) -> None:
        """Write the kept images, one of each category and label in turn, on the colour scale of the whole run."""
        low, high = self._range.scale()
        groups = [self._examples[key] for key in sorted(self._examples)]
        turns = [group[i] for i in range(self.overlays) for group in groups if i < len(group)]
        for number, shown in enumerate(turns[: self.overlays]):
            name = re.sub(r"[^\w.-]+", "_", f"{number:02d}_{shown.category}_{shown.defect or 'unknown'}")
            write_image(run_folder(trainer) / "overlays" / f"{name}_{shown.score:.3f}.png", panel(shown, low, high))


def headline(report: dict[str, Any]) -> str:
    """Say in three lines which model, on which data, by which protocol."""
    fitted = report["auxiliary"]
    if fitted is None:
        protocol = f"nothing fitted -> {report['data']}"
    else:
        protocol = f"{fitted} -> {report['data']}, {'zero-shot' if report['zero_shot'] else 'NOT zero-shot'}"
    checkpoint = report["checkpoint"]
    weights = f"checkpoint {checkpoint['path']} (sha256 {checkpoint['sha256'][:12]})" if checkpoint else "no checkpoint"
    return (
        f"{report['model']}: {protocol}\n"
        f"backbone {report['components'].get('backbone', 'unknown')}; {weights}; seed {report['seed']}\n"
        f"{report['images']} images, {1000 * report['seconds_per_image']:.1f} ms an image"
    )


def _settings(data: Any) -> dict[str, Any]:
    simple = (bool, int, float, str, list, tuple, type(None))
    found = {k: v for k, v in vars(data).items() if not k.startswith("_") and isinstance(v, simple)} if data else {}
    return {"class_path": f"{type(data).__module__}.{type(data).__qualname__}", **found}
