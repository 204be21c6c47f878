"""Lists that come with a data set: text, csv and json, with errors that name the file and the line."""

from __future__ import annotations

import csv
import io
import json
import reprlib
from pathlib import Path
from typing import Any

from kanoclip.data import parsing
from kanoclip.data.about import DamagedDataError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def short(value: object) -> str:
    """Return a value of a list for a message: as ``repr``, but cut where it is long or deep."""
    return _SHORT.repr(value)


def read_text(path: Path) -> str:
    """Read a text file; a byte order mark, which spreadsheets write, is dropped.

    Raises:
        DamagedDataError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8, or copy it again.") from error


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file. They end at line feeds alone: U+2028 and its like may stand within a name.

    Raises:
        DamagedDataError: It is not UTF-8.
    """
    return read_text(path).split("\n")


def read_csv(path: Path) -> tuple[list[str], list[dict[str | None, Any]]]:
    """Read a table with a header.

    Returns:
        The columns, and each row by column: missing values are empty, surplus ones are below None.

    Raises:
        DamagedDataError: It is not UTF-8, or no csv file.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="", skipinitialspace=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        return columns, list(reader)
    except csv.Error as error:
        remedy = "Save it as csv again"
        if "field limit" in str(error):
            remedy = 'A quote (") is probably never closed: look in this line and below'
        # the reader counts the rows that it has finished
        raise DamagedDataError(f"{path}, line {reader.line_num + 1}: {error}. {remedy}.") from error


def read_json(path: Path) -> Any:
    """Read a json file.

    Raises:
        DamagedDataError: It is not UTF-8, or no json that can be read.
    """
    return _parse_json(read_text(path), path)


def read_json_lines(path: Path) -> list[Any]:
    """Read json objects, one a line; blank lines are left out.

    Raises:
        DamagedDataError: It is not UTF-8, or a line is no json that can be read.
    """
    return [_parse_json(line, path, row) for row, line in enumerate(filter(str.strip, read_lines(path)), 1)]


def _parse_json(text: str, path: Path, row: int = 0) -> Any:
    """Parse a file, or one row of it, the first being 1."""
    try:
        return parsing.read_json(text)
    except json.JSONDecodeError as error:
        line, wrong = error.lineno, error.msg
    except ValueError as error:
        line, wrong = 0, str(error)
    where = f", row {row}" if row else f", line {line}" if line else ""
    remedy = "Write one json object a line" if row else "Correct the json, or copy it again"
    raise DamagedDataError(f"{path}{where}: {wrong}. {remedy}.")
