"""Data sets that are read from the names of files: a declaration of two patterns is enough for most."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from kanoclip.data.about import About, DamagedDataError
from kanoclip.data.archives import check_placed
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.formats import IMAGE_SUFFIXES
from kanoclip.data.listing import list_tree
from kanoclip.data.sets.pairing import undecodable_of
from kanoclip.registry import NAMES, load_class
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, MissingError

IMAGE = rf"\.(?:{'|'.join(suffix[1:] for suffix in IMAGE_SUFFIXES)})"
"""Pattern of an image's suffix, for the declarations."""
SPLITS = {
    "train": "train", "trainval": "train", "training": "train", "validation": "validation", "val": "validation",
    "valid": "validation", "test": "test", "test_public": "test",
}  # fmt: skip

FAR = 0.1  # from here on, as a share of the published number, other counts are told
OTHERS = ("CVC-300", "ETIS-LaribPolypDB")  # that have no reader, in folders that look like those of one


class Tree(AnomalyDataModule):
    """Base of data sets whose file names say what an image is; a subclass declares the patterns.

    Patterns match a whole path below the data set's folder, suffix included, in any case. Their named groups are
    ``category``, ``split``, ``defect`` and ``stem``. A mask belongs to the image that agrees with it in all groups that
    both patterns name; several masks of one image are merged.

    Arguments as in ``AnomalyDataModule``. ``root`` is the folder that contains all data sets, or the data set's own.

    What ``about`` and the attributes below declare is not repeated in a subclass's docstring: it is added there.

    Raises:
        MissingError: No file of this layout below root.
        DamagedDataError: A mask without an image, a mask that fits two, or a list of the data set that is not there,
            cannot be read or names a file that is not there.
    """

    about: ClassVar[About]
    """What the publisher says."""
    folders: ClassVar[tuple[str, ...]] = ()
    """Where the publisher's archive may lie below ``root`` or ``root/<name>``, besides ``root/<name>`` itself."""
    images: ClassVar[str]
    """Pattern of an image's path."""
    masks: ClassVar[str] = ""
    """Pattern of a mask's path; "" where there are none."""
    normal: ClassVar[tuple[str, ...]] = ("good",)
    """Values of the group ``defect`` that mean a normal image, lower case."""
    subject: ClassVar[str] = "object"
    """Category where the pattern names none."""
    unambiguous: ClassVar[bool] = True
    """Whether the patterns fit no other data set: then ``root`` may be its own folder by any name, else by a known one
    only."""
    expected: ClassVar[str] = ""
    """Example of a path, for the message when nothing is found."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Complete the docstring with what is declared, before its sections."""
        super().__init_subclass__(**kwargs)
        if cls.__doc__ and "about" in vars(cls):
            rules = f"{cls._mask_rule()}Other arguments as in ``AnomalyDataModule``."
            wrap = partial(textwrap.fill, width=116, break_on_hyphens=False)  # an address stays in one piece
            facts = "\n\n".join(map(wrap, (rules, str(cls.about))))
            text, *sections = inspect.cleandoc(cls.__doc__).partition("\n\nArgs:")
            cls.__doc__ = f"{text}\n\n{facts}{''.join(sections)}\n"

    @classmethod
    def _mask_rule(cls) -> str:
        if not cls.about.masks:
            return "There are no masks. "
        if cls.read is not AnomalyDataModule.read:  # the mask is not an image
            return ""
        if cls.mask_values:
            return f"Anomalous pixels of a mask: those of label {', '.join(map(str, cls.mask_values))}. "
        usual = "127, or above 0 if none is brighter" if cls.usual_threshold is None else cls.usual_threshold
        return f"Anomalous pixels of a mask: those above {usual}. "

    def samples(self) -> list[Sample]:
        """Index the files."""
        folder, files = self.find()
        return self._index_files(folder, files)

    def find(self) -> tuple[Path, list[str]]:
        """Find the data set's own folder; returns it and its files, relative to it.

        Raises:
            MissingError: No file of this layout.
            DamagedDataError: Its download was stopped in between.
        """
        pattern, mistaken = re.compile(self.images, re.IGNORECASE), ""
        for folder in self.places():
            if os.path.isdir(folder):
                files = list_tree(folder)
                if any(map(pattern.fullmatch, files)):
                    mistaken = self._mistaken(folder)
                    if not mistaken:
                        check_placed(folder, self.name)
                        return folder, files
        root = self.place
        at = f"No {self.about.title} at {root / self.name}"
        if mistaken:
            raise MissingError(f"{at}, and {mistaken}")
        get = f"kanoclip data download {self.name}" if self.about.archives else self.about.homepage
        raise MissingError(
            f"{at}: expected files such as {self.expected}. Set --data.root to the folder that contains {self.name}/, "
            f"or get it: {get}"
        )

    def _mistaken(self, folder: Path) -> str:
        """Say that a folder is another data set, by its name; "" if it is not."""
        named = sets_named(folder.resolve().name)
        own = {Path(name).name for name in self.folders}  # as its publisher packs it
        if not named or self.name in named or folder.name in own:
            return ""
        other = named[0]
        known = f"it with --data {other}" if other in NAMES["data"] else "such a set with --data folder"
        return f"{folder} is {other}, by its name. Read {known}, or rename the folder if it is {self.name}."

    def notes(self) -> list[str]:
        """Also tell counts far from the published ones: part of the data set, or another one."""
        notes, about = super().notes(), self.about
        if about.counts is None or not self.is_whole:
            return notes
        labels = [sample.label for sample in self.index() if sample.split == "test"]
        mine = labels.count(NORMAL), labels.count(ANOMALOUS)
        if self.far_from_published(*mine):
            notes.append(
                f"{self.root} has {mine[0]} normal and {mine[1]} anomalous test images, but {about.title} has "
                f"{about.counts[0]} and {about.counts[1]}: is it all of that, and nothing else? Results are named "
                f"{self.name}."
            )
        return notes

    @property
    def is_whole(self) -> bool:
        """Whether the published set was asked for, and all of it."""
        return self.category in (None, "all") and self.limit is None and self.identity == self.name

    def far_from_published(self, normal: int, anomalous: int) -> bool:
        """Whether so many test images are a tenth more or fewer than published."""
        counts = zip((normal, anomalous), self.about.counts or (), strict=bool(self.about.counts))
        return any(abs(mine - published) > FAR * published for mine, published in counts)

    def places(self) -> list[Path]:
        """Folders where the files may be, most likely first."""
        root = self.place
        own = root / self.name
        named = root.resolve().name in (self.name, *(name.rsplit("/", 1)[-1] for name in self.folders))
        below = [root / name for name in self.folders]
        within = [root, *below] if named else [*below, *([root] if self.unambiguous else [])]
        return [own, *(own / name for name in self.folders), *within]

    def _index_files(self, folder: Path, files: list[str]) -> list[Sample]:
        self.left_out[:] = undecodable_of(folder, files)
        masks: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for path, groups in _matches(self.masks, files):
            masks[self._key(groups)].append(f"{folder}/{path}")
        found, owners = [], dict[tuple[str, ...], str]()  # by key: the anomalous image, or "" if it is normal
        for path, groups in _matches(self.images, files):
            key, sample = self._key(groups), self.sample(f"{folder}/{path}", groups)
            if key in masks and sample.label != NORMAL:
                if owners.get(key):
                    raise DamagedDataError(
                        f"Mask {masks[key][0]} fits 2 images: {owners[key]}, {sample.image}. Remove one of them."
                    )
                sample, owners[key] = replace(sample, masks=tuple(masks[key])), sample.image
            owners.setdefault(key, "")
            found.append(sample)
        if orphans := [key for key in masks if key not in owners]:
            wanted = "/".join(filter(None, orphans[0]))
            raise DamagedDataError(
                f"No image for the mask {masks[orphans[0]][0]}: expected one named {wanted} "
                f"({len(orphans)} such mask{'s' * (len(orphans) > 1)}). Add the image or remove the mask."
            )
        return found

    def sample(self, path: str, groups: Mapping[str, str]) -> Sample:
        """Say what an image is, by the groups of its path; the masks are added afterwards."""
        split = SPLITS.get(groups.get("split", "test").lower(), "unlabelled")
        defect = groups.get("defect", "" if split == "unlabelled" else "anomalous")
        normal = defect.lower() in self.normal
        label = UNKNOWN if not defect else NORMAL if normal else ANOMALOUS
        category = groups.get("category", self.subject)
        return Sample(path, (), label, category, "good" if normal else defect, split)

    def _key(self, groups: Mapping[str, str]) -> tuple[str, ...]:
        # as a split, so that Test/test and Test/test_label agree
        named = {**groups, "split": SPLITS.get(groups.get("split", "").lower(), "")}
        return tuple(named.get(name, "") for name in self._shared_groups)

    @cached_property
    def _shared_groups(self) -> list[str]:
        images, masks = (re.compile(pattern).groupindex for pattern in (self.images, self.masks))
        return [name for name in images if name in masks]


