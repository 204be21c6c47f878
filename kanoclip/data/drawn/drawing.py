"""One drawn image from one seed: a surface or a part, perhaps with a defect, under some light, seen by some camera."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.data.drawn.defects import DEFECTS
from kanoclip.data.drawn.materials import MATERIALS, SIZE, Array, Rng, X, Y, mix, noise, shade, turned
from kanoclip.data.drawn.parts import PARTS, Layer, backdrop

CATEGORIES = (*MATERIALS, *PARTS)


class Drawing(NamedTuple):
    """What was drawn.

    Attributes:
        image: ``(SIZE, SIZE, 3)`` uint8 RGB.
        mask: ``(SIZE, SIZE)`` uint8, 1 where a defect covers the pixel by half or more.
        part: ``(SIZE, SIZE)`` uint8, 1 on the part; all ones for a surface.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    part: NDArray[np.uint8]


def draw(category: str, defect: str | None, seed: int | list[int]) -> Drawing:
    """Draw one image.

    Args:
        category: A name of ``CATEGORIES``.
        defect: A name of ``DEFECTS``, or None for an intact one.
        seed: Whatever numpy takes as a seed; the same seed draws the same intact image for every defect and None.
    """
    return render(partial(_scene, category=category), defect, seed)


def render(scene: Callable[[Rng], tuple[Array, Array, Array]], defect: str | None, seed: int | list[int]) -> Drawing:
    """Draw one image of any scene.

    Args:
        scene: Draws the intact image ``(SIZE, SIZE, 3)``, the part's shape ``(SIZE, SIZE)`` in [0, 1] and what lies
            below it, as large as the image.
        defect: As ``draw``.
        seed: As ``draw``.
    """
    sketch, damage, camera = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(3))
    image, part, ground = scene(sketch)
    mask = np.zeros((SIZE, SIZE), bool)
    if defect is not None:
        image, mask = _damage(damage, image, part > 0.5, ground, defect)
    return Drawing(_photograph(camera, image), mask.astype(np.uint8), (part > 0.5).astype(np.uint8))


def _scene(rng: Rng, category: str) -> tuple[Array, Array, Array]:
    if category in MATERIALS:
        return MATERIALS[category](rng), np.ones((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE, 3), np.float32)
    return laid_down(rng, PARTS[category](rng))


def laid_down(rng: Rng, layers: list[Layer]) -> tuple[Array, Array, Array]:
    """Lay a part on a ground, with bevelled rims and a shadow; returns a scene as ``render`` wants it."""
    ground = backdrop(rng)
    part = np.max([shape for shape, _ in layers], 0)
    shadow = cv2.GaussianBlur(np.roll(part, rng.integers(-5, 6, 2), (0, 1)), (0, 0), 4)
    ground = ground * (1 - rng.uniform(0, 0.5) * shadow)[..., None]
    image, bevel = ground, rng.uniform(2, 10)
    for shape, texture in layers:
        rim = np.minimum(cv2.distanceTransform((shape > 0.5).astype(np.uint8), cv2.DIST_L2, 3) / bevel, 1)
        image = mix(image, texture * (0.7 + 0.3 * rim)[..., None], shape)
    return image.astype(np.float32), part, ground.astype(np.float32)


def _damage(
    rng: Rng, image: Array, area: NDArray[np.bool_], ground: Array, defect: str
) -> tuple[Array, NDArray[np.bool_]]:
    """Apply a defect; try again while it can hardly be seen, so that labels are right."""
    for _ in range(20):
        look, cover = DEFECTS[defect](rng, image, area, ground)
        if defect not in ("thread", "contamination"):  # these lie on top and may reach beyond the part
            cover = cover * area
        damaged = np.clip(mix(image, np.clip(look, 0, 1.1), cover), 0, 1)
        mask = cover >= 0.5
        if mask.sum() >= 12 and np.abs(damaged - np.clip(image, 0, 1))[mask].max(-1).mean() > 0.14:
            break
    return damaged.astype(np.float32), mask


def _photograph(rng: Rng, image: Array) -> NDArray[np.uint8]:
    """Light the scene from one side, at times with a glare, and add blur, gamma, grey conversion and sensor noise."""
    slope, _ = turned(rng.uniform(0, 2 * np.pi))
    image = shade(image, rng.uniform(0, 0.4) * slope / SIZE)
    if rng.random() < 0.2:
        x, y = rng.uniform(-SIZE / 2, SIZE / 2, 2)
        glare = np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * (SIZE * rng.uniform(0.15, 0.4)) ** 2))
        image = image + rng.uniform(0.05, 0.25) * glare[..., None]
    if rng.random() < 0.25:
        image = np.repeat(image @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, 2)
    image = np.clip(image, 0, 1) ** np.float32(rng.uniform(0.75, 1.35))
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    image = image + rng.uniform(0, 0.03) * noise(rng, 1)[..., None]
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
