"""Pictures for people: a photo under its heat map, with a legend.

Colour must mean the same in every picture that is compared, so the scale never depends on the image at hand: stretching
each map to its own minimum and maximum paints a red spot on every good part. Nor does it depend on the run, or a part
would be clean in one and spotted in another. There are two scales, see ``scale_of``: with a threshold colour begins
where regions do, and what is smaller than a region that counts has none; without one at 0.5, where a model finds
"anomalous" likelier than "normal", and the picture says "uncalibrated". Both are full at 1.

A red spot on a red part, or any spot in grey print, shows by its border: a light line between two dark ones.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kanoclip.metrics.calibration import Threshold
from kanoclip.types import KanoclipError, printable

LIKELIER = (0.5, 1.0)
OUTLINE = (0, 255, 255)  # cyan: on no part of the heat map's path from violet over red to yellow
LIGHT, DARK = (255, 255, 255), (0, 0, 0)
FAINT, OPACITY = 0.2, 0.75  # where colour begins, and where it is full
STRIP = 1 << 20  # pixels that are coloured at once
GREY = 32  # of a legend
NARROWEST = 320  # width of a legend, pixels

# Inferno grows in lightness all the way, also for colour-blind eyes; its first third is nearly black, which would
# darken the photo instead of marking it.
_COLOURS = cv2.cvtColor(
    cv2.applyColorMap(np.linspace(90, 240, 256).astype(np.uint8)[:, None], cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB
)[:, 0]


class Scale(NamedTuple):
    """Which scores are coloured.

    Attributes:
        low: Score where colour begins.
        high: Score where colour is full.
        calibrated: Whether colour begins at a threshold.
    """

    low: float
    high: float
    calibrated: bool


def scale_of(threshold: Threshold | None) -> Scale:
    """Return the colour scale: from the pixel threshold to 1, or without one from 0.5 to 1."""
    if threshold is None or threshold.pixel is None:
        return Scale(*LIKELIER, calibrated=False)
    return Scale(threshold.pixel, max(threshold.pixel, LIKELIER[1]), calibrated=True)


def overlay(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating],
    mask: NDArray[np.uint8] | None = None,
    low: float = 0.0,
    high: float = 1.0,
    contour: bool = False,
    min_area: float = 0.0,
) -> NDArray[np.uint8]:
    """Lay the heat map of the scores over a photo.

    Pixels that score ``low`` or less stay exactly as they are; from there to ``high`` colour goes from violet over
    red to yellow and opacity from 0.2 to 0.75, both with the root of the score's distance from ``low``: what is just
    above a threshold is what a person wants to tell apart. Give all pictures that are to be compared the same scale.

    Args:
        image: ``(H, W, 3)`` RGB, 0-255.
        anomaly_map: ``(H, W)`` scores, usually in [0, 1].
        mask: ``(H, W)`` ground truth, 1 = anomalous, drawn as a cyan outline; None or all zeros: no outline.
        low: Score where colour begins.
        high: Score where colour is full. Equal to ``low``: only what scores more is coloured, fully.
        contour: Whether to draw a line around what is coloured, light between dark, that shows on any colour.
        min_area: Smallest region that is coloured, as a share of the picture.

    Returns:
        ``(H, W, 3)`` RGB, 0-255.

    Raises:
        KanoclipError: If the sizes differ or ``high < low``.
    """
    for name, array in (("anomaly_map", anomaly_map), ("mask", mask)):
        if array is not None and array.shape != image.shape[:2]:
            raise KanoclipError(
                f"The {name} is {array.shape} and the image {image.shape[:2]} (height, width). "
                f"Resize it first, with cv2.resize({name}, {image.shape[1::-1]})."
            )
    if high < low:
        raise KanoclipError(f"The colour scale runs from low={low:g} to high={high:g}; give high >= low.")
    result, coloured = image.copy(), hot(anomaly_map, low, min_area)
    rows = max(1, STRIP // image.shape[1])
    for top in range(0, len(image), rows):  # a strip at a time: what is computed takes 100 bytes a pixel
        strip, here = result[top : top + rows], coloured[top : top + rows]
        scores = anomaly_map[top : top + rows][here]
        strength = np.sqrt(((scores - low) / max(high - low, 1e-12)).clip(0, 1))
        opacity = FAINT + (OPACITY - FAINT) * strength[:, None]
        colours = _COLOURS[np.rint(strength * 255).astype(np.uint8)]
        strip[here] = np.rint((1 - opacity) * strip[here] + opacity * colours).astype(np.uint8)
    thickness = max(1, round(min(image.shape[:2]) / 400))
    if contour:
        borders, _ = cv2.findContours(coloured.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        for colour, width in ((DARK, 3 * thickness), (LIGHT, thickness)):
            cv2.drawContours(result, borders, -1, colour, width)
    if mask is not None and mask.any():
        outlines, _ = cv2.findContours((mask > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, outlines, -1, OUTLINE, thickness)
    return result


def hot(anomaly_map: NDArray[np.floating], low: float, min_area: float = 0.0) -> NDArray[np.bool_]:
    """Return which pixels ``(H, W)`` score more than ``low`` and are in a region of at least ``min_area``, a share."""
    above: NDArray[np.bool_] = anomaly_map > low  # not NaN
    if min_area <= 0:
        return above
    labels: Any
    _, labels, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8)
    counts = stats[:, cv2.CC_STAT_AREA] / above.size >= min_area
    return above & counts[labels]


def heated(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating],
    threshold: Threshold | None = None,
    mask: NDArray[np.uint8] | None = None,
    contour: bool = True,
) -> NDArray[np.uint8]:
    """Lay a heat map over a photo on the one scale of all pictures: see ``scale_of`` and ``overlay``.

    Args:
        image: ``(H, W, 3)`` RGB, 0-255.
        anomaly_map: ``(H, W)`` scores in [0, 1].
        threshold: Where colour begins, and the smallest region that has any; None: at 0.5, and any.
        mask: ``(H, W)`` ground truth, 1 = anomalous; None: no outline.
        contour: Whether to draw a line around what is coloured.

    Returns:
        ``(H, W, 3)`` RGB, 0-255.
    """
    low, high, _ = scale_of(threshold)
    return overlay(image, anomaly_map, mask, low, high, contour, threshold.min_area if threshold else 0.0)


def legend(width: int, lines: list[str], scale: Scale) -> NDArray[np.uint8]:
    """Draw lines of text above the colour scale, to be set above or below a picture.

    Args:
        width: Of the picture, pixels; the legend has this width, or 320 if that is more.
        lines: What to say; of one that is too long the middle is left out.
        scale: That of the picture.

    Returns:
        ``(H', max(width, 320), 3)`` RGB, 0-255.
    """
    width = max(width, NARROWEST)
    size = max(13, round(width / 64))  # of letters, pixels
    row, edge = round(1.4 * size), size // 2
    drawn = Image.new("RGB", (width, row * (len(lines) + 1) + 2 * edge), (GREY,) * 3)
    draw, font = ImageDraw.Draw(drawn), _font(size)

    for turn, line in enumerate(lines):
        text = whole = printable(line, 1000)
        kept = len(whole)
        while draw.textlength(text, font) > width - 2 * edge:
            kept -= 1
            text = f"{whole[: kept // 2]}…{whole[len(whole) - kept // 2 :]}"
        draw.text((edge, edge + turn * row), text, (235, 235, 235), font)
    low, high = f"pixel score {scale.low:.6g}", f"{scale.high:.4g}" + ("" if scale.calibrated else "  uncalibrated")
    top, left = edge + len(lines) * row, edge + round(draw.textlength(low + " ", font))
    right = left + min(width // 3, width - left - 2 * edge - round(draw.textlength(high, font)))
    draw.text((edge, top), low, (235, 235, 235), font)
    draw.text((right + edge, top), high, (235, 235, 235), font)
    picture = np.array(drawn)
    # As the heat map is drawn, over mid-grey: what is transparent on the photo is grey here.
    ramp = np.tile(np.linspace(scale.low, scale.high, right - left), (size, 1))
    picture[top : top + size, left:right] = overlay(np.full((*ramp.shape, 3), 96, np.uint8), ramp, None, *scale[:2])
    return picture


def marked(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating],
    path: str,
    score: float,
    threshold: Threshold | None = None,
) -> NDArray[np.uint8]:
    """Draw a photo with its heat map, and below it its name, score, decision and colour scale.

    Args:
        image: ``(H, W, 3)`` RGB, 0-255.
        anomaly_map: ``(H, W)`` scores in [0, 1].
        path: The photo's file.
        score: Image score in [0, 1].
        threshold: For the decision, and where colour begins; None: it begins at 0.5.

    Returns:
        ``(H', W', 3)`` RGB, 0-255: the photo's pixels are its upper left part, and none is covered by the legend.
    """
    drawn = heated(image, anomaly_map, threshold)
    below = legend(image.shape[1], [path, verdict(score, threshold)], scale_of(threshold))
    missing = below.shape[1] - image.shape[1]
    return np.vstack([np.pad(drawn, ((0, 0), (0, missing), (0, 0)), constant_values=GREY), below])


def verdict(score: float, threshold: Threshold | None) -> str:
    """Say a score and, with a threshold, the decision, in half a line."""
    if threshold is None:
        return f"score {score:.3f}"
    close = score != threshold.image and f"{score:.3f}" == f"{threshold.image:.3f}"
    digits = 6 if close else 3  # scores of a fitted model crowd below 1
    return f"score {score:.{digits}f}: {threshold.decide(score)} (threshold {threshold.image:.{digits}f})"


def colour_note(coloured: int, images: int, highest: float, calibrated: bool) -> str:
    """Say it if none of some images is coloured, or every one, and what to type; "" otherwise.

    Args:
        coloured: How many have some colour.
        images: How many there are.
        highest: Highest score of a pixel of all of them.
        calibrated: Whether there is a threshold.
    """
    if not images or 0 < coloured < max(images, 2):
        return ""
    which, maps, begin = ("Every", "each map", "exceeds") if coloured else ("No", "no map", "reaches")
    top = f"The highest score of a pixel is {highest:.6g}."
    if calibrated:
        return f"{which} overlay is coloured: {maps} has a region above its pixel threshold. {top}"
    return (
        f"{which} overlay is coloured: colour begins at {LIKELIER[0]:g} and {maps} {begin} it. {top} "
        f"To begin where good images end: kanoclip calibrate, then --threshold threshold.json (or a number)."
    )


@cache
def _font(size: int) -> Any:
    """Return DejaVu Sans, which matplotlib brings, for file names in Latin, Greek and Cyrillic; or Pillow's own."""
    place = find_spec("matplotlib")
    try:
        return ImageFont.truetype(Path(str(place and place.origin)).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)
    except OSError:  # not installed
        return ImageFont.load_default(size)
