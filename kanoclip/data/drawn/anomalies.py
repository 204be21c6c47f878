"""Anomalies drawn onto a photo: each function returns the photo with one, and how much of it covers each pixel.

All take ``(rng, photo, other)``: the photo ``(H, W, 3)`` float32 RGB in [0, 1], and another one of any size to take
texture from; all return ``(damaged, cover)``, ``(H, W, 3)`` and ``(H, W)`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.data.drawn.defects import DEFECTS
from kanoclip.data.drawn.materials import SIZE, Array, Rng, cloud, mix

TRIES = 10
SEEN = 0.1  # mean change of the strongest channel in the mask, of 1, below which a person would hardly see it
SMALLEST = 5e-4  # share of the photo
ON_PART = 0.25  # share of an anomaly; the rest is cut off


def cut_paste(rng: Rng, photo: Array, other: Array) -> tuple[Array, Array]:
    """Paste a rectangle of the photo, a little brighter or darker, at another place.

    Reference:
        C.-L. Li et al., *CutPaste*, CVPR 2021, section 3.1: 2 to 15 % of the area, aspect ratios of 0.3 to 3.3.
    """
    area, aspect = rng.uniform(0.02, 0.15), np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    height, width = photo.shape[:2]
    rows = int(np.clip(np.sqrt(area * height * width / aspect), 2, height - 1))
    columns = int(np.clip(np.sqrt(area * height * width * aspect), 2, width - 1))
    piece = _jittered(rng, _piece(rng, photo, rows, columns))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    damaged, cover = photo.copy(), np.zeros((height, width), np.float32)
    damaged[top : top + rows, left : left + columns] = piece
    cover[top : top + rows, left : left + columns] = 1
    return damaged, cover


def scar(rng: Rng, photo: Array, other: Array) -> tuple[Array, Array]:
    """Paste a thin strip of the photo, turned and in a colour near its own, at another place.

    Reference:
        C.-L. Li et al., *CutPaste*, CVPR 2021, section 3.2: 2 to 16 by 10 to 25 of 256 pixels, turned by up to 45
        degrees.
    """
    height, width = photo.shape[:2]
    scale = min(height, width) / 256
    columns = int(np.clip(rng.uniform(2, 16) * scale, 2, width - 1))
    rows = int(np.clip(rng.uniform(10, 25) * scale, 2, height - 1))
    piece = _jittered(rng, _piece(rng, photo, rows, columns))
    turn = cv2.getRotationMatrix2D((columns / 2, rows / 2), rng.uniform(-45, 45), 1.0)
    turn[:, 2] += [rng.uniform(0, width - columns), rng.uniform(0, height - rows)]
    size = (width, height)
    cover = cv2.warpAffine(np.ones((rows, columns), np.float32), turn, size)
    strip = cv2.warpAffine(piece, turn, size, borderMode=cv2.BORDER_REPLICATE)
    return mix(photo, strip, cover), cover


def texture(rng: Rng, photo: Array, other: Array) -> tuple[Array, Array]:
    """Cover blotches with the texture of another photo, turned and recoloured, partly see-through.

    Reference:
        V. Zavrtanik et al., *DRAEM*, ICCV 2021, section 3.2 (masks by noise, opacity of 0.2 to 1). It takes pictures of
        DTD for textures; ours are the user's own photos, cut, mirrored and recoloured.
    """
    height, width = photo.shape[:2]
    share = rng.uniform(0.1, 0.5)
    rows, columns = (max(2, int(share * side)) for side in other.shape[:2])
    look = cv2.resize(_piece(rng, other, rows, columns), (width, height), interpolation=cv2.INTER_CUBIC)
    look = np.rot90(look, rng.choice([0, 2]))[:: rng.choice([1, -1])]
    look = look[..., rng.permutation(3)] if rng.random() < 0.5 else 1 - look
    cover = _blotches(rng, height, width)
    opacity = rng.uniform(0.2, 1)
    return mix(photo, np.clip(look, 0, 1) * opacity + photo * (1 - opacity), cover), cover


def colour(rng: Rng, photo: Array, other: Array) -> tuple[Array, Array]:
    """Shift the colour of blotches, and keep what is seen in them.

    Reference:
        Ours, with the masks of *DRAEM*.
    """
    cover = _blotches(rng, *photo.shape[:2])
    strength = rng.uniform(0.15, 0.5)
    towards = (
        rng.uniform(0, 1, 3).astype(np.float32) if rng.random() < 0.5 else np.full(3, rng.integers(0, 2), np.float32)
    )
    return mix(photo, photo * (1 - strength) + towards * strength, cover), cover


def blend(rng: Rng, photo: Array, other: Array) -> tuple[Array, Array]:
    """Set a piece of another photo in without a seam, by solving Poisson's equation.

    Reference:
        H. M. Schlüter et al., *Natural Synthetic Anomalies (NSA)*, ECCV 2022: pieces of 0.7 to 1.3 times their size,
        from another normal image; the mask is where the photo has changed. Ours may also be mirrored and turned by
        quarters: a piece of a brushed surface along its grain is no anomaly.
    """
    height, width = photo.shape[:2]
    rows, columns = (int(np.clip(rng.gamma(2, 0.1) * side, 0.06 * side, 0.6 * side)) + 2 for side in (height, width))
    scale = rng.uniform(0.7, 1.3)
    source = np.rot90(other, int(rng.integers(4)))[:: rng.choice([1, -1])]
    source = cv2.resize(np.ascontiguousarray(source), (width, height), interpolation=cv2.INTER_AREA)
    piece = _piece(rng, source, *(min(int(n / scale) + 2, side - 1) for n, side in ((rows, height), (columns, width))))
    piece = cv2.resize(piece, (min(columns, width - 3), min(rows, height - 3)), interpolation=cv2.INTER_LINEAR)
    rows, columns = piece.shape[:2]
    oval = np.zeros((rows, columns), np.uint8)
    cv2.ellipse(oval, (columns // 2, rows // 2), (max(1, columns // 2 - 1), max(1, rows // 2 - 1)), 0, 0, 360, 255, -1)
    centre = (
        int(rng.integers(columns // 2 + 1, width - columns // 2)),
        int(rng.integers(rows // 2 + 1, height - rows // 2)),
    )
    how = cv2.NORMAL_CLONE if rng.random() < 0.5 else cv2.MIXED_CLONE
    damaged = cv2.seamlessClone(_bytes(piece), _bytes(photo), oval, centre, how).astype(np.float32) / 255
    change = np.abs(damaged - _bytes(photo).astype(np.float32) / 255).max(-1)
    cover = cv2.GaussianBlur((change > 0.05).astype(np.float32), (0, 0), max(1.0, min(height, width) / 128))
    return damaged, cover


def drawn(rng: Rng, photo: Array, other: Array, defect: str) -> tuple[Array, Array]:
    """Draw a defect of ``surfaces`` on a square of the photo, at its size there; the photo's own detail stays."""
    height, width = photo.shape[:2]
    side = max(2, int(rng.uniform(0.4, 1) * min(height, width)))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    square = photo[top : top + side, left : left + side]
    small = cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    look, small_cover = DEFECTS[defect](rng, small, np.ones((SIZE, SIZE), bool), small)
    change, part = (cv2.resize(one, (side, side)) for one in (np.clip(look, 0, 1) - small, small_cover))
    damaged, cover = photo.copy(), np.zeros((height, width), np.float32)
    damaged[top : top + side, left : left + side] = np.clip(square + part[..., None] * change, 0, 1)
    cover[top : top + side, left : left + side] = part
    return damaged, cover


