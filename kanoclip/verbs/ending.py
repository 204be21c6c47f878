"""How a run ends early: by a signal, by an option that Lightning refuses while it runs, by a process that is gone."""

from __future__ import annotations

import re

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kanoclip.data.processes import end_when_told
from kanoclip.verbs.say import mistake

LOST = r"DistBackendError|Connection (closed|reset) by peer"  # what NCCL and gloo raise when a process is gone
OPTIONS = r"Early stopping conditioned on metric|Requirement .* not met"  # Lightning's errors of options without a type


class EndWhenTold(Callback):
    """Takes SIGTERM from Lightning: a run ends where it is, as by Ctrl-C, and each process by itself.

    Lightning's handler ends it after the batch at hand, not in all stages, and tells the other processes by a
    collective operation, in which those that are in another one never meet it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it, once Lightning has."""
        end_when_told()

    on_validation_start = on_test_start = on_predict_start = on_train_start


def reason(error: BaseException, output: bool = False) -> str | None:
    """Return in one line why a run ended that was the caller's doing or another process's; None for a fault of ours.

    Args:
        error: What was raised.
        output: Whether ``--output`` says where the run writes.
    """
    if re.search(LOST, f"{type(error).__name__}: {error}"):
        return "lost the connection to the other processes; one of them says why, or was killed."
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MisconfigurationException) or (
            isinstance(cause, (RuntimeError, ImportError)) and re.match(OPTIONS, str(cause))
        ):
            return f"--trainer: {' '.join(str(cause).split())}"
        cause = cause.__cause__
    return mistake(error, "--output") if output else mistake(error)
