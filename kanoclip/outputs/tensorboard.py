"""Example maps in TensorBoard, to see during training what the losses do to a picture."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kanoclip.outputs.overlay import LIKELIER, Example, example, panel
from kanoclip.types import ANOMALOUS, Batch, Scores


class ExampleMaps(Callback):
    """Logs panels of the same few images after each epoch; the colour scale is fixed at 0.5 to 1.

    Under ``examples/training`` the first batch of the fit, under ``examples/validation`` images of the held-out part,
    if there is one. Anomalous images come first.

    Args:
        images: How many of each.
    """

    def __init__(self, images: int = 4) -> None:
        self.images = images
        self._batch: Batch | None = None
        self._held_out: dict[tuple[bool, str, int], Example] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._batch = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the first batch of the first epoch."""
        if self._batch is None:
            self._batch = batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the kept batch as in a test, and log it."""
        batch = self._batch
        if batch is None or not _logs_images(trainer):
            return
        training = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        with torch.no_grad():
            scores = pl_module(batch)
        for module, mode in training.items():  # not train(): some parts may be in eval mode for good
            module.training = mode
        order = sorted(range(len(batch.label)), key=lambda i: int(batch.label[i]) != ANOMALOUS)
        self._log(trainer, "training", [example(batch, scores, i) for i in order[: self.images]])

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._held_out = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first image of each category and label."""
        if not isinstance(outputs, Scores) or not _logs_images(trainer):
            return
        for i, (category, label) in enumerate(zip(batch.category, batch.label.tolist(), strict=True)):
            key = (label != ANOMALOUS, category, label)
            if key not in self._held_out and len(self._held_out) < 8 * self.images:
                self._held_out[key] = example(batch, outputs, i)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was kept."""
        self._log(trainer, "validation", [self._held_out[key] for key in sorted(self._held_out)[: self.images]])
        self._held_out = {}

    def _log(self, trainer: Trainer, stage: str, examples: list[Example]) -> None:
        for number, shown in enumerate(examples):
            writer: Any = getattr(trainer.logger, "experiment", None)
            writer.add_image(
                f"examples/{stage}/{number}", panel(shown, *LIKELIER), trainer.current_epoch, dataformats="HWC"
            )


def _logs_images(trainer: Trainer) -> bool:
    writer = getattr(trainer.logger, "experiment", None)
    return trainer.is_global_zero and not trainer.sanity_checking and hasattr(writer, "add_image")
