"""How far a run is, how fast, and how long it goes on: in the terminal's bar and in words."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column

EVERY = 0.25  # seconds between two looks at the loss: on a GPU each waits for the step
SAID = 30.0  # seconds between two lines on a test or a prediction, where there is no bar


def how_far(trainer: Trainer) -> str:
    """Say which epoch a fit is in, counted from 1, or after which step where steps end it."""
    if trainer.max_steps > 0:
        return f"step {trainer.global_step} of {trainer.max_steps}"
    epoch = trainer.current_epoch + 1
    return f"epoch {epoch} of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else f"epoch {epoch}"


def is_watched() -> bool:
    """Tell whether a bar can be redrawn where the command prints: a terminal, or a notebook."""
    return get_console().is_terminal or get_console().is_jupyter


def duration(seconds: float) -> str:
    """Write a time in two units at most: 40 s, 3 min, 2 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class Pace:
    """The speed of a run since its first batch, which is slower than others and is not timed.

    Args:
        batches: How many there are; infinite where nobody knows.
        done: How many were done before, by the fit that this one goes on with.
    """

    def __init__(self, batches: float, done: int = 0) -> None:
        self.batches, self.done = batches, done
        self._timed, self._images, self._begin = -1, 0, 0.0

    def step(self, images: int) -> None:
        """Count a batch."""
        self.done += 1
        self._timed += 1
        if self._timed:
            self._images += images
        else:
            self._begin = time.monotonic()

    def __str__(self) -> str:
        """Say how many images a second, and how long all batches that are left take; "" before that is known."""
        if self._timed < 1 or (seconds := time.monotonic() - self._begin) <= 0:
            return ""
        left = (self.batches - self.done) * seconds / self._timed
        speed = f"{self._images / seconds:.3g} images/s"
        return f"{speed}, {duration(left)} left" if 0 < left < math.inf else speed


class Timed(Callback):
    """A callback that knows the pace of a fit: ``self.pace``, of the whole fit and all processes."""

    pace: Pace

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches that the fit will have."""
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
        batches = float(trainer.num_training_batches * epochs)
        if trainer.max_steps > 0:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        self.pace = Pace(batches, int(trainer.current_epoch * trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        self.pace.step(len(batch.label) * trainer.world_size)

    def state(self, trainer: Trainer) -> str:
        """Say loss, speed and remaining time; the loss is that of the last step, as it was logged."""
        loss = trainer.callback_metrics.get("train/loss")  # none where a fit only fills a memory
        return ", ".join(filter(None, ["" if loss is None else f"loss {float(loss):.3g}", str(self.pace)]))


class Bar(Timed, ProgressBar):
    """One bar for a whole fit, with epoch, loss, images/s and the time that is left; one for a test or predict."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled, self._seen = True, 0.0
        self._drawn: Progress | None = None

    def enable(self) -> None:
        """Draw."""
        self._enabled = True

    def disable(self) -> None:
        """Draw nothing, as all processes but the first one."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of a fit."""
        super().on_train_start(trainer, pl_module)
        self._start(how_far(trainer).capitalize())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw a batch of a fit."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if time.monotonic() - self._seen > EVERY or self.pace.done == self.pace.batches:
            self._update(how_far(trainer).capitalize(), self.state(trainer))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of a test."""
        self._start_once(trainer.num_test_batches, "Testing")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of a predict."""
        self._start_once(trainer.num_predict_batches, "Scoring")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of a validation, unless it is a fit's."""
        if trainer.state.fn != "fit":
            self._start_once(trainer.num_val_batches, "Validating")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Draw a batch that is scored."""
        if trainer.state.fn != "fit":
            self.pace.step(len(batch.label) * trainer.world_size)
            self._update(None, str(self.pace))
            if self.pace.done >= self.pace.batches:
                self._stop()  # results are printed below it

    on_validation_batch_end = on_predict_batch_end = on_test_batch_end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the bar as it is: a fit may be stopped early."""
        self._stop()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the bar."""
        if trainer.state.fn != "fit":
            self._stop()

    on_validation_end = on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _start_once(self, batches: Any, text: str) -> None:
        self.pace = Pace(sum(batches) if isinstance(batches, list) else batches)
        self._start(text)

    def _start(self, text: str) -> None:
        if not self._enabled:
            return
        self._stop()
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(None),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)),
        )
        self._drawn = Progress(*columns, console=get_console(), expand=True)
        self._drawn.add_task(text, total=self.pace.batches if self.pace.batches < math.inf else None, state="")
        self._drawn.start()

    def _update(self, text: str | None, state: str) -> None:
        self._seen = time.monotonic()
        if self._drawn:
            task = self._drawn.tasks[0]
            text = text or task.description
            self._drawn.update(task.id, completed=self.pace.done, description=text, state=state, refresh=True)

    def _stop(self) -> None:
        if self._drawn:
            self._drawn.stop()
            self._drawn = None
