"""Measure kanoclip's pixel metrics against scikit-learn with anomalib's AUPRO, and against AdEval: time, error, memory.

    python -m venv peers && peers/bin/pip install -r benchmarks/requirements.txt
    PYTHONPATH=. peers/bin/python benchmarks/pixel_metrics.py --output runs/benchmarks/pixel_metrics.md

60 maps of 518 x 518 with drawn masks, in several ranges of scores, then the golden cases of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from jsonargparse import auto_cli
from side_by_side import machine, peak_memory, publish, table, take_turns

from kanoclip.metrics import PixelMetrics

SIZE, BATCH = 518, 8
GOLDEN = Path(__file__).parents[1] / "tests/golden"
NAMES = ("auroc", "ap", "f1_max", "aupro")
RANGES: dict[str, Callable[[Any], Any]] = {
    "probabilities": lambda x: 1 / (1 + np.exp(-2 * x)),
    "logits": lambda x: 10 * x,
    "all within 1e-5": lambda x: 0.5 + 1e-6 * x,
    "8 values": lambda x: np.round(4 / (1 + np.exp(-2 * x))) / 4,
    "saturated": lambda x: 1 / (1 + np.exp(-8 * (x - 1))),
}


def draw(images: int, seed: int = 0) -> tuple[Any, Any]:
    """Draw scores ``(n, SIZE, SIZE)``, smooth as those of a model, and masks; every fourth image is normal."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((images, SIZE, SIZE), np.uint8)
    scores = np.zeros((images, SIZE, SIZE), np.float32)
    for i in range(images):
        for _ in range(rng.integers(1, 5) if i % 4 else 0):
            place = tuple(int(v) for v in rng.integers(50, SIZE - 50, 2))
            cv2.circle(masks[i], place, int(rng.integers(3, 50)), 1, -1)
        coarse = rng.normal(size=(37, 37)).astype(np.float32)
        blurred = cv2.GaussianBlur(masks[i].astype(np.float32), (0, 0), 4)
        scores[i] = cv2.resize(coarse, (SIZE, SIZE)) + 1.5 * blurred
    return scores, masks


def ours(maps: Any, masks: Any) -> dict[str, float]:
    """kanoclip, batch by batch as in a test."""
    metric = PixelMetrics()
    for i in range(0, len(maps), BATCH):
        metric.update(torch.from_numpy(maps[i : i + BATCH]), torch.from_numpy(masks[i : i + BATCH]))
    return {name: float(value) for name, value in metric.compute().items()}


def usual(maps: Any, masks: Any) -> dict[str, float]:
    """scikit-learn's three and anomalib's AUPRO."""
    from anomalib.metrics import AUPRO
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    scores, labels = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    aupro = AUPRO(fields=["anomaly_map", "gt_mask"])
    aupro.update(SimpleNamespace(anomaly_map=torch.from_numpy(maps), gt_mask=torch.from_numpy(masks)))
    return {
        "auroc": roc_auc_score(labels, scores),
        "ap": average_precision_score(labels, scores),
        "f1_max": float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))),
        "aupro": float(aupro.compute()),
    }


def adeval(maps: Any, masks: Any) -> dict[str, float]:
    """AdEval, which has no F1-max."""
    from adeval import auroc_aupr_aupro

    vars(np).setdefault("trapz", np.trapezoid)  # AdEval calls it by the name that NumPy 2.4 has dropped
    return dict(zip(("auroc", "ap", "aupro"), map(float, auroc_aupr_aupro(maps, masks)), strict=True))


def error(found: dict[str, float], expected: dict[str, float]) -> float:
    """Largest difference."""
    return max(abs(value - expected[name]) for name, value in found.items())


def measure_memory(images: int) -> None:
    """Print the memory (MB) before the first update and at its peak; runs in a process of its own."""
    scores, masks = draw(BATCH)
    before, metric = peak_memory(), PixelMetrics()
    for batch in range(images // BATCH + 1):
        count = min(BATCH, images - batch * BATCH)
        shifted = torch.from_numpy(np.roll(scores[:count], batch, 2) * np.float32(1 + batch / 1000))
        metric.update(shifted, torch.from_numpy(masks[:count]))
    metric.compute()
    print(json.dumps([before, peak_memory()]))


def main(output: Path = Path("runs/benchmarks/pixel_metrics.md"), turns: int = 5, slow_turns: int = 5) -> None:
    """Measure, print and write tables.

    Args:
        output: Markdown file to write.
        turns: Runs of kanoclip and AdEval.
        slow_turns: Runs beside scikit-learn and anomalib, of the first range; the other ranges have one.
    """
    scores, masks = draw(60)
    rows = []
    for name, spread in RANGES.items():
        maps = np.ascontiguousarray(spread(scores), np.float32)
        found: dict[str, dict[str, float]] = {}
        contenders = {
            run.__name__: lambda run=run, maps=maps, found=found: found.update({run.__name__: run(maps, masks)})
            for run in (usual, adeval, ours)
        }
        contenders["ours"](), contenders["adeval"]()  # imports and first allocations
        slow = take_turns({key: contenders[key] for key in ("usual", "ours")}, 1 if rows else slow_turns, False)
        fast = take_turns({key: contenders[key] for key in ("adeval", "ours")}, turns, False)
        sides = [(slow, "usual"), (fast, "adeval")]
        beside = [
            f"{times.median(key):.3g} ({times.ratio(key, 'ours'):.1f}x, {times.ratio(key, 'ours', True):.1f}x)"
            for times, key in sides
        ]
        errors = [f"{error(found[key], found['usual']):.0e}" for key in ("ours", "adeval")]
        rows.append([name, fast.median("ours"), *beside, *errors])
    packages = ("scikit-learn", "anomalib", "ADEval", "torch", "numpy")
    about = f"""60 maps of {SIZE} x {SIZE}: seconds, medians of {turns} turns ({slow_turns} beside scikit-learn and
anomalib in the first row, 1 in the others), and how many times as long as kanoclip: on the wall, and of processor time.
Errors are against scikit-learn and anomalib."""
    lines = [machine(*packages), "", about]
    head = ["scores", "kanoclip", "scikit-learn + anomalib", "AdEval, no F1-max", "error", "AdEval's error"]
    lines += ["", *table(head, rows), ""]
    data, rows = np.load(GOLDEN / "pixel_metrics.npz"), []
    for name, expected in json.loads((GOLDEN / "pixel_metrics.json").read_text()).items():
        truth = {key: expected["pixel_" + key.replace("_", "")] for key in NAMES}
        cases = (data[name], data["masks"])
        rows.append([name, f"{error(ours(*cases), truth):.0e}", f"{error(adeval(*cases), truth):.0e}"])
    lines += [*table(["golden case", "error", "AdEval's error"], rows), ""]
    rows = []
    for images in (60, 600, 6000):
        done = subprocess.run([sys.executable, __file__, "memory", str(images)], check=True, stdout=subprocess.PIPE)
        before, peak = json.loads(done.stdout)
        rows.append([images, f"{before:.0f}", f"{peak:.0f}"])
    lines += table(["maps", "memory before the first, MB", "peak, MB"], rows)
    publish(lines, output)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        measure_memory(int(sys.argv[2]))
    else:
        auto_cli(main, as_positional=False)
