"""Fetches a data set's archives by their public links and unpacks them below the root, whole or not at all.

HTTP is done by httpx2, which comes with open_clip anyway, is typed, knows proxies and the system's certificates, and
raises when a connection ends before its body does; pooch has checksums but cannot resume.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from filelock import FileLock, Timeout
from rich.progress import Progress

from kanoclip import __version__
from kanoclip.data.about import About, Archive
from kanoclip.data.archives import MAX_BYTES, UNFINISHED, WORK, DownloadError, NoRoomError, progress, size_of, unpack
from kanoclip.data.files import read_json, sha256, sync, sync_all, write_bytes, write_json
from kanoclip.data.parsing import local_path
from kanoclip.types import printable

RETRIES, BACKOFF = 4, 1.0  # attempts after the first that bring nothing new; seconds before the first, then doubled
FINAL = (httpx2.UnsupportedProtocol, httpx2.TooManyRedirects, httpx2.InvalidURL)  # another attempt would end the same
Records = dict[str, dict[str, Any]]  # by URL: sha256, entries (names below the data set's folder), placed


def download(
    name: str,
    about: About,
    root: Path | str,
    accept_license: bool = False,
    confirm: Callable[[str], bool] | None = None,
) -> Path:
    """Fetch a data set into ``root/name``; does nothing if it is there, and resumes an interrupted download.

    Waits while another process downloads into the same folder.

    Args:
        name: Registered name: the data set's folder below ``root``.
        about: What its publisher says, with its archives.
        root: Parent folder of all data sets.
        accept_license: Whether the person has agreed to the licence beforehand.
        confirm: Asks the person a question with yes or no; not called with ``accept_license``.

    Returns:
        The data set's folder.

    Raises:
        DownloadError: No public link, licence not accepted, dead link, no connection, wrong checksum, a damaged or
            hostile archive, or files in the folder that this function did not put there.
        NoRoomError: Not enough free disk, a limit exceeded, or a file in the way; what was downloaded is kept.

    Killed at any moment, it leaves a folder that counts as missing, or as damaged (``check_placed``), and the next call
    completes it.
    """
    home = local_path(str(root), "--root") / name
    if not about.archives:
        remedy = f"Get it from {about.homepage} and unpack it to {home}. {about.note}".rstrip()
        raise DownloadError(f"{about.title} has no direct public link. {remedy}")
    try:
        with _alone(home):
            records = _recorded(name, about, home)
            missing = [archive for archive in about.archives if archive.url not in records]
            if not missing:
                _tidy(home)
                print(f"{about.title} is already in {home}.")
                return home
            print(f"{about.title}\nLicence: {about.licence}\n{about.homepage}", flush=True)
            if not accept_license and not (confirm and confirm(f"Do you accept the licence of {about.title}?")):
                again = f"If you agree to it: kanoclip data download {name} --accept-license"
                raise DownloadError(f"The licence ({about.licence}) was not accepted. {again}")
            for archive in missing:
                filename = re.sub(r"[^\w.-]", "_", re.split("[?#]", archive.url)[0].rpartition("/")[2])[-100:]
                path = home / WORK / f"{about.archives.index(archive) + 1}-{filename or 'archive'}"
                digest, entries = _fetch(archive, path, about), unpack(path, home)
                sync_all()
                records[archive.url] = {"sha256": digest, "entries": entries, "placed": False}
                write_json(home / WORK / "done.json", records)
                path.unlink()
                _place(home, archive.url, records)
            _tidy(home)
    except OSError as error:
        why = f"{error.filename or home}: {error.strerror or error}"
        raise DownloadError(
            f"Cannot use {why}. Mend that, or choose another --root, then give the same command again."
        ) from error
    print(f"{about.title} is in {home}.")
    return home


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Lock the folder against other processes; afterwards neither the lock nor an empty folder is left."""
    work = home / WORK
    if work.is_dir() and not os.access(work, os.W_OK):  # somebody else's download, which can only be looked at
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another download to {home}.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # some systems delete no open file
            os.remove(lock.lock_file)
        lock.release()
        with suppress(OSError):  # not empty
            work.rmdir()
            home.rmdir()


