"""Time things side by side: runs that take turns, medians, ratios, and the versions they were measured with.

A shared machine is never equally fast for long. So the contenders take turns, each run is set against the run of the
same turn, and what a table shows is the median over turns.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import kanoclip


class Times:
    """What several contenders took, turn by turn.

    Args:
        seconds: Of the clock on the wall.
        processor: Of the processor, for all threads of this process and the children that it waited for; what others do
            hardly changes it.
    """

    def __init__(self, seconds: dict[str, list[float]], processor: dict[str, list[float]]) -> None:
        self.seconds = seconds
        self.processor = processor

    def median(self, name: str) -> float:
        """Median time of one contender, seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str, processor: bool = False) -> float:
        """How many times as long as another it takes: the median over turns of the ratio within a turn."""
        times = self.processor if processor else self.seconds
        return statistics.median(mine / other for mine, other in zip(times[name], times[to], strict=True))


def take_turns(contenders: Mapping[str, Callable[[], object]], turns: int, warm_up: bool = True) -> Times:
    """Run every contender once each turn, in an order that is reversed from turn to turn."""
    if warm_up:
        for run in contenders.values():
            run()
    times = Times({name: [] for name in contenders}, {name: [] for name in contenders})
    for turn in range(turns):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            start, used = time.perf_counter(), sum(os.times()[:4])
            contenders[name]()
            times.processor[name].append(sum(os.times()[:4]) - used)
            times.seconds[name].append(time.perf_counter() - start)
    return times


def peak_memory() -> float:
    """Most memory that this process has had at once, MB; Linux only (getrusage also counts what started it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def restart_peak() -> float:
    """Let the peak start anew from what is in use now; returns that, MB. Linux only."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, or the peak would hide in it
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def machine(*packages: str) -> str:
    """Say on what and with what was measured, in one line."""
    found = ", ".join(f"{name} {version(name)}" for name in packages)
    python = f"Python {platform.python_version()}"
    return f"{os.cpu_count()} CPU cores, {python}, kanoclip {kanoclip.__version__}{', ' if found else ''}{found}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lay out a Markdown table; numbers are rounded to three digits."""
    shown = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *shown]]


def publish(lines: Sequence[str], output: Path) -> None:
    """Print a report and write it."""
    text = "\n".join(lines)
    print(text)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text + "\n", encoding="utf-8")
