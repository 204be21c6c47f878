"""Measure the backbone's forward pass against plain open_clip, and what the usual switches change.

    python benchmarks/forward.py --output runs/benchmarks/forward.md

One image tower with random weights, patches of four levels. Ours runs CLIP's own path and the v-v path in one pass;
open_clip's `forward_intermediates` runs CLIP's own path alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from side_by_side import machine, peak_memory, publish, restart_peak, table, take_turns

from kanoclip.backbone.attention import QKV, VV
from kanoclip.backbone.clip import CLIPBackbone

OPTIONS = {
    "open_clip": "",
    "kanoclip": "--trainer.inference_mode false",
    "kanoclip without the v-v path": "--model.attention qkv",
    "inference mode": "the default of test and predict",
    "channels last": "none: the patch embedding is the only convolution",
    "bfloat16 autocast": "--trainer.precision bf16-mixed",
    "torch.compile": "--trainer configs/trainer/compile.yaml",
}


def contenders(backbone: CLIPBackbone, image: torch.Tensor, compiled: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """What takes turns; each returns patches."""
    vv, levels = VV(), [level - 1 for level in backbone.levels]
    last = image.contiguous(memory_format=torch.channels_last)
    normal = (image - backbone.mean) / backbone.std
    fast = torch.compile(backbone) if compiled else backbone

    def open_clips() -> torch.Tensor:
        with torch.no_grad():
            found = backbone.visual.forward_intermediates(
                normal, levels, normalize_intermediates=True, output_fmt="NLC"
            )["image_intermediates"]
            return torch.nn.functional.normalize(torch.stack(found) @ backbone.visual.proj, dim=-1)

    def inference() -> torch.Tensor:
        with torch.inference_mode():
            return backbone(image, vv).patches

    def bfloat16() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return backbone(image, vv).patches

    runs: dict[str, Callable[[], torch.Tensor]] = {
        "open_clip": open_clips,
        "kanoclip": lambda: backbone(image, vv).patches,
        "kanoclip without the v-v path": lambda: backbone(image, QKV()).patches,
        "inference mode": inference,
        "channels last": lambda: backbone(last, vv).patches,
        "bfloat16 autocast": bfloat16,
        "torch.compile": lambda: fast(image, vv).patches,
    }
    return {name: run for name, run in runs.items() if compiled or name != "torch.compile"}


def measure(runs: dict[str, Callable[[], torch.Tensor]], batch: int, turns: int, warm_up: bool) -> list[list[Any]]:
    """Run in turns; returns rows of the table."""
    peaks: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, torch.Tensor] = {}

    def watch(name: str) -> None:
        before = restart_peak()
        found[name] = runs[name]()
        peaks[name].append(peak_memory() - before)

    times = take_turns({name: partial(watch, name) for name in runs}, turns, warm_up)
    rows = []
    for name in runs:
        same = "open_clip" if name == "kanoclip without the v-v path" else "kanoclip"
        away = "" if name in ("open_clip", "kanoclip") else f"{float((found[name] - found[same]).abs().max()):.0e}"
        rows.append(
            [batch, name, OPTIONS[name], times.median(name) / batch, times.ratio(name, "open_clip"),
             times.ratio(name, "open_clip", True), statistics.median(peaks[name]), away]
        )  # fmt: skip
    return rows


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
        turns_of_4: Runs at batch size 4, of open_clip and kanoclip alone; 0 for none.
        compiled: Whether torch.compile takes part; it needs a C++ compiler.
    """
    torch.manual_seed(0)
    backbone = CLIPBackbone(name, None, image_size)
    # open_clip's own tower shares the weights; its positions are brought to the size of the image, once, as ours are
    backbone.visual.positional_embedding = torch.nn.Parameter(backbone.position, requires_grad=False)
    rows = measure(contenders(backbone, torch.rand(1, 3, image_size, image_size), compiled), 1, turns, True)
    if turns_of_4:
        runs = contenders(backbone, torch.rand(4, 3, image_size, image_size), False)
        rows += measure({key: runs[key] for key in ("open_clip", "kanoclip")}, 4, turns_of_4, False)
    heads, side = backbone.visual.transformer.resblocks[0].attn.num_heads, image_size // backbone.patch_size
    matrix = heads * (side**2 + 1) ** 2 * 4 / 2**20
    note = f"""{name} at {image_size} px, levels {backbone.levels}, {torch.get_num_threads()} threads; medians of
{turns} turns at batch 1 and {turns_of_4} at batch 4. Memory: the peak of a pass above what was there before; the
attention matrix of one block alone would take {matrix:.0f} MB an image. Features away: the largest difference to
kanoclip's, and of kanoclip without the v-v path to open_clip's."""
    head = ["batch", "", "option", "s an image", "x open_clip", "x open_clip, processor time", "memory, MB"]
    publish([machine("torch", "open_clip_torch"), "", note, "", *table([*head, "features away"], rows)], output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
