"""What a command says beside its results, and what it keeps to itself."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import sys
import threading
import warnings
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kanoclip.arguments import FULL


@rank_zero_only  # of several processes the first one speaks
def note(text: str) -> None:
    """Tell a reader something beside the results."""
    print(f"kanoclip: {text}", file=sys.stderr)


class FitNote(Callback):
    """Says where the checkpoint of a fit is, finished or interrupted, and how far it is where no progress bar does."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far it is."""
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
            note(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs} done, loss {loss:.3g}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the checkpoint."""
        if trainer.is_global_zero:
            note(f"fitted: {_last_checkpoint(trainer) or 'no epoch, so there is no checkpoint'}.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the checkpoint of the epochs before, if there is one."""
        stopped = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        if trainer.state.fn == TrainerFn.FITTING and stopped:
            path = _last_checkpoint(trainer)
            done = f"{path}; to go on: the same command with --ckpt_path last" if path else "none"
            note(f"interrupted. Finished epochs: {done}.")


def _last_checkpoint(trainer: Trainer) -> str:
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) and path else path


def _thread_ended(told: threading.ExceptHookArgs) -> None:
    """Print why a thread has ended, unless it is TensorBoard's at a full disk: the main one raises the same."""
    if getattr(told.exc_value, "errno", None) not in FULL:
        threading.__excepthook__(told)


def quiet() -> None:
    """Keep Lightning's tips and counts to itself; its warnings of real trouble stay."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a table's lines must not fail on an ASCII terminal
    threading.excepthook = _thread_ended
    atexit.register(gc.freeze)  # or Python looks through all there is before it leaves, for a second or two
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # true of 2 cores, and not to be helped
        ".*Checkpoint directory.*",
        ".*args parameter is intended to run from within Python.*",  # both are the same words
        ".*Total length of `list` across ranks is zero.*",  # nothing is held out for validation
        r".*Found \d+ module\(s\) in eval mode.*",  # the frozen backbone
        ".*isinstance.treespec, LeafSpec.*",
        ".*The dirpath has changed.*",  # a test writes elsewhere than the fit
        ".*smaller than the logging interval.*",
        r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # metrics and losses are of all processes already
        "(?s).*was called before the ``update`` method.*",  # the images of a category may all be another process's
        "(?s).*Grad strides do not match bucket view strides.*",  # of a side of 1, where any stride is right
    ):
        warnings.filterwarnings("ignore", message)
    if getattr(rank_zero_only, "rank", 0):  # of several processes the first one speaks
        warnings.simplefilter("ignore")
        logging.getLogger("kanoclip").setLevel(logging.ERROR)
