"""Fetches a data set's archives by their public links and unpacks them below the root, whole or not at all.

HTTP is done by httpx2, which comes with open_clip anyway, is typed, knows proxies and the system's certificates, and
raises when a connection ends before its body does; pooch has checksums but cannot resume. Archives are strangers'
files: every member's name, kind and size is checked here, and no link, mode or owner of theirs is ever made.
"""

from __future__ import annotations

import filecmp
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx2
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from kanoclip import __version__
from kanoclip.data.about import About, Archive

WORK = ".download"  # below the data set's folder; hidden, so that no data set reads it
MAX_FILES = 2_000_000  # files and folders in one archive; Real-IAD, the largest set, has 0.3 million
RETRIES, BACKOFF = 4, 1.0  # attempts after the first that bring nothing new; seconds before the first, then doubled
CHUNK = 1 << 20  # bytes
FINAL = (httpx2.UnsupportedProtocol, httpx2.TooManyRedirects, httpx2.InvalidURL)  # another attempt would end the same
Member = tuple[str, int, str, Callable[[], IO[bytes] | None]]  # name, bytes, "file" or "folder" or what else, open
Records = dict[str, dict[str, Any]]  # by URL: sha256, entries (names below the data set's folder), placed


class DownloadError(ValueError):
    """A data set that could not be fetched or unpacked; the message says what a person can do."""


class NoRoomError(DownloadError):
    """An archive that does not fit: a full disk, more in it than is allowed, or a file in its way. It is kept."""


def download(
    name: str,
    about: About,
    root: Path | str,
    accept_license: bool = False,
    confirm: Callable[[str], bool] | None = None,
    *,
    keep_archive: bool = False,
    max_bytes: int = 200_000_000_000,
) -> Path:
    """Fetch a data set into ``root/name``; do nothing where it is there, go on where an earlier call was interrupted.

    Args:
        name: Registered name: the data set's folder below ``root``.
        about: What its publisher says, with its archives.
        root: Parent folder of all data sets.
        accept_license: Whether the person has agreed to the licence beforehand.
        confirm: Asks the person a question with yes or no; not called with ``accept_license``.
        keep_archive: Keep the archives in ``root/name/.download`` after unpacking.
        max_bytes: Most that one archive may unpack to; the free space of the disk is a limit too.

    Returns:
        The data set's folder.

    Raises:
        DownloadError: No public link, licence not accepted, dead link, no connection, wrong checksum, a damaged or
            hostile archive, or files in the folder that this function did not put there.
        NoRoomError: Not enough free disk, a limit exceeded, or a file in the way; what was downloaded is kept.
    """
    home = Path(root).expanduser() / name
    if not about.archives:
        remedy = f"Get it from {about.homepage} and unpack it to {home}. {about.note}".rstrip()
        raise DownloadError(f"{about.title} has no direct public link. {remedy}")
    try:
        records = _recorded(name, about, home)
        missing = [archive for archive in about.archives if archive.url not in records]
        if not missing:
            print(f"{about.title} is already in {home}.")
            return home
        print(f"{about.title}\nLicence: {about.licence}\n{about.homepage}", flush=True)
        if not accept_license and not (confirm and confirm(f"Do you accept the licence of {about.title}?")):
            again = f"If you agree to it: kanoclip data download {name} --accept-license"
            raise DownloadError(f"The licence ({about.licence}) was not accepted. {again}")
        for archive in missing:
            filename = re.sub(r"[^\w.-]", "_", re.split("[?#]", archive.url)[0].rpartition("/")[2])[-100:]
            path = home / WORK / f"{about.archives.index(archive) + 1}-{filename or 'archive'}"
            digest, entries = _fetch(archive, path, about), _unpack(path, home, archive.folder, max_bytes)
            records[archive.url] = {"sha256": digest, "entries": entries, "placed": False}
            _write_json(home / WORK / "done.json", records)
            if not keep_archive:
                path.unlink()
            _place(home, archive.url, records)
    except OSError as error:
        why = f"{error.filename or home}: {error.strerror or error}"
        raise DownloadError(f"Cannot use {why}. Mend that, then give the same command again.") from error
    print(f"{about.title} is in {home}.")
    return home


