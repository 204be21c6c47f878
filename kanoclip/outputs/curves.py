"""The curves of a report: as numbers, and drawn."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kanoclip.metrics.ranking import cumulated, thinned
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, printable

Floats = NDArray[np.float64]
Pairs = Mapping[str, tuple[Sequence[float], Sequence[float]]]
COLOURS = {"normal": "#33709e", "anomalous": "#e0662a", "unlabelled": "#555555"}  # told apart by colour-blind eyes too
NAMED = 10  # categories that have a colour and a name each; of more, all are grey
GRID = np.linspace(0, 1, 256)


def image_curves(scores: Floats, labels: NDArray[np.integer]) -> dict[str, list[float]]:
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


def draw(images: Mapping[str, Mapping[str, Sequence[float]]], overlap: Pairs, scores: Mapping[str, Floats],
         threshold: float | None) -> str:  # fmt: skip
    """Draw what there is: ROC, precision-recall and region overlap by category, and a histogram of image scores.

    Args:
        images: Category -> its ``image_curves``.
        overlap: Category -> false positive rates and the mean overlap of regions at each.
        scores: "normal", "anomalous" or "unlabelled" -> image scores.
        threshold: Where "good" ends, the same for all images; None: not known.

    Returns:
        An ``<svg>`` to set into a page; texts in it are escaped.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    roc = {name: ([0, *one["false_positive_rate"]], [0, *one["recall"]]) for name, one in sorted(images.items()) if one}
    recall = {name: ([0, *one["recall"]], [1, *one["precision"]]) for name, one in sorted(images.items()) if one}
    lines: list[tuple[str, str, str, Pairs]] = [
        ("ROC of images", "false positive rate", "recall", roc),
        ("Precision and recall of images", "recall", "precision", recall),
        ("Region overlap of pixels", "false positive rate", "mean overlap of regions", overlap),
    ]
    lines = [one for one in lines if one[3]]
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "kanoclip", "text.parse_math": False, "font.size": 9,
             "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}  # fmt: skip
    with rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that its font lacks are the browser's to show
        figure = Figure(figsize=(3.4 * (len(lines) + 1), 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        *axes, last = np.atleast_1d(figure.subplots(1, len(lines) + 1))
        names = sorted({name for *_, curves in lines for name in curves})
        colours = {name: f"C{at}" if len(names) <= NAMED else "#aaaaaa" for at, name in enumerate(names)}
        for axis, (title, x, y, curves) in zip(axes, lines, strict=True):
            _lines(axis, curves, y != "precision", colours)
            axis.set(title=title, xlabel=x, ylabel=y, ylim=(-0.02, 1.02))
        if 1 < len(names) <= NAMED:  # the corner that a ROC curve leaves empty
            axes[0].legend(fontsize=7, loc="lower right", frameon=False)
        _histogram(last, scores, threshold)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


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
