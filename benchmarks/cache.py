"""Measure what cached features save: epochs of fit and tests with and without them, for light and heavy heads.

    python benchmarks/cache.py --output runs/benchmarks/cache.md

Whole epochs on the embedded backbone, a miniature not much larger than the heads behind it; and for ViT-L-14-336 at 518
pixels, with random weights, single steps, where the backbone is a hundred times as large.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning import Callback, LightningModule, Trainer
from side_by_side import machine, publish, table, take_turns

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.models.ablations import CLIPVVKnPL, CLIPVVKnPLBiCMCI
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.types import Batch, Features

HEADS: dict[str, type[KAnoCLIP]] = {
    "kanoclip": KAnoCLIP,
    "clip_vv_knpl_bicmci (adapter none)": CLIPVVKnPLBiCMCI,
    "clip_vv_knpl (adapter and interaction none)": CLIPVVKnPL,
    "april_gan": AprilGAN,
}


class Clock(Callback):
    """Seconds of the last epoch of fit, or of the test: without building workers, caches and what is made once."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._start

    on_test_epoch_start = on_train_epoch_start
    on_test_epoch_end = on_train_epoch_end


def clocked(
    kind: type[KAnoCLIP], verb: str, backbone: CLIPBackbone, images: int, batch_size: int, cache: bool
) -> float:
    """Return the images per second of the second epoch of a fit, or of a test."""
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    clock = Clock()
    trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=[clock], **off)
    data = (SurfacesAuxiliary if verb == "fit" else Surfaces)(images=images, batch_size=batch_size, cache=cache)
    getattr(trainer, verb)(kind(backbone=backbone), data, **({"verbose": False} if verb == "test" else {}))
    return len(data.part(verb)) / clock.seconds


def epochs(images: int, batch_size: int, turns: int) -> list[list[object]]:
    """Time epochs of each kind of heads with and without a cache, in turns."""
    backbone, rows = EmbeddedBackbone(), []
    for name, kind in HEADS.items():
        for verb in ("fit", "test") if name == "kanoclip" else ("fit",):
            speed: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(turns):
                for cache in (False, True) if turn % 2 else (True, False):
                    speed[cache].append(clocked(kind, verb, backbone, images, batch_size, cache))
            plain, cached = (statistics.median(speed[cache]) for cache in (False, True))
            ratio = statistics.median(fast / slow for slow, fast in zip(speed[False], speed[True], strict=True))
            rows.append([name, verb, plain, cached, ratio])
    return rows


def steps(batch_size: int, turns: int) -> list[list[object]]:
    """Time the frozen backbone at full size, and one step of training of the heads behind it, per image."""
    backbone, rows = CLIPBackbone("ViT-L-14-336", None, 518), []
    image = torch.rand(1, 3, 518, 518)
    for name, kind in list(HEADS.items())[:3]:  # april_gan's 420 texts take minutes on a CPU, once
        model = kind(backbone=backbone).train()
        optimiser, alone = model.configure_optimizers(), Batch(image, *[None] * 7)  # type: ignore[arg-type]
        one = model.features(alone)
        many = Features(one.patches.half().repeat(1, batch_size, 1, 1), one.cls.half().repeat(batch_size, 1), one.grid)
        mask = torch.zeros(batch_size, 518, 518, dtype=torch.uint8)
        mask[:, :40, :40] = 1
        words = [["nut"] * batch_size] * 3
        known, size = torch.ones(batch_size, dtype=torch.bool), torch.full((batch_size, 2), 518)
        batch = Batch(image.expand(batch_size, -1, -1, -1), mask, known.long(), known, size, *words, features=many)

        def step(model: KAnoCLIP = model, batch: Batch = batch, optimiser: torch.optim.Optimizer = optimiser) -> None:
            optimiser.zero_grad()
            torch.stack(list(model.losses(batch, model(batch)).values())).sum().backward()
            optimiser.step()

        times = take_turns({"backbone": lambda model=model, alone=alone: model.features(alone), "heads": step}, turns)
        tower, heads = times.median("backbone"), times.median("heads") / batch_size
        rows.append([name, "fit", 1 / (tower + heads), 1 / heads, (tower + heads) / heads])
    return rows


def main(
    output: Path = Path("runs/benchmarks/cache.md"),
    images: int = 8,
    batch_size: int = 8,
    turns: int = 5,
    full: bool = True,
) -> None:
    """Measure and write the table.

    Args:
        output: File to write.
        images: Drawn images of each of the 19 categories to fit on, and of the 7 to test on.
        batch_size: Images per batch.
        turns: How often each contender runs.
        full: Measure ViT-L-14-336 as well; some minutes.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    head = ["heads", "verb", "images/s", "images/s, cached", "times as fast"]
    lines = [f"Batches of {batch_size}, medians of {turns} turns. {machine('torch', 'lightning', 'open_clip_torch')}."]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KANOCLIP_CACHE"] = folder
        lines += ["", "Embedded backbone, whole epochs, 2 workers without a cache:", ""]
        lines += table(head, epochs(images, batch_size, turns))
    if full:
        lines += ["", "ViT-L-14-336 at 518 pixels with random weights, backbone and heads alone:", ""]
        lines += table(head, steps(batch_size, turns))
    publish(lines, output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