def _recorded(name: str, about: About, home: Path) -> Records:
    """Say what is unpacked already; finish what was on its way into place, and refuse files that are not ours."""
    records: Records = _read_json(home / WORK / "done.json")
    known = {archive.url: archive.sha256 for archive in about.archives}
    for url, record in list(records.items()):
        if not record["placed"]:
            _place(home, url, records)
        lost = [entry for entry in record["entries"] if not (home / entry).exists()]
        if len(lost) == len(record["entries"]):
            del records[url]
        elif lost:
            raise DownloadError(f"{home} lacks {', '.join(lost[:5])}. Delete the whole folder to download it again.")
        elif known.get(url, "") not in (None, record["sha256"]):
            raise DownloadError(f"{home} holds another edition, from {url}. Move it away to download this one.")
    ours = {entry.partition("/")[0] for record in records.values() for entry in record["entries"]}
    found = {path.name for path in home.iterdir() if path.name[0] != "."} if home.is_dir() else set()
    if others := sorted(found - ours):
        raise DownloadError(
            f"{home} already holds files that this command did not put there ({', '.join(others[:5])}). If they are "
            f"{about.title}, use them: kanoclip data check {name}. Else move them away, or choose another --root."
        )
    return records


def _fetch(archive: Archive, path: Path, about: About) -> str:
    """Bring an archive to a path, and return its sha256, verified where one is known."""
    part = path.with_name(f"{path.name}.part")
    most, failures = _size(part), 0
    headers = {"Accept-Encoding": "identity", "User-Agent": f"kanoclip/{__version__}"}  # identity: or no resuming
    with httpx2.Client(follow_redirects=True, timeout=30, headers=headers) as client, _bar(path.name) as bar:
        while not path.exists():
            try:
                _transfer(client, archive.url, part, bar)
                part.replace(path)
                part.with_suffix(".json").unlink(missing_ok=True)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                status = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else 0
                why = f"the server answered {status}" if status else str(error) or type(error).__name__
                most, failures = max(most, _size(part)), failures + 1 if _size(part) <= most else 1
                dead = isinstance(error, FINAL) or (300 <= status < 500 and status not in (408, 429))
                if dead or failures > RETRIES:
                    remedy = f"check the connection, then give the same command again ({_size(part):,} bytes are kept)"
                    remedy = f"look for a new link at {about.homepage}" if dead else remedy
                    raise DownloadError(f"Cannot download {archive.url}: {why}. Remedy: {remedy}.") from error
                time.sleep(BACKOFF * 2 ** (failures - 1))
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    digest = hasher.hexdigest()
    if archive.sha256 is None:
        print(f"{archive.url}: sha256 {digest}. None is published, so it could not be verified.", flush=True)
    elif digest != archive.sha256.lower():
        path.unlink()
        why = "damaged on the way, or changed by its publisher. It is deleted; try again, or see"
        raise DownloadError(f"{archive.url} has sha256 {digest}, not {archive.sha256}: {why} {about.homepage}.")
    return digest


def _transfer(client: httpx2.Client, url: str, part: Path, bar: Progress) -> None:
    """Go on with a download, or begin again where the server cannot or its file is not the one that was begun."""
    note = part.with_suffix(".json")
    begun = _read_json(note)
    start = _size(part) if begun.get("url") == url else 0
    if start and start == begun["size"]:
        return
    headers = {"Range": f"bytes={start}-", "If-Range": begun["validator"]} if start else {}
    with client.stream("GET", url, headers={key: value for key, value in headers.items() if value}) as response:
        etag = response.headers.get("ETag", "")  # a weak one, W/"...", may stand for files that differ
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        if start and response.status_code in (206, 416):
            span = re.fullmatch(rf"bytes {start}-\d+/{begun['size']}", response.headers.get("Content-Range", ""))
            if not span or validator != begun["validator"]:
                part.unlink()
                return _transfer(client, url, part, bar)
        else:
            response.raise_for_status()
            if response.status_code != 200:
                raise httpx2.RemoteProtocolError(f"the server answered {response.status_code}")
            start, length = 0, response.headers.get("Content-Length")
            begun = {"url": url, "validator": validator, "size": int(length) if length else None}
            part.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)  # before the note, which must never speak of another file's beginning
            _write_json(note, begun)
        free = shutil.disk_usage(part.parent).free
        if (needed := (begun["size"] or 0) - start) > free:
            raise NoRoomError(f"{url} needs {needed:,} bytes; {part.parent} has {free:,} free. Make room there.")
        bar.update(bar.task_ids[0], total=begun["size"], completed=start)
        with part.open("ab") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                bar.advance(bar.task_ids[0], len(chunk))


