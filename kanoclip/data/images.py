"""Reads any picture to 8-bit RGB, and with it its mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanoclip.data.decoding import ROWS, Pixels, decode, from_pillow
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.masks import dimensions, read_mask


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image of any published mode.

    Grey becomes three equal channels, and a palette is looked up. What is transparent is shown on white, as pages and
    viewers show a cut-out; opaque files with an alpha channel (HeadCT) are read as those without.

    More than 8 bits per channel are scaled by the smallest of 8, 10, 12, 14 and 16 bits that holds the image's maximum:
    a 12-bit camera stored in 16 bits is not read as black, and images of one camera keep their relative brightness as
    long as they use the same range. Floats in [0, 1] (or a tenth beyond it, as a resize leaves) are scaled by 255, in
    [0, 255] kept. What is left (32-bit and negative values, as in CT) is stretched from minimum to maximum.

    Args:
        path: The file. Of a file with several pages or frames, the first is read.

    Returns:
        ``(H, W, 3)`` RGB, 0-255.

    Raises:
        UnreadableImageError: With the file, the reason and the remedy.
    """
    return _to_rgb(str(path), decode(str(path)))


def image_of(given: Any, name: str) -> NDArray[np.uint8]:
    """Return a picture in memory as ``read_image`` would return it if it were a file.

    Args:
        given: A Pillow image of any mode, turned as its EXIF says; or an array of numbers, ``(H, W)`` or
            ``(H, W, 1, 3 or 4)``: grey, RGB, RGB and alpha.
        name: What it is called in an error.

    Returns:
        ``(H, W, 3)`` RGB, 0-255; the array itself where that is what was given.

    Raises:
        UnreadableImageError: With the name, the reason and the remedy.
    """
    if isinstance(given, Image.Image):
        given = _from_pillow(given, name) if all(given.size) else np.empty(given.size, np.uint8)
    if not isinstance(given, np.ndarray):
        expected = "a path, a Pillow image, an array, a tensor, or a list of these"
        raise UnreadableImageError(name, f"it is of type {type(given).__name__}, expected {expected}.")
    if given.dtype.kind not in "uif":
        raise UnreadableImageError(name, f"it is an array of {given.dtype}, expected uint8, uint16 or floats.")
    if given.ndim not in (2, 3) or given.shape[2:] not in ((), (1,), (3,), (4,)):
        first = given.ndim == 3 and given.shape[0] in (1, 3, 4)
        remedy = " Its channels come first: give image.transpose(1, 2, 0)." if first else ""
        raise UnreadableImageError(
            name, f"its shape is {given.shape}, expected (H, W), (H, W, 3) or (H, W, 4).{remedy}"
        )
    if not given.size:
        raise UnreadableImageError(name, f"its shape is {given.shape}: it holds no pixels. Leave it out.")
    return _to_rgb(name, given[..., 0] if given.shape[2:] == (1,) else given)


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


def _from_pillow(image: Image.Image, name: str) -> Pixels:
    try:
        return from_pillow(image)
    except Exception as error:  # what is opened but not loaded yet may fail in any way, see ``decode``
        raise UnreadableImageError(name, f"{error}. Open it anew, or leave it out.") from error


def _to_rgb(name: str, pixels: Pixels) -> NDArray[np.uint8]:
    if pixels.shape[2:] == (4,):
        alpha = pixels[..., 3] if pixels.dtype in (np.uint8, np.uint16) else _to_uint8(name, pixels[..., 3])
        return _on_white(_to_uint8(name, pixels[..., :3]), alpha)
    pixels = _to_uint8(name, pixels)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels)


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
    if pixels.dtype.kind == "f" and low >= -0.1 and 0 < high <= 1.1:  # a resize overshoots: 1.001 is no level of 255
        low, high = 0.0, 1.0
    tops = [1, 255] if pixels.dtype.kind == "f" else [255, 1023, 4095, 16383, 65535]
    top = next((top for top in tops if low >= 0 and high <= top), None)
    low, scale = (low, 255 / max(high - low, 1e-12)) if top is None else (0.0, 255 / top)
    scaled = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), ROWS):
        rows = slice(start, start + ROWS)
        scaled[rows] = np.rint((pixels[rows].astype(np.float64) - low) * scale).clip(0, 255)
    return scaled
