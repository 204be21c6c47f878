"""Drawn surfaces: one function per material, each a random variation of it, all sizes in pixels.

Colours are float32 RGB in [0, 1]; images ``(SIZE, SIZE, 3)``. Everything follows from the generator passed in, so the
same seed draws the same picture. Ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32; OpenCV types its results as any number
Rng = np.random.Generator

SIZE = 128
Y, X = (axis.astype(np.float32) - SIZE / 2 for axis in np.mgrid[:SIZE, :SIZE])


@cache
def _bank() -> Array:
    """White noise, drawn once: cutting from it is 20 times faster than drawing anew for each layer of each image."""
    return np.random.default_rng(20250103).standard_normal((1024, 1024)).astype(np.float32)


def noise(rng: Rng, x: float, y: float | None = None) -> Array:
    """Draw smooth noise ``(SIZE, SIZE)`` of zero mean and unit deviation with correlation lengths x and y in pixels."""
    y = x if y is None else y
    width, height = (int(np.ceil(SIZE / length)) + 3 for length in (x, y))
    left, top = rng.integers(0, 1024 - width), rng.integers(0, 1024 - height)
    cut = _bank()[top : top + height, left : left + width]
    if x > 1 or y > 1:
        cut = cv2.resize(cut, (int(width * x), int(height * y)), interpolation=cv2.INTER_CUBIC)
    cut = cut[:SIZE, :SIZE]
    return (cut - cut.mean()) / (cut.std() + 1e-6)


def cloud(rng: Rng, length: float, octaves: int = 3, gain: float = 0.5) -> Array:
    """Draw fractal noise ``(SIZE, SIZE)``, unit deviation; ``length`` is the largest correlation length in pixels."""
    total = sum(gain**i * noise(rng, max(length / 2**i, 1.0)) for i in range(octaves))
    return np.asarray(total / np.std(total), np.float32)


def turned(angle: float) -> tuple[Array, Array]:
    """Return the pixel coordinates in a frame turned by ``angle`` radians around the centre."""
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return X * cosine + Y * sine, Y * cosine - X * sine


def hsv(hue: float, saturation: float, value: float) -> Array:
    """Return an RGB colour ``(3,)``; hue in degrees, the rest in [0, 1]."""
    return cv2.cvtColor(np.array([[[hue % 360, saturation, value]]], np.float32), cv2.COLOR_HSV2RGB)[0, 0]


def any_colour(rng: Rng, saturation: float = 0.8) -> Array:
    """Return a colour of any hue, at most as saturated as asked."""
    return hsv(rng.uniform(0, 360), rng.uniform(0, saturation), rng.uniform(0.2, 0.95))


def grey(rng: Rng, low: float = 0.25, high: float = 0.85) -> Array:
    """Return an almost grey colour with a value between low and high."""
    return hsv(rng.uniform(0, 360), rng.uniform(0, 0.12), rng.uniform(low, high))


def shade(colour: Array, relief: Array) -> Array:
    """Light a colour, or an image, by a relief: 0 leaves it, 0.1 makes it 10 % brighter."""
    return colour * (1 + relief)[..., None]


def mix(below: Array, above: Array, alpha: Array) -> Array:
    """Lay one image or colour over another; ``alpha`` ``(SIZE, SIZE)`` is clipped to [0, 1]."""
    alpha = np.clip(alpha, 0, 1)[..., None]
    return below * (1 - alpha) + above * alpha


def wood(rng: Rng) -> Array:
    """Draw grain and fibres along one direction."""
    upright = rng.random() < 0.5
    across, _ = turned(rng.normal(0, 0.06) + (0 if upright else np.pi / 2))
    long = rng.uniform(6, 20)
    fibres = noise(rng, 1, long) if upright else noise(rng, long, 1)
    grain = np.sin(rng.uniform(0.12, 0.6) * across + rng.uniform(0.5, 2) * noise(rng, rng.uniform(15, 40)))
    colour = hsv(rng.uniform(15, 45), rng.uniform(0.15, 0.65), rng.uniform(0.3, 0.9))
    return shade(colour, rng.uniform(0.05, 0.18) * grain + rng.uniform(0.03, 0.08) * fibres)


def fabric(rng: Rng) -> Array:
    """Draw a weave, at times striped."""
    u, v = turned(rng.choice([0, np.pi / 4]) + rng.normal(0, 0.1))
    pitch, drift = rng.uniform(0.7, 1.9), 0.4 * noise(rng, 20)
    weave = np.sin(pitch * u + drift) * np.sin(pitch * v + drift) if rng.random() < 0.6 else np.sin(pitch * (u + v))
    if rng.random() < 0.25:
        weave = weave + rng.uniform(0.4, 1.5) * np.sign(np.sin(rng.uniform(0.15, 0.4) * u))
    return shade(any_colour(rng), rng.uniform(0.08, 0.22) * weave + 0.04 * noise(rng, 1))


def leather(rng: Rng) -> Array:
    """Draw a pebbled grain."""
    grain = np.abs(noise(rng, rng.uniform(2, 6))) + 0.5 * np.abs(noise(rng, rng.uniform(1.5, 3)))
    natural = rng.random() < 0.6
    colour = hsv(rng.uniform(5, 40), rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.7)) if natural else any_colour(rng, 0.5)
    return shade(colour, rng.uniform(0.08, 0.22) * (grain - grain.mean()) + 0.03 * noise(rng, 30))


def tile(rng: Rng) -> Array:
    """Draw tiles with joints, at times laid in a running bond."""
    u, v = turned(rng.normal(0, 0.08))
    width = rng.uniform(26, 60)
    height, joint = width * rng.choice([1, 0.5]), rng.uniform(1, 2.5)
    v = v + rng.uniform(0, height)
    bond = width / 2 * (np.floor(v / height) % 2) if rng.random() < 0.4 else 0
    joints = (np.mod(u + rng.uniform(0, width) + bond, width) < joint) | (np.mod(v, height) < joint)
    glaze = shade(any_colour(rng, 0.5), rng.uniform(0.02, 0.08) * cloud(rng, 12) + 0.02 * noise(rng, 1))
    return mix(glaze, grey(rng), cv2.GaussianBlur(joints.astype(np.float32), (0, 0), 0.6))


def brushed_metal(rng: Rng) -> Array:
    """Draw fine parallel brush marks."""
    length = rng.uniform(15, 60)
    marks = noise(rng, length, 1) if rng.random() < 0.5 else noise(rng, 1, length)
    return shade(grey(rng), rng.uniform(0.04, 0.14) * marks + rng.uniform(0, 0.06) * noise(rng, 30))


def cast_iron(rng: Rng) -> Array:
    """Draw a rough, dark metal."""
    return shade(grey(rng, 0.2, 0.6), rng.uniform(0.04, 0.12) * cloud(rng, rng.uniform(2, 5)) + 0.05 * noise(rng, 40))


def grid(rng: Rng) -> Array:
    """Draw a mesh of wires over a dark ground."""
    u, v = turned(rng.choice([0, np.pi / 4]) + rng.normal(0, 0.06))
    pitch = rng.uniform(9, 20)
    half = rng.uniform(0.1, 0.2) * pitch
    distance_u, distance_v = (np.abs(np.mod(axis + rng.uniform(0, pitch), pitch) - pitch / 2) for axis in (u, v))
    round_wire = np.maximum(1 - distance_u / (2 * half), 1 - distance_v / (2 * half))
    wire = shade(grey(rng, 0.45, 0.95), 0.35 * np.clip(round_wire, 0, 1) - 0.2 + 0.03 * noise(rng, 1))
    return mix(
        shade(grey(rng, 0.02, 0.25), 0.06 * noise(rng, 1)), wire, half + 0.5 - np.minimum(distance_u, distance_v)
    )


def concrete(rng: Rng) -> Array:
    """Draw a cloudy grey with fine grain."""
    clouds = rng.uniform(0.03, 0.08) * cloud(rng, rng.uniform(8, 30), 4, 0.6)
    return shade(grey(rng, 0.35, 0.85), clouds + rng.uniform(0.02, 0.08) * noise(rng, 1))


def plastic(rng: Rng) -> Array:
    """Draw an even, coloured sheet."""
    return shade(any_colour(rng, 0.95), rng.uniform(0.01, 0.04) * noise(rng, rng.uniform(1, 3)) + 0.03 * noise(rng, 40))


def paper(rng: Rng) -> Array:
    """Draw a pale sheet with faint fibres."""
    colour = hsv(rng.uniform(20, 60), rng.uniform(0, 0.2), rng.uniform(0.7, 0.98))
    return shade(colour, rng.uniform(0.01, 0.04) * cloud(rng, 4) + 0.01 * noise(rng, 1))


def rubber(rng: Rng) -> Array:
    """Draw a dark, matt, grainy sheet."""
    return shade(grey(rng, 0.1, 0.35), rng.uniform(0.05, 0.15) * noise(rng, 1.5) + 0.04 * noise(rng, 20))


def terrazzo(rng: Rng) -> Array:
    """Draw chips of one colour set in another."""
    chips = (noise(rng, rng.uniform(2.5, 6)) > rng.uniform(0.2, 0.9)).astype(np.float32)
    ground, stone = shade(any_colour(rng, 0.3), 0.04 * noise(rng, 1)), shade(any_colour(rng, 0.4), 0.05 * noise(rng, 2))
    return mix(ground, stone, rng.uniform(0.4, 1) * cv2.GaussianBlur(chips, (0, 0), 0.6))


def carpet(rng: Rng) -> Array:
    """Draw a deep pile with loops."""
    u, v = turned(rng.uniform(0, np.pi))
    loops = np.sin(u * rng.uniform(0.9, 1.6)) * np.sin(v * rng.uniform(0.9, 1.6))
    pile = noise(rng, 1) + 0.7 * noise(rng, 2) + 0.5 * loops
    return shade(any_colour(rng, 0.5), rng.uniform(0.08, 0.2) * pile)


def marble(rng: Rng) -> Array:
    """Draw soft veins through a pale stone."""
    u, _ = turned(rng.uniform(0, np.pi))
    veins = 1 - np.abs(np.sin(u * rng.uniform(0.03, 0.08) + rng.uniform(1.5, 3) * cloud(rng, 40, 4, 0.55)))
    stone = shade(grey(rng, 0.6, 0.95), 0.02 * noise(rng, 1))
    return mix(stone, grey(rng, 0.3, 0.7), rng.uniform(0.3, 0.7) * veins ** rng.uniform(3, 6))


def perforated_sheet(rng: Rng) -> Array:
    """Draw a metal sheet with a regular pattern of round holes."""
    u, v = turned(rng.normal(0, 0.1))
    pitch = rng.uniform(11, 22)
    v = v + rng.uniform(0, pitch)
    row = np.floor(v / pitch)
    distance_u = np.mod(u + rng.uniform(0, pitch) + pitch / 2 * (row % 2), pitch) - pitch / 2
    distance_v = np.mod(v, pitch) - pitch / 2
    holes = pitch * rng.uniform(0.22, 0.34) - np.hypot(distance_u, distance_v) + 0.5
    return mix(brushed_metal(rng), shade(grey(rng, 0.02, 0.2), 0.05 * noise(rng, 1)), holes)


MATERIALS: dict[str, Callable[[Rng], Array]] = {
    material.__name__: material
    for material in (
        wood, fabric, leather, tile, brushed_metal, cast_iron, grid, concrete, plastic, paper, rubber, terrazzo, carpet,
        marble, perforated_sheet,
    )
}  # fmt: skip
