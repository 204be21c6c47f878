"""Reads any picture to 8-bit RGB, and with it its mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kanoclip.data.decoding import ROWS, Pixels, decode
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.masks import dimensions, read_mask


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image of any published mode.

    Grey becomes three equal channels, and a palette is looked up. What is transparent is shown on white, as pages and
    viewers show a cut-out; opaque files with an alpha channel (HeadCT) are read as those without.

    More than 8 bits per channel are scaled by the smallest of 8, 10, 12, 14 and 16 bits that holds the image's maximum:
    a 12-bit camera stored in 16 bits is not read as black, and images of one camera keep their relative brightness as
    long as they use the same range. Floats in [0, 1] are scaled by 255, in [0, 255] kept. What is left (32-bit and
    negative values, as in CT) is stretched from minimum to maximum.

    Args:
        path: The file. Of a file with several pages or frames, the first is read.

    Returns:
        ``(H, W, 3)`` RGB, 0-255.

    Raises:
        UnreadableImageError: With the file, the reason and the remedy.
    """
    pixels = decode(str(path))
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _on_white(_to_uint8(str(path), pixels[..., :3]), pixels[..., 3])
    pixels = _to_uint8(str(path), pixels)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def read_pair(
    image: str, masks: Sequence[str], threshold: int | None, values: Sequence[int] | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Read an image and its mask; see ``read_image`` and ``read_mask``.

    Returns:
        Image ``(H, W, 3)`` and mask ``(H, W)``, or None where no mask files are given.

    Raises:
        UnreadableImageError: A file cannot be read, or image and mask differ in size.
    """
    pixels = read_image(image)
    if not masks:
        return pixels, None
    mask = read_mask(masks, threshold, values)
    if mask.shape != pixels.shape[:2]:
        raise UnreadableImageError(
            masks[0],
            f"this mask is {dimensions(mask)} pixels, but its image {image} is {dimensions(pixels)}. "
            f"Export the mask at the size of the image.",
        )
    return pixels, mask


def _on_white(colour: NDArray[np.uint8], alpha: Pixels) -> NDArray[np.uint8]:
    """Compose ``(H, W, 3)`` with alpha ``(H, W)`` of 8 or 16 bits on white."""
    shown = np.empty(colour.shape, np.uint8)
    for top in range(0, len(colour), ROWS):
        rows = slice(top, top + ROWS)
        a = alpha[rows, :, None].astype(np.uint32) * 255 // np.iinfo(alpha.dtype).max
        shown[rows] = (colour[rows] * a + 255 * (255 - a) + 127) // 255
    return shown


def _to_uint8(path: str, pixels: Pixels) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():  # one that is not a number makes both so
        raise UnreadableImageError(path, "some pixels are not finite numbers. Replace them and save it as a PNG.")
    tops = [1, 255] if pixels.dtype.kind == "f" else [255, 1023, 4095, 16383, 65535]
    top = next((top for top in tops if low >= 0 and high <= top), None)
    low, scale = (low, 255 / max(high - low, 1e-12)) if top is None else (0.0, 255 / top)
    scaled = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), ROWS):
        rows = slice(start, start + ROWS)
        scaled[rows] = np.rint((pixels[rows].astype(np.float64) - low) * scale)
    return scaled