KINDS: dict[str, Callable[[Rng, Array, Array], tuple[Array, Array]]] = {
    **{kind.__name__: kind for kind in (cut_paste, scar, texture, colour, blend)},
    **{name: partial(drawn, defect=name) for name in DEFECTS},
}


def damage(rng: Rng, kind: str, photo: NDArray[np.uint8], other: NDArray[np.uint8]) -> tuple[Array, Array, str]:
    """Draw an anomaly on the part; try again while it can hardly be seen, so that labels are right.

    After 10 tries, such as to set a piece of one even surface into another, it is one of another colour instead, of
    which any piece that meets the part will do.

    Args:
        rng: All that is drawn follows from it.
        kind: A name of ``KINDS``.
        photo: ``(H, W, 3)`` RGB, 0-255.
        other: A photo to take texture from.

    Returns:
        The photo with the anomaly; its mask ``(H, W)``, 0/1: where it covers a pixel by half or more; and its kind.
    """
    below, above = photo.astype(np.float32) / 255, other.astype(np.float32) / 255
    part, grey = part_of(below), bool((photo == photo[..., :1]).all())
    for tried in range(10 * TRIES):
        kind = kind if tried < TRIES else "colour"
        damaged, cover = KINDS[kind](rng, below, above)
        if grey:  # or colour alone would give an anomaly away
            damaged = np.repeat(damaged.mean(-1, keepdims=True), 3, 2)
        damaged, on_part = mix(below, damaged, part), cover * part
        mask = on_part >= 0.5
        lies = tried >= TRIES or on_part.sum() >= ON_PART * cover.sum()  # little of a thin part is covered otherwise
        large = mask.mean() >= SMALLEST and lies
        if large and np.abs(damaged - below)[mask].max(-1).mean() > SEEN:
            break
    return _bytes(damaged), mask.astype(np.uint8), kind


def part_of(photo: Array) -> Array:
    """Return where the part is ``(H, W)``, 0/1, if it lies whole on an even ground; else all ones, as for a surface.

    The ground is what has the colour of the photo's border.
    """
    rim = max(1, min(photo.shape[:2]) // 50)
    inside = np.zeros(photo.shape[:2], bool)
    inside[rim:-rim, rim:-rim] = True
    distance = cv2.GaussianBlur(np.abs(photo - np.median(photo[~inside], 0)).max(-1), (0, 0), rim)
    part = distance > max(0.1, 1.5 * np.quantile(distance[~inside], 0.98))
    whole = part[~inside].mean() < 0.02 and 0.05 < part.mean() < 0.9
    return part.astype(np.float32) if whole else np.ones(photo.shape[:2], np.float32)


def _blotches(rng: Rng, height: int, width: int) -> Array:
    """Return where smooth noise is high: 2 to 25 % of the area, in one or several pieces."""
    field = cv2.resize(cloud(rng, SIZE * rng.uniform(0.1, 0.5)), (width, height), interpolation=cv2.INTER_CUBIC)
    level = np.quantile(field, 1 - rng.uniform(0.02, 0.25))
    return (field > level).astype(np.float32)


def _piece(rng: Rng, photo: Array, rows: int, columns: int) -> Array:
    """Cut a rectangle out of a photo, at a random place."""
    top, left = rng.integers(0, photo.shape[0] - rows + 1), rng.integers(0, photo.shape[1] - columns + 1)
    return photo[top : top + rows, left : left + columns]


def _jittered(rng: Rng, piece: Array) -> Array:
    """Change brightness, contrast and colour by up to a tenth."""
    gain, lift = rng.uniform(0.9, 1.1, 3), rng.uniform(-0.1, 0.1)
    return np.clip(piece * gain + lift, 0, 1).astype(np.float32)


def _bytes(image: Array) -> NDArray[np.uint8]:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
