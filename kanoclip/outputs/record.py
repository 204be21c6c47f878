"""What a fit leaves behind: its checkpoint, the record by which tests find it, and a word on where they are."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kanoclip import __version__
from kanoclip.data.files import write_bytes, write_json
from kanoclip.ranks import gather


def run_folder(trainer: Trainer) -> Path:
    """Return where a run writes: its logger's folder, or the trainer's root without one; all processes ask together."""
    # A process that looks later would take the next version for its own.
    return Path(gather(str(getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir))[0])


def run_seed(trainer: Trainer) -> int | None:
    """Return the seed of a run: of ``seed_everything``, which the weights are drawn by, or else of its data."""
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning keeps it
    return int(seed) if seed else getattr(getattr(trainer, "datamodule", None), "seed", None)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint so that the one before is there until the new one is whole, whatever happens.

    Lightning's own is written to the system's folder for temporary files first and moved, which on another disk is a
    copy over the one before, and a copy may be cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the file; addresses such as ``s3://`` are left to Lightning.

        Raises:
            OSError: If it cannot be written; names the file.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getvalue())


class RunRecord(Callback):
    """Writes run.json beside the checkpoint of a fit that came to its end; an interrupted one has none."""

    def __init__(self) -> None:
        self._start = 0.0
        self._folder = Path()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._folder = time.monotonic(), run_folder(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record, once the last checkpoint is on disk."""
        checkpoint: Any = trainer.checkpoint_callback
        path = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
        if not trainer.is_global_zero or trainer.interrupted or not path:
            return
        folder = self._folder
        data: Any = getattr(trainer, "datamodule", None)
        file, inside = Path(path).resolve(), Path(path).resolve().is_relative_to(folder.resolve())
        record = {
            "model": getattr(pl_module, "name", "") or type(pl_module).__name__,
            "auxiliary": getattr(pl_module, "auxiliary", None),
            "categories": list(getattr(data, "categories", [])),
            "ckpt": (file.relative_to(folder.resolve()) if inside else file).as_posix(),
            "seed": run_seed(trainer),
            "images": len(data.part("fit")) if hasattr(data, "part") else None,
            "epochs": trainer.current_epoch,
            "version": __version__,
            "seconds": round(time.monotonic() - self._start, 1),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        write_json(folder / "run.json", record)


class FitNote(Callback):
    """Says where the checkpoint of a fit is, finished or interrupted, and how far it is where no progress bar does."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far it is."""
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
            _say(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs} done, loss {loss:.3g}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the checkpoint."""
        if trainer.is_global_zero:
            _say(f"fitted: {_last_checkpoint(trainer) or 'no epoch, so there is no checkpoint'}.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the checkpoint of the epochs before, if there is one."""
        stopped = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        if trainer.state.fn == TrainerFn.FITTING and stopped:
            path = _last_checkpoint(trainer)
            done = f"{path}; to go on: the same command with --ckpt_path last" if path else "none"
            _say(f"interrupted. Finished epochs: {done}.")


def _last_checkpoint(trainer: Trainer) -> str:
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) and path else path


def _say(text: str) -> None:
    print(f"kanoclip: {text}", file=sys.stderr)
