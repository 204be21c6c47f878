"""What the embedded CLIP sees: known categories, invented ones, and regions replaced by something foreign. Ours."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
from embedded_captions import DEFECTS, NAMES

from kanoclip.data.drawn.drawing import Drawing, draw, laid_down, render
from kanoclip.data.drawn.materials import MATERIALS, SIZE, any_colour, cloud, grey, mix, noise, shade, turned
from kanoclip.data.drawn.parts import Layer, Pose, around, disc

Array, Rng = np.ndarray, np.random.Generator
PATTERNS = ("stripes", "checks", "dots", "clouds", "speckles")
CATEGORIES = tuple(name for name in NAMES if name not in PATTERNS)
KNOWN_MATERIALS = tuple(name for name in CATEGORIES if name in MATERIALS)
INVENTED = "invented"  # no two are alike, so no word names them


def pattern(rng: Rng, kind: str) -> Array:
    """Draw something that is no category at all, for variety; returns RGB in [0, 1]."""
    (u, v), pitch = turned(rng.uniform(0, np.pi)), rng.uniform(0.15, 1.2)
    drift = rng.uniform(0, 1.5) * noise(rng, rng.uniform(10, 50))
    value = {
        "stripes": lambda: np.sin(pitch * u + drift),
        "checks": lambda: np.sign(np.sin(pitch * u + drift) * np.sin(pitch * v + drift)),
        "dots": lambda: 2.0 * (np.sin(pitch * u + drift) * np.sin(pitch * v) > rng.uniform(0.2, 0.8)) - 1,
        "clouds": lambda: cloud(rng, rng.uniform(8, 50), 4, 0.6),
        "speckles": lambda: 2.0 * (noise(rng, rng.uniform(1, 5)) > rng.uniform(0.5, 2)) - 1,
    }[kind]()
    colours = [any_colour(rng, 1) if rng.random() < 0.6 else grey(rng, 0.05, 0.95) for _ in range(2)]
    image = mix(np.broadcast_to(colours[0], (SIZE, SIZE, 3)), colours[1], 0.5 + 0.5 * value)
    return np.clip(shade(image, rng.uniform(0, 0.1) * noise(rng, 1)), 0, 1).astype(np.float32)


def wave(rng: Rng) -> Array:
    """Draw one term of a formula: parallel waves that drift, or noise that may be longer one way; unit deviation."""
    if rng.random() < 0.5:
        (u, _), pitch = turned(rng.uniform(0, np.pi)), np.exp(rng.uniform(np.log(0.05), np.log(1.6)))
        return np.sin(pitch * u + rng.uniform(0, 2) * noise(rng, rng.uniform(8, 50))) * np.float32(np.sqrt(2))
    lengths = np.exp(rng.uniform(0, np.log(40), 2)) if rng.random() < 0.3 else np.exp(rng.uniform(0, np.log(40)))
    return noise(rng, *np.broadcast_to(lengths, 2).tolist())


def formula(rng: Rng) -> Array:
    """Draw a texture by a random formula of waves and noise, as a relief or as a blend of colours."""
    value = wave(rng)
    for _ in range(rng.integers(1, 4)):
        kind, other = rng.integers(8), wave(rng) if rng.random() < 0.6 else np.roll(np.rot90(value), 17, 0)
        value = (
            value + rng.uniform(0.3, 1) * other, value * other, np.maximum(value, other), np.minimum(value, other),
            np.abs(value), np.tanh(6 * (value - rng.uniform(-1, 1))), np.sin(rng.uniform(1, 4) * value),
            np.where(other > rng.uniform(-1, 1), value, -value),
        )[kind]  # fmt: skip
        value = (value - value.mean()) / (value.std() + 1e-6)
    ground = any_colour(rng, 1) if rng.random() < 0.6 else grey(rng, 0.05, 0.95)
    grain = rng.uniform(0, 0.08) * noise(rng, rng.uniform(1, 3))
    if rng.random() < 0.5:
        image = shade(ground, np.clip(rng.uniform(0.03, 0.2) * value, -0.6, 0.6) + grain)
    else:
        above = ground + rng.uniform(0.15, 1) * (any_colour(rng, 1) - ground)
        image = shade(mix(ground, above, 0.5 + rng.uniform(0.3, 3) * value), grain)
    return np.clip(image, 0, 1).astype(np.float32)


def texture(rng: Rng) -> Array:
    """Draw any known material or pattern, one modulated by another, or one by a random formula."""
    if rng.random() < 0.5:
        return formula(rng)
    kind = str(rng.choice(KNOWN_MATERIALS + 2 * PATTERNS))
    image = pattern(rng, kind) if kind in PATTERNS else MATERIALS[kind](rng)
    if rng.random() < 0.3:
        image = shade(image, rng.uniform(0.1, 0.5) * (pattern(rng, str(rng.choice(PATTERNS))).mean(-1) - 0.5))
    return image


def outline(rng: Rng) -> Array:
    """Draw a closed line in radii: random waves, random corners, one piece repeated around, or a rounded box."""
    kind = rng.random()
    if kind < 0.25:
        count, piece = int(rng.integers(2, 15)), rng.uniform(0.55, 1, rng.choice([2, 3, 4]))
        steps = np.cumsum(rng.uniform(0.3, 1, len(piece)))
        turn = ((np.arange(count)[:, None] + steps / steps[-1]) * 2 * np.pi / count).ravel()
        reach = np.tile(piece, count)
        return np.stack([reach * np.cos(turn), reach * np.sin(turn)], 1).astype(np.float32)
    if kind < 0.5:
        return disc(power=rng.uniform(0.3, 1)) * np.array([1, rng.uniform(0.3, 1)], np.float32)
    if kind < 0.75:
        turn, reach = np.linspace(0, 2 * np.pi, 64, endpoint=False), np.ones(64)
        for _ in range(rng.integers(1, 4)):
            reach = reach + rng.uniform(0, 0.2) * np.cos(rng.integers(2, 9) * turn + rng.uniform(0, 6))
    else:
        turn = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 10)))
        reach = rng.uniform(0.55, 1, len(turn))
    return np.stack([reach * np.cos(turn), reach * np.sin(turn) * rng.uniform(0.4, 1)], 1).astype(np.float32)


def invented(rng: Rng) -> tuple[Array, Array, Array]:
    """Draw a surface, a repeated motif or a part that nobody has a name for; a scene as ``render`` wants it."""
    kind = rng.random()
    if kind < 0.3:
        return texture(rng).astype(np.float32), np.ones((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE, 3), np.float32)
    if kind < 0.5:  # one motif at the points of a lattice
        pitch, motif, image = rng.uniform(10, 40), outline(rng), texture(rng)
        pose = Pose(rng)
        pose.radius = pitch * rng.uniform(0.25, 0.45)
        lattice, (u, v) = rng.uniform(0, np.pi), np.mgrid[-7:8, -7:8].reshape(2, -1) * pitch
        shape, cosine, sine = np.zeros((SIZE, SIZE), np.float32), np.cos(lattice), np.sin(lattice)
        for x, y in zip(u * cosine - v * sine, u * sine + v * cosine, strict=True):
            if max(abs(x), abs(y)) < 0.75 * SIZE:
                pose.centre = np.array([x, y]) + SIZE / 2
                shape = np.maximum(shape, pose.fill(motif))
        image = mix(image, texture(rng) if rng.random() < 0.4 else any_colour(rng, 1), rng.uniform(0.5, 1) * shape)
        return image.astype(np.float32), np.ones((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE, 3), np.float32)
    pose = Pose(rng)
    holes = [outline(rng) * rng.uniform(0.1, 0.3) + rng.uniform(-0.4, 0.4, 2) for _ in range(rng.choice([0, 0, 1, 3]))]
    shape = pose.fill(outline(rng), holes)
    while shape.mean() < 0.02:  # a sliver: no room for a defect
        shape = pose.fill(outline(rng), holes)
    layers: list[Layer] = [(shape, texture(rng))]
    for _ in range(rng.choice([0, 1, 3])):
        inner = pose.fill(outline(rng) * rng.uniform(0.1, 0.5) + rng.uniform(-0.4, 0.4, 2)) * layers[0][0]
        layers.append((inner, texture(rng)))
    if rng.random() < 0.4:  # the same motif several times, in a ring or in a row
        count, motif, look = int(rng.integers(2, 10)), outline(rng) * rng.uniform(0.06, 0.2), texture(rng)
        row = [(x, rng.uniform(-0.05, 0.05)) for x in np.linspace(-0.7, 0.7, count)]
        for place in around(count, rng.uniform(0.3, 0.9)) if rng.random() < 0.5 else row:
            layers.append((pose.fill(motif + np.array(place, np.float32)), look))
    return laid_down(rng, layers)


def plain(rng: Rng, kind: str) -> tuple[Array, Array, Array]:
    """Draw a pattern as a scene."""
    return pattern(rng, kind), np.ones((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE, 3), np.float32)


def without_part(rng: Rng) -> tuple[Array, Array, Array]:
    """Draw what lies below an invented part, without it."""
    _, shape, ground = invented(rng)
    return ground, shape, ground


def scene(job: tuple[int, str, str]) -> tuple[Array, Array, Array, Array]:
    """Draw one scene intact and damaged, the outline of its part, and what lies below an invented part.

    Below a part of a known category nothing is shown: the intact image stands for it.
    """
    seed, category, defect = job

    def drawn(state: str | None) -> Drawing:
        if category in CATEGORIES:
            return draw(category, state, [1, seed])
        return render(invented if category == INVENTED else partial(plain, kind=category), state, [1, seed])

    intact = drawn(None)
    hidden = category == INVENTED and not intact.part.all()
    below = render(without_part, None, [1, seed]).image if hidden else intact.image
    return intact.image, drawn(defect).image, intact.part, below


def jobs(count: int, rng: Rng, invented: float) -> list[tuple[int, str, str]]:
    """Choose what to draw: a share invented, the rest known categories and patterns, 4 : 1; each has a known defect."""
    share = (0.8 * (1 - invented) / len(CATEGORIES), 0.2 * (1 - invented) / len(PATTERNS), invented)
    odds = np.repeat(share, (len(CATEGORIES), len(PATTERNS), 1))
    kinds, defects = rng.choice([*CATEGORIES, *PATTERNS, INVENTED], count, p=odds), rng.choice(list(DEFECTS), count)
    return [(i, str(kind), str(defect)) for i, (kind, defect) in enumerate(zip(kinds, defects, strict=True))]


def recoloured(rng: Rng, images: list[Array]) -> list[Array]:
    """Swap and scale the colours of uint8 images, of all in the same way."""
    order, gain = rng.permutation(3), rng.uniform(0.7, 1.3, 3 if rng.random() < 0.5 else 1)
    tables = np.clip(np.arange(256)[:, None] * np.broadcast_to(gain, 3), 0, 255).astype(np.uint8)
    return [np.stack([tables[image[..., c], i] for i, c in enumerate(order)], -1) for image in images]


def region(rng: Rng, size: int, centre: Array) -> Array:
    """Draw the region to be replaced: an ellipse or a box, at times ragged, or a scar 2 to 6 pixels thin.

    ``centre`` is (x, y) in pixels.
    """
    cover = np.zeros((size, size), np.float32)
    long, shape = size * np.exp(rng.uniform(np.log(0.04), np.log(0.22))), rng.integers(3)
    sides = (2.5 * long, rng.uniform(2, 6)) if shape == 2 else (2 * long, 2 * long * rng.uniform(0.4, 1))
    box = (tuple(map(float, centre)), tuple(map(float, sides)), float(rng.uniform(0, 180)))
    if shape == 0:
        cv2.ellipse(cover, box, 1.0, -1)
    else:
        cv2.fillPoly(cover, [cv2.boxPoints(box).astype(np.int32)], 1.0)
    if shape < 2 and rng.random() < 0.5:
        cover *= noise(rng, rng.uniform(4, 10))[:size, :size] > rng.uniform(-1.2, 0)
    return cover


def filling(rng: Rng, image: Array, other: Array) -> Array:
    """Make what a region is replaced by: another image, a shifted self, other colours, an even colour, blur, noise."""
    size, kind = image.shape[0], rng.integers(6)
    if kind == 0:
        return other.astype(np.float32)
    if kind == 1:
        return np.roll(np.rot90(image, rng.integers(4)), rng.integers(8, size - 8, 2), (0, 1))
    if kind == 2:
        return image * rng.uniform(0.3, 1.8, 3 if rng.random() < 0.5 else 1).astype(np.float32)
    if kind == 3:
        return shade(any_colour(rng, 1) * 255, rng.uniform(0, 0.2) * noise(rng, rng.uniform(1, 4))[:size, :size])
    if kind == 4:
        return cv2.GaussianBlur(image, (0, 0), 4) * rng.uniform(0.75, 1.3)
    return image + 255 * rng.uniform(0.08, 0.25) * noise(rng, rng.uniform(1, 3))[:size, :size, None]


def replace(rng: Rng, image: Array, other: Array, part: Array, below: Array) -> tuple[Array, Array]:
    """Replace one to three regions of an image; returns the image and the replaced pixels, float32 in {0, 1}.

    At the rim of a part what lies below it may come through, as if a piece were cut off.
    """
    image, changed, size = image.astype(np.float32), np.zeros(image.shape[:2], np.float32), len(image)
    rim = np.argwhere(part - cv2.erode(part, np.ones((3, 3), np.uint8)))
    for _ in range(rng.choice([1, 1, 2, 3])):
        if len(rim) and rng.random() < 0.3:
            cover = region(rng, size, rim[rng.integers(len(rim))][::-1]) * part
            new = below.astype(np.float32)
        else:
            cover = region(rng, size, rng.uniform(0, size, 2))
            new = np.clip(filling(rng, image, other), 0, 255)
        soft = cv2.GaussianBlur(cover, (0, 0), rng.uniform(0.4, 2)) if rng.random() < 0.6 else cover
        inside = soft >= 0.5
        if inside.sum() < 8 or np.abs(new - image)[inside].max(-1).mean() < 18:
            continue  # nothing to be seen: no label
        image = image * (1 - soft[..., None]) + new * soft[..., None]
        changed = np.maximum(changed, inside)
    return image.astype(np.uint8), changed
