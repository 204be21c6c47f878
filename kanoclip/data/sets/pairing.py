"""Finds images below a folder, tells masks from them and pairs both by name: by order, a stray file would shift all."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kanoclip.data.about import DamagedDataError
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.formats import IMAGE_SUFFIXES, undecodable
from kanoclip.data.images import read_image
from kanoclip.data.listing import list_tree, remembered
from kanoclip.registry import NAMES

ADDED = re.compile(r"[_-](mask|label|gt|segmentation)$", re.IGNORECASE)
NORMAL_WORDS = ("normal", "good", "ok")
ANOMALOUS_WORDS = (
    "abnormal", "anomalous", "anomaly", "anomalies", "bad", "defect", "defects", "defective", "ng", "nok", "ko",
)  # fmt: skip
LOOKED_AT = 5  # files opened of a folder, to see whether it holds masks
_REPORT = re.compile(r"predictions(-\d+)?(-of-\d+(-\d+)?)?\.csv|results\.json")
_SHEET = re.compile(r"(?:^|/)runs/data/([^/]+)\.png$")
_MASK_WORDS = ("mask", "masks", "groundtruth", "gt")


def list_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All images below a folder, sorted; suffixes in any case, hidden files left out, links followed.

    A link to nothing is listed too: reading it says what is wrong.

    Args:
        folder: Where to look, sub-folders included.
        suffixes: Lower-case file suffixes with their dot.
    """
    paths = [folder / name for name in list_tree(folder)] if folder.is_dir() else []
    return sorted(p for p in paths if p.suffix.lower() in suffixes and (p.is_file() or not p.exists()))


def undecodable_of(folder: Path, files: Sequence[str]) -> list[tuple[str, str]]:
    """Find the pictures that no installed decoder reads.

    Args:
        folder: Where the files are.
        files: Paths relative to it.

    Returns:
        Path and reason, with the remedy, of each.
    """
    suffixes = {os.path.splitext(name)[1] for name in files}
    reasons = {suffix: why for suffix in suffixes if (why := undecodable(f"x{suffix}"))}
    return [(f"{folder}/{name}", reasons[end]) for name in files if (end := os.path.splitext(name)[1]) in reasons]


def no_files(folder: Path) -> list[tuple[str, str]]:
    """Find what is named as an image but is no file: path and reason of each."""
    paths = (f"{folder}/{name}" for name in list_tree(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    why = "neither a file nor a folder, but a pipe, a socket or a device"
    return [(path, why) for path in paths if os.path.exists(path) and not os.path.isfile(path)]


def outputs_below(folder: Path) -> list[Path]:
    """Find what kanoclip itself has drawn below a folder: pictures of runs, sheets of ``data show``."""
    files = list_tree(folder)
    runs = {os.path.dirname(path) for path in files if _REPORT.fullmatch(os.path.basename(path))}
    drawn = [folder / run / kind for run in sorted(runs) for kind in ("maps", "overlays", "report")]
    sheets = [folder / path for path in files if (match := _SHEET.search(path)) and match[1] in NAMES["data"]]
    return [*(place for place in drawn if place.is_dir()), *sheets]


def holds_masks(folder: str) -> bool:
    """Whether a folder of this name holds masks: ``masks``, ``Mask``, ``ground_truth``, ``GroundTruth``, ``gt``."""
    return re.sub(r"[ _-]", "", folder.lower()) in _MASK_WORDS


def masks_beside(images: Sequence[Path], root: Path) -> set[Path]:
    """Find the masks beside their photos: two-valued, and of the same name in any case but for suffix and ``_mask``.

    They are in the photo's folder, or in one whose path differs by a single name: ``annotations/a/0.png`` of
    ``images/a/0.jpg``. Only files that share their name are opened, and of such folders a few first: one that holds a
    photo is no folder of masks. What is found is remembered until the files change.

    Args:
        images: Photos and masks.
        root: A folder above all of them.
    """
    near: dict[object, list[Path]] = defaultdict(list)
    far: dict[object, list[Path]] = defaultdict(list)
    stems = [ADDED.sub("", os.path.splitext(path.name)[0]).lower() for path in images]
    shared = Counter(stems)
    for path, stem in zip(images, stems, strict=True):
        if shared[stem] > 1 and path.exists():  # of a million photos most have a name of their own
            above = path.relative_to(root).parts[:-1]
            near[path.parent, stem].append(path)
            for at in range(len(above)):
                far[at, above[:at], above[at + 1 :], stem].append(path)
    groups = [group for group in near.values() if len(group) > 1]
    across = [group for group in far.values() if len({path.parent for path in group}) > 1]
    folders = defaultdict[Path, set[Path]](set)
    for group in across:
        for path in group:
            folders[path.parent].add(path)
    first = {folder: sorted(held)[:LOOKED_AT] for folder, held in folders.items()}
    seen = _two_valued(root, [path for group in (*groups, *first.values()) for path in group])
    of_masks = {folder for folder, held in first.items() if seen.issuperset(held)}
    found = {path for group in groups if not seen.issuperset(group) for path in group if path in seen}
    beside = [[path for path in group if path.parent in of_masks] for group in across]
    return found | _two_valued(
        root, [path for group, held in zip(across, beside, strict=True) if len(held) < len(group) for path in held]
    )


def _two_valued(root: Path, paths: Iterable[Path]) -> set[Path]:
    """Return those of some files below a folder that are two-valued; what is found is remembered."""
    names = {path.relative_to(root).as_posix(): path for path in paths}
    return {names[name] for name, found in remembered("two_valued", root, names, _is_two_valued).items() if found}


def _is_two_valued(path: str) -> bool:
    """Whether an image is grey, with 95 % of the pixels near its darkest or brightest: edges may be anti-aliased."""
    try:
        pixels = read_image(path)
    except UnreadableImageError:  # told when it is used
        return False
    grey = pixels[..., 0].astype(int)
    low, high = grey.min(), grey.max()
    near = (grey - low <= 0.1 * (high - low)) | (high - grey <= 0.1 * (high - low))
    return bool((pixels == pixels[..., :1]).all() and near.mean() >= 0.95)


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
