"""Unpacks archives from the internet, which are not trusted.

Every member's name, kind and size is checked, and no link, mode or owner of an archive is ever made.
"""

from __future__ import annotations

import bz2
import filecmp
import functools
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import DownloadColumn, Progress

from kanoclip.data.about import DamagedDataError
from kanoclip.types import KanoclipError

WORK = ".download"  # below the data set's folder; hidden, so that no data set reads it
UNFINISHED = f"{WORK}/unfinished"  # there from before the first file is placed until all of all archives are
MAX_FILES = 2_000_000  # files and folders in one archive; Real-IAD, the largest set, has 0.3 million
MAX_BYTES = 200_000_000_000  # that one archive may have, or unpack to; the free space of the disk is a limit too
MAX_ABOUT = 1 << 20  # bytes that a tar may tell of one file before its content: its name, times, ...
MAX_LIST = 1 << 26  # bytes of the list of files in a zip
MAX_NAME = 255  # bytes of a file's name, on nearly all disks
TAR_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
Member = tuple[str, int, str, Callable[[], IO[bytes] | None]]  # name, bytes, "file" or "folder" or what else, open


class DownloadError(KanoclipError):
    """A data set that could not be fetched or unpacked; the message says what a person can do."""


class NoRoomError(DownloadError):
    """An archive that does not fit: a full disk, more in it than is allowed, or a file in its way. It is kept."""


def check_placed(folder: Path, name: str) -> None:
    """Refuse a data set of which a download has placed a part.

    Raises:
        DamagedDataError: Naming the command that goes on with it.
    """
    for home in (folder, *folder.parents):
        if os.path.exists(home / UNFINISHED):
            raise DamagedDataError(
                f"{home} is a part of {name}: its download was stopped. To go on: kanoclip data download {name} --root "
                f"{home.parent}. If you have completed it yourself, delete {home / UNFINISHED}."
            )


def unpack(path: Path, home: Path) -> list[str]:
    """Unpack into the folder ``unpacking`` beside the archive, all of it or nothing.

    Args:
        path: The archive; deleted if it is damaged or hostile.
        home: Where the files will be moved to; none there may be overwritten.

    Returns:
        Names of what stands at the top of the archive.

    Raises:
        NoRoomError: Too many files or bytes, or a file in the way; the archive is kept.
        DownloadError: It is damaged, or holds links, devices or paths that lead out of its folder.
    """
    unpacking, free = path.parent / "unpacking", shutil.disk_usage(path.parent).free

    def allow(count: int, size: int) -> None:
        if count > MAX_FILES or size > min(MAX_BYTES, free):
            limits = f"{MAX_FILES:,} and {MAX_BYTES:,} are allowed, {free:,} bytes are free"
            remedy = f"Make room, or if you trust it, unpack it to {home} yourself"
            raise NoRoomError(f"{path} has {count:,} files of {size:,} bytes or more; {limits}. {remedy}.")

    shutil.rmtree(unpacking, ignore_errors=True)  # left by a call that was killed
    unpacking.mkdir()
    try:
        with progress(f"unpacking {path.name}") as bar:
            for name, size, what, open_member in _members(path, allow):
                if trouble := _trouble(name) or (what if what not in ("file", "folder") else ""):
                    raise DownloadError(f"{path} was not unpacked, for {name[:300]!r} is a {trouble}. It is deleted.")
                target = unpacking / name
                (target if what == "folder" else target.parent).mkdir(parents=True, exist_ok=True)
                if what == "file" and (source := open_member()):
                    with source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)  # zip and tar both stop at the size that they declare
                    if size_of(target) != size:
                        raise EOFError(f"{name} has {size_of(target):,} bytes instead of {size:,}")
                    bar.advance(bar.task_ids[0], size)
        for new in unpacking.rglob("*"):
            old = home / new.relative_to(unpacking)
            if old.exists() and not (old.is_dir() and new.is_dir()) and not filecmp.cmp(old, new, shallow=False):
                raise NoRoomError(f"{path} would overwrite {old}. Move that away, then give the same command again.")
        return sorted(new.name for new in unpacking.iterdir())
    except BaseException as error:
        shutil.rmtree(unpacking, ignore_errors=True)
        if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
            error = DownloadError(f"{path} was not unpacked, for a file in it is also a folder. It is deleted.")
        if isinstance(error, NoRoomError) or not isinstance(error, Exception) or getattr(error, "errno", None):
            raise
        path.unlink()  # or the next call would begin with it
        if isinstance(error, DownloadError):
            raise error  # else one of the many kinds that zipfile, tarfile and decompressors raise on damaged bytes
        raise DownloadError(f"{path} is damaged: {error or type(error).__name__}. It is deleted; try again.") from error


