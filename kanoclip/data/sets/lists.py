"""Lists that come with a data set: text, csv and json, with errors that name the file and the line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from kanoclip.data.about import DamagedDataError


def read_text(path: Path) -> str:
    """Read a text file; a byte order mark, which spreadsheets write, is dropped.

    Raises:
        DamagedDataError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8, or copy it again.") from error


def read_csv(path: Path) -> tuple[list[str], list[dict[str | None, Any]]]:
    """Read a table with a header.

    Returns:
        The columns, and each row by column; surplus values of a row are below None.

    Raises:
        DamagedDataError: It is not UTF-8, or no csv file.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        return columns, list(reader)
    except csv.Error as error:
        raise DamagedDataError(f"{path}, line {reader.line_num}: {error}. Save it as csv again.") from error


def read_json(path: Path) -> Any:
    """Read a json file.

    Raises:
        DamagedDataError: It is not UTF-8, or not json.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DamagedDataError(
            f"{path}, line {error.lineno}: {error.msg}. Correct the json, or copy it again."
        ) from error
