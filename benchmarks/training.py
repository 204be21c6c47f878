"""Measure a training step by component: time, peak memory, and what is kept for the backward pass.

    python benchmarks/training.py --output runs/benchmarks/training.md
    python benchmarks/training.py --tuning deep_tokens --name ViT-B-16 --image_size 224

KAnoCLIP on the embedded backbone, and on ViT-L-14-336 at 518 pixels with random weights; then fits of the embedded one
with Lightning's options for mixed precision and gradient accumulation.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer
from side_by_side import machine, peak_memory, publish, restart_peak, table, take_turns

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.heads.scoring import anomaly_map, dot, level_maps
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.registry import load_class, resolve
from kanoclip.types import ANOMALOUS, Batch, Scores


class Stopwatch:
    """Collects, by component: seconds, peak memory above the start (MB), tensors kept for the backward pass (MB)."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[float, float, float]]] = {}

    @contextmanager
    def __call__(self, name: str, parameters: frozenset[int] = frozenset()) -> Iterator[None]:
        """Measure one component; memory at the addresses ``parameters`` is not counted as kept."""
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        before, start = restart_peak(), time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        seconds = time.perf_counter() - start
        self.seen.setdefault(name, []).append((seconds, peak_memory() - before, sum(kept.values()) / 2**20))


Watch = Callable[..., AbstractContextManager[None]]


def step(model: KAnoCLIP, batch: Batch, optimizer: torch.optim.Optimizer, watch: Watch) -> None:
    """One training step, as `KAnoCLIP.forward` and Lightning do it, taken apart."""
    own = frozenset(p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()])
    with watch("image tower", own):
        batch = model.with_plain(batch)
        features = model.features(batch)
    with watch("prompts (text encoder)", own):
        states = model.states(batch, features)
    with watch("adapter", own):
        cls = model.adapter(features.cls, features.patches, features.grid)
    with watch("interaction", own):
        patches, level_states = model.interaction(features.patches, states)
    with watch("scoring", own):
        logits = dot(cls[:, None], states) / model.temperature
        maps = level_maps(patches, level_states, features.grid, model.image_size, model.temperature)
        heat = anomaly_map(maps)
        score = model.score(logits.softmax(-1)[:, ANOMALOUS], heat)
    with watch("losses", own):
        losses = model.losses(batch, Scores(heat, score, maps, logits, states))
        total = torch.stack(list(losses.values())).sum()
    with watch("backward"):
        total.backward()
    with watch("optimiser"):
        optimizer.step()
        optimizer.zero_grad()


def measure(backbone: CLIPBackbone, batch_size: int, turns: int, tuning: str = "none") -> list[list[Any]]:
    """Return the rows of one backbone."""
    inside = load_class(resolve("tuning", tuning))()
    model, size = KAnoCLIP(backbone=backbone, tuning=inside).train(), backbone.image_size
    mask = (torch.rand(batch_size, size, size) > 0.9).to(torch.uint8)
    batch = Batch(
        torch.rand(batch_size, 3, size, size), mask, torch.ones(batch_size, dtype=torch.long),
        torch.ones(batch_size, dtype=torch.bool), torch.full((batch_size, 2), size), ["object"] * batch_size,
        ["hole"] * batch_size, [""] * batch_size,
    )  # fmt: skip
    model._facts = torch.nn.functional.normalize(torch.randn(50, backbone.dim), dim=-1)  # as of a knowledge base
    optimizer, watch = model.configure_optimizers(), Stopwatch()
    for turn in range(turns + 1):
        step(model, batch, optimizer, watch)
        if turn == 0:
            watch.seen.clear()
    what = f"{backbone.description}, batch {batch_size}" + (f", {tuning}" if tuning != "none" else "")
    rows, whole = [], sum(statistics.median(one[0] for one in found) for found in watch.seen.values())
    for name, found in watch.seen.items():
        seconds, peak, kept = (statistics.median(values) for values in zip(*found, strict=True))
        rows.append([what, name, seconds, f"{seconds / whole:.0%}", peak, kept])
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    return rows


class MeanLoss(Callback):
    """Averages the loss over all batches."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *about: Any) -> None:
        """Note that of a batch."""
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.steps = trainer.global_step


def fits(turns: int) -> list[list[Any]]:
    """Fit the embedded backbone with Lightning's options, in turns."""
    options: dict[str, tuple[int, dict[str, Any]]] = {
        "32-true, batch 8": (8, {}),
        "precision bf16-mixed, batch 8": (8, {"precision": "bf16-mixed"}),
        "accumulate_grad_batches 4, batch 2": (2, {"accumulate_grad_batches": 4}),
    }
    notes: dict[str, MeanLoss] = {}
    peaks: dict[str, list[float]] = {name: [] for name in options}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)

    def fit(name: str) -> None:
        torch.manual_seed(0)
        batch_size, chosen = options[name]
        notes[name], before = MeanLoss(), restart_peak()
        trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=notes[name], **quiet, **chosen)
        data = SurfacesAuxiliary(images=4, num_workers=0, batch_size=batch_size)
        trainer.fit(KAnoCLIP(backbone=EmbeddedBackbone()), data)
        peaks[name].append(peak_memory() - before)

    times, plain = take_turns({name: lambda name=name: fit(name) for name in options}, turns), next(iter(options))
    return [
        [name, times.median(name), times.ratio(name, plain), statistics.median(peaks[name]), notes[name].steps,
         statistics.mean(notes[name].losses)]
        for name in options
    ]  # fmt: skip


def main(
    output: Path = Path("runs/benchmarks/training.md"),
    turns: int = 5,
    large: bool = True,
    name: str = "ViT-L-14-336",
    image_size: int = 518,
    tuning: str | None = None,
) -> None:
    """Measure, print and write tables.

    Args:
        output: Markdown file to write.
        turns: Steps, and fits.
        large: Whether a backbone of full size takes part.
        name: Its name.
        image_size: Its side of the image, in pixels.
        tuning: What is trained inside its towers; then it alone is measured, with and without.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = measure(EmbeddedBackbone(), 8, turns) if tuning is None else []
    for inside in ("none", *([tuning] if tuning else [])) if large else ():
        rows += measure(CLIPBackbone(name, None, image_size), 1, turns, inside)
    lines = [machine("torch", "lightning"), "", f"Medians of {turns} steps.", ""]
    head = ["", "component", "s", "share", "peak above its start, MB", "kept for backward, MB"]
    lines += table(head, rows)
    if tuning is None:
        lines += ["", f"Fits of 76 images, embedded backbone; medians of {turns} turns.", ""]
        head = ["--trainer option", "s", "x 32-true", "peak above its start, MB", "optimiser steps", "mean loss"]
        lines += table(head, fits(turns))
    publish(lines, output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
