"""Drawn defects: each function returns what a defect looks like and how much of it covers each pixel. Ours.

All take ``(rng, image, area, ground)``: the intact image ``(SIZE, SIZE, 3)``, where the defect may lie
``(SIZE, SIZE)`` bool, and what lies below the part ``(SIZE, SIZE, 3)``; all return ``(appearance, cover)`` with
cover ``(SIZE, SIZE)`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.data.drawn.materials import SIZE, Array, Rng, X, Y, any_colour, cloud, grey, hsv, mix, noise, shade

Area = NDArray[np.bool_]


def _spot(rng: Rng, area: Area) -> NDArray[np.float64]:
    """Return a random point (x, y) of the area, in pixels from the corner."""
    rows, columns = np.nonzero(area)
    i = rng.integers(len(rows))
    return np.array([columns[i], rows[i]], float)


def _path(rng: Rng, start: NDArray[np.float64], length: float, steps: int, bend: float) -> NDArray[np.float64]:
    """Return a walk of ``steps`` steps that turns by ``bend`` radians (deviation) at each."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps))
    moves = length / steps * np.stack([np.cos(heading), np.sin(heading)], 1)
    return np.concatenate([start[None], start + np.cumsum(moves, 0)])


def _stroke(cover: Array, path: NDArray[np.float64], width: int) -> None:
    cv2.polylines(cover, [np.round(path * 16).astype(np.int32)], False, 1.0, width, cv2.LINE_8, 4)


def _blob(rng: Rng, centre: NDArray[np.float64], width: float, height: float, rough: float = 0.25) -> Array:
    """Fill an uneven oval of the given half axes in pixels."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = [rough / k * rng.normal() * np.cos(k * turn + rng.uniform(0, 6)) for k in range(1, 5)]
    reach = np.clip(1 + np.sum(waves, 0), 0.3, 2)
    x, y, angle = reach * np.cos(turn) * width, reach * np.sin(turn) * height, rng.uniform(0, np.pi)
    turned = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], 1)
    cover = np.zeros((SIZE, SIZE), np.float32)
    cv2.fillPoly(cover, [np.round((turned + centre) * 16).astype(np.int32)], 1.0, cv2.LINE_8, 4)
    return cover


def _half_axes(rng: Rng, size: float) -> tuple[float, float]:
    size = size * np.exp(rng.uniform(-0.5, 0.5))
    return size, size * rng.uniform(0.6, 1)


def _contrast(rng: Rng, image: Array, cover: Array) -> Array:
    """Return a colour that stands out from what lies under the cover."""
    under = image[cover > 0.5].mean(0) if (cover > 0.5).any() else image.mean((0, 1))
    colours = [any_colour(rng, 1) for _ in range(rng.choice([2, 6]))]
    return max(colours, key=lambda colour: np.abs(colour - under).max())


def _even(colour: Array, texture: Array) -> Array:
    return shade(np.broadcast_to(colour, (SIZE, SIZE, 3)), texture)


def scratch(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Draw one to four almost straight thin lines, darker or brighter than the surface."""
    cover, start = np.zeros((SIZE, SIZE), np.float32), _spot(rng, area)
    for _ in range(rng.choice([1, 1, 2, 4])):
        _stroke(
            cover, _path(rng, start + rng.normal(0, 4, 2), SIZE * rng.uniform(0.2, 0.6), 4, 0.08), rng.choice([1, 2])
        )
    dark = rng.random() < 0.5
    return image * (rng.uniform(0.35, 0.6) if dark else 1.3) + (0.0 if dark else 0.2), cover


