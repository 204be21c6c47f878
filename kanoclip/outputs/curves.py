"""The curves of a report: as numbers, and drawn."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kanoclip.metrics.ranking import cumulated, thinned
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Pairs = Mapping[str, tuple[Sequence[float], Sequence[float]]]
Rates = Mapping[str, Mapping[str, Sequence[float]]]
COLOURS = {"normal": "#33709e", "anomalous": "#e0662a", "unlabelled": "#555555"}  # told apart by colour-blind eyes too
NAMED = 10  # categories that have a colour and a name each; of more, all are grey
GRID = np.linspace(0, 1, 256)


def image_curves(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, list[float]]:
    """Return the ROC and precision-recall curves of image scores, thinned to 256 points.

    Args:
        scores: ``(n,)``, higher = more anomalous.
        labels: ``(n,)``: 0 = normal, 1 = anomalous; others are left out.

    Returns:
        ``threshold`` (from the highest score down), ``false_positive_rate``, ``recall`` and ``precision`` of calling
        each image anomalous that scores as much; nothing where there is but one class.
    """
    known = labels != UNKNOWN
    labels, (values, place) = labels[known], np.unique(scores[known], return_inverse=True)
    normal, anomalous = (
        cumulated(np.bincount(place[labels == label], minlength=len(values)))[1:] for label in (NORMAL, ANOMALOUS)
    )
    if not len(values) or not normal[-1] or not anomalous[-1]:
        return {}
    at = thinned(normal, anomalous)
    found = {
        "threshold": values[::-1],
        "false_positive_rate": normal / normal[-1],
        "recall": anomalous / anomalous[-1],
        "precision": anomalous / (normal + anomalous),
    }
    return {name: column[at].tolist() for name, column in found.items()}


def draw(images: Rates, overlap: Pairs, scores: Mapping[str, Floats], threshold: float | None) -> str:
    """Draw what there is: ROC, precision-recall and region overlap by category, and a histogram of image scores.

    Args:
        images: Category -> its ``image_curves``.
        overlap: Category -> false positive rates and the mean overlap of regions at each.
        scores: "normal", "anomalous" or "unlabelled" -> image scores.
        threshold: Where "good" ends, the same for all images; None: not known.

    Returns:
        An ``<svg>`` to set into a page; texts in it are escaped.
    """
    with _styled():
        figure = _figure(images, {}, overlap, scores, threshold, rows=1)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def picture(images: Rates, pixels: Rates, overlap: Pairs, scores: Mapping[str, Floats]) -> NDArray[np.uint8]:
    """Draw the same, and ROC and precision-recall of pixels, as an image ``(H, W, 3)``, RGB, 0-255, for loggers.

    Args:
        images: Category -> its ``image_curves``.
        pixels: Likewise its ``pixel_curves``.
        overlap: As in ``draw``.
        scores: As in ``draw``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _styled():
        canvas = FigureCanvasAgg(_figure(images, pixels, overlap, scores, None, rows=2))
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def pixel_curves(normal: Floats, anomalous: Floats) -> dict[str, list[float]]:
    """Return the ROC and precision-recall curves of pixels, as ``image_curves`` without thresholds.

    Args:
        normal: ``(n,)``, how many normal pixels score at least as much as some scores, from the highest down, from 0.
        anomalous: ``(n,)``, likewise.
    """
    if not normal[-1] or not anomalous[-1]:
        return {}
    precision = anomalous[1:] / (anomalous + normal)[1:]
    rates = {"false_positive_rate": normal[1:] / normal[-1], "recall": anomalous[1:] / anomalous[-1]}
    return {name: column.tolist() for name, column in (rates | {"precision": precision}).items()}


@contextmanager
def _styled() -> Iterator[None]:
    """Draw with our fonts and lines, and without warnings of letters that a font lacks: a browser shows them."""
    from matplotlib import rc_context

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "kanoclip", "text.parse_math": False, "font.size": 9,
             "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}  # fmt: skip
    with rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _figure(images: Rates, pixels: Rates, overlap: Pairs, scores: Mapping[str, Floats], threshold: float | None,
            rows: int) -> Figure:  # fmt: skip
    from matplotlib.figure import Figure

    lines: list[tuple[str, str, str, Pairs]] = []
    for kind, rates in (("images", images), ("pixels", pixels)):
        some = [(name, one) for name, one in sorted(rates.items()) if one]
        roc = {name: ([0, *one["false_positive_rate"]], [0, *one["recall"]]) for name, one in some}
        recall = {name: ([0, *one["recall"]], [1, *one["precision"]]) for name, one in some}
        lines += [
            (f"ROC of {kind}", "false positive rate", "recall", roc),
            (f"Precision and recall of {kind}", "recall", "precision", recall),
        ]
    lines.append(("Region overlap of pixels", "false positive rate", "mean overlap of regions", overlap))
    lines = [one for one in lines if one[3]]
    columns = math.ceil((len(lines) + 1) / rows)
    figure = Figure(figsize=(3.4 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    axes, last = grid[: len(lines)], grid[len(lines)]
    for empty in grid[len(lines) + 1 :]:
        empty.set_axis_off()
    names = sorted({name for *_, curves in lines for name in curves})
    colours = {name: f"C{at}" if len(names) <= NAMED else "#aaaaaa" for at, name in enumerate(names)}
    for axis, (title, x, y, curves) in zip(axes, lines, strict=True):
        _lines(axis, curves, y != "precision", colours)
        axis.set(title=title, xlabel=x, ylabel=y, ylim=(-0.02, 1.02))
    if 1 < len(names) <= NAMED:  # the corner that a ROC curve leaves empty
        axes[0].legend(fontsize=7, loc="lower right", frameon=False)
    _histogram(last, scores, threshold)
    return figure


def _lines(axis: Any, curves: Pairs, rising: bool, colours: Mapping[str, Any]) -> None:
    """Draw one curve a category, and of several their mean."""
    for name, (x, y) in curves.items():
        style = {"linewidth": 1.6 if len(colours) == 1 else 0.9, "drawstyle": "default" if rising else "steps-pre"}
        axis.plot(x, y, color=colours[name], label="\u200b" + printable(name, 24), **style)  # a leading _ would hide it
    if len(curves) > 1:
        grid = GRID * max(max(x) for x, _ in curves.values())
        each = [
            np.interp(grid, x, y) if rising else np.asarray(y)[np.searchsorted(x, grid)] for x, y in curves.values()
        ]
        axis.plot(grid, np.mean(each, 0), linewidth=2.2, color="black", label=f"mean of {len(curves)}")


def _histogram(axis: Any, scores: Mapping[str, Floats], threshold: float | None) -> None:
    """Draw how often each class scores how high; the second one is not filled, to be told apart in grey print."""
    shown = {name: values for name, values in scores.items() if len(values)}
    ends = np.concatenate(list(shown.values())) if shown else np.array([0.0, 1.0])
    low, high = float(ends.min()), float(ends.max())
    bins = np.linspace(low, high if high > low else low + 1e-3, 41)
    for name, values in shown.items():
        style = {"histtype": "step", "linewidth": 1.6} if name == "anomalous" else {"alpha": 0.55}
        axis.hist(values, bins, color=COLOURS[name], label=f"{name} ({len(values):,})", **style)
    if threshold is not None:
        axis.axvline(threshold, color="black", linewidth=1, label=f"threshold {threshold:.4g}")
    axis.set(title="Image scores", xlabel="image score", ylabel="images")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=7, loc="best", frameon=False)
