"""What the embedded CLIP sees, drawn: known categories and invented ones, intact and damaged. Ours."""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from itertools import count

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


def jobs(count: int, rng: Rng, invented: float, first: int = 0) -> list[tuple[int, str, str]]:
    """Choose what to draw: a share invented, the rest known categories and patterns, 4 : 1; each has a known defect.

    ``first`` is the seed of the first drawing, the others follow it.
    """
    share = (0.8 * (1 - invented) / len(CATEGORIES), 0.2 * (1 - invented) / len(PATTERNS), invented)
    odds = np.repeat(share, (len(CATEGORIES), len(PATTERNS), 1))
    kinds, defects = rng.choice([*CATEGORIES, *PATTERNS, INVENTED], count, p=odds), rng.choice(list(DEFECTS), count)
    return [(first + i, str(kind), str(defect)) for i, (kind, defect) in enumerate(zip(kinds, defects, strict=True))]


class Studio:
    """Processes that draw scenes without end, in blocks, into memory that they share with this one.

    Made before CUDA is used, as the processes are forks of this one. Each has room for two blocks, and waits when both
    are full.

    Args:
        workers: How many processes; they give way to this one.
        seed: Of what is drawn. No scene of one seed is one of another.
        invented: Share of invented scenes.
        block: Scenes of a block.
    """

    def __init__(self, workers: int, seed: int, invented: float, block: int = 64) -> None:
        context = multiprocessing.get_context("fork")
        self.workers, self.seed, self.invented = workers, seed, invented
        self.scenes = self._shared(np.uint8, 2 * workers, block, 10, SIZE, SIZE)
        self.facts = self._shared(np.int64, 2 * workers, block, 2)
        self.ready, self.free = context.SimpleQueue(), [context.Semaphore(2) for _ in range(workers)]
        self.processes = [context.Process(target=self._draw, args=(i,), daemon=True) for i in range(workers)]
        for process in self.processes:
            process.start()

    def take(self) -> Iterator[tuple[Array, Array]]:
        """Yield the blocks that are drawn: scenes ``(block, 10, SIZE, SIZE)`` and facts, to be copied at once.

        See ``Pool`` for what they are.
        """
        while not self.ready.empty():
            slot = self.ready.get()
            yield self.scenes[slot], self.facts[slot]
            self.free[slot // 2].release()
        if not all(process.is_alive() for process in self.processes):
            raise RuntimeError("a process that draws has ended")

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.terminate()

    def _draw(self, worker: int) -> None:
        os.nice(5)
        cv2.setNumThreads(1)
        rng, block = np.random.default_rng([self.seed, worker]), self.facts.shape[1]
        names, defects = list(NAMES), list(DEFECTS)
        for number in count():
            while not self.free[worker].acquire(timeout=10):
                if not multiprocessing.parent_process().is_alive():
                    return
            slot, first = 2 * worker + number % 2, self.seed * 10**9 + (number * self.workers + worker) * block
            for i, job in enumerate(jobs(block, rng, self.invented, first)):
                intact, damaged, part, below = scene(job)
                self.scenes[slot, i, :9] = np.concatenate([intact, damaged, below], 2).transpose(2, 0, 1)
                self.scenes[slot, i, 9] = part
                category = names.index(job[1]) if job[1] in NAMES else len(names)
                self.facts[slot, i] = category, defects.index(job[2])
            self.ready.put(slot)

    @staticmethod
    def _shared(kind: type, *shape: int) -> Array:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer(mmap.mmap(-1, size), kind).reshape(shape)
