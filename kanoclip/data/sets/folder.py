"""A folder of your own images."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

from kanoclip.data.about import DamagedDataError
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.sets.pairing import IMAGE_SUFFIXES, list_images, name_of, pair_masks
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, MissingError

log = logging.getLogger(__name__)


class Folder(AnomalyDataModule):
    """Your own images: a normal and an abnormal folder, perhaps masks; or only images, for predict.

    With ``root/normal``, ``root/abnormal`` or both, images are labelled by folder; a folder below ``abnormal`` names
    the kind of defect. The mask of ``abnormal/scratch/007.jpg`` is ``masks/scratch/007.png``, with or without
    ``_mask``, of any image suffix, or with the folder's name before it: ``masks/abnormal/scratch/007.png``. Masks are
    optional. Without ``normal`` and ``abnormal``, all images below ``root`` are taken, without labels.

    Args:
        root: The folder itself, or one image file.
        normal: Folder, or folders, of normal images below root.
        abnormal: Folder, or folders, of anomalous images below root.
        masks: Folder of masks below root. Null: there are none.
        category_name: What the images show; prompts may use it.
        **kwargs: As in ``AnomalyDataModule``.

    Raises:
        MissingError: No such root, or no images in it.
        DamagedDataError: A named folder that is not there, a mask without an image, or one that fits two.

    Reference:
        Ours.
    """

    name: str = "folder"
    domain: ClassVar[str] = "own"

    def __init__(
        self,
        root: str = "data",
        normal: str | list[str] = "normal",
        abnormal: str | list[str] = "abnormal",
        masks: str | None = "masks",
        category_name: str = "object",
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.normal = [normal] if isinstance(normal, str) else normal
        self.abnormal = [abnormal] if isinstance(abnormal, str) else abnormal
        self.masks = masks
        self.category_name = category_name

    @property
    def identity(self) -> str:
        """The name and the folder."""
        return f"{self.name} {Path(self.root).expanduser().resolve()}"

    def samples(self) -> list[Sample]:
        """Index the folder."""
        root = Path(self.root).expanduser()
        if root.is_file():
            return [self._unlabelled(root)]
        if not root.is_dir():
            raise MissingError(f"No folder {root}. Set --data.root to the folder of your images.")
        normal, abnormal = self._folders(root, self.normal, "normal"), self._folders(root, self.abnormal, "abnormal")
        mask_folder = self._folders(root, [self.masks], "masks") if self.masks else []
        if not normal and not abnormal:
            images = _outside(root, mask_folder)
            if not images:
                raise MissingError(
                    f"No images in {root}: looked for {', '.join(IMAGE_SUFFIXES)}, sub-folders included. "
                    f"Set --data.root to the folder of your images."
                )
            return [self._unlabelled(path) for path in images]

        found = {folder: list_images(folder) for folder in (*abnormal, *normal)}
        self._tell_left(root, _outside(root, [*normal, *abnormal, *mask_folder, root / "masks"]))
        masks = pair_masks(_names(found, abnormal, normal), mask_folder[0]) if mask_folder else {}
        samples = [
            Sample(str(path), (), NORMAL, self.category_name, "good") for folder in normal for path in found[folder]
        ]
        for folder in abnormal:
            for path in found[folder]:
                below = path.relative_to(folder).parts
                defect = below[0] if len(below) > 1 else folder.name
                samples.append(Sample(str(path), masks.get(path, ()), ANOMALOUS, self.category_name, defect))
        return samples

    def _tell_left(self, root: Path, images: list[Path]) -> None:
        """Tell of images that are used as neither normal nor anomalous."""
        if not images:
            return
        places = sorted({str(root / path.relative_to(root).parts[0]) for path in images})
        more = f" and {len(places) - 3} other places" if len(places) > 3 else ""
        log.warning(
            "%d images are in no folder named %s, so they are left out: %s%s. To use them: --data.normal, "
            "--data.abnormal.",
            len(images), " or ".join([*self.normal, *self.abnormal]), ", ".join(places[:3]), more,
        )  # fmt: skip

    def _unlabelled(self, path: Path) -> Sample:
        return Sample(str(path), (), UNKNOWN, self.category_name)

    def _folders(self, root: Path, names: list[str], option: str) -> list[Path]:
        """Folders that exist; only the option's default may be missing."""
        for name in names:
            if name != option and not (root / name).is_dir():
                raise DamagedDataError(f"No folder {root / name}. Set --data.{option} to a folder below {root}.")
        return [root / name for name in names if (root / name).is_dir()]

    def _label_remedy(self) -> str:
        folder = Path(self.root).expanduser()
        return (
            f"Sort the images into {folder / 'normal'} and {folder / 'abnormal'}, or name such folders with "
            f"--data.normal and --data.abnormal; predict needs no labels."
        )


def _outside(root: Path, folders: list[Path]) -> list[Path]:
    """Images below root that are in none of the folders."""
    inside = {folder.resolve() for folder in folders}
    # of the folder that holds a file: the file itself may be a link to anywhere
    return [path for path in list_images(root) if not inside & {(at := path.parent.resolve()), *at.parents}]


def _names(found: dict[Path, list[Path]], abnormal: list[Path], normal: list[Path]) -> dict[str, list[Path]]:
    """Images by the names that their masks may have.

    A normal image only takes a name that no anomalous one has: good and bad parts often share their numbers, and masks
    are then of the bad ones.
    """
    names: dict[str, list[Path]] = defaultdict(list)
    for group in (abnormal, normal):
        taken = set(names)
        for folder in group:
            for path in found[folder]:
                for name in (name_of(path, folder), f"{folder.name}/{name_of(path, folder)}"):
                    if name not in taken:
                        names[name].append(path)
    return names
