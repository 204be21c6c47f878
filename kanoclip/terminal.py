"""What a command says beside its results, and what it keeps to itself."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import sys
import threading
import warnings

from lightning.pytorch.utilities import rank_zero_only

from kanoclip.arguments import FULL


@rank_zero_only  # of several processes the first one speaks
def note(text: str) -> None:
    """Tell a reader something beside the results."""
    print(f"kanoclip: {text}", file=sys.stderr)


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