def _trouble(name: str) -> str:
    """Return why no file may have a name; "" if it may."""
    if {"..", WORK} & set(name.split("/")) or re.search(r"^/|\\|(^|/)\w:", name):
        return "path that leads elsewhere"
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        return "name with control characters"
    longest = max(len(part.encode(errors="surrogateescape")) for part in name.split("/"))
    return f"name of more than {MAX_NAME} bytes" if longest > MAX_NAME else ""


class _Metered:
    """A file to read, of which no more than ``left`` bytes may be read; None for no limit.

    A tar's headers and a zip's list are read into memory at once, whatever size they claim.
    """

    def __init__(self, file: IO[bytes], path: Path, left: int | None) -> None:
        self.file, self.path, self.left = file, path, left
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if self.left is None:
            return self.file.read(size)
        data = self.file.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= max(1, len(data))  # who asks for more at the end, again and again, must come to one too
        if self.left < 0:
            raise DownloadError(f"{self.path} was not unpacked, for it tells too much of its files. It is deleted.")
        return data


def _members(path: Path, allow: Callable[[int, int], None]) -> Iterator[Member]:
    """Go through the members of a tar or zip; ``allow(files, bytes)`` raises before too much is unpacked."""
    with path.open("rb") as file:
        start = file.read(40)
    opener = next((one for magic, one in TAR_OPENERS.items() if start.startswith(magic)), open)
    with opener(path, "rb") as file:
        metered = _Metered(file, path, MAX_ABOUT)
        try:
            tar = tarfile.TarFile(fileobj=metered)  # type: ignore[arg-type]  # it has all that is needed
        except tarfile.ReadError:
            pass
        else:
            yield from _of_tar(tar, metered, allow)
            return
    if not zipfile.is_zipfile(path):
        raise DownloadError(f"{path} is neither zip nor tar: it began with {start!r}. It is deleted.")
    with path.open("rb") as file:
        metered = _Metered(file, path, MAX_LIST)
        archive = zipfile.ZipFile(metered)  # type: ignore[arg-type]
        metered.left = None
        infos = archive.infolist()
        allow(len(infos), sum(info.file_size for info in infos))
        for info in infos:
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            what = "file with a password" if info.flag_bits & 1 else "folder" if info.is_dir() else "file"
            yield info.filename, info.file_size, what if plain else "link", functools.partial(archive.open, info)


def _of_tar(tar: tarfile.TarFile, metered: _Metered, allow: Callable[[int, int], None]) -> Iterator[Member]:
    count = size = 0
    while item := tar.next():
        count, size = count + 1, size + item.size
        allow(count, size)
        what = "file" if item.isreg() else "folder" if item.isdir() else "link" if item.linkname else "device"
        metered.left = None
        yield item.name, item.size, what, functools.partial(tar.extractfile, item)
        metered.left = MAX_ABOUT
        tar.members, tar.pax_headers = [], {}  # type: ignore[attr-defined]  # or memory would grow with the archive
    metered.seek(tar.offset)
    if metered.read(512) != bytes(512):
        raise EOFError("it ends before its end mark")  # tarfile takes that for an end


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def progress(text: str) -> Progress:
    """A bar on stderr, of bytes."""
    bar = Progress(*Progress.get_default_columns(), DownloadColumn(), console=Console(stderr=True))
    bar.add_task(text, total=None)
    return bar
