"""Example maps in a log, to see during training what the losses do to a picture."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kanoclip.outputs.examples import Example, example, panel
from kanoclip.outputs.loggers import PICTORIAL, send_image
from kanoclip.ranks import gather
from kanoclip.types import ANOMALOUS, Batch, Scores

Key = tuple[Any, ...]
Found = dict[Key, tuple[tuple[int, ...], Example]]  # what is shown, in this order -> the first of its kind, by place


class ExampleMaps(Callback):
    """Logs panels of the same few images after each epoch; the colour scale is fixed at 0.5 to 1.

    Under ``examples/training`` the first batch of the fit, under ``examples/validation`` images of the held-out part,
    if there is one. Anomalous images come first.

    Args:
        images: How many of each.
    """

    def __init__(self, images: int = 4) -> None:
        self.images = images
        self._logs = False  # the same in all processes
        self._batch: Batch | None = None
        self._held_out: Found = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out whether there is a logger of images."""
        self._logs = any(isinstance(logger, PICTORIAL) for logger in trainer.loggers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._batch, self._held_out = None, {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a fit of fewer steps than ``log_every_n_steps`` too, once, at its end."""
        settings: Any = trainer
        settings.log_every_n_steps = int(min(settings.log_every_n_steps, trainer.estimated_stepping_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the first batch of the first epoch."""
        if self._batch is None:
            self._batch = batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the kept batch as in a test, and log it."""
        batch = self._batch
        if batch is None or not self._logs:
            return
        training = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        with torch.no_grad():
            scores = pl_module(batch)
        for module, mode in training.items():  # not train(): some parts may be in eval mode for good
            module.training = mode
        order = sorted(range(len(batch.label)), key=lambda i: int(batch.label[i]) != ANOMALOUS)[: self.images]
        places = {i: (int(batch.label[i]) != ANOMALOUS, i, trainer.global_rank) for i in order}
        self._log(trainer, "training", {place: (place, example(batch, scores, i)) for i, place in places.items()})

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
        if not isinstance(outputs, Scores) or not self._logs or trainer.sanity_checking:
            return
        for i, (category, label) in enumerate(zip(batch.category, batch.label.tolist(), strict=True)):
            key = (label != ANOMALOUS, category, label)
            shown = sorted({*self._held_out, key})[: self.images]
            if key not in self._held_out and key in shown:
                self._held_out[key] = (batch_idx, trainer.global_rank, i), example(batch, outputs, i)
                self._held_out = {key: self._held_out[key] for key in shown}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was kept, and start anew."""
        if self._logs and not trainer.sanity_checking:
            self._log(trainer, "validation", self._held_out)
        self._held_out = {}

    def _log(self, trainer: Trainer, stage: str, mine: Found) -> None:
        """Log the first few of what all processes have found."""
        found: Found = {}
        for key, (place, shown) in (pair for theirs in gather(mine) for pair in theirs.items()):
            if key not in found or place < found[key][0]:
                found[key] = place, shown
        if not trainer.is_global_zero:
            return
        for number, key in enumerate(sorted(found)[: self.images]):
            name = f"examples/{stage}/{number}"
            send_image(trainer.loggers, name, panel(found[key][1]), trainer.current_epoch)
