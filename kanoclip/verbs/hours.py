"""How long a benchmark will take, from the first timed steps of its first fit, or else of its first test."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

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


class Overall(ProgressColumn):
    """How far a benchmark is, on all its processes: a bar, what is done, and when the rest will be.

    On a terminal it is drawn below all that is printed inside ``with``; the bar of a run is drawn below it. Elsewhere
    it is a line before each job. The end is told from the images that this call has seen done, each fit's as often as
    it is seen. What is done is read from disk, so each of several processes says the same.

    Args:
        jobs: All of them.
        then: Returns those that are known when these are done.
        lines: Whether to say it before each job where it is not drawn.
    """

    def __init__(
        self, jobs: Sequence[Job], then: Callable[[], Sequence[Job]] | None = None, lines: bool = True
    ) -> None:
        super().__init__(Column(no_wrap=True))
        self.jobs, self.then, self.lines = jobs, then, lines
        self.whole, self._begin = left(jobs), time.time()
        self.now, self._counted = self.whole, self._begin
        self._drawn: Progress | None = None

    def __enter__(self) -> Overall:
        """Draw it, on a terminal, if anything is to be done."""
        if self.whole.tests and is_watched():
            columns = BarColumn(None), self, TimeElapsedColumn(Column(no_wrap=True))
            self._drawn = Progress(*columns, console=get_console(), expand=True)
            self._drawn.add_task("")
            self.look()
            self._drawn.start()
            get_console().soft_wrap = True  # of what is printed above it: a path is copied in one piece
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it as it is."""
        if self._drawn:
            self.look()
            self._drawn.stop()
            self._drawn = None
            get_console().soft_wrap = False

    def begin(self, name: str) -> None:
        """Print which job begins now."""
        self.look()
        print(f"\n{self}\n== {name}" if self.lines and not self._drawn else f"\n== {name}", flush=True)

    def look(self) -> None:
        """Draw what is done by now."""
        if self._drawn:
            self._count()
            seen, images = self._images()
            self._drawn.update(self._drawn.task_ids[0], completed=seen, total=images)

    def _count(self) -> None:
        self.now, self._counted = left(self.jobs), time.time()
        if self.then and not self.now.fits + self.now.tests:
            self.jobs, self.then = [*self.jobs, *self.then()], None
            self.now = left(self.jobs)
            self.whole = ToDo(*(before + more for before, more in zip(self.whole, self.now, strict=True)))

    def _images(self) -> tuple[int, int]:
        """Return how many images are done, and how many there are."""
        images = self.whole.fit_images + self.whole.test_images
        return images - self.now.fit_images - self.now.test_images, images

    def __str__(self) -> str:
        """Look at what is done, and say it in one line."""
        self._count()
        seen, images = self._images()
        filled = round(BAR * seen / images) if images else BAR
        return f"{'━' * filled}{'─' * (BAR - filled)} {self.state()}"

    def render(self, task: Task) -> Text:
        """Say what stands beside the bar."""
        return Text(self.state(), no_wrap=True)

    def state(self) -> str:
        """Say how many runs are done, and when the rest will be."""
        seen, images = self._images()
        runs = self.whole.fits + self.whole.tests
        done = runs - self.now.fits - self.now.tests
        text = f"{done} of {counted(runs, 'run')} done"
        if seen <= 0 or done == runs:
            return text
        today = time.time()
        end = max(self._counted + (self._counted - self._begin) * (images - seen) / seen, today)
        day = "%H:%M" if time.localtime(end)[:3] == time.localtime(today)[:3] else "%a %d %b, %H:%M"
        return f"{text}, the rest until about {time.strftime(day, time.localtime(end))}"


def is_watched() -> bool:
    """Tell whether somebody sits at a terminal, where bars are drawn; else what runs print goes to a file."""
    return sys.stdin.isatty() and sys.stdout.isatty() and get_console().is_interactive


def left(jobs: Sequence[Job]) -> ToDo:
    """Count what is left to do; a fit that several rows share counts once."""
    to_do = [job for job in jobs if job.possible and not job.finished]
    fits = {job.fit_folder: job for job in to_do if job.learns and not job.fitted}
    tests = {job.report_path(one): one for job in to_do for one in job.available if not job.done(one)}
    images = (len(job.auxiliary.module.part("fit")) * int(job.trainer.get("max_epochs") or 15) for job in fits.values())
    tested = (len(one.module.part("test")) for one in tests.values())
    return ToDo(len(fits), sum(images), len(tests), sum(tested))
