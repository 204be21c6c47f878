"""What a run costs beside time: parameters that are trained, and memory at its peak."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from kanoclip.ranks import gather

PROCESS, DEVICE = "process", "device"


def trained_parameters(model: nn.Module) -> int:
    """Count the numbers that a fit trains."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def start_memory() -> None:
    """Forget the peaks of runs before this one in the process; only Linux can for a process's own memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Return the peak since ``start_memory``, of the rank that has the highest; collective.

    Returns:
        ``bytes``, and ``of``: "device", what torch allocated on the GPU, or "process", what the process held in memory,
        with Python and its libraries.
    """
    if device.type == "cuda":
        return {"bytes": max(gather(torch.cuda.max_memory_allocated(device))), "of": DEVICE}
    if sys.platform == "win32":  # has no such count
        return {"bytes": None, "of": PROCESS}
    from resource import RUSAGE_SELF, getrusage

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return {"bytes": max(gather(getrusage(RUSAGE_SELF).ru_maxrss * unit)), "of": PROCESS}
