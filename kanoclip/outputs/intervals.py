"""Intervals of a test by a bootstrap over its images, see ``metrics.bootstrap``; and differences of two rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from kanoclip.data.files import say_damaged, write_bytes
from kanoclip.metrics.bootstrap import DRAWS, Draws, Tested, draw, interval, summary
from kanoclip.ranks import gather, rank_of
from kanoclip.types import UNKNOWN, Batch, Scores

FILE = "bootstrap.safetensors"
"""In a test's folder: the draws of the mean of each metric, 28 KB."""

FitDraws = Mapping[Any, NDArray[np.floating]]
"""Seed of a fit -> ``(DRAWS,)`` values."""


class ImageDraws:
    """Keeps of each image of a test what its bootstrap needs, in a thread of its own while the next batch is scored."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, Tested]] = []
        self._pool = ThreadPoolExecutor(1)
        self._adding: Future[None] | None = None

    def add(self, batch: Batch, scores: Scores, maps: NDArray[np.float32], masks: NDArray[Any]) -> None:
        """Add a batch; images without a label are left out.

        Args:
            batch: What was tested.
            scores: What was found.
            maps: Its anomaly maps ``(B, H, W)``, on the CPU.
            masks: Its masks ``(B, H, W)``, on the CPU.
        """
        self._wait()
        values, labels, known = (
            one.detach().float().cpu().tolist() for one in (scores.image_score, batch.label, batch.has_mask)
        )

        def keep() -> None:
            for i, label in enumerate(labels):
                if label != UNKNOWN:
                    pixels = summary(maps[i], masks[i]) if known[i] else None
                    self._kept.append((batch.path[i], Tested(batch.category[i], int(label), values[i], pixels)))

        self._adding = self._pool.submit(keep)

    def finish(
        self, folder: Path, places: Mapping[str, int], results: Mapping[str, Any], name: str | None
    ) -> dict[str, dict[str, list[float]]]:
        """Write the draws and return the intervals; collective, the first process writes.

        Args:
            folder: Of the run.
            places: Path -> place in the data.
            results: Category -> metric -> exact value.
            name: Digest of the samples, by which is drawn; None: their paths.
        """
        self._wait()
        self._pool.shutdown()
        every = gather(self._kept)
        if rank_of()[0]:
            return {}
        kept = sorted((pair for mine in every for pair in mine), key=lambda pair: (places.get(pair[0], 0), pair[0]))
        intervals, means = draw([one for _, one in kept], results, name or "\0".join(path for path, _ in kept))
        if means:
            write_bytes(folder / FILE, save(means))
        return intervals

    def _wait(self) -> None:
        if self._adding is not None:
            self._adding.result()  # raises what went wrong


def read_draws(folder: Path) -> Draws:
    """Read the draws of a test; empty if there are none: of few images, or of an older version."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        found: Draws = load_file(file)
    except SafetensorError:
        say_damaged(file)
        return {}
    return {name: values for name, values in found.items() if values.shape == (DRAWS,)}


def separated(intervals: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Say what an interval of no width means, where each image is ranked right; "" elsewhere."""
    if list(intervals.get("mean", {}).get("image_auroc", ())) != [1, 1]:
        return ""
    return "Image AUROC: no image was misranked, so resampling shows no spread. Among new images some may be."


class Difference(NamedTuple):
    """One row less another one.

    Attributes:
        value: Of the means over fits.
        low: Lower end of its interval of 95 %, over images and, of several fits, over fits.
        high: Its upper end.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def over_fits(draws: FitDraws) -> list[float] | None:
    """Return the interval of a mean over fits, of the fits as they are; None without draws."""
    return interval(np.mean(list(draws.values()), 0)) if draws else None


def difference(mine: Sequence[float], draws: FitDraws, other: Sequence[float], others: FitDraws) -> Difference | None:
    """Compare two rows that were tested on the same images.

    Args:
        mine: A value a fit.
        draws: The draws of each.
        other: Those of the other row.
        others: Its draws.

    Returns:
        None where one of them has no draws.
    """
    if not draws or not others:
        return None
    random = np.random.default_rng(0)
    low, high = interval(_any_fits(draws, random) - _any_fits(others, random))
    return Difference(float(np.mean(mine) - np.mean(other)), low, high)


def _any_fits(draws: FitDraws, random: np.random.Generator) -> NDArray[np.floating]:
    """Draw fits, too: in each draw as many as there are, with replacement."""
    each = np.stack(list(draws.values()))  # (fits, DRAWS)
    found: NDArray[np.floating] = np.take_along_axis(each, random.integers(0, len(each), each.shape), 0).mean(0)
    return found
