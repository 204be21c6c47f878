from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

Write = Callable[..., str]


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A (24, 32, 3) RGB image with no two equal rows, columns or channels."""
    return np.random.default_rng(7).integers(0, 256, (24, 32, 3)).astype(np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an image below tmp_path: an array (grey or RGB), or one grey level for a 24 x 32 image."""

    def write_image(name: str, pixels: NDArray[np.generic] | int = 0) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.full((24, 32), pixels, np.uint8) if isinstance(pixels, int) else pixels
        assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)
        return str(path)

    return write_image


@pytest.fixture
def mask() -> NDArray[np.uint8]:
    """A (24, 32) mask of 0 and 255 whose upper left 6 x 8 pixels are anomalous."""
    drawn = np.zeros((24, 32), np.uint8)
    drawn[:6, :8] = 255
    return drawn
