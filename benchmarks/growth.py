"""Measure how time and memory grow: of a test with its images, and of the index with its files.

    pip install ".[notebooks]"  # for the plot
    python benchmarks/growth.py --output runs/benchmarks/growth.md

Every measurement is a process of its own. The test reads drawings from PNG files (200 different ones under many names)
with CLIP-VV on the embedded backbone at 64 pixels; the index is that of benchmarks/data.py.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import data
import matplotlib.pyplot as plt
import numpy as np
from jsonargparse import auto_cli
from side_by_side import machine, peak_memory, publish, table
from test_loop import draw_files

DIFFERENT = 200


def many_files(folder: Path, images: int) -> None:
    """Write the different drawings in the layout of `folder`, and link the others to them."""
    draw_files(folder, min(images, DIFFERENT))
    for file in sorted(folder.glob("*/*.png")):
        for number in range(int(file.stem) + DIFFERENT, images, DIFFERENT):
            os.link(file, file.with_name(f"{number:05d}.png"))


def test_once(root: str) -> None:
    """Test a folder and print the loop's seconds and the peak memory (MB) of this process and of its largest worker."""
    import resource

    from kanoclip.verbs.table import main as kanoclip

    words = "test --model clip_vv --model.backbone embedded --model.backbone.image_size 64 --data folder"
    code = kanoclip([*words.split(), "--data.root", root, "--trainer.default_root_dir", f"{root}/runs"])
    report = json.loads(next(Path(root).glob("runs/test/**/results.json")).read_text())
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps([code, report["seconds"], peak_memory(), worker]))


def slope(counts: list[int], values: list[float]) -> str:
    """Exponent of the growth: 1 is in proportion, 0 is constant; none where something took no memory of its own."""
    return f"slope {np.polyfit(np.log(counts), np.log(values), 1)[0]:.2f}" if min(values) > 0 else "no slope"


def plot(results: dict[str, tuple[list[int], list[float], list[float]]], path: Path) -> None:
    """Draw time and memory over the number of images, on logarithmic axes."""
    figure, sides = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, (counts, seconds, memory) in results.items():
        for side, values in zip(sides, (seconds, memory), strict=True):
            side.plot(counts, values, "o-", label=f"{name}: {slope(counts, values)}")
    for side, label in zip(sides, ("time, s", "peak memory, MB"), strict=True):
        side.set(xlabel="images", ylabel=label)
        side.set_xscale("log")
        side.set_yscale("log", nonpositive="mask")
        side.grid(alpha=0.3)
        side.legend()
    sides[1].set_ylim(10, 10_000)
    sides[1].set_title("of the index: above what its imports had needed", fontsize=8)
    figure.savefig(path, dpi=100)


def main(
    output: Path = Path("runs/benchmarks/growth.md"), images: tuple[int, ...] = (100, 1000, 10000), turns: int = 5
) -> None:
    """Measure, print and write a table and a plot beside it.

    Args:
        output: Markdown file to write; the plot gets its name with .png.
        images: Numbers of images to test, each once: the time of many images is an average already.
        turns: How often each index is built.
    """
    tests: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for count in images:
            root = Path(place, str(count))
            many_files(root, count)
            command = [sys.executable, __file__, "test", str(root)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            tests.append([count, *json.loads(done.stdout.splitlines()[-1])[1:]])
    indexes: list[list[Any]] = []
    for normal, anomalous in ((33, 17), (332, 171), (data.NORMAL, data.ANOMALOUS)):
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            data.draw_index(root / "data", normal, anomalous)
            runs = [data.measure_index(root / "data", root / f"cache{turn}", "real_iad") for turn in range(turns)]
            indexes.append([runs[0][2], *(statistics.median(run[i] for run in runs) for i in (0, 1))])
    by_column = [list(column) for column in zip(*tests, strict=True)], [list(c) for c in zip(*indexes, strict=True)]
    results = {"test": tuple(by_column[0][:3]), "index": tuple(by_column[1])}
    lines = [machine("torch", "lightning"), "", "Slope: 1 grows in proportion, 0 not at all."]
    lines += [f"One run of each test, medians of {turns} of each index.", ""]
    lines += table(["test: images", "loop, s", "peak memory, MB", "of a worker, MB"], tests)
    lines += ["", *table(["index: images", "s", "memory above the start, MB"], indexes), ""]
    for name, (counts, seconds, memory) in results.items():
        each = 1000 * (seconds[-1] - seconds[0]) / (counts[-1] - counts[0])
        more = 1024 * (memory[-1] - memory[0]) / (counts[-1] - counts[0])
        lines.append(
            f"- {name}: time, {slope(counts, seconds)}, {each:.3g} ms an image more; memory, {slope(counts, memory)}, "
            f"{more:.3g} kB an image more."
        )
    picture = output.with_suffix(".png")
    publish([*lines, "", f"![time and memory over the number of images]({picture.name})"], output)
    plot(results, picture)


if __name__ == "__main__":
    if sys.argv[1:2] == ["test"]:
        test_once(sys.argv[2])
    else:
        auto_cli(main, as_positional=False)
