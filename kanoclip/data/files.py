"""Atomic writes (a file is whole or absent: written under another name, then renamed), and hashes of files."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.data import parsing
from kanoclip.types import KanoclipError

log = logging.getLogger(__name__)


class CannotWriteError(KanoclipError, OSError):
    """A file that cannot be written: the disk is full, or may not be written to.

    The message says which file, and why. Where to write instead is known to who calls: a verb adds its own option.

    Args:
        path: The file.
        error: What the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        why = "A file is where its folder should be" if error.errno == errno.EEXIST else error.strerror or str(error)
        self.errno, self.strerror, self.filename = error.errno, why, str(path)
        super().__init__(f"Cannot write {path}: {self.strerror}.")

    __str__ = BaseException.__str__  # not the system's way, "[Errno 28] ..."


def write_bytes(path: Path, data: bytes | Iterable[bytes], durable: bool = True) -> None:
    """Write a file atomically; its folder is made, and an older file of that name replaced.

    Args:
        path: File to write.
        data: Its content, or pieces of it, which need not be in memory together.
        durable: Whether it must be whole, the old or the new one, after a power cut too. That takes a millisecond on a
            good disk, and much longer on others.

    Raises:
        CannotWriteError: If the file cannot be written (disk full, no permission); names it. The older one is kept.
    """
    # Two writers of the same file, maybe on two machines, must not share the unfinished one. Its name holds nothing of
    # the file's, which may be as long as names can be.
    unfinished = path.with_name(f".{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, bytes):
            unfinished.write_bytes(data)
        else:
            with open(unfinished, "wb") as file:
                file.writelines(data)
        if durable:
            sync(unfinished)  # or a power cut may leave the new name without content
        os.replace(unfinished, path)
        if durable:
            sync(path.parent)
    except OSError as error:
        raise CannotWriteError(path, error) from error
    finally:
        with suppress(OSError):  # a file where a folder should be
            unfinished.unlink()


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, brought from memory to the disk.

    Raises:
        OSError: If the disk does not take a file's content.
    """
    if path.is_dir():
        with suppress(OSError):  # Windows opens no folder, and some network drives do not know how
            _sync(path, os.O_RDONLY)
    else:
        _sync(path, os.O_RDWR)


def sync_all() -> None:
    """Have all that was written brought to the disk: for many files, where one after the other would take long."""
    if hasattr(os, "sync"):  # not on Windows
        os.sync()


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_text(path: Path, text: str) -> None:
    """Append UTF-8 text to a file, all of it or nothing; undecodable file names in it are kept byte for byte.

    A surrogate that is no such byte, which a category from JSON may hold, becomes a question mark.

    Raises:
        CannotWriteError: If it cannot be written; names the file.
    """
    data = re.sub("[\ud800-\udc7f\udd00-\udfff]", "?", text).encode("utf-8", errors="surrogateescape")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise CannotWriteError(path, error) from error


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 text with ``write_bytes``; of a file name that is no UTF-8, ``\\udcfc``, which JSON reads again."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON (no NaN or Infinity, which other languages' readers refuse) with ``write_bytes``."""
    write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_image(path: Path, image: NDArray[Any]) -> None:
    """Write a picture with ``write_bytes``, not durably; the suffix names the format.

    Args:
        path: File to write, ``.png`` or ``.jpg``.
        image: ``(H, W, 3)`` RGB uint8, or ``(H, W)`` uint8 or uint16.
    """
    # Maps and overlays are many and large: level 3 is about as small as the usual 6-9 and much faster.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 92]
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    write_bytes(path, cv2.imencode(path.suffix, pixels, options)[1].tobytes(), durable=False)


def read_json(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any] | None:
    """Read an object that ``write_json`` wrote; one that is damaged counts as not there, which is said once.

    Args:
        path: File to read.
        kinds: Keys that it must have, and of which kind their values must be.

    Returns:
        The object; None if there is no such file, or it is empty, no JSON, or lacks one of the keys.
    """
    try:
        content = parsing.read_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if isinstance(content, dict) and all(k in content and isinstance(content[k], kind) for k, kind in kinds.items()):
        return content
    say_damaged(path)
    return None


@cache  # once, though many may ask
def say_damaged(path: Path) -> None:
    """Say that a file is as good as none."""
    log.warning("%s is empty, damaged or of another version, so it counts as absent.", path)


def plain(value: Any) -> Any:
    """Convert a value to what strict JSON can hold.

    A NaN or infinity becomes None (undefined), a tensor or array its list, an object of a class the class's import
    path; keys become strings.
    """
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "__dict__") and type(value).__name__ == "Namespace":  # how jsonargparse keeps a parsed config
        return plain(vars(value))
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unit_to_uint16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Map scores of [0, 1] to 0..65535 (score = value / 65535, exact to 1/131070); NaN becomes 0."""
    return np.rint(np.clip(np.nan_to_num(values), 0, 1) * 65535.0).astype(np.uint16)