def _unpack(path: Path, home: Path, folder: str, max_bytes: int) -> list[str]:
    """Unpack into a folder beside the archive, which is left only if all is well; returns what it adds to ``home``."""
    unpacking, free = path.parent / "unpacking", shutil.disk_usage(path.parent).free

    def allow(count: int, size: int) -> None:
        if count > MAX_FILES or size > min(max_bytes, free):
            limits = f"{MAX_FILES:,} and {max_bytes:,} are allowed, {free:,} bytes are free"
            remedy = f"Make room, or if you trust it, unpack it to {home / folder} yourself"
            raise NoRoomError(f"{path} has {count:,} files of {size:,} bytes or more; {limits}. {remedy}.")

    shutil.rmtree(unpacking, ignore_errors=True)  # left by a call that was killed
    try:
        (unpacking / folder).mkdir(parents=True)
        with _bar(f"unpacking {path.name}") as bar:
            for name, size, what, open_member in _members(path, allow):
                if {"..", WORK} & set(name.split("/")) or re.search(r"^/|\\|(^|/)\w:", name):
                    what = "path that leads elsewhere"
                if what not in ("file", "folder"):
                    raise DownloadError(f"{path} was not unpacked, for {name!r} is a {what}. It is deleted.")
                target = unpacking / folder / name
                (target if what == "folder" else target.parent).mkdir(parents=True, exist_ok=True)
                if what == "file" and (source := open_member()):
                    with source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, CHUNK)  # zip and tar both stop at the size that they declare
                    if _size(target) != size:
                        raise EOFError(f"{name} has {_size(target):,} bytes instead of {size:,}")
                    bar.advance(bar.task_ids[0], size)
        for new in unpacking.rglob("*"):
            old = home / new.relative_to(unpacking)
            if old.exists() and not (old.is_dir() and new.is_dir()) and not filecmp.cmp(old, new, shallow=False):
                raise NoRoomError(f"{path} would overwrite {old}. Move that away, then give the same command again.")
        return sorted(new.relative_to(unpacking).as_posix() for new in (unpacking / folder).iterdir())
    except BaseException as error:
        shutil.rmtree(unpacking, ignore_errors=True)
        if isinstance(error, NoRoomError) or not isinstance(error, Exception) or getattr(error, "errno", None):
            raise
        path.unlink()  # or the next call would begin with it
        if isinstance(error, DownloadError):
            raise  # else one of the many kinds that zipfile, tarfile and the decompressors raise on damaged bytes
        raise DownloadError(f"{path} is damaged: {error or type(error).__name__}. It is deleted; try again.") from error


def _members(path: Path, allow: Callable[[int, int], None]) -> Iterator[Member]:
    """Go through a tar, once, as a compressed one has no list; or through a zip, whose sizes are added up first."""
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            size = 0
            for count, item in enumerate(tar, 1):
                size += item.size
                allow(count, size)
                what = "file" if item.isreg() else "folder" if item.isdir() else "link" if item.linkname else "device"
                yield item.name, item.size, what, functools.partial(tar.extractfile, item)
            if tar.fileobj is None or tar.fileobj.seek(tar.offset) is None or tar.fileobj.read(512) != bytes(512):
                raise EOFError("it ends before its end mark")  # tarfile takes that for an end
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            allow(len(infos), sum(info.file_size for info in infos))
            for info in infos:
                plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
                what = "file with a password" if info.flag_bits & 1 else "folder" if info.is_dir() else "file"
                yield info.filename, info.file_size, what if plain else "link", functools.partial(archive.open, info)
    else:
        with path.open("rb") as file:
            raise DownloadError(f"{path} is neither zip nor tar: it began with {file.read(40)!r}. It is deleted.")


def _place(home: Path, url: str, records: Records) -> None:
    """Move what was unpacked into place; a call that was killed here is finished by the next one."""
    unpacking = home / WORK / "unpacking"
    for new in list(unpacking.rglob("*")):  # a folder comes before what is in it
        old = home / new.relative_to(unpacking)
        old.mkdir(exist_ok=True) if new.is_dir() else new.replace(old)
    shutil.rmtree(unpacking, ignore_errors=True)
    records[url]["placed"] = True
    _write_json(home / WORK / "done.json", records)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def _bar(text: str) -> Progress:
    bar = Progress(*Progress.get_default_columns(), DownloadColumn(), console=Console(stderr=True))
    bar.add_task(text, total=None)
    return bar
