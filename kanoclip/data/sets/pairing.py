"""Finds images below a folder and pairs masks with them by name; by order, one stray file would shift all pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kanoclip.data.about import DamagedDataError
from kanoclip.data.listing import list_tree

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
ADDED = re.compile(r"[_-](mask|label|gt|segmentation)$", re.IGNORECASE)


def list_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All images below a folder, sorted; suffixes in any case, hidden files left out, links followed.

    Args:
        folder: Where to look, sub-folders included.
        suffixes: Lower-case file suffixes with their dot.
    """
    paths = [folder / name for name in list_tree(folder)] if folder.is_dir() else []
    return sorted(path for path in paths if path.suffix.lower() in suffixes and path.is_file())


def name_of(path: Path, folder: Path) -> str:
    """What image and mask have in common: the path below the folder, without suffix, such as ``scratch/007``."""
    return path.relative_to(folder).with_suffix("").as_posix()


def pair_masks(images: Mapping[str, Sequence[Path]], folder: Path) -> dict[Path, tuple[str, ...]]:
    """Give each image its masks.

    The mask of ``scratch/007`` may be ``scratch/007.png``, the same with ``_mask``, ``_label``, ``_GT`` or
    ``_Segmentation`` before the suffix, or any files in a folder ``scratch/007/``; any suffix of an image, ``.mat`` or
    ``.npy``.

    Args:
        images: Images by their name (see ``name_of``).
        folder: Where the masks are.

    Returns:
        For each image that has masks, their paths.

    Raises:
        DamagedDataError: A mask without an image, or one that fits two.
    """
    pairs: dict[Path, tuple[str, ...]] = {}
    orphans = []
    for mask in list_images(folder, (*IMAGE_SUFFIXES, ".mat", ".npy")):
        name = name_of(mask, folder)
        spellings = (name, ADDED.sub("", name), mask.parent.relative_to(folder).as_posix())
        found = next((images[spelling] for spelling in spellings if spelling in images), ())
        if not found:
            orphans.append((mask, spellings[1]))
        elif len(found) > 1:
            raise DamagedDataError(
                f"Mask {mask} fits {len(found)} images: {', '.join(map(str, found))}. "
                f"Rename one of them and its mask, or put masks into a sub-folder named as the images' folder."
            )
        else:
            pairs[found[0]] = (*pairs.get(found[0], ()), str(mask))
    if orphans:
        mask, name = orphans[0]
        raise DamagedDataError(
            f"No image for the mask {mask}: expected one named {name} with any image suffix "
            f"({len(orphans)} such mask{'s' * (len(orphans) > 1)}). Add the image or remove the mask."
        )
    return pairs
