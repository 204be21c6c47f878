"""A list of images in a csv or json file: for layouts that no other data set reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from kanoclip.data.about import DamagedDataError
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.parsing import local_path
from kanoclip.data.sets.lists import read_csv, read_json, read_json_lines, read_text, short
from kanoclip.data.sets.pairing import ANOMALOUS_WORDS, NORMAL_WORDS
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, KanoclipError, MissingError

COLUMNS = ("image", "mask", "label", "category", "split", "defect")
LABELS = {
    **dict.fromkeys(("0", "0.0", "false", *NORMAL_WORDS), NORMAL),
    **dict.fromkeys(("1", "1.0", "true", *ANOMALOUS_WORDS), ANOMALOUS),
    **dict.fromkeys(("", "-1", "unknown"), UNKNOWN),
}


class Manifest(AnomalyDataModule):
    """Images listed in a csv file with a header, or in json lines (.json or .jsonl; also one json list of objects).

    Columns: **image**; mask (several joined by ``;`` in csv, a list in json; may be empty); label (0 or normal, 1 or
    anomalous, and common other words; may be empty for predict); category; split (train or test); defect. All but
    image may be left out: category is then "object", split is test.

    Args:
        file: The csv or json file.
        root: Folder that relative paths start from. Null: the folder of the file.
        mask_values: Labels that are anomalous in masks of labels, such as 2 in CrackForest, instead of a threshold.
        **kwargs: As in ``AnomalyDataModule``.

    Raises:
        MissingError: No such file.
        DamagedDataError: A row is not as expected, or its files are not there; with file, row and column. Row 1 is the
            first below the header in csv, the first object in json.
        KanoclipError: The file is neither csv nor json.

    Reference:
        Ours.
    """

    name: str = "manifest"
    domain: ClassVar[str] = "own"

    def __init__(self, file: str, root: str | None = None, mask_values: list[int] | None = None, **kwargs: Any) -> None:
        super().__init__(root=root if root is not None else str(local_path(file, "--data.file").parent), **kwargs)
        self.file = file
        self.mask_values = mask_values

    @property
    def identity(self) -> str:
        """The name and the file."""
        return f"{self.name} {local_path(self.file, '--data.file').resolve()}"

    def samples(self) -> list[Sample]:
        """Index the file's rows; every listed file must exist."""
        path = local_path(self.file, "--data.file")
        if not os.path.isfile(path):
            raise MissingError(f"No manifest {path}. Set --data.file to a csv or json file with a column image.")
        if path.suffix.lower() not in (".csv", ".json", ".jsonl"):
            raise KanoclipError(f"Manifest {path} is neither .csv, .json nor .jsonl. Rename or convert it.")
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
        return [self._sample(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]

    def _sample(self, where: str, row: Any) -> Sample:
        def wrong(column: str, problem: str) -> DamagedDataError:
            return DamagedDataError(f"{where}, column {column}: {problem}")

        if not isinstance(row, dict):
            raise DamagedDataError(f'{where}: expected an object such as {{"image": ...}}, found {short(row)}.')
        if unknown := [str(column) for column in row if column not in COLUMNS]:
            raise wrong(unknown[0][:100], f"unknown column. Rename or remove it; known: {', '.join(COLUMNS)}.")
        for column, value in row.items():
            single = value if column == "mask" and isinstance(value, list) else [value]
            if any(isinstance(part, (dict, list)) for part in single):
                raise wrong(column, f"expected one value, found {short(value)}. Write a string or a number.")
        text = {column: str(row.get(column) if row.get(column) is not None else "").strip() for column in COLUMNS}
        if not text["image"]:
            raise wrong("image", "it is empty. Give the path of the image.")
        if text["label"].lower() not in LABELS:
            words = "0 or normal, 1 or anomalous, or nothing if unknown"
            raise wrong("label", f"{short(text['label'])} is no label. Write {words}.")
        if text["split"].lower() not in ("", "train", "test"):
            raise wrong("split", f"{short(text['split'])} is no split. Write train or test.")
        mask = row.get("mask")
        parts = [str(part).strip() for part in mask] if isinstance(mask, list) else text["mask"].split(";")
        paths = {"image": [text["image"]], "mask": [part.strip() for part in parts if part.strip()]}
        files = {column: [self.place / part for part in held] for column, held in paths.items()}
        for column, held in files.items():
            for path in held:
                if not os.path.isfile(path):  # Path.is_file raises for a name that no disk can hold
                    remedy = "Correct the path, or set --data.root to the folder that paths start from."
                    raise wrong(column, f"no file {str(path)[:300]}. {remedy}")
        label = LABELS[text["label"].lower()]
        return Sample(
            image=str(files["image"][0]),
            masks=() if label == NORMAL else tuple(map(str, files["mask"])),
            label=label,
            category=text["category"] or "object",
            defect="good" if label == NORMAL else text["defect"] or ("anomalous" if label == ANOMALOUS else ""),
            split=text["split"].lower() or "test",
        )

    def _label_remedy(self) -> str:
        return f"Fill the column label in {self.file} with 0 or 1; predict needs no labels."


def _csv_rows(path: Path) -> list[Any]:
    columns, rows = read_csv(path)
    unknown = [repr(column) for column in columns if column not in COLUMNS]
    if unknown or "image" not in columns:
        problem = f"unknown columns {', '.join(unknown)[:300]}" if unknown else "there is no column image"
        raise DamagedDataError(f"{path}, header: {problem}. Use these, separated by commas: {', '.join(COLUMNS)}.")
    for number, row in enumerate(rows, 1):
        if None in row:
            surplus = f"{len(row[None])} values more than columns"
            raise DamagedDataError(f"{path}, row {number}: {surplus}. Put values that contain commas in quotes.")
    return rows


def _json_rows(path: Path) -> list[Any]:
    is_list = read_text(path).lstrip().startswith("[")
    return list(read_json(path)) if is_list else read_json_lines(path)
