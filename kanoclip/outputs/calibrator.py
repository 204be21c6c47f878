"""From the scores of images known to be good, and perhaps of bad ones, to threshold.json."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kanoclip.data.digests import digest
from kanoclip.data.files import CannotWriteError, write_text
from kanoclip.data.loading import gather_unreadable
from kanoclip.data.parsing import local_path
from kanoclip.metrics import ImageMetrics
from kanoclip.metrics.calibration import Share, Threshold, check_rate, conformal_threshold, promise, region_score
from kanoclip.outputs.finding import finding
from kanoclip.outputs.identity import about_run, scoring
from kanoclip.outputs.names import csv_text
from kanoclip.outputs.promises import told
from kanoclip.outputs.record import run_folder
from kanoclip.outputs.tables import tell
from kanoclip.outputs.thresholds import Calibration, Thresholds
from kanoclip.ranks import gather
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, Batch, KanoclipError, Scores

FILE = "threshold.json"
COLUMNS = ("path", "category", "label", "image_score", "region_score")  # of calibration.csv


class Scored(NamedTuple):
    """One image and its scores.

    Attributes:
        path: Its file.
        category: What it shows.
        label: ``NORMAL`` or ``ANOMALOUS``; ``UNKNOWN`` where nobody has said.
        score: Image score in [0, 1].
        region_score: See ``metrics.calibration.region_score``.
        content: Digest of its file, so that copies count once; "" where that is not known.
    """

    path: str
    category: str
    label: int
    score: float
    region_score: float
    content: str = ""


class Calibrator(Callback):
    """Chooses thresholds from images known to be good, and says what they promise.

    Images are scored as in ``predict``. Without labels all of them count as good; with labels the bad ones choose
    nothing and show what the thresholds find. Exact copies count once.

    Args:
        max_fpr: False-alarm rate that is asked for: share of good images called defective, in (0, 1). 0.01 takes 99
            good images of each category at least.
        min_area: Smallest region that counts, as a share of the picture in [0, 1). A patch of ViT-L-14-336 at 518
            pixels is 0.0007.
        holdout: Share of the good images, in [0, 1), that do not choose the thresholds, and on which the false-alarm
            rate is measured instead.
        output: Where to write, a .json file, or a folder for its threshold.json. Null: into the run's folder.

    Attributes:
        scored: Each image of this process, with its scores.

    Raises:
        KanoclipError: For a setting out of its range, a score that is NaN or infinite, or no good image.
        CannotWriteError: If the output cannot be written; told before anything is scored.
    """

    def __init__(
        self, max_fpr: float = 0.01, min_area: float = 0.0005, holdout: float = 0.0, output: str | None = None
    ) -> None:
        check_rate(max_fpr)
        for name, value in (("min_area", min_area), ("holdout", holdout)):
            if not 0 <= value < 1:
                raise KanoclipError(f"{name} is {value}, expected a share in [0, 1). Set --{name}.")
        self.max_fpr, self.min_area, self.holdout = max_fpr, min_area, holdout
        self.output = _checked(local_path(output, "--output")) if output else None
        self.scored: list[Scored] = []
        self._folder = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self.scored, self._folder = [], run_folder(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the two scores of each image; no map is kept."""
        scores: Scores = outputs
        for i, (path, category) in enumerate(zip(batch.path, batch.category, strict=True)):
            height, width = batch.size[i].tolist()
            heat, score = scores.anomaly_map[i].float().cpu().numpy(), float(scores.image_score[i])
            found = finding(heat, score, (height, width), path, category)
            region = region_score(found.anomaly_map, self.min_area)
            self.scored.append(Scored(path, category, int(batch.label[i]), score, region))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the thresholds, write them, then say what they promise."""
        data: Any = getattr(trainer, "datamodule", None)
        scored = [one for theirs in gather(self.scored) for one in theirs]
        gather_unreadable(getattr(data, "unreadable", []), [one.path for one in scored])
        if trainer.is_global_zero:
            about = about_run(trainer, pl_module)
            paths = [sample.image for sample in data.part("predict")] if hasattr(data, "part") else []
            contents = dict(zip(paths, (data.image_digests("predict") if paths else None) or [], strict=False))
            scored = [one._replace(content=str(contents.get(one.path, ""))) for one in scored]
            thresholds = calibrate(scored, self.max_fpr, self.min_area, self.holdout, getattr(data, "seed", 111))
            samples = data.samples_digest("predict") if hasattr(data, "samples_digest") else None
            known = {"model": about["model"], "checkpoint": about["checkpoint"], "data": about["data"]}
            known |= {**thresholds.about, "samples": samples, "versions": about["versions"]}
            path = self.output or self._folder / FILE
            Thresholds(thresholds.pooled, thresholds.categories, scoring(about), known).save(path)
            ranked = sorted(scored, key=lambda one: -one.score)
            rows = [(*one[:2], "" if one.label == UNKNOWN else one.label, *one[3:5]) for one in ranked]
            write_text(self._folder / "calibration.csv", csv_text([COLUMNS, *rows]))
            tell(told(thresholds, f"{known['model']} on {known['data']}"))
            tell(f"{path}; scores of all images: {self._folder}/calibration.csv")
            same = (
                f"--ckpt_path {known['checkpoint']['path']}" if known["checkpoint"] else "and the same --model options"
            )
            tell(f"To decide with it: kanoclip predict PHOTOS --threshold {path} {same}")


def calibrate(
    scored: Iterable[Scored], max_fpr: float, min_area: float, holdout: float = 0.0, seed: int = 111
) -> Thresholds:
    """Choose the pooled threshold and one for each category that has enough good images for the rate.

    Args:
        scored: The images; without any label, all count as good.
        max_fpr: False-alarm rate that is asked for, in (0, 1).
        min_area: With which the region scores were made.
        holdout: Share of the good images of each category, in [0, 1), that choose nothing; one at least is left.
        seed: By which those are drawn.

    Raises:
        KanoclipError: If there is no good image.
    """
    given = list(scored)
    unlabelled = sum(one.label == UNKNOWN for one in given)
    if unlabelled == len(given):
        given = [one._replace(label=NORMAL) for one in given]
    used = [one for one in given if one.label != UNKNOWN]
    unique = list({(one.content or one.path, one.label): one for one in sorted(used)}.values())
    unique.sort(key=lambda one: one.content)  # the draw below does not depend on names
    bad = [one for one in unique if one.label == ANOMALOUS]
    choosing, apart = [], []
    draw = np.random.default_rng(seed)
    for category in sorted({one.category for one in unique}):
        good = [one for one in unique if one.label == NORMAL and one.category == category]
        left_out = min(round(holdout * len(good)), max(len(good) - 1, 0))
        order = [good[i] for i in draw.permutation(len(good))]
        apart += order[:left_out]
        choosing += order[left_out:]
    if not choosing:
        raise KanoclipError("There is no good image, and a threshold is the score of one. Add images of good parts.")

    categories: dict[str, Calibration | None] = {}
    for name in sorted({one.category for one in unique}):
        good, others, faulty = ([one for one in group if one.category == name] for group in (choosing, apart, bad))
        enough = bool(good) and promise(len(good), max_fpr).kept
        categories[name] = _calibration(good, others, faulty, max_fpr, min_area) if enough else None
    about = {
        "max_fpr": max_fpr,
        "holdout": holdout,
        "copies": len(used) - len(unique),
        "unlabelled": unlabelled,
        "all_taken_for_good": unlabelled == len(given),
        "good_images": {name: sum(one.category == name for one in choosing) for name in categories},
        "highest": [(one.path, one.score) for one in sorted(choosing, key=lambda one: -one.score)[:3]],
    }
    return Thresholds(_calibration(choosing, apart, bad, max_fpr, min_area), categories, None, about)


def _calibration(
    good: Sequence[Scored], apart: Sequence[Scored], bad: Sequence[Scored], max_fpr: float, min_area: float
) -> Calibration:
    image = conformal_threshold([one.score for one in good], max_fpr)
    pixel = conformal_threshold([one.region_score for one in good], max_fpr)
    alarms, detected = (
        Share(sum(one.score > image for one in group), len(group)) if group else None for group in (apart, bad)
    )
    samples = digest(sorted(one.content for one in good))[:16] if all(one.content for one in good) else ""
    f1_max = _f1_max([*good, *apart], bad) if bad else None
    return Calibration(
        Threshold(image, pixel, min_area), promise(len(good), max_fpr), samples, alarms, detected, f1_max
    )


def _f1_max(good: Sequence[Scored], bad: Sequence[Scored]) -> float:
    metrics = ImageMetrics()
    images = [*good, *bad]
    metrics.update(torch.tensor([one.score for one in images]), torch.tensor([one.label for one in images]))
    return float(metrics.compute()["f1_max"])


def _checked(path: Path) -> Path:
    """Return the file to write; raises now if its folder takes no file."""
    path = path if path.suffix == ".json" and not path.is_dir() else path / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise CannotWriteError(path, error) from error
