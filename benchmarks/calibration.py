"""Measure what a calibrated threshold promises: false alarms and detections on parts that did not choose it.

    pip install ".[notebooks]"  # for the plot
    kanoclip fit --config quickstart --trainer.max_epochs 2
    python benchmarks/calibration.py --root DATA --checkpoint runs/fit/.../last.ckpt

Each image is scored once, by `kanoclip calibrate`; then 100 good ones are drawn again and again to choose the threshold
and all others are decided on. A split drawn at random keeps the promise's one condition, that good parts are
exchangeable. Parts that differ from those of the calibration are tried by choosing from one group of photos, such as
those of one series, and deciding on the good ones of all other groups.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from jsonargparse import auto_cli
from numpy.typing import NDArray
from side_by_side import machine, publish, table

from kanoclip.metrics import ImageMetrics
from kanoclip.metrics.calibration import conformal_threshold, promise
from kanoclip.verbs.table import main as kanoclip

Scores = NDArray[np.float64]


class Rates(NamedTuple):
    """Shares of the good and the bad images that are called defective, ``(splits,)`` each."""

    alarms: Scores
    found: Scores


class Model(NamedTuple):
    """All images of the data set, scored by one model.

    Attributes:
        good: ``(n, 2)``, image and region score of each good image.
        bad: ``(m, 2)``, the same of the bad ones.
        names: File name of each good image.
    """

    good: Scores
    bad: Scores
    names: list[str]


def score(words: list[str], folder: Path) -> Model:
    """Score all images with the command, unless an earlier run has left their scores in the folder."""
    if not any(folder.rglob("calibration.csv")) and (
        code := kanoclip(["calibrate", *words, "--trainer.default_root_dir", str(folder)])
    ):
        raise SystemExit(code)
    with next(folder.rglob("calibration.csv")).open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    by_label = {label: [row for row in rows if row["label"] == label] for label in "01"}
    good, bad = (np.array([[row["image_score"], row["region_score"]] for row in by_label[x]], float) for x in "01")
    return Model(good, bad, [Path(row["path"]).name for row in by_label["0"]])


def split(good: Scores, bad: Scores, images: int, max_fpr: float, splits: int) -> Rates:
    """Choose a threshold from some good images, drawn anew each time, and decide on all others."""
    draw, rates = np.random.default_rng(111), []
    for _ in range(splits):
        order = draw.permutation(good)
        threshold = conformal_threshold(order[:images], max_fpr)
        rates.append((np.mean(order[images:] > threshold), np.mean(bad > threshold)))
    return Rates(*np.array(rates).T)


def shift(model: Model, which: int, images: int, max_fpr: float, group: str) -> dict[str, tuple[int, float]]:
    """Choose from one group of photos, and decide on the good ones of all others: images and false-alarm rate."""
    found = [match[0] if (match := re.search(group, name)) else "" for name in model.names]
    groups, scores, rates = np.array(found), model.good[:, which], {}
    for name in sorted({*found} - {""}):
        inside = scores[groups == name]
        if len(inside) >= images:
            rates[name] = len(inside), float(np.mean(scores[groups != name] > conformal_threshold(inside, max_fpr)))
    return rates


def auroc(good: Scores, bad: Scores) -> float:
    """Share of pairs of a good and a bad image that are ranked right."""
    metrics = ImageMetrics()
    metrics.update(torch.tensor([*good, *bad]), torch.tensor([0] * len(good) + [1] * len(bad)))
    return float(metrics.compute()["auroc"])


def plot(measured: dict[str, tuple[Rates, Rates]], average: float, confident: float, path: Path) -> None:
    """Draw the false-alarm rate over many splits, and detections over false alarms in some."""
    figure, axes = plt.subplots(
        len(measured), 2, figsize=(10, 3.6 * len(measured)), layout="constrained", squeeze=False
    )
    for (name, (few, many)), (left, right) in zip(measured.items(), axes, strict=True):
        left.hist(100 * many.alarms, bins=30, color="0.8", label=f"{len(many.alarms)} splits")
        at, bottom = 100 * few.alarms, left.get_xaxis_transform()
        left.plot(at, [0.04] * len(at), "|", transform=bottom, color="black", ms=16, label=f"{len(at)} of them")
        left.axvline(100 * average, color="tab:blue", label=f"promised on average, {100 * average:.2f} %")
        left.axvline(
            100 * many.alarms.mean(), color="tab:blue", ls=":", label=f"measured, {100 * many.alarms.mean():.2f} %"
        )
        left.axvline(100 * confident, color="tab:orange", ls="--", label=f"promised with 95 %, {100 * confident:.2f} %")
        left.set(title=name, xlabel="good images called defective (%)", ylabel="splits")
        left.legend(fontsize=8)
        top = 1.05 * max(100 * few.alarms.max(), 100 * few.found.max(), 1)
        right.plot([0, top], [0, top], color="0.7", lw=1, label="chance: as many good as bad")
        right.plot(100 * few.alarms, 100 * few.found, "o", color="tab:red", label=f"{len(few.alarms)} splits")
        right.set(title=name, xlabel="good images called defective (%)", ylabel="bad images found (%)")
        right.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main(
    root: Path,
    output: Path = Path("runs/benchmarks/calibration.md"),
    data: str = "magnetic_tile",
    checkpoint: str | None = None,
    images: int = 100,
    max_fpr: float = 0.01,
    splits: int = 20,
    many: int = 1000,
    group: str = r"^exp\d",
) -> None:
    """Measure and write report and plot.

    Args:
        root: Folder that contains the data set.
        output: Markdown file to write; the plot gets its name with .png, the scores a folder of its name.
        data: A data set with normal and anomalous images.
        checkpoint: A fit on other data, to measure beside clip_vv, which learns nothing.
        images: Good images that choose the threshold.
        max_fpr: False-alarm rate that is asked for.
        splits: Splits of the plot.
        many: Splits of the histogram, for how often the second promise is broken.
        group: Pattern at the beginning of file names by which photos belong together.
    """
    words = ["--data", data, "--data.root", str(root)]
    runs = {"clip_vv": ["--model", "clip_vv", "--model.backbone", "embedded"]}
    runs |= {"kanoclip": ["--ckpt_path", checkpoint]} if checkpoint else {}
    asked, rows, shifted, shown = promise(images, max_fpr), [], [], {}
    models = {}
    for name, own in runs.items():
        models[name] = score([*words, *own], output.with_suffix("") / name)
    for name, model in models.items():
        for which, kind in enumerate(("image score", "region score")):
            good, bad = model.good[:, which], model.bad[:, which]
            some = split(good, bad, images, max_fpr, splits)
            more = split(good, bad, images, max_fpr, many)
            for count, rates in ((splits, some), (many, more)):
                alarms, found = 100 * rates.alarms, 100 * rates.found
                broken = f"{np.sum(rates.alarms > asked.confident)} of {count}"
                spread = f"{found.mean():.3g} ({found.min():.3g} to {found.max():.3g})"
                rows.append([name, kind, count, alarms.mean(), alarms.max(), broken, spread, auroc(good, bad)])
            if which == 0:
                shown[name] = some, more
            for place, (number, rate) in shift(model, which, images, max_fpr, group).items():
                promised = promise(number, max_fpr)
                shifted.append(
                    [name, kind, place, number, 100 * promised.average, 100 * promised.confident, 100 * rate]
                )
    model = next(iter(models.values()))
    head = ["model", "threshold of", "splits", "false alarms %, mean", "largest", "above the 95 % promise",
            "bad ones found %", "AUROC"]  # fmt: skip
    lines = [
        f"{images} of {len(model.good)} good images of `{data}` choose the threshold for {100 * max_fpr:g} %; the "
        f"other {len(model.good) - images} and {len(model.bad)} bad ones are decided on. Promised: "
        f"{100 * asked.average:.3g} % on average, and with 95 % confidence not above {100 * asked.confident:.3g} %. "
        f"Embedded backbone. {machine()}.",
        "",
        *table(head, rows),
        "",
        f"![splits]({output.stem}.png)",
        "",
        "Chosen from all good images of one group alone, decided on the good ones of all others, where nothing is "
        "promised:",
        "",
        *table(["model", "threshold of", "group", "images", "average %", "95 % %", "false alarms %"], shifted),
    ]
    publish(lines, output)
    plot(shown, asked.average, asked.confident, output.with_suffix(".png"))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
