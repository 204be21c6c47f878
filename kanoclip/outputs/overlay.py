"""Pictures for people: a photo under its heat map, and beside its ground truth.

Colour must mean the same in every picture that is compared, so a scale ``low .. high`` is never taken from the image
at hand: stretching each map to its own minimum and maximum paints a red spot on every good part. Two scales are used:

- ``LIKELIER`` (0.5 .. 1), fixed: colour begins where the model finds "anomalous" likelier than "normal" and is full
  at certainty. It needs no other image, so it serves prediction and pictures that are compared over epochs.
- the scale of the run (``ScoreRange``): from the scores of all images together, for tests, where the maps of a
  training-free model may all lie between 0.45 and 0.55. Colour then is a rank among the pixels of that data set.

Both are written on the picture. Opacity grows with the score from zero, so a part without findings is just a photo.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kanoclip.ranks import gather
from kanoclip.types import ANOMALOUS, UNKNOWN, Batch, KanoclipError, Scores

LIKELIER = (0.5, 1.0)
OUTLINE = (0, 255, 255)  # cyan: on no part of the heat map's path from violet over red to yellow
OPACITY = 0.75
STRIP = 1 << 20  # pixels that are coloured at once
LONGEST = 2048  # longer side of a kept example, pixels: a strip enlarged to the model's size has millions of them

# Inferno grows in lightness all the way, also for colour-blind eyes; its first third is nearly black, which would
# darken the photo instead of marking it.
_COLOURS = cv2.cvtColor(
    cv2.applyColorMap(np.linspace(90, 240, 256).astype(np.uint8)[:, None], cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB
)[:, 0]


def overlay(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating],
    mask: NDArray[np.uint8] | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> NDArray[np.uint8]:
    """Lay the heat map of the scores over a photo.

    Pixels that score ``low`` or less stay exactly as they are; from there to ``high`` colour goes from violet over
    red to yellow and opacity from 0 to 0.75. Give all pictures that are to be compared the same scale.

    Args:
        image: ``(H, W, 3)`` RGB, 0-255.
        anomaly_map: ``(H, W)`` scores, usually in [0, 1].
        mask: ``(H, W)`` ground truth, 1 = anomalous, drawn as a cyan outline; None or all zeros: no outline.
        low: Score where colour begins.
        high: Score where colour is full. Equal to ``low``: only what scores more is coloured, fully.

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
    result = image.copy()
    rows = max(1, STRIP // image.shape[1])
    for top in range(0, len(image), rows):  # a strip at a time: what is computed takes 100 bytes a pixel
        strip = result[top : top + rows]
        scores = np.nan_to_num(anomaly_map[top : top + rows].astype(np.float64)) - low
        strength = np.clip(scores / max(high - low, 1e-12), 0, 1)
        hot = strength > 0
        opacity = OPACITY * strength[hot][:, None]
        colours = _COLOURS[np.rint(strength[hot] * 255).astype(np.uint8)]
        strip[hot] = np.rint((1 - opacity) * strip[hot] + opacity * colours).astype(np.uint8)
    if mask is not None and mask.any():
        outlines, _ = cv2.findContours((mask > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, outlines, -1, OUTLINE, max(1, round(min(mask.shape) / 400)))
    return result


class Example(NamedTuple):
    """One image with what is known and what was found, on the CPU.

    Attributes:
        image: ``(H, W, 3)`` RGB, 0-255.
        anomaly_map: ``(H, W)`` in [0, 1].
        mask: ``(H, W)``, 1 = anomalous; None without ground truth.
        score: Image score in [0, 1].
        label: 0 = normal, 1 = anomalous, -1 = unknown.
        category: What is shown.
        defect: Kind of defect, "good" or "".
        path: Where it came from.
    """

    image: NDArray[np.uint8]
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.uint8] | None
    score: float
    label: int
    category: str
    defect: str
    path: str


def photo(image: Tensor) -> NDArray[np.uint8]:
    """Turn ``(3, H, W)`` in [0, 1] into ``(H, W, 3)`` of 0-255."""
    return (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


def example(batch: Batch, scores: Scores, index: int) -> Example:
    """Take one image out of a batch and of its scores; long strips are shrunk."""
    image: Any = photo(batch.image[index])
    anomaly_map: Any = scores.anomaly_map[index].detach().float().cpu().numpy().copy()
    mask: Any = batch.mask[index].cpu().numpy().copy() if bool(batch.has_mask[index]) else None
    factor = LONGEST / max(anomaly_map.shape)
    if factor < 1 and image.shape[0] != image.shape[1]:
        size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
        image, anomaly_map = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (image, anomaly_map))
        mask = mask if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    return Example(
        image=image,
        anomaly_map=anomaly_map,
        mask=mask,
        score=float(scores.image_score[index]),
        label=int(batch.label[index]),
        category=batch.category[index],
        defect=batch.defect[index],
        path=batch.path[index],
    )


def panel(shown: Example, low: float, high: float, tile: int = 256) -> NDArray[np.uint8]:
    """Set photo, ground truth and overlay side by side, under a caption with score, label and colour scale.

    Those of a wide image, three times as wide as high or more, are set one below the other.

    Args:
        shown: The image and what was found on it.
        low: Score where colour begins.
        high: Score where colour is full.
        tile: Smallest height of the three pictures, in pixels; smaller ones are enlarged so that the caption fits.

    Returns:
        ``(H', W', 3)`` RGB, 0-255.
    """
    height, width = shown.image.shape[:2]
    factor = max(1.0, tile / min(height, width))
    size = (round(width * factor), round(height * factor))  # (W, H), as OpenCV wants it
    mask: Any
    image: Any = cv2.resize(shown.image, size, interpolation=cv2.INTER_CUBIC)
    anomaly_map: Any = cv2.resize(shown.anomaly_map, size, interpolation=cv2.INTER_LINEAR)
    unit = min(size) / 256
    if shown.mask is None:
        mask, truth = None, np.full_like(image, 96)
        _write(truth, "no ground truth", (round(8 * unit), round(128 * unit)), unit)
    else:
        mask = cv2.resize(shown.mask, size, interpolation=cv2.INTER_NEAREST)
        truth = np.repeat((mask > 0).astype(np.uint8)[..., None] * 255, 3, axis=2)
    three = [image, truth, overlay(image, anomaly_map, mask, low, high)]
    pictures = np.vstack(three) if size[0] >= 3 * size[1] else np.hstack(three)

    caption = np.full((round(44 * unit), pictures.shape[1], 3), 32, np.uint8)
    label = {UNKNOWN: "label unknown", ANOMALOUS: "anomalous"}.get(shown.label, "normal")
    what = f"{shown.category} / {shown.defect}" if shown.defect else shown.category
    _write(caption, f"{what}: {label}", (round(8 * unit), round(18 * unit)), unit)
    _write(caption, f"image score {shown.score:.3f}", (round(8 * unit), round(37 * unit)), unit)
    left, right = round(pictures.shape[1] * 2 / 3 + 80 * unit), round(pictures.shape[1] - 80 * unit)
    top, bottom = round(12 * unit), round(32 * unit)
    # The legend is drawn as the heat map is, over mid-grey: what is transparent on the photo is grey here.
    ramp = np.tile(np.linspace(0, 1, right - left), (bottom - top, 1))
    caption[top:bottom, left:right] = overlay(np.full((*ramp.shape, 3), 96, np.uint8), ramp)
    _write(caption, f"{low:.4g}", (left - round(70 * unit), bottom - round(5 * unit)), unit)
    _write(caption, f"{high:.4g}", (right + round(8 * unit), bottom - round(5 * unit)), unit)
    return np.vstack([caption, pictures])


def _write(picture: NDArray[np.uint8], text: str, at: tuple[int, int], unit: float) -> None:
    drawable = text.encode("ascii", "replace").decode()  # OpenCV's built-in font knows no other letters
    thickness = max(1, round(unit))
    cv2.putText(picture, drawable, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * unit, (235,) * 3, thickness, cv2.LINE_AA)


class ScoreRange:
    """Learn the colour scale of a run from the pixel scores of all its images, in constant memory.

    Colour begins at the 0.9 quantile (nine pixels in ten stay as they are) and is full at the 0.999 quantile: the
    scale knows no labels, and a good part is coloured only where it scores like the most suspicious pixels of the
    whole data set. In a run without any defect these are just noise; the numbers beside the legend tell.

    Args:
        images: How many there will be.
        pixels: About how many scores to take from each image, on a regular grid.
        limit: Most scores to take from all images together.
    """

    def __init__(self, images: int = 1, pixels: int = 1024, limit: int = 1 << 21) -> None:
        self.pixels = max(1, min(pixels, limit // max(1, images)))
        self._kept: list[NDArray[np.float32]] = []

    def update(self, anomaly_map: Tensor) -> None:
        """Take in the maps ``(B, H, W)`` of a batch."""
        scores = anomaly_map.detach().flatten(1)
        # An odd step does not fall on the same column in every row of the usual even widths.
        step = max(1, scores.shape[1] // self.pixels) | 1
        self._kept.append(scores[:, ::step].float().cpu().numpy().ravel())

    def scale(self) -> tuple[float, float]:
        """Return ``(low, high)`` of what was seen, by all processes; ``LIKELIER`` when nothing was."""
        mine = np.concatenate([np.empty(0, np.float32), *self._kept])
        scores = np.concatenate(gather(mine))
        scores = scores[np.isfinite(scores)]
        if not scores.size:
            return LIKELIER
        low, high = np.quantile(scores.astype(np.float64), (0.9, 0.999))
        return float(low), float(high)
