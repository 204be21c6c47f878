"""Measure how much of the bare model's speed is left in `kanoclip test`: reading, metrics and writing beside it.

    python benchmarks/test_loop.py --output runs/benchmarks/test_loop.md

Drawn surfaces are written as PNG files of 128 and 256 pixels into a folder. Then turns are taken: the bare forward
pass of KAnoCLIP with the embedded backbone over batches in memory, and the whole test of the same files.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from jsonargparse import auto_cli
from side_by_side import machine, publish, table, take_turns

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.data.sets.folder import Folder
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.types import ANOMALOUS
from kanoclip.verbs.table import main as kanoclip


def draw_files(folder: Path, images: int) -> None:
    """Write drawn surfaces and their masks in the layout of `folder`; every other one has twice the size."""
    data = Surfaces(images=-(-images // 7 // 2) * 2)
    for number, sample in enumerate(data.samples()[:images]):
        image, mask = data.read(sample)
        scale = 1 + number % 2
        big = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), None, fx=scale, fy=scale)
        files = {("abnormal" if sample.label == ANOMALOUS else "normal"): big}
        if sample.label == ANOMALOUS:
            files["masks"] = cv2.resize(mask * 255, big.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        for place, pixels in files.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / place / f"{number:05d}.png"), pixels)


def bare(folder: Path, batch_size: int) -> Callable[[], object]:
    """Load all images, and return a pass of the model over them."""
    model = KAnoCLIP(backbone=EmbeddedBackbone()).eval()
    data = Folder(root=str(folder), batch_size=batch_size, image_size=model.image_size, num_workers=0)
    batches = list(data.test_dataloader())

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    return run


def command(*words: object) -> None:
    """Run kanoclip in this process, without its words."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = kanoclip([str(word) for word in words])
    if code:
        raise RuntimeError(f"kanoclip {' '.join(map(str, words))}: {said.getvalue()}")


def main(
    output: Path = Path("runs/benchmarks/test_loop.md"),
    images: int = 2000,
    batch_size: int = 8,
    num_workers: tuple[int, ...] = (2, 0),
    turns: int = 5,
) -> None:
    """Measure, print and write a table.

    Args:
        output: Markdown file to write.
        images: Files to test.
        batch_size: Images per batch, of both.
        num_workers: Processes that read; each number is a contender.
        turns: Runs of each.
    """
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        draw_files(root / "files", images)
        common = ["--model.backbone", "embedded", "--trainer.default_root_dir", root / "runs"]
        common += ["--trainer.enable_progress_bar", "false"]
        command("fit", "--data", "surfaces_auxiliary", "--data.images", 2, "--trainer.max_epochs", 1, *common)
        options = ["--data.root", root / "files", "--data.batch_size", batch_size, *common]
        names = {count: f"kanoclip test, {count} workers" for count in num_workers}
        contenders = {
            name: lambda count=count: command("test", "--data", "folder", "--data.num_workers", count, *options)
            for count, name in names.items()
        }
        times = take_turns({"bare forward pass": bare(root / "files", batch_size), **contenders}, turns)
        loops: dict[int, list[float]] = {count: [] for count in num_workers}
        for path in sorted(root.glob("runs/test/**/results.json"), key=lambda path: path.stat().st_mtime):
            report = json.loads(path.read_text())
            loops[report["options"]["data"]["num_workers"]].append(report["seconds"])
    bare_pass = ["bare forward pass", "model(batch) over batches in memory", images / times.median("bare forward pass")]
    rows: list[list[object]] = [[*bare_pass, "100%", "100%"]]
    for count, name in names.items():
        times.seconds["loop"] = loops[count][-turns:]  # the first one was to warm up
        whole = "whole command, imports apart: options, model, index, workers, loop, metrics, files"
        work = f"{times.ratio('bare forward pass', name, processor=True):.0%}"
        for what, key, share in (("its loop, from the first batch to the last", "loop", ""), (whole, name, work)):
            wall = f"{times.ratio('bare forward pass', key):.0%}"
            rows.append([name, what, images / times.median(key), wall, share])
    about = f"{images} PNG files, batches of {batch_size}, medians of {turns} turns"
    head = ["", "what", "images/s", "of the bare pass, by the clock", "by processor time"]
    publish([machine("torch", "lightning"), "", about, "", *table(head, rows)], output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
