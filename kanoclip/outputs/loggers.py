"""Pictures, texts and options to each kind of logger, by what Lightning offers of it; others get numbers alone.

Only the first process may call these: the loggers of the others do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

PICTORIAL = (TensorBoardLogger, WandbLogger, MLFlowLogger)
"""Loggers that take pictures and texts."""


def send_image(loggers: Sequence[Logger], name: str, image: NDArray[np.uint8], step: int) -> None:
    """Log an image ``(H, W, 3)``, RGB, 0-255."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, f"{name}/{step:06d}.png")


def send_text(loggers: Sequence[Logger], name: str, text: str, step: int) -> None:
    """Log a text of several lines as it is, such as YAML or a table."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):  # which takes it for Markdown: code stays as it is
            logger.experiment.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)
        elif isinstance(logger, WandbLogger):
            logger.log_text(name, ["text"], [[text]], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, f"{name}/{step:06d}.txt")


def send_options(loggers: Sequence[Logger], options: Mapping[str, bool | float | str]) -> None:
    """Log options to compare runs by. TensorBoard finds the metrics beside them itself: all scalars of the runs."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):  # whose own way fixes which metrics there are, before any is known
            logger.hparams.update(options)
            logger.experiment.file_writer.add_summary(hparams_pb(dict(options), trial_id=logger.log_dir))
        else:
            logger.log_hyperparams(dict(options))


def send_counts(loggers: Sequence[Logger], name: str, edges: NDArray[Any], counts: NDArray[Any], step: int) -> None:
    """Log a histogram to TensorBoard.

    Args:
        loggers: Those of TensorBoard among them get it.
        name: How it is called.
        edges: ``(n + 1,)``, rising.
        counts: ``(n,)``: how many values lie between two edges.
        step: Of the fit.
    """
    middle, limits = (edges[1:] + edges[:-1]) / 2, edges[1:].tolist()
    sums = float(counts @ middle), float(counts @ middle**2)
    ends = float(edges[0]), float(edges[-1])
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and counts.any():
            logger.experiment.add_histogram_raw(name, *ends, int(counts.sum()), *sums, limits, counts.tolist(), step)


def send_passed(loggers: Sequence[Logger], name: str, above: NDArray[Any], step: int) -> None:
    """Log a precision-recall curve to TensorBoard.

    Args:
        loggers: Those of TensorBoard among them get it.
        name: How it is called.
        above: ``(2, 127)``, how many normal and anomalous ones score at least 0 ... 1 in even steps.
        step: Of the fit.
    """
    false, true = above.astype(np.float64)
    found = true + false
    precision = np.divide(true, found, out=np.ones_like(true), where=found > 0)
    counts = true, false, false[0] - false, true[0] - true
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and above[:, 0].all():
            logger.experiment.add_pr_curve_raw(name, *counts, precision, true / true[0], step, len(true))
