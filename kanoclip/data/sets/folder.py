"""A folder of your own images."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, ClassVar

from kanoclip.data.about import DamagedDataError
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.choosing import left_out_notes
from kanoclip.data.formats import IMAGE_SUFFIXES
from kanoclip.data.listing import list_tree
from kanoclip.data.sets.pairing import (
    ANOMALOUS_WORDS,
    NORMAL_WORDS,
    holds_masks,
    list_images,
    masks_beside,
    name_of,
    no_files,
    outputs_below,
    pair_masks,
    undecodable_of,
)
from kanoclip.data.sets.tree import sets_named
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, MissingError, counted

_NAMES = ("normal", "abnormal")


class Folder(AnomalyDataModule):
    """Your own images: a normal and an abnormal folder, perhaps masks; or only images, for predict.

    With ``root/normal``, ``root/abnormal`` or both, images are labelled by folder; a folder below ``abnormal`` names
    the kind of defect. Other usual names go too: ``good`` or ``ok`` beside ``bad``, ``defect``, ``anomaly``, ``nok`` or
    ``ng``, in any case. The mask of ``abnormal/scratch/007.jpg`` is ``masks/scratch/007.png``, with or without
    ``_mask``, of any image suffix, or with the folder's name before it: ``masks/abnormal/scratch/007.png``; the folder
    may be spelled ``Masks`` or ``ground_truth``. Masks are optional. Without labels, all images below ``root`` are
    taken, except masks: those in folders of such names, and two-valued images of the name of a photo, there or in a
    folder beside; and except pictures that kanoclip has drawn. Whatever is left out is told.

    Args:
        root: The folder itself, or one image file.
        normal: Folder, or folders, of normal images below root.
        abnormal: Folder, or folders, of anomalous images below root.
        masks: Folder of masks below root. Null: there are none, and what looks like a mask is an image.
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
        self._outputs: list[Path] = []
        self.category_name = category_name

    @property
    def identity(self) -> str:
        """The name and the folder."""
        return f"{self.name} {self.place.resolve()}"

    def samples(self) -> list[Sample]:
        """Index the folder."""
        root = self.place
        self.left_out.clear()
        if os.path.isfile(root):
            return [self._unlabelled(root)]
        if not os.path.isdir(root):
            raise MissingError(f"No folder {root}. Set --data.root to the folder of your images.")
        self._outputs = outputs_below(root)
        made = "made by kanoclip: maps, overlays, a report or a sheet"
        self.left_out += [(str(path), made) for path in self._outputs]
        self.left_out += [*undecodable_of(root, list_tree(root)), *no_files(root)]
        normal = self._folders(root, self.normal, "normal", NORMAL_WORDS)
        abnormal = self._folders(root, self.abnormal, "abnormal", ANOMALOUS_WORDS)
        if self.normal == ["normal"] and self.abnormal == ["abnormal"] and not (normal and abnormal):
            # "good" or "bad" alone says little: there may be any names beside it
            normal, abnormal = ([one for one in found if one.name.lower() in _NAMES] for found in (normal, abnormal))
        if not normal and not abnormal:
            images = self._photos(root)
            if not images:
                why = "".join(f" {note[0].upper()}{note[1:]}." for note in left_out_notes(self.left_out))
                raise MissingError(
                    f"No images in {root}: looked for {', '.join(IMAGE_SUFFIXES)}, sub-folders included.{why} "
                    f"Set --data.root to the folder of your images."
                )
            return [self._unlabelled(path) for path in images]

        mask_folders = self._folders(root, [self.masks], "masks", ()) if self.masks else []
        found = {folder: self._photos(folder) for folder in (*abnormal, *normal)}
        self._leave_out_others(root, [*normal, *abnormal, *mask_folders])
        names = _names(found, abnormal, normal)
        masks = {image: files for folder in mask_folders for image, files in pair_masks(names, folder).items()}
        samples = [
            Sample(str(path), (), NORMAL, self.category_name, "good") for folder in normal for path in found[folder]
        ]
        for folder in abnormal:
            for path in found[folder]:
                below = path.relative_to(folder).parts
                defect = below[0] if len(below) > 1 else folder.name
                samples.append(Sample(str(path), masks.get(path, ()), ANOMALOUS, self.category_name, defect))
        return samples

    def notes(self) -> list[str]:
        """Also name the data set that reads these files with their labels."""
        reader = self._reader() if self.index()[0].label == UNKNOWN else ""
        hint = f"the files look like those of a data set with labels and masks. To read them so: {reader}"
        return [*super().notes(), *([hint] if reader else [])]

    def _images(self, folder: Path) -> list[Path]:
        """Images below a folder, without what kanoclip itself has drawn."""
        images, outputs = list_images(folder), set(self._outputs)
        return [path for path in images if outputs.isdisjoint((path, *path.parents))] if outputs else images

    def _photos(self, folder: Path) -> list[Path]:
        """Images below a folder without the masks among them, which are left out unless there are to be none."""
        images = self._images(folder)
        if self.masks is None:
            return images
        inside: dict[Path, list[Path]] = defaultdict(list)
        for path in images:
            below = path.relative_to(folder).parts[:-1]
            depth = next((i for i, name in enumerate(below, 1) if name == self.masks or holds_masks(name)), None)
            inside[folder if depth is None else folder.joinpath(*below[:depth])].append(path)
        photos = inside.pop(folder, [])
        for place, held in inside.items():
            why = f"a folder of masks, by its name ({counted(len(held), 'file')}). As images: --data.masks null"
            self.left_out.append((str(place), why))
        beside = masks_beside(photos, folder)
        why = "two-valued, and of the name of a photo there or in a folder beside: a mask. As images: --data.masks null"
        self.left_out += [(str(path), why) for path in sorted(beside)]
        return [path for path in photos if path not in beside]

    def _leave_out_others(self, root: Path, used: list[Path]) -> None:
        """Leave out images in folders that are neither normal nor abnormal."""
        places = Counter(root / path.relative_to(root).parts[0] for path in _outside(self._images(root), used))
        for place, count in sorted(places.items()):
            if self.masks is not None or not holds_masks(place.name):
                names = " or ".join([*self.normal, *self.abnormal])
                why = (
                    f"in no folder named {names} ({counted(count, 'image')}). To use it: --data.normal, --data.abnormal"
                )
                self.left_out.append((str(place), why))

    def _unlabelled(self, path: Path) -> Sample:
        return Sample(str(path), (), UNKNOWN, self.category_name)

    def _folders(self, root: Path, names: list[str], option: str, words: tuple[str, ...]) -> list[Path]:
        """Folders that exist. Only the option's default may be missing, or spelled otherwise."""
        for name in names:
            if name != option and not os.path.isdir(root / name):
                raise DamagedDataError(f"No folder {root / name}. Set --data.{option} to a folder below {root}.")
        if names != [option]:
            return [root / name for name in names if os.path.isdir(root / name)]
        fits = holds_masks if option == "masks" else lambda name: name.lower() in words
        spelled = sorted(entry.name for entry in os.scandir(root) if fits(entry.name) and entry.is_dir())
        exact = [name for name in spelled if name.lower() == option]
        return [root / name for name in exact or spelled]

    def _reader(self) -> str:
        """The option for a data set that these files look like, with their labels; "" if none is known."""
        root = self.place
        below = len(str(root)) + 1  # of a million paths, as texts
        paths = (sample.image[below:].replace(os.sep, "/") for sample in self.index())
        depths = {match[1] for path in paths if (match := re.match("(test/|[^/]+/test/)?good/[^/]+$", path, re.I))}
        if depths - {None}:
            return f"--data mvtec --data.root {root}"
        if depths and root.resolve().name == "test":
            return f"--data mvtec --data.root {root.resolve().parent}"
        names = sets_named(root.resolve().name)
        return f"--data {names[0]} --data.root {root}" if names else ""

    def _label_remedy(self) -> str:
        folder = self.place
        if reader := self._reader():
            return f"The files look like those of a data set with labels: {reader}"
        return (
            f"Sort the images into {folder / 'normal'} and {folder / 'abnormal'}, or name such folders with "
            f"--data.normal and --data.abnormal; predict needs no labels."
        )


def _outside(images: list[Path], folders: list[Path]) -> list[Path]:
    """Images that are in none of the folders."""
    inside = {folder.resolve() for folder in folders}
    # resolve the folder, not the file, which may be a link to anywhere
    return [path for path in images if not inside & {(at := path.parent.resolve()), *at.parents}]


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