def _recorded(name: str, about: About, home: Path) -> Records:
    """Return which archives are unpacked already; completes a move that was interrupted.

    Raises:
        DownloadError: Files are missing, of another edition, or not from this function.
    """
    found = read_json(home / WORK / "done.json") or {}
    kept = {"sha256", "entries", "placed"}
    records: Records = {url: one for url, one in found.items() if isinstance(one, dict) and kept <= one.keys()}
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
    there = {path.name for path in home.iterdir() if path.name[0] != "."} if home.is_dir() else set()
    if others := sorted(there - ours):
        raise DownloadError(
            f"{home} already holds files that this command did not put there ({', '.join(others[:5])}). If they are "
            f"{about.title}, use them: kanoclip data check {name}. Else move them away, or choose another --root."
        )
    return records


def _fetch(archive: Archive, path: Path, about: About) -> str:
    """Download an archive to a path; returns its sha256, which is verified if a published one is known."""
    part = path.with_name(f"{path.name}.part")
    most, failures = size_of(part), 0
    headers = {"Accept-Encoding": "identity", "User-Agent": f"kanoclip/{__version__}"}  # identity: or no resuming
    with httpx2.Client(follow_redirects=True, timeout=30, headers=headers) as client, progress(path.name) as bar:
        while not path.exists():
            try:
                _transfer(client, archive.url, part, bar)
                sync(part)
                part.replace(path)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                status = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else 0
                why = f"the server answered {status}" if status else _shown(error)
                kept = size_of(part)
                most, failures = max(most, kept), failures + 1 if kept <= most else 1
                dead = isinstance(error, FINAL) or (300 <= status < 500 and status not in (408, 429))
                if dead or failures > RETRIES:
                    remedy = f"check the connection, then give the same command again ({kept:,} bytes are kept)"
                    remedy = f"look for a new link at {about.homepage}" if dead else remedy
                    raise DownloadError(f"Cannot download {archive.url}: {why}. Remedy: {remedy}.") from error
                time.sleep(BACKOFF * 2 ** (failures - 1))
    part.with_suffix(".json").unlink(missing_ok=True)
    digest = sha256(path)
    if archive.sha256 is None:
        print(f"{archive.url}: sha256 {digest}. None is published, so it could not be verified.", flush=True)
    elif digest != archive.sha256.lower():
        path.unlink()
        why = "damaged on the way, or changed by its publisher. It is deleted; try again, or see"
        raise DownloadError(f"{archive.url} has sha256 {digest}, not {archive.sha256}: {why} {about.homepage}.")
    return digest


def _transfer(client: httpx2.Client, url: str, part: Path, bar: Progress) -> None:
    """Resume a download; starts again if the server cannot resume, or has another file by now."""
    note = part.with_suffix(".json")
    begun = read_json(note, url=str, validator=str, size=(int, type(None))) or {}
    start = size_of(part) if begun.get("url") == url else 0
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
            part.unlink(missing_ok=True)  # before the note, which must never speak of another file's beginning
            write_json(note, begun)
        free = shutil.disk_usage(part.parent).free
        if (needed := (begun["size"] or 0) - start) > free:
            raise NoRoomError(f"{url} needs {needed:,} bytes; {part.parent} has {free:,} free. Make room there.")
        bar.update(bar.task_ids[0], total=begun["size"], completed=start)
        most = MAX_BYTES if begun["size"] is None else begun["size"]
        with part.open("ab") as file:
            for chunk in response.iter_raw():
                start += len(chunk)
                if start > min(most, MAX_BYTES):
                    os.truncate(part, 0)
                    raise DownloadError(f"{url} sends more than {most:,} bytes. Look for a new link.")
                file.write(chunk)
                bar.advance(bar.task_ids[0], len(chunk))


def _place(home: Path, url: str, records: Records) -> None:
    """Move what was unpacked into place; if interrupted, the next call completes it."""
    write_bytes(home / UNFINISHED, b"")
    unpacking = home / WORK / "unpacking"
    for new in list(unpacking.rglob("*")):  # a folder comes before what is in it
        old = home / new.relative_to(unpacking)
        old.mkdir(exist_ok=True) if new.is_dir() else new.replace(old)
    sync_all()
    shutil.rmtree(unpacking, ignore_errors=True)
    records[url]["placed"] = True
    write_json(home / WORK / "done.json", records)


def _tidy(home: Path) -> None:
    """Delete the mark of a part, and what calls that were killed have left; the note of what is here stays."""
    for path in (home / WORK).iterdir():
        if path.name not in ("done.json", "lock"):
            path.unlink()


def _shown(error: Exception) -> str:
    """Return what an error says, cut and printable: a server may have chosen the words."""
    return printable(str(error), 300) or type(error).__name__
