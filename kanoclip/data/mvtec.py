"""MVTec AD, and any data set in its layout."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import ClassVar

from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.pairing import list_images, name_of, pair_masks
from kanoclip.types import ANOMALOUS, NORMAL


class MVTecAD(AnomalyDataModule):
    """MVTec AD: 15 categories of objects and textures, with masks.

    Layout: ``mvtec/<category>/{train/good,test/good,test/<defect>,ground_truth/<defect>}``. The publisher ships
    bottle, cable, capsule, carpet, grid, hazelnut, leather, metal_nut, pill, screw, tile, toothbrush, transistor, wood
    and zipper; whatever categories are found are read. A mask belongs to the image of the same defect folder and name,
    with or without ``_mask``, of any image suffix.

    ``root`` may also be the folder of the categories itself, or that of a single category. Other arguments as in
    ``AnomalyDataModule``.

    Raises:
        FileNotFoundError: No category found, or a mask without an image.

    Reference:
        P. Bergmann et al., *MVTec AD - A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection*,
        CVPR 2019. Licence: CC BY-NC-SA 4.0.
    """

    name: str = "mvtec"
    domain: ClassVar[str] = "industrial"

    def samples(self) -> list[Sample]:
        """Index the categories found below ``root``."""
        return [sample for folder in self._category_folders() for sample in _category_samples(folder)]

    def _category_folders(self) -> list[Path]:
        root = Path(self.root).expanduser()
        for folder in (root / self.name, root):
            if folder.is_dir():
                found = sorted(path for path in folder.iterdir() if _is_category(path))
                if found:
                    return found
        if _is_category(root):
            return [root.resolve()]  # resolved, so that `.` has a name
        raise FileNotFoundError(
            f"No MVTec AD at {root / self.name}: expected folders such as bottle/test. Set --data.root to the folder "
            f"that contains {self.name}/, or try --data surfaces, which needs no files."
        )


def _is_category(folder: Path) -> bool:
    test = folder / "test"
    return test.is_dir() and any(path.is_dir() for path in test.iterdir())


def _category_samples(folder: Path) -> list[Sample]:
    train = [
        Sample(str(path), (), NORMAL, folder.name, "good", "train") for path in list_images(folder / "train" / "good")
    ]
    images = list_images(folder / "test")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        by_name[name_of(path, folder / "test")].append(path)
    masks = pair_masks(by_name, folder / "ground_truth")
    test = []
    for path in images:
        defect = path.relative_to(folder / "test").parts[0]
        normal = defect == "good"
        label = NORMAL if normal else ANOMALOUS
        test.append(
            Sample(str(path), () if normal else masks.get(path, ()), label, folder.name, "good" if normal else defect)
        )
    return train + test
