"""The metrics of one epoch of validation or test, by category."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kanoclip.metrics import ImageMetrics, PixelMetrics
from kanoclip.ranks import gather
from kanoclip.types import ANOMALOUS, UNKNOWN, Batch, Scores

RESERVED = ("mean", "mean_over")
"""Names in results that are no categories."""

Results = dict[str, dict[str, float | None]]


class Counted(NamedTuple):
    """What the curves of one category are drawn from, over all ranks.

    Attributes:
        scores: ``(n,)`` image scores.
        labels: ``(n,)``, 0 = normal, 1 = anomalous.
        passed: Numbers of normal and of anomalous pixels that score at least as much as some scores, from the highest
            down; without masks one 0 each.
        above: ``(2, 127)``, normal and anomalous pixels that score at least 0 ... 1 in even steps.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int_]
    passed: tuple[NDArray[np.float64], NDArray[np.float64]]
    above: NDArray[np.int64]


class EpochMetrics:
    """Counts scores by category, a batch in a thread of its own while the next one is scored.

    Args:
        device: Where the states are kept.
        categories: Those that are known before; others are added as they come.

    Attributes:
        overlap: After ``compute``: category -> false positive rates and the mean overlap of regions at each, see
            ``PixelMetrics``; of those categories where it is defined.
        counted: After ``compute``: category -> what its curves are drawn from.
    """

    def __init__(self, device: torch.device, categories: Iterable[str] = ()) -> None:
        self.device = device
        self.overlap: dict[str, tuple[list[float], list[float]]] = {}
        self.counted: dict[str, Counted] = {}
        self._pool = ThreadPoolExecutor(1)
        self._counting: Future[None] | None = None
        self._metrics: dict[str, tuple[ImageMetrics, PixelMetrics]] = {}
        for category in categories:
            self._of(category)

    def update(self, batch: Batch, scores: Scores) -> None:
        """Count a batch; images without a label, and for pixels those without a mask, are left out."""
        self._wait()  # one batch at a time: no more is kept in memory, and an error stops the run
        self._counting = self._pool.submit(self._count, batch, scores)

    def compute(self) -> Results:
        """Return category -> name of the metric -> value, with ``mean`` over the categories where it is defined.

        None = undefined. Collective: every rank must call this equally often, or the run hangs.
        """
        self._wait()
        results: Results = {}
        for category in sorted({name for names in gather(list(self._metrics)) for name in names}):  # in one order
            image, pixel = self._of(category)
            found = {f"image_{name}": float(value) for name, value in image.compute().items()}
            found |= {f"pixel_{name}": float(value) for name, value in pixel.compute().items()}
            name = f"{category} (category)" if category in RESERVED else category
            self.counted[name] = Counted(image.scored[0], image.scored[1].astype(int), pixel.passed, pixel.above)
            if len(pixel.overlap[0]):
                self.overlap[name] = pixel.overlap[0].tolist(), pixel.overlap[1].tolist()
            results[name] = {
                **{metric: None if math.isnan(value) else value for metric, value in found.items()},
                "images": sum(image.counts),
                "anomalous": image.counts[ANOMALOUS],
            }
        if results:
            names = [name for name in next(iter(results.values())) if name.startswith(("image_", "pixel_"))]
            results["mean"] = {name: _mean([found[name] for found in results.values()]) for name in names}
        return results

    def _wait(self) -> None:
        if self._counting is not None:
            self._counting.result()  # raises what went wrong

    def _count(self, batch: Batch, scores: Scores) -> None:
        for category in sorted(set(batch.category)):
            image, pixel = self._of(category)
            mine = torch.tensor([name == category for name in batch.category], device=batch.label.device)
            known = mine & (batch.label != UNKNOWN)
            image.update(scores.image_score[known], batch.label[known])
            known = known & batch.has_mask
            if known.any():
                pixel.update(scores.anomaly_map[known], batch.mask[known])

    def _of(self, category: str) -> tuple[ImageMetrics, PixelMetrics]:
        if category not in self._metrics:
            self._metrics[category] = ImageMetrics().to(self.device), PixelMetrics().to(self.device)
        return self._metrics[category]


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
