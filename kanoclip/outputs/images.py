"""images.csv: what a test found on each image; and how its decisions did."""

from __future__ import annotations

import csv
import heapq
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from kanoclip.data.files import append_text, write_bytes
from kanoclip.metrics.calibration import DEFECTIVE, Share
from kanoclip.metrics.single import map_metrics
from kanoclip.outputs.finding import defect_cells, defects_of, name_defect
from kanoclip.outputs.intervals import ImageDraws
from kanoclip.outputs.names import csv_text, true_text
from kanoclip.outputs.promises import share_text
from kanoclip.outputs.thresholds import Thresholds
from kanoclip.ranks import gather
from kanoclip.types import ANOMALOUS, NORMAL, Batch, Scores, counted

COLUMNS = (
    "path", "category", "label", "defect", "image_score", "map_max", "decision", "margin", "ap", "aupro", "overlay"
)  # fmt: skip
NAMING = (*COLUMNS, "found_defect", "defect_probability")
"""Columns of a model that names kinds of defect; ``defect`` is what the data say."""
ALL = "all"


class ImageTable:
    """Writes a row for each image of a test as soon as it is scored, so that memory does not grow with their number.

    ``label`` is 0 for normal, 1 for anomalous, and empty where it is unknown; ``map_max``, ``ap`` and ``aupro`` are of
    the map at the model's size, the last two of images with normal and anomalous pixels alone; ``decision`` and
    ``margin`` (score - threshold) are empty without a threshold. Of several processes each writes a file of its own,
    images-0.csv and so on, until they become one.

    Args:
        folder: Where images.csv goes.
        trainer: What runs the test.
        thresholds: For decisions; None: there are none.
        names: The kinds of defect that the model names; none: there are no columns of them.

    Attributes:
        draws: What a bootstrap over the images needs.
    """

    def __init__(
        self, folder: Path, trainer: Trainer, thresholds: Thresholds | None = None, names: Sequence[str] = ()
    ) -> None:
        part = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.thresholds, self.names = thresholds, tuple(names)
        self._columns = NAMING if names else COLUMNS
        self.draws = ImageDraws()
        self._whole, self._file = folder / "images.csv", folder / f"images{part}.csv"
        self._decided: Counter[tuple[str, int, bool]] = Counter()  # category, label and whether called defective
        self._file.unlink(missing_ok=True)
        append_text(self._file, csv_text([self._columns]))

    def add(self, batch: Batch, scores: Scores, overlays: Sequence[str]) -> None:
        """Append the rows of a batch; ``overlays`` names the picture of each image, "" for none.

        Raises:
            CannotWriteError: If they cannot be written.
        """
        maps, masks = scores.anomaly_map.detach().float().cpu().numpy(), batch.mask.cpu().numpy()
        self.draws.add(batch, scores, maps, masks)
        rows: list[tuple[Any, ...]] = []
        for i, (path, category, defect) in enumerate(zip(batch.path, batch.category, batch.defect, strict=True)):
            score, label, decision, margin = float(scores.image_score[i]), int(batch.label[i]), "", math.nan
            if self.thresholds:
                threshold = self.thresholds.entry(category)
                decision, margin = threshold.decide(score), threshold.margin(score)
                self._decided[category, label, decision == DEFECTIVE] += 1
            known = bool(batch.has_mask[i]) and masks[i].any()
            ranked = map_metrics(maps[i], masks[i]) if known else {"ap": math.nan, "aupro": math.nan}
            numbers = [_cell(number) for number in (score, maps[i].max(), margin, *ranked.values())]
            what = path, category, label if label in (NORMAL, ANOMALOUS) else "", defect
            named = defect_cells(self.names, *name_defect(defects_of(self.names, scores, i), decision))
            rows.append((*what, *numbers[:2], decision, *numbers[2:], overlays[i], *named))
        append_text(self._file, csv_text(rows))

    def join(self, places: Mapping[str, int]) -> None:
        """Make one file of those of all processes, in the order of the data; collective, the first process writes.

        Args:
            places: Path -> place in the data.
        """
        files = gather(self._file)
        if files[0] == self._file != self._whole:
            parts = heapq.merge(*map(_rows, files), key=lambda row: places.get(true_text(row[0]), 0))
            write_bytes(self._whole, (_line(row) for rows in ([self._columns], parts) for row in rows))
            for file in files:
                file.unlink()

    def decisions(self) -> dict[str, Any] | None:
        """Return how decisions did, of each category and of all images; None without a threshold. Collective.

        Returns:
            Category or "all" -> ``false_alarms`` among normal images and ``detected`` among anomalous ones, each with
            ``hits``, ``images``, ``rate`` and its 95 % ``interval``, or None if there are no such images.
        """
        decided = sum(gather(self._decided), Counter())
        if self.thresholds is None:
            return None
        categories = sorted({category for category, _, _ in decided})
        groups = {ALL: categories} if len(categories) == 1 else {**{one: [one] for one in categories}, ALL: categories}
        kinds = {"false_alarms": NORMAL, "detected": ANOMALOUS}
        return {
            name: {kind: _share(decided, group, label) for kind, label in kinds.items()}
            for name, group in groups.items()
        }


def decided(decisions: Mapping[str, Any]) -> str:
    """Say in a line how often normal images, and anomalous ones, of all categories were called defective."""
    kinds = {"normal": decisions[ALL]["false_alarms"], "anomalous": decisions[ALL]["detected"]}
    said = [
        f"Of {counted(one['images'], f'{what} image')}, {share_text(Share(one['hits'], one['images']))}."
        for what, one in kinds.items()
        if one
    ]
    if kinds["normal"]:
        said.append("The interval of normal images holds if none of them chose the threshold.")
    return " ".join(said) or "Of no image is the label known: decisions are not counted."


def _share(decided: Counter[tuple[str, int, bool]], categories: Sequence[str], label: int) -> dict[str, Any] | None:
    good, bad = (sum(decided[category, label, called] for category in categories) for called in (False, True))
    share = Share(bad, good + bad)
    return {**share._asdict(), "rate": share.rate, "interval": share.interval} if share.images else None


def _cell(number: float) -> float | str:
    return "" if math.isnan(number) else round(float(number), 6)


def _rows(file: Path) -> Iterator[list[str]]:
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as source:
        rows = csv.reader(source)
        next(rows)
        yield from rows


def _line(row: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")