def sets_named(folder: str) -> list[str]:
    """Return the published data sets whose names are words of a folder's name, such as ``CVC-ClinicDB (1)``.

    The longest name first: ``mvtec_loco`` is not ``mvtec``. Part of a word is no name: ``endoscopy`` is not ``endo``.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", folder).lower()
    found = {each: name for each, name in _known_names().items() if _spelling(each).search(words)}
    return [found[each] for each in sorted(found, key=len, reverse=True)]


@cache
def _spelling(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9]){'[^a-z0-9]*'.join(name)}(?![a-z0-9])")


@cache
def _known_names() -> dict[str, str]:
    found = defaultdict[str, set[str]](set)
    for name, path in NAMES["data"].items():
        if issubclass(cls := load_class(path), Tree):
            for each in (name, *cls.folders):
                found[_simple(each)].add(name)
    # three letters, such as PNG, are no name
    known = {each: names.pop() for each, names in found.items() if len(names) == 1 and len(each) > 3}
    return known | {_simple(name): name for name in OTHERS}


def _simple(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _matches(pattern: str, files: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Go through the paths that fit, with the groups that each one has."""
    compiled = re.compile(pattern, re.IGNORECASE)
    for path in files:
        if match := compiled.fullmatch(path):
            yield path, {name: text for name, text in match.groupdict().items() if text}
