"""How far a run is, in the terminal's bar and in words."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


def how_far(trainer: Trainer) -> str:
    """Say which epoch a fit is in, counted from 1, or after which step where steps end it."""
    if trainer.max_steps > 0:
        return f"step {trainer.global_step} of {trainer.max_steps}"
    return f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"


class Bar(RichProgressBar):
    """Lightning's bar, which counts epochs from 0, shows the version of the logger, and may stop at 6 of 7 batches."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"epoch {current_epoch + 1}"
        return (text if self.trainer.max_steps > 0 else f"{text} of {self.trainer.max_epochs}").capitalize()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Leave out the speed where the terminal has no room for it; the time left stays."""
        columns = super().configure_columns(trainer)
        return columns if get_terminal_size().columns >= 100 else columns[:-1]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what is shown behind the bar: the loss."""
        return {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the last batch, too, before the bar ends."""
        self.refresh(hard=True)
        super().teardown(trainer, pl_module, stage)
