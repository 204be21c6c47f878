"""What was found on one photo: the same for the command line, a Python call and an exported model."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.data.images import read_image
from kanoclip.metrics.calibration import GOOD, Threshold
from kanoclip.outputs.overlay import heated, verdict
from kanoclip.outputs.regions import Region, find_regions
from kanoclip.types import KanoclipError, counted, printable

SHOWN = 800
"""Longer side of an overlay in a notebook, at most, pixels: the notebook keeps it."""


@dataclass(frozen=True, eq=False, repr=False)
class Finding:
    """What was found on one photo; a notebook shows it as its overlay.

    It takes 4 bytes for each pixel of the photo, and the pixels of a photo from memory; one from a file is read again
    when it is asked for.

    Attributes:
        path: The photo's file; "" for one from memory.
        category: What it shows, as far as known.
        score: Image score in [0, 1], higher = more anomalous.
        anomaly_map: ``(H, W)`` float32 in [0, 1], at the photo's size.
        threshold: What the decision was made with; None: there is none.
        decision: "good" or "defective"; None without a threshold.
        margin: Score minus threshold; None without a threshold.
        regions: Connected regions above the pixel threshold, the highest peak first; empty without one.
        pixels: The photo, if it is from memory: ``(H, W, 3)`` RGB, 0-255.
        defect: The likeliest kind of defect; None for a photo that is good, or a model that names none.
        defect_probability: How likely it is among the kinds that may be named, if there is a defect; None likewise.
    """

    path: str
    category: str
    score: float
    anomaly_map: NDArray[np.float32]
    threshold: Threshold | None = None
    decision: str | None = None
    margin: float | None = None
    regions: list[Region] = field(default_factory=list)
    pixels: NDArray[np.uint8] | None = None
    defect: str | None = None
    defect_probability: float | None = None

    @property
    def image(self) -> NDArray[np.uint8]:
        """The photo, ``(H, W, 3)`` RGB, 0-255.

        Raises:
            UnreadableImageError: If its file cannot be read any more.
        """
        return read_image(self.path) if self.pixels is None else self.pixels

    def overlay(self, contour: bool = True) -> NDArray[np.uint8]:
        """Draw the map over the photo, in the colours of ``kanoclip predict``.

        Args:
            contour: Whether a line is drawn around what is coloured, for red parts and grey print.

        Returns:
            ``(H, W, 3)`` RGB, 0-255.
        """
        return heated(self.image, self.anomaly_map, self.threshold, contour=contour)

    def __str__(self) -> str:
        """Say it in one line."""
        more = ", uncalibrated" if self.threshold is None else ""
        if self.threshold is not None and self.threshold.pixel is not None:
            more = f", {counted(len(self.regions), 'region')}"
        if self.defect is not None and self.defect_probability is not None:
            more += f", {printable(self.defect)} ({self.defect_probability:.0%})"
        return f"{printable(self.path) or 'image'}: {verdict(self.score, self.threshold)}{more}"

    def __repr__(self) -> str:
        """Say it where a list of findings is printed."""
        return f"<{self}>"

    def _repr_html_(self) -> str:
        """Show the overlay and what ``str`` says, in a notebook."""
        picture: Any = self.overlay()
        height, width = picture.shape[:2]
        if (factor := SHOWN / max(height, width)) < 1:
            shown = max(1, round(width * factor)), max(1, round(height * factor))  # also of a line scan
            picture = cv2.resize(picture, shown, interpolation=cv2.INTER_AREA)
        content = base64.b64encode(cv2.imencode(".png", picture[..., ::-1])[1].tobytes()).decode()
        text = html.escape(f"{self}")
        return (
            f'<figure><img src="data:image/png;base64,{content}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )


def finding(
    anomaly_map: NDArray[np.float32],
    score: float,
    size: tuple[int, int],
    path: str = "",
    category: str = "",
    threshold: Threshold | None = None,
    pixels: NDArray[np.uint8] | None = None,
    name: str = "this image",
    defects: Mapping[str, float] | None = None,
) -> Finding:
    """Bring a model's map to the photo's size, decide, and look for regions.

    Args:
        anomaly_map: ``(h, w)`` as the model returns it.
        score: Image score in [0, 1].
        size: Height and width of the photo, pixels.
        path: The photo's file.
        category: What it shows.
        threshold: Where "good" ends; None: no decision.
        pixels: The photo, if it is from memory: ``(H, W, 3)`` RGB, 0-255.
        name: What it is called in an error, if it has no path.
        defects: Probability of each kind of defect, if there is one; None or empty for a model that names none.

    Raises:
        KanoclipError: If a score is NaN or infinite.
    """
    if not (np.isfinite(anomaly_map).all() and np.isfinite(score)):
        raise KanoclipError(
            f"The scores of {path or name} are NaN or infinite. The model overflowed: use --trainer.precision "
            f"32-true, or look for NaN in its weights."
        )
    enlarged: Any = cv2.resize(anomaly_map, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    heat: NDArray[np.float32] = enlarged.clip(0, 1)
    if threshold is None:
        return Finding(path, category, score, heat, None, None, None, [], pixels, *name_defect(defects))
    regions = [] if threshold.pixel is None else find_regions(heat, threshold.pixel, threshold.min_area)
    decision, margin = threshold.decide(score), threshold.margin(score)
    named = name_defect(defects, decision)
    return Finding(path, category, score, heat, threshold, decision, margin, regions, pixels, *named)


def defects_of(names: Sequence[str], scores: Any, i: int) -> dict[str, float]:
    """Return the probability of each kind of defect of the image ``i`` of ``Scores``; empty without names."""
    return dict(zip(names, scores.defects[i].tolist(), strict=True)) if names else {}


def name_defect(defects: Mapping[str, float] | None, decision: str | None = None) -> tuple[str | None, float | None]:
    """Return the likeliest kind of defect and its probability; None for an image that is good or without names."""
    if not defects or decision == GOOD:
        return None, None
    return max(defects.items(), key=lambda one: one[1])


def defect_cells(names: Sequence[str], kind: str | None, probability: float | None) -> tuple[str | float, ...]:
    """Return the two cells of a csv row that tell it; none at all without names."""
    return (kind or "", "" if probability is None else round(probability, 6)) if names else ()
