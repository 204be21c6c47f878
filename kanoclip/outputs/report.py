"""report.html: what a run found, to look at in a browser without network or server.

A view of the files of a run: results.json and images.csv of a test, predictions.json and predictions.csv of a
prediction. Only curves and thumbnails are the report's own.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning.pytorch import Callback, LightningModule, Trainer

from kanoclip.data.files import read_json, write_json, write_text
from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.comparison import HEADINGS, Comparison
from kanoclip.outputs.curves import Pairs, draw, image_curves
from kanoclip.outputs.images import decided
from kanoclip.outputs.listed import Told, read_images
from kanoclip.outputs.overlay import LIKELIER
from kanoclip.outputs.record import run_folder, say
from kanoclip.outputs.results import headline
from kanoclip.outputs.rows import cells
from kanoclip.outputs.tables import METRICS, results_rows, tell
from kanoclip.outputs.thresholds import Thresholds
from kanoclip.outputs.thumbnails import Thumbnails, thumbnail
from kanoclip.ranks import gather
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, Batch, counted, printable

PAGE = "report.html"
IMAGES = 5000
"""Most images in a report: a browser opens it at once."""
INLINE = 200
"""Most images whose thumbnails are in the page itself, so that it may be sent as one file: some 3 MB."""
UNCALIBRATED = f"Colour begins at a score of {LIKELIER[0]:g} and is full at {LIKELIER[1]:g} (uncalibrated)."
CALIBRATED = "Colour begins at the pixel threshold of the image's category and is full at a score of 1."
FILES = ("results.csv", "results.json", "images.csv", "predictions.csv", "predictions.json", "curves.json",
         "regions.jsonl", "annotations.json", "table.txt", "table.md", "table.tex")  # fmt: skip
Table = tuple[Sequence[str], Sequence[Sequence[Sequence[str]]], int]
"""Headings, sections of rows, and how many columns are words."""


class ReportWriter(Callback):
    """Writes report.html of a test or prediction, last of all, and thumbnails to report/ as images are scored.

    It lists the images with the highest scores: ``images`` of them, whatever their number. Of several processes each
    writes thumbnails, the first one the page. What cannot be written is told and left out.

    Args:
        thresholds: Where the colour of heat maps begins; None: the scale without thresholds.
        images: Most images to list.

    Attributes:
        unwritten: The page or a thumbnail that could not be written, and why; of several processes the first one has
            all.
    """

    def __init__(self, thresholds: Thresholds | None = None, images: int = IMAGES) -> None:
        self.thresholds, self.images = thresholds, images
        self.unwritten: list[tuple[str, str]] = []
        self._folder = Path()
        self._thumbnails: Thumbnails | None = None
        self._drawing: Future[None] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._folder, self.unwritten, self._drawing = run_folder(trainer), [], None
        self._uncalibrated = self.thresholds is None
        self._thumbnails = Thumbnails(self._folder / "report", self.images, self._threshold)
        self._pool = ThreadPoolExecutor(1)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw thumbnails of a batch while the next one is scored."""
        self._wait()
        if self._thumbnails is not None:
            self._drawing = self._pool.submit(self._thumbnails.add, batch, outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page from what the run has written."""
        self._wait()
        self._pool.shutdown()
        failures = [pair for theirs in gather(self.unwritten) for pair in theirs]
        self.unwritten = failures if trainer.is_global_zero else []
        if trainer.is_global_zero:
            try:
                overlap = getattr(pl_module, "overlap", {}) if trainer.testing else {}
                write_report(self._folder, overlap, self.images, UNCALIBRATED if self._uncalibrated else CALIBRATED)
                tell(f"{self._folder}/report.html")
            except OSError as error:
                self.unwritten.append(("report.html", str(error)))
            if self.unwritten:
                say(f"The report is not complete; the numbers are. {self.unwritten[0][1]}")

    on_predict_start = on_test_start
    on_predict_batch_end = on_test_batch_end
    on_predict_end = on_test_end

    def _wait(self) -> None:
        """Wait until the batch before is drawn; without space for one thumbnail there is none for others."""
        try:
            if self._drawing is not None:
                self._drawing.result()
        except OSError as error:
            self.unwritten.append(("report", str(error)))
            self._thumbnails = None
        self._drawing = None

    def _threshold(self, category: str) -> Threshold | None:
        threshold = self.thresholds.entry(category) if self.thresholds else None
        self._uncalibrated |= threshold is None or threshold.pixel is None
        return threshold


def write_report(folder: Path, overlap: Pairs, most: int = IMAGES, scale: str = "") -> None:
    """Write report.html and, of a test, curves.json into a run's folder.

    Args:
        folder: Where results.json and images.csv are, or predictions.json and predictions.csv.
        overlap: Category -> false positive rates and the mean overlap of regions at each.
        most: Most images to list.
        scale: A sentence on the colours of heat maps.

    Raises:
        CannotWriteError: If one of them cannot be written; names it.
    """
    test = (folder / "results.json").is_file()
    about = read_json(folder / ("results.json" if test else "predictions.json")) or {}
    whole = folder / ("images.csv" if test else "predictions.csv")
    told = read_images([whole] if whole.is_file() else sorted(folder.glob("predictions-*.csv")), most)
    curves = {}
    if test:
        inside = ((name, told.category == place) for place, name in enumerate(told.categories))
        curves = {name: image_curves(told.scores[mine], told.labels[mine]) for name, mine in inside}
        regions = {name: {"false_positive_rate": rate, "overlap": mean} for name, (rate, mean) in overlap.items()}
        write_json(folder / "curves.json", {"images": curves, "regions": regions})
    kinds = (("normal", NORMAL), ("anomalous", ANOMALOUS), ("unlabelled", UNKNOWN))
    scores = {name: told.scores[told.labels == label] for name, label in kinds}
    threshold = next(iter(told.thresholds)) if len(told.thresholds) == 1 else None
    count = counted(len(told.scores), "image")
    head = headline({"zero_shot": None, "images": len(told.scores), "seconds_per_image": 0} | about).split("\n")
    if not test:
        head = [f"{about['model']}: {about['auxiliary'] or 'nothing fitted'} -> {about['data']}", head[1], count]
    facts = {
        "decisions": ", ".join(f"{number:,} {decision}" for decision, number in sorted(told.decisions.items())),
        "by label": decided(about["decisions"]) if about.get("decisions") else "",
        "threshold": about.get("threshold") or "",
        "identity of the numbers": about.get("identity", ""),
        "versions": ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()),
    }
    _write(
        folder,
        title=f"kanoclip {'test' if test else 'predict'}: {about['model']} on {about['data']}",
        head=head,
        facts=facts,
        tables=[_metrics(about["results"])] if test else [],
        figure=draw(curves, overlap, scores, threshold),
        images=_images(folder, told),
        scale=scale,
        selection=f"The {len(told.listed):,} with the highest scores, of {count}. "
        * (len(told.listed) < len(told.scores)),
        unreadable=[printable(f"{path}: {why}") for path, why in about.get("unreadable") or ()],
    )


def write_comparison(
    folder: Path, comparison: Comparison, tests: Mapping[str, str | None], tried: Table | None = None
) -> None:
    """Write report.html of a benchmark.

    Args:
        folder: Where its tables are.
        comparison: Its table.
        tests: Name -> folder of each test, below the benchmark's; those without a report get no link.
        tried: What options were chosen from, and how it did.

    Raises:
        CannotWriteError: If it cannot be written.
    """
    tables: list[Table] = [(HEADINGS, [cells(section) for section in comparison.sections], 3)]
    headings, sections = comparison.differences
    tables += [(headings, sections, 4)] * bool(sections) + ([tried] if tried else [])
    titles = ["Metrics", *["Differences"] * bool(sections), "Choice of options"]
    there = {name: where for name, where in tests.items() if where and (folder / where / PAGE).is_file()}
    links = [(name, f"{_address(where)}/{PAGE}") for name, where in there.items()]
    title = f"kanoclip benchmark: {folder.absolute().name}"
    _write(folder, title=title, head=comparison.notes, tables=tables, titles=titles, links=links)


def _write(folder: Path, **content: Any) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader("kanoclip", "outputs"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    usual = {
        "facts": {},
        "figure": "",
        "images": [],
        "selection": "",
        "scale": "",
        "unreadable": [],
        "links": [],
        "titles": ["Metrics"],
    }
    files = [name for name in FILES if (folder / name).is_file()]
    write_text(folder / PAGE, pages.get_template("report.html.j2").render(usual | content, files=files))


def _metrics(results: Mapping[str, Any]) -> Table:
    """Lay out the metrics of a test; the last section is the mean of several categories."""
    headings = ("category", "normal", "anomalous", *(f"{one.level} {one.heading}" for one in METRICS.values()))
    rows = [
        [
            row["category"],
            str(row["normal"]),
            str(row["anomalous"]),
            *(m.show(row[name]) for name, m in METRICS.items()),
        ]
        for row in results_rows(results)
    ]
    return headings, [rows[:-1], rows[-1:]] if len(rows) > 2 else [rows[:1]], 1


def _images(folder: Path, told: Told) -> list[dict[str, Any]]:
    """Return what the page says of each image."""
    paths = [one.path for one in told.listed]
    common = os.path.commonprefix(paths) if len(paths) > 1 else ""  # noqa: RUF071  # cut at a slash below
    root = common[: common.rfind("/") + 1]
    found = []
    for one in told.listed:
        photo, heat = (_picture(folder, f"report/{thumbnail(one.path, heat)}", len(paths)) for heat in (False, True))
        found.append(
            one._asdict()
            | {
                "name": printable(one.path.removeprefix(root)),
                "photo": photo,
                "heat": heat,
                "link": _address(one.overlay),
            }
        )
    return found


def _picture(folder: Path, name: str, of: int) -> str:
    """Return the address of a thumbnail, which for a few images is its content; "" if there is none."""
    with suppress(OSError):
        if of <= INLINE:
            return f"data:image/jpeg;base64,{base64.b64encode((folder / name).read_bytes()).decode()}"
        return name if (folder / name).is_file() else ""
    return ""


def _address(path: str) -> str:
    return quote(os.fsencode(path))
