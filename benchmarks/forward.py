"""Measure the backbone's forward pass against plain open_clip, and what the usual switches change.

    python benchmarks/forward.py --output runs/benchmarks/forward.md

Random weights, patches of four levels. Ours runs CLIP's own path and the v-v path in one pass; open_clip's
`forward_intermediates` runs CLIP's own path alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from jsonargparse import auto_cli
from side_by_side import machine, publish, table, take_turns

from kanoclip.backbone.attention import QKV, VV
from kanoclip.backbone.clip import CLIPBackbone


def contenders(backbone: CLIPBackbone, plain: Any, image: torch.Tensor, compiled: bool) -> dict[str, Callable[[], Any]]:
    """What takes turns."""
    vv, levels = VV(), [level - 1 for level in backbone.levels]
    last = image.contiguous(memory_format=torch.channels_last)
    fast = torch.compile(backbone) if compiled else backbone

    def open_clips() -> Any:
        with torch.no_grad():
            return plain.forward_intermediates(image=image, image_indices=levels, image_output_fmt="NLC")

    def inference() -> Any:
        with torch.inference_mode():
            return backbone(image, vv)

    def bfloat16() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return backbone(image, vv)

    runs = {
        "open_clip": open_clips,
        "kanoclip": lambda: backbone(image, vv),
        "kanoclip without the v-v path": lambda: backbone(image, QKV()),
        "inference mode": inference,
        "channels last": lambda: backbone(last, vv),
        "bfloat16 autocast": bfloat16,
        "torch.compile": lambda: fast(image, vv),
    }
    return runs if compiled else {name: run for name, run in runs.items() if name != "torch.compile"}


def main(
    output: Path = Path("runs/benchmarks/forward.md"),
    name: str = "ViT-L-14-336",
    image_size: int = 518,
    turns: int = 5,
    turns_of_4: int = 5,
    compiled: bool = True,
) -> None:
    """Measure, print and write a table.

    Args:
        output: Markdown file to write.
        name: open_clip's name of the model.
        image_size: Pixels.
        turns: Runs at batch size 1.
        turns_of_4: Runs at batch size 4, of open_clip and kanoclip alone.
        compiled: Whether torch.compile takes part; it needs a C++ compiler.
    """
    torch.manual_seed(0)
    backbone = CLIPBackbone(name, None, image_size)
    plain = open_clip.create_model(name, force_image_size=image_size).eval().requires_grad_(False)
    lines = [machine("torch", "open_clip_torch"), "", f"{name} at {image_size} px, {torch.get_num_threads()} threads, "]
    lines[-1] += f"medians of {turns} turns at batch 1 and {turns_of_4} at batch 4"
    rows, short = [], ("open_clip", "kanoclip", "kanoclip without the v-v path")
    for batch, count in ((1, turns), (4, turns_of_4)):
        runs = contenders(backbone, plain, torch.rand(batch, 3, image_size, image_size), compiled and batch == 1)
        if batch > 1:
            runs = {key: run for key, run in runs.items() if key in short}
        expected = runs["kanoclip"]().patches
        away = {key: (run().patches - expected).abs().max() for key, run in runs.items() if key not in short}
        times = take_turns(runs, count)
        rows += [
            [batch, key, times.median(key) / batch, times.ratio(key, "open_clip"), times.ratio(key, "open_clip", True),
             f"{away[key]:.0e}" if key in away else ""]
            for key in runs
        ]  # fmt: skip
    head = ["batch", "", "s an image", "x open_clip", "x open_clip, processor time", "largest change of a feature"]
    publish([*lines, "", *table(head, rows)], output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
