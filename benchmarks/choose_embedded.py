"""Compare weights of the embedded CLIP on folds of its auxiliary categories, so that no test has a say in the choice.

    python benchmarks/choose_embedded.py --weights [kanoclip/backbone/embedded,runs/embedded] --output runs/choice.md

The 19 categories of ``surfaces_auxiliary`` are dealt into three folds. KAnoCLIP is fitted on two of them as in
configs/benchmarks/quickstart.yaml, and tested on the third; each number is the mean over the 19 categories. A fit takes
a minute on one core; features are kept as docs/cache.md says, 0.5 GB for each weights.
"""

from __future__ import annotations

import logging
import multiprocessing
import statistics
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from side_by_side import machine, publish, table

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import LEVELS
from kanoclip.backbone.loading import LOCAL_DIR
from kanoclip.data.drawn.surfaces import SEEN_CATEGORIES, SurfacesAuxiliary
from kanoclip.models.kanoclip import KAnoCLIP

FOLDS = tuple(list(SEEN_CATEGORIES[i::3]) for i in range(3))
METRICS = {"image AUROC": "image_auroc", "AP": "image_ap", "pixel AUROC": "pixel_auroc", "AP ": "pixel_ap",
           "AUPRO": "pixel_aupro"}  # fmt: skip


def measure(job: tuple[Path, int, int]) -> list[float]:
    """Fit on all folds but one and test on that one; returns the metrics, means over its categories."""
    weights, seed, number = job
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    fitted = [name for i, names in enumerate(FOLDS) if i != number for name in names]
    model = KAnoCLIP(CLIPBackbone(f"{LOCAL_DIR}{weights}", None, 128, LEVELS), knowledge="surfaces", lr=3e-4)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=4, accelerator="cpu", **quiet)
    fit, test = (
        SurfacesAuxiliary(category=names, images=144, num_workers=0, cache=True) for names in (fitted, FOLDS[number])
    )
    trainer.fit(model, fit)
    found = trainer.test(model, test, verbose=False)[0]
    print(f"{weights} seed {seed} fold {number}: {found}", flush=True)
    return [found[f"test/{name}"] for name in METRICS.values()]


def main(weights: list[Path], output: Path, seeds: tuple[int, ...] = (111, 112, 113), processes: int = 2) -> None:
    """Measure, print and write a table, with the difference of all to the first.

    Args:
        weights: Folders to compare, each as ``train_embedded.py`` writes it.
        output: Markdown file to write.
        seeds: Of the fits.
        processes: How many fits run at a time, each on one core.
    """
    jobs = list(product(weights, seeds, range(len(FOLDS))))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(measure, jobs), strict=True))

    def mean(folder: Path, seed: int) -> list[float]:
        of_folds = zip(*(found[folder, seed, i] for i in range(len(FOLDS))), strict=True)
        return [
            sum(v * len(f) for v, f in zip(values, FOLDS, strict=True)) / len(SEEN_CATEGORIES) for values in of_folds
        ]

    rows: list[list[str]] = []
    for folder in weights:
        means = {seed: mean(folder, seed) for seed in seeds}
        rows += [[str(folder), str(seed), *(f"{value:.4f}" for value in values)] for seed, values in means.items()]
        columns = list(zip(*means.values(), strict=True))
        rows.append([str(folder), "mean", *(f"{statistics.mean(c):.4f}" for c in columns)])
        if folder != weights[0]:
            pairs = [[a - b for a, b in zip(means[s], mean(weights[0], s), strict=True)] for s in seeds]
            gains = list(zip(*pairs, strict=True))
            rows.append(
                [
                    f"{folder} - {weights[0]}",
                    "mean (least)",
                    *(f"{statistics.mean(g):+.4f} ({min(g):+.4f})" for g in gains),
                ]
            )
    publish([machine("torch", "lightning"), "", *table(["weights", "seed", *METRICS], rows)], output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
