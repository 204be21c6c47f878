"""Drawn parts: each function returns the layers of one part as ``(shape, texture)``, lowest layer first. Ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from kanoclip.data.drawn.materials import MATERIALS, SIZE, Array, Rng, X, Y, any_colour, cloud, grey, hsv, noise, shade

Layer = tuple[Array, Array]  # shape (SIZE, SIZE) in [0, 1], texture (SIZE, SIZE, 3)


class Pose:
    """Where a part lies: centre in pixels from the corner, radius in pixels, angle in radians."""

    def __init__(self, rng: Rng) -> None:
        self.centre = SIZE / 2 + rng.uniform(-8, 8, 2)
        self.radius = SIZE * rng.uniform(0.28, 0.42)
        self.angle = rng.uniform(0, 2 * np.pi)

    def fill(self, points: Array | Sequence[Sequence[float]], holes: Sequence[Array] = ()) -> Array:
        """Fill a polygon given in units of the radius, leaving holes out; edges are smooth."""
        shape = np.zeros((SIZE, SIZE), np.uint8)
        for outline, value in [(np.asarray(points), 255), *((hole, 0) for hole in holes)]:
            cosine, sine = np.cos(self.angle), np.sin(self.angle)
            turned = outline @ np.array([[cosine, sine], [-sine, cosine]]) * self.radius + self.centre
            cv2.fillPoly(shape, [np.round(turned * 16).astype(np.int32)], value, cv2.LINE_AA, 4)
        return shape.astype(np.float32) / 255


def disc(radius: float = 1.0, x: float = 0.0, y: float = 0.0, corners: int = 48, power: float = 1.0) -> Array:
    """Return the outline of a disc, a regular polygon (few corners) or a rounded box (power < 1), in radii."""
    turn = np.arange(corners) * 2 * np.pi / corners
    wave = np.stack([np.cos(turn), np.sin(turn)], 1)
    return (np.sign(wave) * np.abs(wave) ** power * radius + (x, y)).astype(np.float32)


def box(width: float, height: float, x: float = 0.0, y: float = 0.0) -> Array:
    """Return the outline of a box by its half width and half height, in radii."""
    corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]], np.float32)
    return corners + np.array([x, y], np.float32)


def around(count: int, distance: float) -> list[tuple[float, float]]:
    """Return ``count`` points spread evenly on a circle."""
    return [(distance * np.cos(2 * np.pi * i / count), distance * np.sin(2 * np.pi * i / count)) for i in range(count)]


def _of(rng: Rng, *names: str) -> Array:
    return MATERIALS[str(rng.choice(names))](rng)


def ring(rng: Rng) -> list[Layer]:
    """Draw a flat ring."""
    shape = Pose(rng).fill(disc(), [disc(rng.uniform(0.35, 0.65))])
    return [(shape, _of(rng, "brushed_metal", "cast_iron", "rubber", "plastic"))]


def nut(rng: Rng) -> list[Layer]:
    """Draw a hexagonal nut."""
    return [(Pose(rng).fill(disc(corners=6), [disc(rng.uniform(0.4, 0.55))]), _of(rng, "brushed_metal", "cast_iron"))]


def bolt(rng: Rng) -> list[Layer]:
    """Draw a bolt: a threaded shank and a head."""
    pose, half, metal = Pose(rng), rng.uniform(0.15, 0.22), _of(rng, "brushed_metal", "cast_iron")
    along = X * np.cos(pose.angle) + Y * np.sin(pose.angle)
    thread = shade(metal, 0.3 * np.sin(along * rng.uniform(1.0, 1.6)))
    return [(pose.fill(box(0.95, half)), thread), (pose.fill(box(0.24, 2 * half, -1.0)), metal)]


def cap(rng: Rng) -> list[Layer]:
    """Draw a round cap with a raised rim."""
    pose, texture = Pose(rng), _of(rng, "plastic", "brushed_metal")
    inner = pose.fill(disc(rng.uniform(0.6, 0.85)))
    return [(pose.fill(disc()), texture), (inner, texture * rng.uniform(0.75, 1.2))]


def plate(rng: Rng) -> list[Layer]:
    """Draw a rectangular plate, at times with drilled corners."""
    height = rng.uniform(0.5, 0.95)
    corners = box(0.78, height - 0.22)[: rng.choice([0, 2, 4])]
    shape = Pose(rng).fill(box(1, height), [disc(0.1, x, y) for x, y in corners])
    return [(shape, _of(rng, "brushed_metal", "cast_iron", "plastic", "wood"))]


def button(rng: Rng) -> list[Layer]:
    """Draw a button with two or four holes."""
    holes = [disc(0.1, x, y) for x, y in around(rng.choice([2, 4]), 0.28)]
    return [(Pose(rng).fill(disc(), holes), _of(rng, "plastic", "wood", "terrazzo"))]


def pill(rng: Rng) -> list[Layer]:
    """Draw a round or oblong pill, at times with a score line."""
    pose, flat, texture = Pose(rng), rng.uniform(0.45, 1), _of(rng, "plastic", "paper")
    layers = [(pose.fill(disc(power=rng.choice([1, 0.5])) * (1, flat)), texture)]
    if rng.random() < 0.5:
        layers.append((pose.fill(box(0.03, 0.75 * flat)), texture * 0.75))
    return layers


def gear(rng: Rng) -> list[Layer]:
    """Draw a gear wheel."""
    teeth, root = int(rng.integers(8, 16)), rng.uniform(0.75, 0.87)
    turn = (np.arange(4 * teeth) + 0.5) * 2 * np.pi / (4 * teeth)
    reach = np.where(np.arange(4 * teeth) // 2 % 2 == 0, 1, root)
    outline = np.stack([reach * np.cos(turn), reach * np.sin(turn)], 1)
    shape = Pose(rng).fill(outline, [disc(rng.uniform(0.2, 0.4))])
    return [(shape, _of(rng, "brushed_metal", "cast_iron", "plastic"))]


def cable(rng: Rng) -> list[Layer]:
    """Draw the cut end of a cable: a jacket, coloured insulation and copper."""
    pose = Pose(rng)
    layers = [(pose.fill(disc()), _of(rng, "rubber", "plastic"))]
    copper = shade(hsv(rng.uniform(15, 40), 0.5, 0.75), 0.12 * noise(rng, 2))
    for x, y in around(rng.choice([3, 4, 5]), 0.55):
        layers.append((pose.fill(disc(0.33, x, y)), shade(any_colour(rng, 1), 0.03 * noise(rng, 2))))
        layers.append((pose.fill(disc(0.19, x, y)), copper))
    return layers


def connector(rng: Rng) -> list[Layer]:
    """Draw a housing with a regular field of metal pins."""
    pose, height = Pose(rng), rng.uniform(0.5, 0.8)
    pose.angle *= 0.05
    body = shade(hsv(rng.choice([0, 60, 130, 210]), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.6)), 0.03 * noise(rng, 2))
    pin = shade(hsv(45, rng.uniform(0, 0.5), rng.uniform(0.6, 0.9)), 0.04 * noise(rng, 3))
    columns, rows = int(rng.integers(3, 7)), int(rng.integers(1, 4))
    half = 0.5 / max(columns, rows / height)
    places = [
        ((2 * i + 1) / columns - 1, ((2 * j + 1) / rows - 1) * height) for i in range(columns) for j in range(rows)
    ]
    pins = np.max([pose.fill(box(half, half, x, y)) for x, y in places], 0)
    return [(pose.fill(box(1.08, height + 0.08)), body), (pins, pin)]


def seed(rng: Rng) -> list[Layer]:
    """Draw a nut or seed: an uneven oval with fibres running outwards."""
    pose = Pose(rng)
    turn = np.arange(64) * 2 * np.pi / 64
    reach = 1 + 0.05 * np.sin(2 * turn) + 0.05 * np.sin(3 * turn + 1) + rng.uniform(0, 0.12) * np.cos(turn)
    outline = np.stack([reach * np.cos(turn), reach * np.sin(turn) * rng.uniform(0.75, 1)], 1)
    angle = np.arctan2(Y + SIZE / 2 - pose.centre[1], X + SIZE / 2 - pose.centre[0])
    shell = hsv(rng.uniform(15, 38), rng.uniform(0.3, 0.75), rng.uniform(0.3, 0.8))
    fibres = 0.08 * np.sin(angle * rng.integers(10, 30)) + 0.06 * cloud(rng, 4)
    return [(pose.fill(outline), shade(shell, fibres.astype(np.float32)))]


def backdrop(rng: Rng) -> Array:
    """Draw what a part lies on ``(SIZE, SIZE, 3)``: mostly an even ground, at times a material."""
    if rng.random() < 0.6:
        return shade(grey(rng, 0.05, 0.95) if rng.random() < 0.6 else any_colour(rng, 0.4), 0.03 * noise(rng, 50))
    return _of(rng, "paper", "wood", "fabric", "concrete", "rubber", "brushed_metal") * rng.choice([0.3, 1.0])


PARTS: dict[str, Callable[[Rng], list[Layer]]] = {
    part.__name__: part for part in (ring, nut, bolt, cap, plate, button, pill, gear, cable, connector, seed)
}
