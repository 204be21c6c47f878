"""Example maps in TensorBoard, to see during training what the losses do to a picture."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kanoclip.outputs.overlay import LIKELIER, example, panel
from kanoclip.types import ANOMALOUS, Batch


class ExampleMaps(Callback):
    """Logs panels of the same few training images after each epoch; the colour scale is fixed at 0.5 to 1.

    Args:
        images: How many, anomalous ones first.
    """

    def __init__(self, images: int = 4) -> None:
        self.images = images
        self._batch: Batch | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the first batch of the first epoch."""
        if self._batch is None:
            self._batch = batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the kept batch as in a test, and log it."""
        writer: Any = getattr(trainer.logger, "experiment", None)
        batch = self._batch
        if batch is None or not trainer.is_global_zero or not hasattr(writer, "add_image"):
            return
        pl_module.eval()
        with torch.no_grad():
            scores = pl_module(batch)
        pl_module.train()
        order = sorted(range(len(batch.label)), key=lambda i: int(batch.label[i]) != ANOMALOUS)
        for number, i in enumerate(order[: self.images]):
            picture = panel(example(batch, scores, i), *LIKELIER)
            writer.add_image(f"examples/{number}", picture, trainer.current_epoch, dataformats="HWC")
