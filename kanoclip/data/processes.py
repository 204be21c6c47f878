"""Processes that work together end together, and only the first of them answers the signals that reach all.

Imports nothing heavy: it is needed before torch is imported, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import cache
from types import TracebackType
from typing import Any, NoReturn

PARENT = "KANOCLIP_PARENT"
"""Environment variable: the process whose children, such as the other ranks, end with it."""

_heard = threading.Event()


def end_with(parent: int) -> None:
    """End this process within a second of its parent, however that came to its end.

    A parent that is killed tells nobody: its children would wait for it, in a collective operation for half an hour.

    Args:
        parent: Process id of the parent as it was when this process was started.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # whatever the main thread is waiting for

    threading.Thread(target=watch, daemon=True).start()


def leave_signals_to_parent() -> None:
    """Let a worker ignore Ctrl-C and SIGTERM, which a terminal, SLURM or systemd send to all processes at once.

    The parent ends its workers, or ends, and they with it.
    """
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)
    sys.excepthook = _unless_left
    end_with(os.getppid())


def _unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error of a worker, unless its parent has left in the middle of a handover."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def end_when_told() -> None:
    """Let SIGTERM raise in the main thread, as Ctrl-C does: what is begun is finished or undone, then the run ends.

    A main thread that cannot, as it waits for another process outside of Python, is ended after two seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _heard.clear()
    signal.signal(signal.SIGTERM, _told_to_end)
    _listen()


@cache
def _listen() -> None:
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # what a forked child is told is its own
    threading.Thread(target=_wait, args=(told,), daemon=True).start()


def _wait(told: int) -> None:
    while True:
        if os.read(told, 1) != bytes([signal.SIGTERM]):
            continue
        if signal.getsignal(signal.SIGTERM) is not _told_to_end or _heard.wait(2):
            continue  # it was another's to hear, or was heard
        if os.environ.get("LOCAL_RANK", "0") == "0":
            os.write(2, b"kanoclip: stopped by SIGTERM.\n")
        os._exit(128 + signal.SIGTERM)


def _told_to_end(*_: Any) -> NoReturn:
    _heard.set()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and once more would cut short what is finished now
    module = sys.modules.get("lightning.pytorch.utilities.exceptions")
    raise getattr(module, "SIGTERMException", SystemExit)(128 + signal.SIGTERM)
