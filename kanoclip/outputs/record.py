"""The record of a finished fit, by which tests find it."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kanoclip import __version__
from kanoclip.outputs.files import write_json


def run_folder(trainer: Trainer) -> Path:
    """Return where a run writes: its logger's folder, or the trainer's root without one."""
    return Path(trainer.log_dir or trainer.default_root_dir)


class RunRecord(Callback):
    """Writes run.json beside the checkpoint of a fit that came to its end; an interrupted one has none."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record, once the last checkpoint is on disk."""
        checkpoint: Any = trainer.checkpoint_callback
        path = getattr(checkpoint, "best_model_path", "")
        if not trainer.is_global_zero or trainer.interrupted or not path:
            return
        folder = run_folder(trainer)
        data: Any = getattr(trainer, "datamodule", None)
        inside = Path(path).is_relative_to(folder)
        record = {
            "model": getattr(pl_module, "name", "") or type(pl_module).__name__,
            "auxiliary": getattr(pl_module, "auxiliary", None),
            "categories": list(getattr(data, "categories", [])),
            "ckpt": str(Path(path).relative_to(folder) if inside else Path(path).resolve()),
            "seed": getattr(data, "seed", None),
            "images": len(data.part("fit")) if hasattr(data, "part") else None,
            "epochs": trainer.current_epoch,
            "version": __version__,
            "seconds": round(time.monotonic() - self._start, 1),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        write_json(folder / "run.json", record)
