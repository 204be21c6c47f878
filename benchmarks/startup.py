"""Measure how soon the command answers, and what is imported meanwhile.

    python benchmarks/startup.py --output runs/benchmarks/startup.md

Each run is a Python process of its own, in the folder of the repository or with kanoclip installed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli
from side_by_side import machine, publish, table, take_turns

KANOCLIP = ("-m", "kanoclip")
TYPED = {
    "python, nothing imported": ("-c", "pass"),
    "import kanoclip": ("-c", "import kanoclip"),
    "kanoclip --help": (*KANOCLIP, "--help"),
    "kanoclip --version": (*KANOCLIP, "--version"),
    "kanoclip list": (*KANOCLIP, "list"),
    "kanoclip tset (unknown verb)": (*KANOCLIP, "tset"),
    "kanoclip test --data mvtecc (unknown name)": (*KANOCLIP, "test", "--data", "mvtecc"),
    "kanoclip fit --data surfaces --trainer.max_epoch 3 (unknown option)": (
        *KANOCLIP, "fit", "--data", "surfaces", "--trainer.max_epoch", "3"
    ),
    "kanoclip benchmark --confg x (unknown option)": (*KANOCLIP, "benchmark", "--confg", "x"),
    "kanoclip data lst (unknown action)": (*KANOCLIP, "data", "lst"),
    "import torch": ("-c", "import torch"),
    "import lightning.pytorch": ("-c", "import lightning.pytorch"),
    "kanoclip fit --help": (*KANOCLIP, "fit", "--help"),
}  # fmt: skip


def run(arguments: Sequence[str]) -> None:
    """Run Python and wait for its end, whatever its exit code."""
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)


def imports(arguments: Sequence[str]) -> dict[str, float]:
    """Return the packages that are imported, and the seconds that each spent in its own files."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False)
    seconds: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and line[12:].split("|")[0].strip().isdigit():
            own, _, module = line[12:].split("|")
            package = module.strip().split(".")[0]
            seconds[package] = seconds.get(package, 0) + int(own) / 1e6
    return seconds


def main(output: Path = Path("runs/benchmarks/startup.md"), turns: int = 5) -> None:
    """Measure, print and write a table.

    Args:
        output: Markdown file to write.
        turns: Runs of each command.
    """
    times = take_turns({name: lambda arguments=arguments: run(arguments) for name, arguments in TYPED.items()}, turns)
    rows = [
        [name, times.median(name), max(times.seconds[name]), "yes" if "torch" in imports(arguments) else "no"]
        for name, arguments in TYPED.items()
    ]
    each = [imports(TYPED["kanoclip fit --help"]) for _ in range(turns)]
    spent = {name: statistics.median(one.get(name, 0) for one in each) for name in each[0]}
    largest = sorted(spent, key=lambda name: -spent[name])[:10]
    lines = [machine("torch", "lightning", "jsonargparse"), "", f"Medians of {turns} turns.", ""]
    lines += table(["typed", "s", "slowest, s", "imports torch"], rows)
    lines += ["", "Where `kanoclip fit --help` imports longest, by package (without what each imports in turn):", ""]
    lines += table(["package", "s"], [[name, spent[name]] for name in largest])
    publish(lines, output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