def crack(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Draw a jagged dark line with branches."""
    cover, steps = np.zeros((SIZE, SIZE), np.float32), int(rng.integers(6, 14))
    path = _path(rng, _spot(rng, area), SIZE * rng.uniform(0.25, 0.8), steps, 0.45)
    _stroke(cover, path, int(rng.choice([1, 2, 3])))
    for _ in range(rng.integers(0, 4)):
        _stroke(cover, _path(rng, path[rng.integers(1, steps)], SIZE * rng.uniform(0.05, 0.2), 5, 0.5), 1)
    return image * rng.uniform(0.1, 0.45), cover


def hole(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Draw one or three dark pits."""
    cover, centre = np.zeros((SIZE, SIZE), np.float32), _spot(rng, area)
    for _ in range(rng.choice([1, 1, 1, 3])):
        cover = np.maximum(cover, _blob(rng, centre, *_half_axes(rng, SIZE * 0.05), 0.12))
        centre = centre + rng.normal(0, 10, 2)
    return _even(grey(rng, 0.0, 0.14), 0.1 * noise(rng, 2)), cover


def stain(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Draw a blotch of another colour with a soft edge."""
    cover = _blob(rng, _spot(rng, area), *_half_axes(rng, SIZE * 0.1))
    colour, strength = _contrast(rng, image, cover), rng.uniform(0.4, 0.8)
    return image * (1 - strength) + colour * strength, cv2.GaussianBlur(cover, (0, 0), rng.uniform(0.7, 2.5))


def contamination(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Draw particles of foreign matter lying on the surface."""
    centre, count, spread = _spot(rng, area), int(rng.integers(2, 14)), SIZE * rng.uniform(0.03, 0.1)
    cover, largest = np.zeros((SIZE, SIZE), np.float32), 3.5 if count > 4 else 6.5
    for _ in range(count):
        at = centre + rng.normal(0, spread, 2)
        cover = np.maximum(cover, _blob(rng, at, rng.uniform(1.2, largest), rng.uniform(1.2, largest)))
    return _even(_contrast(rng, image, cover), 0.1 * noise(rng, 2)), cover


def discolouration(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Draw a wide area whose colour has shifted while its texture stays."""
    cover = _blob(rng, _spot(rng, area), *_half_axes(rng, SIZE * 0.15))
    tint = hsv(rng.uniform(0, 360), rng.uniform(0.5, 0.95), 1.0)
    if image[cover > 0.5].mean() < 0.25:  # nothing is seen of a dark surface that turns darker
        look = image + rng.uniform(0.15, 0.3) * tint
    elif rng.random() < 0.5:
        look = image * (0.35 + 1.2 * tint)
    else:
        look = image * np.float32(rng.choice([rng.uniform(0.4, 0.65), rng.uniform(1.4, 1.8)]))
    return look, cv2.GaussianBlur(cover, (0, 0), rng.uniform(1, 4))


def chip(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Break a piece out: at the edge of a part, anywhere on a surface; what lies below shows."""
    edge = area & ~cv2.erode(area.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    part = not area.all()
    cover = _blob(rng, _spot(rng, edge if part and edge.any() else area), *_half_axes(rng, SIZE * 0.085), 0.35)
    return ground if part else _even(_contrast(rng, image, cover) * 0.8, 0.12 * noise(rng, 2)), cover


def wear(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Rub a patch smooth, or rough, so that its texture is lost."""
    cover = _blob(rng, _spot(rng, area), *_half_axes(rng, SIZE * 0.12), 0.35)
    rubbed = shade(
        cv2.GaussianBlur(image, (0, 0), 4) * rng.choice([0.8, 1.25]), rng.choice([0.0, 0.15]) * noise(rng, 1)
    )
    if image[cover > 0.5].mean() < 0.25:
        rubbed = rubbed + 0.15
    return rubbed, cv2.GaussianBlur(cover, (0, 0), 1)


def thread(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Lay a curved fibre of another colour across; it may reach beyond a part."""
    cover = np.zeros((SIZE, SIZE), np.float32)
    _stroke(cover, _path(rng, _spot(rng, area), SIZE * rng.uniform(0.3, 0.9), 12, 0.35), int(rng.choice([1, 2, 2, 3])))
    return _even(_contrast(rng, image, cover), 0.12 * noise(rng, 2)), cover


def dent(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Press the surface in: bright on one side, dark on the other."""
    width, height = _half_axes(rng, SIZE * 0.08)
    cover = _blob(rng, _spot(rng, area), width, height, 0.15)
    depth = cv2.GaussianBlur(cover, (0, 0), 0.35 * height)
    light = rng.uniform(0, 2 * np.pi)
    slope = np.gradient(depth, axis=1) * np.cos(light) + np.gradient(depth, axis=0) * np.sin(light)
    slope = (slope / (np.abs(slope).max() + 1e-6)).astype(np.float32)
    return shade(image, rng.uniform(0.45, 0.8) * slope) + 0.1 * slope[..., None], cv2.GaussianBlur(cover, (0, 0), 1)


def burn(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Scorch a spot: black in the middle, brown towards a soft rim."""
    centre = _spot(rng, area)
    cover = _blob(rng, centre, *_half_axes(rng, SIZE * 0.1), 0.3)
    distance = np.hypot(X + SIZE / 2 - centre[0], Y + SIZE / 2 - centre[1]) / (SIZE * 0.1) + 0.15 * cloud(rng, 6)
    scorched = mix(
        _even(hsv(25, 0.7, 0.3), 0.1 * noise(rng, 2)), np.array([0.03, 0.02, 0.02], np.float32), 1.2 - distance
    )
    return scorched * 0.85 + image * 0.15, cv2.GaussianBlur(cover, (0, 0), 1.5)


def bubble(rng: Rng, image: Array, area: Area, ground: Array) -> tuple[Array, Array]:
    """Raise round blisters with a bright spot and a shadow."""
    cover, look, start = np.zeros((SIZE, SIZE), np.float32), image, _spot(rng, area)
    for _ in range(rng.integers(1, 5)):
        centre, radius = start + rng.normal(0, 9, 2), rng.uniform(4, 9)
        x, y = (X + SIZE / 2 - centre[0]) / radius, (Y + SIZE / 2 - centre[1]) / radius
        inside = (np.hypot(x, y) < 1).astype(np.float32)
        highlight = 0.5 * np.exp(-8 * ((x + 0.4) ** 2 + (y + 0.4) ** 2))[..., None]
        look = mix(look, shade(image, -0.55 * (x + y)) + highlight, inside)
        cover = np.maximum(cover, inside)
    return look, cover


DEFECTS: dict[str, Callable[[Rng, Array, Area, Array], tuple[Array, Array]]] = {
    defect.__name__: defect
    for defect in (
        scratch, crack, hole, stain, contamination, discolouration, chip, wear, thread, dent, burn, bubble,
    )
}  # fmt: skip
