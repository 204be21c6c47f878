"""Time, memory and floors of what runs on a device: a floor is what it cannot be faster than.

One floor is the operations of all matrix products over the rate that the card reaches in a large one, the other the
bytes that they must read and write over the card's bandwidth. Both are measured, not read off a data sheet.
"""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from side_by_side import peak_memory, restart_peak
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "TF32", *HALF)
aten = torch.ops.aten
FORMULAS = flop_registry | {  # which knows no attention of a CPU
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention]
}


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """Compute matrix products in one of ``PRECISIONS``: the last two by autocast, the first two as torch is told."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
    try:
        with torch.autocast(device, HALF[name]) if name in HALF else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Work(TorchDispatchMode):
    """Counts matrix products, convolutions and attention.

    Attributes:
        operations: Multiplications and additions.
        bytes: Their factors and results, each read or written once: all else is taken as done on the way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in FORMULAS:
            self.operations += FORMULAS[func.overloadpacket](*args, **(kwargs or {}), out_val=found)
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves((args, found)) if isinstance(leaf, torch.Tensor))
        return found


class Card:
    """A GPU, or the CPU to try the same on.

    Args:
        device: "cuda" or "cpu".
        least: How often to time anything at least.

    Attributes:
        rates: Precision -> operations per second, once measured.
        bandwidth: Bytes per second, read and written, likewise.
    """

    def __init__(self, device: str, least: int = 3) -> None:
        self.least = least
        self.device, self.rates, self.bandwidth = device, dict.fromkeys(PRECISIONS, math.nan), math.nan

    def measure(self, side: int) -> None:
        """Measure the rates by products of ``side`` x ``side`` matrices, and the bandwidth by a copy."""
        for name in PRECISIONS:
            kind = HALF.get(name, torch.float32)
            first, second = (torch.randn(side, side, device=self.device, dtype=kind) for _ in range(2))
            torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
            self.rates[name] = 2 * side**3 / self.seconds(lambda a=first, b=second: a @ b)
        torch.set_float32_matmul_precision("highest")
        block = torch.ones(side, side, 8, device=self.device)
        other = torch.empty_like(block)
        self.bandwidth = 2 * block.nbytes / self.seconds(lambda: other.copy_(block))

    @property
    def description(self) -> str:
        """Name, memory, driver and versions."""
        if self.device != "cuda":
            return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
        about = torch.cuda.get_device_properties(0)
        ask = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        try:
            driver = subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            driver = "not known"
        return (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {about.multi_processor_count} multiprocessors, CUDA "
            f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}; driver, power limit, clock: {driver}"
        )

    def wait(self) -> None:
        """Wait until all that was started is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], most: float = 0.5) -> float:
        """Median time of a run after as many to warm up as it takes, for about ``most`` seconds."""
        for _ in range(min(2, self.least)):
            start = time.perf_counter()
            run()
            self.wait()
            once = time.perf_counter() - start
        turns = max(self.least, min(50, int(most * self.least / 3 / once)))
        if self.device != "cuda":
            found = []
            for _ in range(turns):
                start = time.perf_counter()
                run()
                found.append(time.perf_counter() - start)
            return statistics.median(found)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(turns + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        self.wait()
        return statistics.median(a.elapsed_time(b) for a, b in pairwise(events)) / 1000

    def peak(self, run: Callable[[], object]) -> float:
        """Most memory in use during a run, weights included, GB."""
        if self.device != "cuda":
            restart_peak()
            run()
            return peak_memory() / 1024
        torch.cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return torch.cuda.max_memory_allocated() / 2**30

    def floors(self, operations: float, size: float, name: str) -> tuple[float, float]:
        """Seconds that the operations and the bytes take at least, in a precision."""
        return operations / self.rates[name], size / self.bandwidth
