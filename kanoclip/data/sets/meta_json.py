"""The meta.json that AnomalyCLIP, AdaCLIP, APRIL-GAN and their relatives write for each data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from kanoclip.data.about import DamagedDataError
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.parsing import local_path
from kanoclip.data.sets.lists import read_json, short
from kanoclip.data.sets.pairing import ADDED
from kanoclip.types import ANOMALOUS, NORMAL, MissingError


class MetaJson(AnomalyDataModule):
    """Images listed in a ``meta.json`` of AnomalyCLIP, AdaCLIP, APRIL-GAN or CLIP-AD.

    ``{"train": {category: [entry]}, "test": {category: [entry]}}``, upper-case ``Train`` and ``Test`` too; an entry has
    img_path, mask_path, cls_name, specie_name and anomaly. Relative paths start from root. The scripts that write these
    files pair images and masks by their order, so that one stray file shifts all pairs: a mask whose name is not its
    image's is an error here.

    AnomalyCLIP takes every pixel of a mask above 0 as anomalous; ``--data.mask_threshold 0`` does the same.

    Args:
        root: Folder of the meta.json.
        file: Its name, or a path.
        **kwargs: As in ``AnomalyDataModule``.

    Raises:
        MissingError: No such file.
        DamagedDataError: An entry is not as expected, or its files are not there; with file, category and entry.

    Reference:
        Q. Zhou et al., *AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection*, ICLR 2024.
    """

    name: str = "meta_json"
    domain: ClassVar[str] = "own"

    def __init__(self, root: str = "data", file: str = "meta.json", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.file = file

    @property
    def identity(self) -> str:
        """The name and the file."""
        return f"{self.name} {self._path().resolve()}"

    def samples(self) -> list[Sample]:
        """Index the entries; every listed file must exist."""
        path = self._path()
        if not os.path.isfile(path):
            raise MissingError(f"No file {path}. Set --data.root to the folder of the meta.json, or --data.file.")
        content = read_json(path)
        if not isinstance(content, dict) or not {"train", "test"} & {key.lower() for key in content}:
            raise DamagedDataError(f"{path}: expected the keys train and test at the top. Is it a meta.json?")
        samples = []
        for split, lists in content.items():
            if not isinstance(lists, dict) or not all(isinstance(entries, list) for entries in lists.values()):
                raise DamagedDataError(f"{path}, {split[:100]}: expected a list of entries for each category.")
            for category, entries in lists.items():
                for number, entry in enumerate(entries, 1):
                    where = f"{path}, {split[:100]}, {category[:100]}, entry {number}"
                    samples.append(self._sample(where, entry, category, split.lower()))
        return samples

    def _sample(self, where: str, entry: Any, category: str, split: str) -> Sample:
        held = entry if isinstance(entry, dict) else {}
        texts = [held.get("img_path"), held.get("mask_path") or "", held.get("specie_name") or ""]
        if not all(isinstance(text, str) for text in texts) or held.get("anomaly") not in (0, 1):
            raise DamagedDataError(f"{where}: expected img_path and anomaly (0 or 1), found {short(entry)}.")
        root, normal = self.place, entry["anomaly"] == 0
        paths = [entry["img_path"], *([entry["mask_path"]] if entry.get("mask_path") and not normal else [])]
        files = [root / path for path in paths]  # an absolute path stays as it is
        for file in files:
            if not os.path.isfile(file):  # Path.is_file raises for a name that no disk can hold
                raise DamagedDataError(
                    f"{where}: no file {str(file)[:300]}. Correct --data.root, or write the file again here."
                )
        for mask in files[1:]:
            if ADDED.sub("", mask.stem) != ADDED.sub("", files[0].stem):
                raise DamagedDataError(
                    f"{where}: the mask {mask.name} is not that of {files[0].name}: pairs were made by order, and a "
                    f"file too many has shifted them. Remove it and write the file again."
                )
        label, defect = (NORMAL, "good") if normal else (ANOMALOUS, entry.get("specie_name") or "anomalous")
        return Sample(str(files[0]), tuple(map(str, files[1:])), label, category, defect, split)

    def _path(self) -> Path:
        return self.place / local_path(self.file, "--data.file")
