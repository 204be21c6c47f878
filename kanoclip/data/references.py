"""Reference images: photos of good products that a memory compares with, found, drawn and read."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kanoclip.data.identity import content_hashes, content_number
from kanoclip.data.images import read_image
from kanoclip.data.loading import AnomalyDataset, Mask, Read, Sample, collate
from kanoclip.data.parsing import local_path
from kanoclip.data.resizing import Tile
from kanoclip.data.sets.pairing import list_images
from kanoclip.types import NORMAL, Batch, KanoclipError, MissingError, counted

TRAIN = "train"
"""Stands for the normal training images of the data set that is scored."""
ANY = ""
"""Category of references that serve all categories."""
AT_ONCE = 8  # images of a batch


@dataclass(frozen=True)
class References:
    """Reference images of each category.

    Attributes:
        samples: Category -> images; the one category ``ANY`` stands for all.
        hashes: Likewise: the hash of each image's content.
        read: Reads one.
    """

    samples: dict[str, list[Sample]]
    hashes: dict[str, list[str]]
    read: Read

    @property
    def told(self) -> str:
        """How many there are, in words: "4 reference images per category"."""
        counts = sorted({len(images) for images in self.samples.values()})
        few = counted(counts[0], "reference image")
        number = few if len(counts) == 1 else f"{counts[0]} to {counts[-1]} reference images"
        return number if ANY in self.samples else f"{number} per category"

    def among(self, digests: Collection[int]) -> int:
        """Count how many of these images are references, by ``AnomalyDataModule.image_digests``."""
        contents = {content_number(one) for of in self.hashes.values() for one in of}
        return len(contents.intersection(digests))

    def paths_among(self, samples: Sequence[Sample]) -> int:
        """Count how many of these images are references, by their paths; no file is read."""
        paths = {os.path.realpath(one.image) for of in self.samples.values() for one in of}
        return len(paths.intersection(os.path.realpath(one.image) for one in samples))

    def batches(self, category: str, size: int, tile: Tile = False) -> Iterator[Batch]:
        """Read the images of a category as tested ones are read; see ``AnomalyDataModule`` for ``tile``.

        Raises:
            UnreadableImageError: If one of them cannot be read.
        """
        from kanoclip.data.transforms import Transform  # late: importing Albumentations takes seconds

        images = AnomalyDataset(self.samples[category], self.read, Transform(size, tile=tile))
        step = 1 if tile else AT_ONCE  # whole pictures differ in shape
        for first in range(0, len(images), step):
            yield collate(images.__getitems__(range(first, min(first + step, len(images)))))


def find_references(
    reference: str, data: Any, shots: int | None = None, seed: int = 111, with_replacement: bool = False
) -> References:
    """Find reference images and draw some of each category.

    The draw of a category depends on its sorted paths and the seed alone; with one seed, fewer shots are the first of
    more. Images are ordered by content, so that names and folders change nothing behind the draw.

    Args:
        reference: A folder, of photos for all categories or of a sub-folder for each; or ``train``.
        data: The data module that is scored; None if there is none.
        shots: Images of each category; None: all.
        seed: Of the draw.
        with_replacement: Whether an image may be drawn twice, as in APRIL-GAN's code.

    Raises:
        MissingError: If there are no such images.
        KanoclipError: If a category has fewer than ``shots``.
    """
    found = _of_training(data) if reference == TRAIN else _of_folder(reference)
    drawn = {name: _draw(images, name, shots, seed, with_replacement) for name, images in sorted(found.items())}
    samples, hashes = {}, {}
    for name, images in drawn.items():
        known = content_hashes(images, getattr(data, "drawing_version", ""))
        pairs = sorted((of[0] or one.image, one.image, one) for of, one in zip(known, images, strict=True))
        samples[name], hashes[name] = [one for *_, one in pairs], [content for content, *_ in pairs]
    return References(samples, hashes, data.read if reference == TRAIN else _read)


def _of_training(data: Any) -> dict[str, list[Sample]]:
    if data is None:
        raise KanoclipError(
            "The memory's reference is train, the training images of a data set, and there is no data set here. Give a "
            "folder of good photos: --model.memory.reference good/."
        )
    used = set(data.categories)
    found: dict[str, list[Sample]] = {}
    for one in data.samples():
        if one.split == "train" and one.label == NORMAL and one.category in used:
            found.setdefault(one.category, []).append(one)
    if missing := sorted(used - found.keys()):
        raise MissingError(
            f"{data.name} has no normal training images of {', '.join(missing)}, which --model.memory.reference train "
            f"stands for. Give a folder of good photos instead: --model.memory.reference good/."
        )
    return found


def _of_folder(reference: str) -> dict[str, list[Sample]]:
    folder = local_path(reference, "--model.memory.reference")
    found: dict[str, list[Sample]] = {}
    for path in list_images(folder):
        inside = path.relative_to(folder).parts
        found.setdefault(inside[0] if len(inside) > 1 else ANY, []).append(Sample(f"{path}", (), NORMAL))
    if not found:
        raise MissingError(
            f"No reference images in {folder}. Set --model.memory.reference to a folder of good photos, or of one "
            f"sub-folder of them for each category."
        )
    if ANY in found and len(found) > 1:
        others = ", ".join(sorted(found.keys() - {ANY}))
        raise KanoclipError(
            f"{folder} has images and folders of images ({others}): expected photos for all categories, or a "
            f"sub-folder for each. Move the ones or the others away."
        )
    return {name: [Sample(one.image, (), NORMAL, name) for one in images] for name, images in found.items()}


def _draw(
    images: Sequence[Sample], category: str, shots: int | None, seed: int, with_replacement: bool
) -> list[Sample]:
    ordered = sorted(images, key=lambda one: one.image)
    if shots is None:
        return ordered
    generator = np.random.default_rng((seed, zlib.crc32(category.encode())))  # its own: nothing else moves it
    if with_replacement:
        return [ordered[i] for i in generator.integers(len(ordered), size=shots)]
    if shots > len(ordered):
        of = f" of {category}" if category else ""
        raise KanoclipError(
            f"There are {counted(len(ordered), 'reference image')}{of}, and {shots} are asked for. Use "
            f"--model.memory.shots {len(ordered)}, or add images."
        )
    return [ordered[i] for i in generator.permutation(len(ordered))[:shots]]


def _read(sample: Sample) -> tuple[NDArray[np.uint8], Mask]:
    return read_image(sample.image), None
