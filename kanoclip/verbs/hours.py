"""How long a benchmark will take, from the first timed steps of its first fit, or else of its first test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from kanoclip.types import counted
from kanoclip.verbs.jobs import Job
from kanoclip.verbs.say import note

BAR = 20  # characters
UNTIMED, TIMED = 3, 10
"""Steps at the start that are slower than others, and steps that are timed."""


class ToDo(NamedTuple):
    """What is left to do.

    Attributes:
        fits: Fits.
        fit_images: Their images, each as often as it is seen.
        tests: Tests.
        test_images: Their images.
    """

    fits: int
    fit_images: int
    tests: int
    test_images: int


class FirstSteps(Callback):
    """Says once how many hours all that is left will take; plain numbers, so that a config can name it.

    It takes an image of each fit, and of each test, for as long as one of the first timed steps: a fit with another
    backbone takes another time, and a test step is shorter than one of a fit.

    Args:
        fits: See ``ToDo``.
        fit_images: See ``ToDo``.
        tests: See ``ToDo``.
        test_images: See ``ToDo``.
        processes: How many share the work.
    """

    def __init__(self, fits: int, fit_images: int, tests: int, test_images: int, processes: int = 1) -> None:
        self.to_do, self.processes = ToDo(fits, fit_images, tests, test_images), processes
        self._begin, self._steps, self._images = 0.0, 0, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Time the first steps of a fit."""
        self._step(len(batch.label))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Time the first batches of a test."""
        self._step(len(batch.label))

    def _step(self, images: int) -> None:
        self._steps += 1
        if self._steps > UNTIMED:
            self._images += images
        if self._steps == UNTIMED:
            self._begin = time.monotonic()
        if self._steps == UNTIMED + TIMED:
            note(expected(self.to_do, (time.monotonic() - self._begin) / self._images, self.processes))


def expected(to_do: ToDo, seconds: float, processes: int) -> str:
    """Say how long it will take.

    Args:
        to_do: What is left.
        seconds: For an image.
        processes: How many share the work.
    """
    hours = (to_do.fit_images + to_do.test_images) * seconds / processes / 3600
    what = [counted(to_do.fits, "fit")] * bool(to_do.fits) + [counted(to_do.tests, "test")] * bool(to_do.tests)
    long = f"{hours:.1f} hours" if hours >= 1 else counted(max(1, round(60 * hours)), "minute")
    share = f" in {processes} processes" if processes > 1 else ""
    each = f"{1000 * seconds:.3g} ms an image, as in the first steps"
    return f"expected: {long} for {' and '.join(what)}{share}, at {each}."


class Overall:
    """How far a benchmark is, on all its processes: a bar, what is done, and when the rest will be.

    The end is told from the images that this call has seen done, each fit's as often as it is seen. What is done is
    read from disk, so each of several processes says the same.

    Args:
        jobs: All of them.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.whole, self._begin = jobs, left(jobs), time.time()

    def __str__(self) -> str:
        """Say it in one line."""
        now, whole = left(self.jobs), self.whole
        runs, images = whole.fits + whole.tests, whole.fit_images + whole.test_images
        done, seen = runs - now.fits - now.tests, images - now.fit_images - now.test_images
        filled = round(BAR * seen / images) if images else BAR
        text = f"{'━' * filled}{'─' * (BAR - filled)} {done} of {counted(runs, 'run')} done"
        if seen <= 0 or done == runs:
            return text
        today = time.time()
        end = today + (today - self._begin) * (images - seen) / seen
        day = "%H:%M" if time.localtime(end)[:3] == time.localtime(today)[:3] else "%a %d %b, %H:%M"
        return f"{text}, the rest until about {time.strftime(day, time.localtime(end))}"


def left(jobs: Sequence[Job]) -> ToDo:
    """Count what is left to do; a fit that several rows share counts once."""
    to_do = [job for job in jobs if job.possible and not job.finished]
    fits = {job.fit_folder: job for job in to_do if job.learns and not job.fitted}
    tests = {job.report_path(one): one for job in to_do for one in job.available if not job.done(one)}
    images = (len(job.auxiliary.module.part("fit")) * int(job.trainer.get("max_epochs") or 15) for job in fits.values())
    tested = (len(one.module.part("test")) for one in tests.values())
    return ToDo(len(fits), sum(images), len(tests), sum(tested))
