"""What Lightning itself does not log: options, gradients, curves, pictures; and a test in the run of its fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.optim import Optimizer

from kanoclip.metrics.histogram import EDGES
from kanoclip.models.checkpoint import run_seed, settings
from kanoclip.models.epoch import Counted
from kanoclip.models.levels import is_logged
from kanoclip.outputs.curves import image_curves, picture, pixel_curves
from kanoclip.outputs.loggers import PICTORIAL, send_counts, send_image, send_options, send_passed, send_text
from kanoclip.outputs.record import folder_name, run_folder, say
from kanoclip.outputs.tables import results_table, table_text
from kanoclip.types import ANOMALOUS, NORMAL

CLASSES = {"normal": NORMAL, "anomalous": ANOMALOUS}
BINS = 40
"""Of a histogram of image scores."""
WIDEST = 1024
"""Of a logged panel, in pixels: those of a test are in its folder at full size."""


class RunLog(Callback):
    """Logs to all loggers of a trainer; a test without one, to the TensorBoard run of the fit that made its checkpoint.

    There it writes an event file of its own, all at its end; where the fit has no such run, or none that may be written
    to, the file is in the test's folder. Curves and histograms are drawn from what the metrics have counted.

    Attributes:
        unwritten: What could not be logged, and why.
    """

    def __init__(self) -> None:
        self.unwritten: list[tuple[str, str]] = []
        self._validated = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the options, to compare runs by; the model knows by now what it is fitted on."""
        if trainer.is_global_zero:
            send_options(trainer.loggers, options_of(trainer, pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the norm of each head's gradient, before it is clipped, and the learning rate."""
        if not is_logged(trainer):
            return
        gradients: dict[str, list[torch.Tensor]] = {}
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                gradients.setdefault(name.partition(".")[0], []).append(parameter.grad)
        found = {f"gradient_norm/{name}": torch.nn.utils.get_total_norm(some) for name, some in gradients.items()}
        groups = [group["lr"] for group in optimizer.param_groups]
        rates = {f"lr/group_{i}" if len(groups) > 1 else "lr": float(lr) for i, lr in enumerate(groups, 1)}
        pl_module.log_dict({**found, **rates}, rank_zero_only=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log histograms and precision-recall curves of what is held out."""
        counted = getattr(pl_module, "counted", {})
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._validated = trainer.current_epoch
            log_counted(trainer.loggers, "val", counted, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves of what is held out, once: that takes longer than a short epoch."""
        if trainer.is_global_zero and trainer.val_dataloaders:
            log_curves(trainer.loggers, "val", pl_module, self._validated)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log numbers, curves and pictures of a test, which its folder has already."""
        folder, self.unwritten = run_folder(trainer), []
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = folder_name(getattr(trainer.datamodule, "identity", "unnamed data"))  # type: ignore[attr-defined]
        checkpoint = os.fspath(trainer.ckpt_path or "")
        fit = fit_of(checkpoint)
        try:
            own = [] if trainer.loggers else [TensorBoardLogger(fit or folder, "", "", filename_suffix=f".test-{data}")]
            loggers: list[Logger] = [*trainer.loggers, *own]
            if fit is None or not own:
                send_options(loggers, options_of(trainer, pl_module))
            self._log_test(loggers, f"test_{data}", folder, pl_module, steps_of(checkpoint))
            for logger in own:
                logger.experiment.close()
        except OSError as error:
            self.unwritten.append(("events", str(error)))
            say(f"The test could not be logged to {fit or folder}; its numbers are complete. {error}")

    def _log_test(self, loggers: Sequence[Logger], name: str, folder: Path, model: Any, step: int) -> None:
        results = getattr(model, "results", {})
        for logger in loggers:
            means = {f"{name}/{key}": value for key, value in results.get("mean", {}).items() if value is not None}
            logger.log_metrics(means, step)
        send_text(loggers, f"{name}/results", f"{folder}\n\n{table_text(results_table(results))}", step)
        log_counted(loggers, name, getattr(model, "counted", {}), step)
        log_curves(loggers, name, model, step)
        for path in sorted((folder / "overlays").glob("*.png")):
            read: Any = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR)
            panel = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
            height, width = panel.shape[:2]
            if width > WIDEST:
                panel = cv2.resize(panel, (WIDEST, round(height * WIDEST / width)), interpolation=cv2.INTER_AREA)
            send_image(loggers, f"{name}_images/{path.stem.rpartition('_')[0]}", panel, step)  # without its score


def options_of(trainer: Trainer, model: Any) -> dict[str, bool | float | str]:
    """Return what tells runs apart: model, data, seed, components with their options, epochs, batch size, precision."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    found = settings(model) if hasattr(model, "describe_components") else {}
    about = {
        "model": getattr(model, "name", "") or type(model).__name__,
        "fitted_on": getattr(model, "auxiliary", None),
        "seed": run_seed() if trainer.training else getattr(model, "fit_seed", None),
        "epochs": trainer.max_epochs if trainer.training else None,
        "batch_size": getattr(data, "batch_size", None),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }
    return {k: v for k, v in {**about, **found}.items() if isinstance(v, (bool, int, float, str))}


def fit_of(checkpoint: str) -> Path | None:
    """Return the folder of the TensorBoard run that has written a checkpoint, if it is there and can be written to."""
    folder = Path(checkpoint).absolute().parent.parent
    there = os.path.isfile(checkpoint) and any(folder.glob("events.out.tfevents.*"))
    return folder if there and os.access(folder, os.W_OK) else None


def steps_of(checkpoint: str) -> int:
    """Return after how many steps of a fit a checkpoint was written; 0 without one, or if it does not tell."""
    if not os.path.isfile(checkpoint):
        return 0
    steps = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("global_step")
    return steps if isinstance(steps, int) and 0 <= steps < 2**63 else 0  # a test checks no counter of a fit


def log_counted(loggers: Sequence[Logger], name: str, counted: Mapping[str, Counted], step: int) -> None:
    """Log histograms of image scores and of maps by class, over all categories; and precision-recall curves of each."""
    if not counted:
        return
    scores = scores_by_class(counted)
    ends = np.concatenate(list(scores.values()))
    edges = np.linspace(ends.min(initial=1), ends.max(initial=0), BINS + 1) if len(ends) else EDGES
    pixels = np.sum([one.above for one in counted.values()], 0)
    for kind, label in CLASSES.items():
        send_counts(loggers, f"{name}/image_score_{kind}", edges, np.histogram(scores[kind], edges)[0], step)
        send_counts(loggers, f"{name}/map_{kind}", EDGES, -np.diff(pixels[label]), step)
    for category, one in counted.items():
        images = [[np.sum(one.scores[one.labels == label] >= edge) for edge in EDGES] for label in (NORMAL, ANOMALOUS)]
        send_passed(loggers, f"{name}_image/{category}", np.array(images), step)
        send_passed(loggers, f"{name}_pixel/{category}", one.above, step)


def log_curves(loggers: Sequence[Logger], name: str, model: Any, step: int) -> None:
    """Draw ROC, precision-recall and region overlap of each category, and the image scores, for loggers of pictures."""
    counted: Mapping[str, Counted] = getattr(model, "counted", {})
    if counted and any(isinstance(logger, PICTORIAL) for logger in loggers):
        images = {key: image_curves(one.scores, one.labels) for key, one in counted.items()}
        pixels = {key: pixel_curves(*one.passed) for key, one in counted.items()}
        send_image(loggers, f"{name}/curves", picture(images, pixels, model.overlap, scores_by_class(counted)), step)


def scores_by_class(counted: Mapping[str, Counted]) -> dict[str, Any]:
    """Return the image scores of all categories: "normal" or "anomalous" -> ``(n,)``."""
    return {
        kind: np.concatenate([one.scores[one.labels == label] for one in counted.values()])
        for kind, label in CLASSES.items()
    }
