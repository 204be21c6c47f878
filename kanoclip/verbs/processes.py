"""Several processes that run the same command and share its work; they end when this one does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence

GRACE = 30  # seconds for an interrupted process to end


def run_in_processes(count: int, argv: Sequence[str], gpus: Sequence[str] = ()) -> None:
    """Run the same command in several processes and wait for all.

    What they print is passed on line by line. They are stopped if this process is interrupted, or killed.

    Args:
        count: How many.
        argv: Verb and options; a process calls ``leave_with_parent`` first of all.
        gpus: Devices to share out, one to a process, as in ``CUDA_VISIBLE_DEVICES``.
    """
    command = [sys.executable, "-m", "kanoclip", *argv]
    workers = []
    for number in range(count):
        own = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), **os.environ, "PYTHONUNBUFFERED": "1"}
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        workers.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells a worker to stop, also when this process is killed
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=own,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches this process alone
            )
        )
    threads = [threading.Thread(target=_relay, args=(worker.stdout or (),), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for worker in workers:
            worker.wait()
    finally:
        for worker in workers:
            if worker.stdin:
                worker.stdin.close()
        for worker in workers:
            try:
                worker.wait(GRACE)
            except subprocess.TimeoutExpired:
                worker.kill()
        for thread in threads:
            thread.join()


def _relay(lines: Iterable[str]) -> None:
    """Print what a worker says, each line behind what it is at."""
    at = ""
    for line in lines:
        if header := re.match(r"== (.+)", line):
            at = f"{header[1]} | "
            print(line.rstrip(), flush=True)
        elif line.strip():
            print(f"{at}{line.rstrip()}", flush=True)


def leave_with_parent() -> None:
    """Interrupt this process as soon as the one that started it closes its standard input, or is gone."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()
