"""Resizing as CLIP does it, without torch: what a model sees of a photo is the same in a data set and in a call."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Tile = bool | int | Literal["native"]
Box = tuple[float, float, float, float]


def shape_of(height: int, width: int, size: int, tile: Tile = False) -> tuple[int, int]:
    """Return the shape in which a model of a given square gets to see a picture.

    Args:
        height: Of the picture, pixels.
        width: Of the picture, pixels.
        size: Side of the square that the model takes, pixels.
        tile: False: that square, whatever shape the picture has. True: ``size`` is the short side, and the long one
            comes in eighths of it: what is almost square becomes square, and is scored in one piece; it stretches a
            picture by 1/16 at most. A number: so many pixels of the picture fill one square. "native": ``size`` of
            them, so the picture keeps its scale. A picture with a shorter side is enlarged to one square.

    Returns:
        Height and width, pixels.
    """
    if tile is False:
        return size, size
    if tile is True:
        eighths = round(8 * max(height, width) / min(height, width))
        long = round(eighths * size / 8)
        return (long, size) if height > width else (size, long)
    scale = size / min(size if tile == "native" else tile, height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def resize(
    pixels: NDArray[np.uint8], shape: tuple[int, int], box: Box | None = None, nearest: bool = False
) -> NDArray[np.uint8]:
    """Resize a picture as CLIP does: bicubic with antialiasing.

    OpenCV's bicubic does not low-pass before it shrinks, and its nearest is half a pixel off.

    Args:
        pixels: ``(H, W, 3)`` or ``(H, W)``, 0-255.
        shape: Height and width that come out, pixels.
        box: Part to take: left, top, right and bottom, pixels. None: all.
        nearest: Take the nearest pixel, for a mask.
    """
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize(shape[::-1], how, box))
