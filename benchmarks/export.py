"""Compare exported models with torch: numbers, time and size.

    python benchmarks/export.py --root data --output runs/benchmarks/export.md

On real images (Magnetic Tile Defects under --root) with the embedded backbone; without --large false also two noise
images through ViT-B-16 at 224 and ViT-L-14-336 at 518 pixels with random weights, which needs 8 GB of memory. Heads are
drawn at random where a model has any, so that every part of the graph counts.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from side_by_side import Times, machine, publish, table, take_turns
from sklearn.metrics import roc_auc_score

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.sets.inspection import MagneticTile
from kanoclip.models.ablations import CLIPVV
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.outputs.export import Frozen, describe, write_exported
from kanoclip.outputs.exported import SUFFIXES, load_exported

Scores = tuple[np.ndarray, np.ndarray]


def in_batches(run: Callable[[np.ndarray], Any], images: np.ndarray, size: int) -> Scores:
    """Score images some at a time."""
    found = [run(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([maps for maps, _ in found]), np.concatenate([scores for _, scores in found])


def by_torch(frozen: Frozen, images: np.ndarray) -> Scores:
    """Score images in torch."""
    with torch.inference_mode():
        maps, scores = frozen(torch.from_numpy(images))
    return maps.numpy(), scores.numpy()


def away(found: Scores, expected: Scores) -> str:
    """Largest difference of maps and of scores."""
    return " / ".join(f"{np.abs(one - other).max():.0e}" for one, other in zip(found, expected, strict=True))


def alone(runs: dict[str, Callable[[], Any]], turns: int) -> Times:
    """Time each in turn, after a pause and a run that is not timed: the threads of the one before spin for a while."""
    times = Times({name: [] for name in runs}, {name: [] for name in runs})
    for _ in range(turns):
        for name, run in runs.items():
            time.sleep(0.5)
            run()
            one = take_turns({name: run}, 1, warm_up=False)
            times.seconds[name] += one.seconds[name]
            times.processor[name] += one.processor[name]
    return times


def compare(label: str, model: Any, images: np.ndarray, truth: Any, turns: int, batch: int = 4) -> list[list[Any]]:
    """Export a model in every way, run all in turns at batch size 1; returns rows of the table."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    frozen = Frozen(model, "magnetic_tile")
    expected = in_batches(partial(by_torch, frozen), images, batch)
    runs: dict[str, Callable[[np.ndarray], Any]] = {"torch": partial(by_torch, frozen)}
    sizes: dict[str, float | str] = {"torch": ""}
    with TemporaryDirectory() as folder:
        for half in (False, True):
            kept = Frozen(model, "magnetic_tile", True) if half else frozen
            for kind, runtime in (("onnx", "onnxruntime"), ("openvino", "OpenVINO")):
                path = Path(folder, f"{kind}{half}").with_suffix(SUFFIXES[kind])
                write_exported(kept, kind, path, describe(model, None, "magnetic_tile", half))
                files = Path(folder).glob(f"{kind}{half}.*")
                name = runtime + (", half" if half else "")
                sizes[name], runs[name] = sum(one.stat().st_size for one in files) / 1e6, load_exported(path).run
                print(label, name, flush=True)
        times = alone({name: partial(run, images[:1]) for name, run in runs.items()}, turns)
        rows = []
        for name, run in runs.items():
            found = expected if name == "torch" else in_batches(run, images, batch)
            pairs = zip(truth or (), found, strict=False)
            aurocs = [f"{roc_auc_score(true.ravel(), scored.ravel()):.5f}" for true, scored in pairs] or ["", ""]
            rows.append(
                [label, name, len(images), sizes[name], "" if name == "torch" else away(found, expected),
                 *aurocs, 1000 * times.median(name), times.ratio(name, "torch"), times.ratio(name, "torch", True)]
            )  # fmt: skip
    return rows


def read(root: Path, images: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Read images ``(B, 128, 128, 3)``, their masks and labels."""
    data = MagneticTile(root=str(root), limit=images, image_size=128, num_workers=0, batch_size=50)
    data.setup("test")
    batches = list(data.test_dataloader())
    pixels = (torch.cat([one.image for one in batches]) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels, [torch.cat([getattr(one, name) for one in batches]).numpy() for name in ("mask", "label")]


def main(
    root: Path = Path("data"),
    output: Path = Path("runs/benchmarks/export.md"),
    images: int = 200,
    turns: int = 11,
    large_turns: int = 3,
    large: bool = True,
) -> None:
    """Measure, print and write a table.

    Args:
        root: Folder with magnetic_tile.
        output: Markdown file to write.
        images: How many of it, normal and anomalous in turn; 0: none, nor the embedded backbone.
        turns: Runs of one image with the embedded backbone.
        large_turns: Runs of one image with the large backbones.
        large: Whether these take part.
    """
    rows = []
    if images:
        pixels, truth = read(root, images)
        for kind in (CLIPVV, KAnoCLIP):
            label = f"{kind.name}, embedded, 128 px"
            rows += compare(label, kind(backbone=EmbeddedBackbone()), pixels, truth, turns, 50)
    for name, size in (("ViT-B-16", 224), ("ViT-L-14-336", 518)) if large else ():
        torch.manual_seed(0)
        noise = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        model = KAnoCLIP(backbone=CLIPBackbone(name, None, size))
        rows += compare(f"kanoclip, {name}, {size} px", model, noise, None, large_turns, 1)
        del model
        gc.collect()
    head = ["", "", "images", "file, MB", "largest difference to torch, map / score", "pixel AUROC", "image AUROC",
            "ms an image", "x torch", "x torch, processor time"]  # fmt: skip
    note = f"""Times: one image at a time, {torch.get_num_threads()} threads for torch, all cores for the others;
medians of {turns} turns ({large_turns} for ViT). torch is `Frozen`, which an export traces. Half files keep large
weights as float16 and compute in float32. The images are Magnetic Tile Defects; those of ViT are noise, and its
weights random."""
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")
    publish([machine(*packages), "", note, "", *table(head, rows)], output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
