"""What a command says beside its results: one line on a mistake, notes, and what it keeps to itself."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import logging
import os
import shutil
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from kanoclip.types import KanoclipError, printable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, the user's share, a file
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)  # the last two: a file for a folder


def complain(message: str) -> int:
    """Print one line on what the caller should mend; returns the exit code."""
    _say(f"kanoclip: error: {printable(message)}")
    return 2


def stopped(joined: bool = False) -> None:
    """Say that SIGTERM has ended this process; of several ones the first one speaks.

    Args:
        joined: Whether the others notice that it leaves. If not, it leaves after the first one has: Lightning would
            kill that at once, without a word, for a process that is gone.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("kanoclip: stopped by SIGTERM.", file=sys.stderr)
    elif not joined:
        time.sleep(5)


def note(text: str) -> None:
    """Tell a reader something beside the results; of several processes the first one speaks."""
    from lightning.pytorch.utilities import rank_zero_only

    if not getattr(rank_zero_only, "rank", 0):
        _say(f"kanoclip: {printable(text)}")


def _say(text: str) -> None:
    print(folded(text) if sys.stderr.isatty() else text, file=sys.stderr)


def folded(start: str, text: str = "", most: int = 10_000) -> str:
    """Fold a text to the terminal's width, below what stands in front of it.

    A pipe or a file gets whole lines, or such of ``most`` characters.
    """
    width = min(shutil.get_terminal_size((10_000, 24)).columns - 1, most)
    *above, first = start.split("\n")
    indent = " " * len(first) if text else ""
    fold = textwrap.TextWrapper(max(width, 40), subsequent_indent=indent)
    fold.break_long_words = fold.break_on_hyphens = False  # options and paths stay whole
    return "\n".join([*above, *fold.wrap(first + text)])


@contextmanager
def unless_quick(text: str, seconds: float = 2.0) -> Iterator[None]:
    """Say what takes so long, if what is done inside takes longer than some seconds."""
    timer = threading.Timer(seconds, note, [f"{text} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def mistake(error: BaseException, option: str = "--trainer.default_root_dir") -> str | None:
    """Return what the caller should mend, in one line; None for a fault of the program.

    A mistake is a ``KanoclipError``, or a disk that is full or may not be written to; also as the stated cause of
    another error.

    Args:
        error: What was raised.
        option: That by which the verb is told where to write.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = getattr(cause, "errno", None)
        if isinstance(cause, KanoclipError) and number is None:
            return str(cause)
        if isinstance(cause, OSError) and (number in FULL or isinstance(cause, KanoclipError)):
            remedy = f"{'Free the disk or choose' if number in FULL else 'Choose'} another place with {option}"
            return f"Cannot write {cause.filename or 'into the folder of the run'}: {cause.strerror}. {remedy}."
        if isinstance(cause, OSError) and number in DENIED and cause.filename:
            place = f"Allow it, or choose another place; what is written goes to {option}"
            return f"Cannot use {cause.filename}: {cause.strerror}. {place}."
        cause = cause.__cause__
    return None


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """Print why a thread has ended, unless it is TensorBoard's at a full disk: the main one raises the same."""
    if getattr(ended.exc_value, "errno", None) not in FULL:
        threading.__excepthook__(ended)


def quiet() -> None:
    """Keep Lightning's tips and counts to itself; its warnings of real trouble stay."""
    from lightning.pytorch.utilities import rank_zero_only

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a table's lines must not fail on an ASCII terminal
    threading.excepthook = _thread_ended
    atexit.register(gc.freeze)  # or Python looks through all there is before it leaves, for a second or two
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # speaks only if it was asked for
    for message in (
        ".*does not have many workers.*",  # expected on 2 cores
        ".*Checkpoint directory.*",
        ".*this fit will run with no optimizer.*",  # of a model whose fit fills a memory alone
        r".*`training_step` returned `None`.*",
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
