from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kanoclip.data import archives
from kanoclip.data import download as module
from kanoclip.data.about import About, Archive, DamagedDataError
from kanoclip.data.download import DownloadError, NoRoomError, download
from kanoclip.data.sets.tree import Tree
from kanoclip.types import MissingError

FILES = {"bottle/test/good/000.png": b"good" * 999, "bottle/test/hole/000.png": os.urandom(40_000), "license.txt": b"!"}
Usage = namedtuple("Usage", "total used free")


class Server(ThreadingHTTPServer):
    """Serves `files`, by ranges; what it does wrong is said by its attributes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []  # (path, Range)
        self.drop_at: list[int] = []  # bytes of the body after which the next answers end
        self.answers: list[int] = []  # status of the next answers
        self.ranges = True
        self.strict = True  # whether If-Range is heeded
        self.headers: Callable[[bytes], dict[str, str]] = etag

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, span = self.server, self.headers["Range"]
        server.asked.append((self.path, span))
        if server.answers:
            return self.answer(server.answers.pop(0), {}, b"")
        if self.path.startswith("/moved/"):
            return self.answer(302, {"Location": self.path.removeprefix("/moved")}, b"")
        if self.path == "/ftp":
            return self.answer(302, {"Location": "ftp://127.0.0.1/mvtec.zip"}, b"")
        if self.path == "/file":
            return self.answer(302, {"Location": "file:///etc/passwd"}, b"")
        if self.path == "/escape":
            self.wfile.write(b"HTTP/1.1 302 \x1b[31m\r\nLocation: ftp\x1b[2J://a\r\n\r\n")
            return None
        if self.path == "/endless":
            return self.answer(200, {"Content-Length": ""}, bytes(5_000_000))
        if self.path not in server.files:
            return self.answer(404, {}, b"<html>gone</html>")
        body = server.files[self.path]
        headers = server.headers(body)
        unchanged = self.headers["If-Range"] in (None, *headers.values()) or not server.strict
        if span and server.ranges and unchanged:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.answer(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.answer(206, headers, body[start:])
        self.answer(200, headers, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if status in (200, 206) and self.server.drop_at:
            body = body[: self.server.drop_at.pop(0)]
        self.wfile.write(body)


def etag(body: bytes) -> dict[str, str]:
    return {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; none of them is waited for."""
    waited: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return waited


def make_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_tar(files: dict[str, bytes], mode: str = "w", **member: Any) -> bytes:
    """A tar of the files, and of one more member that has these attributes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o000
            archive.addfile(info, io.BytesIO(content))
        if member:
            info = tarfile.TarInfo()
            for key, value in member.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def about(*archives: Archive, **other: Any) -> About:
    return About("MVTec AD", "Bergmann", "CC BY-NC-SA 4.0", "https://mvtec.example", archives=archives, **other)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def serve(server: Server, content: bytes, name: str = "/mvtec.zip") -> Archive:
    server.files[name] = content
    return Archive(server.url + name, sha(content))


def tree(home: Path) -> dict[str, bytes]:
    """What a data set sees of its folder."""
    found = {path.relative_to(home).as_posix(): path for path in home.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".download")}


def kept(home: Path) -> list[str]:
    return sorted(path.name for path in (home / ".download").iterdir()) if (home / ".download").is_dir() else []


def begin(server: Server, archive: Archive, root: Path, at: int) -> None:
    """Download the first bytes only, as a program does that is killed then."""
    server.drop_at = [at] + [0 if server.ranges else at] * module.RETRIES
    with pytest.raises(DownloadError, match="bytes are kept"):
        download("mvtec", about(archive), root, True)
    assert "1-mvtec.zip.part" in kept(root / "mvtec")
    server.asked.clear()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mvtec.zip", make_zip(FILES)),
        ("mvtec.tar", make_tar(FILES)),
        ("mvtec.tar.gz", make_tar(FILES, "w:gz")),
        ("mvtec.tar.xz", make_tar(FILES, "w:xz")),
        ("files/123/content", make_tar(FILES, "w:bz2")),
    ],
    ids=["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"],  # bytes with the time in them would differ between workers
)
def test_every_kind_of_archive_is_fetched_and_unpacked(
    name: str, content: bytes, server: Server, tmp_path: Path
) -> None:
    home = download("mvtec", about(serve(server, content, f"/{name}")), tmp_path, True)
    assert home == tmp_path / "mvtec"
    assert tree(home) == FILES
    assert kept(home) == ["done.json"]


def test_a_second_call_does_nothing(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mvtec = about(serve(server, make_zip(FILES)))
    download("mvtec", mvtec, tmp_path, True)
    server.asked.clear()
    capsys.readouterr()
    assert download("mvtec", mvtec, tmp_path) == tmp_path / "mvtec"  # nor is the licence asked for again
    assert server.asked == []
    assert capsys.readouterr().out == f"MVTec AD is already in {tmp_path / 'mvtec'}.\n"


def test_archives_may_share_folders(server: Server, tmp_path: Path) -> None:
    images = serve(server, make_zip({"a/b/train/1.png": b"1", "a/b/license.txt": b"same"}), "/1/content")
    masks = serve(server, make_zip({"a/b/train/1_mask.png": b"2", "a/b/license.txt": b"same"}), "/2/content")
    rest = serve(server, make_zip({"readme.txt": b"3"}), "/3/content")
    home = download("set", about(images, masks, rest), tmp_path, True)
    assert tree(home) == {
        "a/b/train/1.png": b"1", "a/b/train/1_mask.png": b"2", "a/b/license.txt": b"same", "readme.txt": b"3",
    }  # fmt: skip
    assert kept(home) == ["done.json"]


def test_a_call_waits_for_another_one_at_the_same_folder(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mvtec, work = about(serve(server, make_zip(FILES))), tmp_path / "mvtec" / ".download"
    work.mkdir(parents=True)
    with ThreadPoolExecutor() as pool, FileLock(work / "lock"):
        calls = [pool.submit(download, "mvtec", mvtec, tmp_path, True) for _ in range(3)]
        said, end = "", time.monotonic() + 60
        while said.count("Waiting for another download to") < 3 and time.monotonic() < end:
            assert not wait(calls, 0.05).done
            said += capsys.readouterr().out
        assert server.asked == []
    assert [tree(call.result()) for call in calls] == [FILES] * 3
    assert server.asked == [("/mvtec.zip", None)]
    assert said.count(f"Waiting for another download to {tmp_path / 'mvtec'}.") == 3
    assert capsys.readouterr().out.count("MVTec AD is already in") == 2
    assert kept(tmp_path / "mvtec") == ["done.json"]


def test_what_is_there_may_be_in_a_folder_of_somebody_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mvtec = about(serve(server, make_zip(FILES)))
    download("mvtec", mvtec, tmp_path, True)
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    monkeypatch.setattr(module, "FileLock", lambda path: pytest.fail("a file was written"))
    assert download("mvtec", mvtec, tmp_path) == tmp_path / "mvtec"
    assert "is already in" in capsys.readouterr().out


def test_only_archives_that_are_missing_are_fetched(server: Server, tmp_path: Path) -> None:
    first, second = serve(server, make_zip({"1.png": b"1"}), "/1"), serve(server, make_zip({"2.png": b"2"}), "/2")
    second_content = server.files.pop("/2")
    with pytest.raises(DownloadError, match="404"):
        download("set", about(first, second), tmp_path, True)
    server.files["/2"] = second_content
    server.asked.clear()
    assert tree(download("set", about(first, second), tmp_path, True)) == {"1.png": b"1", "2.png": b"2"}
    assert server.asked == [("/2", None)]


def test_an_archive_never_overwrites_another_s_file(server: Server, tmp_path: Path) -> None:
    first, second = serve(server, make_zip({"1.png": b"1"}), "/1"), serve(server, make_zip({"1.png": b"2"}), "/2")
    with pytest.raises(NoRoomError, match=re.escape(f"would overwrite {tmp_path / 'set' / '1.png'}. Move that away")):
        download("set", about(first, second), tmp_path, True)
    assert tree(tmp_path / "set") == {"1.png": b"1"}
    assert kept(tmp_path / "set") == ["2-2", "done.json", "unfinished"]  # a part of the set


def test_without_a_link_it_says_where_to_get_it_and_where_to_put_it(tmp_path: Path) -> None:
    note = "Unpack both archives."
    with pytest.raises(DownloadError) as error:
        download("mvtec", about(note=note), tmp_path, True)
    home = tmp_path / "mvtec"
    expected = f"no direct public link. Get it from https://mvtec.example and unpack it to {home}. {note}"
    assert str(error.value) == f"MVTec AD has {expected}"
    assert not home.exists()


@pytest.mark.parametrize("confirm", [None, lambda question: False])
def test_without_the_licence_nothing_is_fetched(
    confirm: Callable[[str], bool] | None, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DownloadError, match=r"CC BY-NC-SA 4\.0.*kanoclip data download mvtec --accept-license"):
        download("mvtec", about(serve(server, make_zip(FILES))), tmp_path, confirm=confirm)
    assert capsys.readouterr().out == "MVTec AD\nLicence: CC BY-NC-SA 4.0\nhttps://mvtec.example\n"
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_yes_accepts_the_licence_and_is_not_asked_for_twice(server: Server, tmp_path: Path) -> None:
    questions: list[str] = []
    mvtec = about(serve(server, make_zip(FILES)))
    download("mvtec", mvtec, tmp_path / "1", confirm=lambda question: not questions.append(question))  # type: ignore[func-returns-value]
    assert questions == ["Do you accept the licence of MVTec AD?"]
    download("mvtec", mvtec, tmp_path / "2", accept_license=True, confirm=questions.append)  # type: ignore[arg-type]
    assert len(questions) == 1


@pytest.mark.parametrize("validator", [etag, lambda body: {"Last-Modified": "Mon, 05 Oct 2026"}, lambda body: {}])
def test_a_dropped_connection_is_resumed(
    validator: Callable[[bytes], dict[str, str]], server: Server, tmp_path: Path, no_waiting: list[float]
) -> None:
    server.headers, server.drop_at = validator, [10_000, 20_000]
    assert tree(download("mvtec", about(serve(server, make_zip(FILES))), tmp_path, True)) == FILES
    assert server.asked == [("/mvtec.zip", span) for span in (None, "bytes=10000-", "bytes=30000-")]
    assert no_waiting == [module.BACKOFF, module.BACKOFF]  # both brought something new


def test_the_next_call_resumes_too(server: Server, tmp_path: Path, no_waiting: list[float]) -> None:
    archive = serve(server, make_zip(FILES))
    begin(server, archive, tmp_path, 10_000)
    assert no_waiting == [1, 2, 4, 8]
    assert tree(download("mvtec", about(archive), tmp_path, True)) == FILES
    assert server.asked == [("/mvtec.zip", "bytes=10000-")]
    assert kept(tmp_path / "mvtec") == ["done.json"]


@pytest.mark.parametrize("validator", [etag, lambda body: {}])
@pytest.mark.parametrize("strict", [True, False])
def test_a_file_that_changed_on_the_server_is_begun_again(
    strict: bool, validator: Callable[[bytes], dict[str, str]], server: Server, tmp_path: Path
) -> None:
    server.strict, server.headers = strict, validator
    begin(server, serve(server, make_zip(FILES)), tmp_path, 10_000)
    new = make_zip(FILES | {"new.png": b"new"})
    assert tree(download("mvtec", about(serve(server, new)), tmp_path, True)) == FILES | {"new.png": b"new"}
    assert server.asked[0] == ("/mvtec.zip", "bytes=10000-")


def test_a_file_that_became_shorter_than_what_arrived_is_begun_again(server: Server, tmp_path: Path) -> None:
    server.strict = False
    begin(server, serve(server, make_zip(FILES)), tmp_path, 10_000)
    assert tree(download("mvtec", about(serve(server, make_zip({"1": b"1"}))), tmp_path, True)) == {"1": b"1"}
    assert [span for _, span in server.asked] == ["bytes=10000-", None]  # 416 in between


def test_a_weak_etag_is_no_proof(server: Server, tmp_path: Path) -> None:
    server.headers = lambda body: {"ETag": 'W/"1"'}
    archive = serve(server, make_zip(FILES))
    begin(server, archive, tmp_path, 10_000)
    note = json.loads((tmp_path / "mvtec" / ".download" / "1-mvtec.zip.json").read_text())
    assert note == {"url": archive.url, "validator": "", "size": len(server.files["/mvtec.zip"])}


def test_another_address_is_not_resumed_from_the_first_one_s_bytes(server: Server, tmp_path: Path) -> None:
    begin(server, serve(server, make_zip(FILES)), tmp_path, 10_000)
    archive = serve(server, make_zip({"1": b"1"}), "/2026/mvtec.zip")
    assert tree(download("mvtec", about(archive), tmp_path, True)) == {"1": b"1"}
    assert server.asked == [("/2026/mvtec.zip", None)]


def test_a_server_without_ranges_is_asked_from_the_start(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    archive = serve(server, make_zip(FILES))
    begin(server, archive, tmp_path, 10_000)
    assert tree(download("mvtec", about(archive), tmp_path, True)) == FILES
    assert server.asked == [("/mvtec.zip", "bytes=10000-")]


def test_a_server_without_ranges_that_always_drops_is_given_up(
    server: Server, tmp_path: Path, no_waiting: list[float]
) -> None:
    server.ranges, server.drop_at = False, [10_000] * 20
    with pytest.raises(DownloadError, match=r"give the same command again \(10,000 bytes are kept\)"):
        download("mvtec", about(serve(server, make_zip(FILES))), tmp_path, True)
    assert no_waiting == [1, 2, 4, 8]
    assert len(server.asked) == module.RETRIES + 1


def test_all_bytes_that_arrived_before_a_kill_need_no_request(server: Server, tmp_path: Path) -> None:
    archive = serve(server, content := make_zip(FILES))
    begin(server, archive, tmp_path, 10_000)
    (tmp_path / "mvtec" / ".download" / "1-mvtec.zip.part").write_bytes(content)
    assert tree(download("mvtec", about(archive), tmp_path, True)) == FILES
    assert server.asked == []


def test_a_length_that_the_server_does_not_say_does_no_harm(server: Server, tmp_path: Path) -> None:
    server.headers = lambda body: {"Content-Length": ""}
    assert tree(download("mvtec", about(serve(server, make_zip(FILES))), tmp_path, True)) == FILES


def test_a_file_that_is_stored_compressed_is_not_decoded(server: Server, tmp_path: Path) -> None:
    server.headers = lambda body: {"Content-Encoding": "gzip"}  # as Apache says of every .tar.gz
    assert tree(download("mvtec", about(serve(server, make_tar(FILES, "w:gz"), "/m.tar.gz")), tmp_path, True)) == FILES


def test_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    archive = serve(server, make_zip(FILES))
    moved = archive._replace(url=f"{server.url}/moved/mvtec.zip")
    assert tree(download("mvtec", about(moved), tmp_path, True)) == FILES


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, no_waiting: list[float]) -> None:
    server.answers = [503, 429, 204]
    assert tree(download("mvtec", about(serve(server, make_zip(FILES))), tmp_path, True)) == FILES
    assert no_waiting == [1, 2, 4]


@pytest.mark.parametrize(
    ("url", "why"),
    [("{}/gone.zip", "the server answered 404"), ("{}/ftp", "ftp://"), ("{}/file", "file://"),
     ("ftp://a/b.zip", "protocol"),
     ("file:///etc/passwd", "protocol"), ("http://a:b/c.zip", "port")],
)  # fmt: skip
def test_a_dead_or_forbidden_link_is_told_at_once_and_leaves_nothing(
    url: str, why: str, server: Server, tmp_path: Path, no_waiting: list[float]
) -> None:
    with pytest.raises(DownloadError, match=rf"Cannot download .*{why}.*look for a new link at https://mvtec.example"):
        download("mvtec", about(Archive(url.format(server.url))), tmp_path, True)
    assert no_waiting == []
    assert list(tmp_path.iterdir()) == []


def test_no_connection_is_told_after_a_few_attempts(server: Server, tmp_path: Path, no_waiting: list[float]) -> None:
    with pytest.raises(DownloadError, match=r"Cannot download http://127\.0\.0\.1:1/a\.zip: .*check the connection"):
        download("mvtec", about(Archive("http://127.0.0.1:1/a.zip")), tmp_path, True)
    assert no_waiting == [1, 2, 4, 8]


def test_a_wrong_checksum_names_both_and_deletes_the_file(server: Server, tmp_path: Path) -> None:
    archive = serve(server, content := make_zip(FILES))._replace(sha256="0" * 64)
    with pytest.raises(DownloadError, match=f"has sha256 {sha(content)}, not {'0' * 64}: .* It is deleted"):
        download("mvtec", about(archive), tmp_path, True)
    assert tree(tmp_path / "mvtec") == {}
    assert kept(tmp_path / "mvtec") == []


def test_an_unknown_checksum_is_told(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = serve(server, content := make_zip(FILES))._replace(sha256=None)
    home = download("mvtec", about(archive), tmp_path, True)
    assert f"{archive.url}: sha256 {sha(content)}. None is published, so it could not be" in capsys.readouterr().out
    assert json.loads((home / ".download" / "done.json").read_text())[archive.url]["sha256"] == sha(content)


def test_a_disk_too_small_for_the_download_is_told_before_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 9, 1000))
    archive = serve(server, content := make_zip(FILES))
    with pytest.raises(NoRoomError, match=rf"needs {len(content):,} bytes; .* has 1,000 free\. Make room"):
        download("mvtec", about(archive), tmp_path, True)
    monkeypatch.undo()
    assert tree(download("mvtec", about(archive), tmp_path, True)) == FILES


@pytest.mark.parametrize(
    "content", [make_zip(FILES), make_tar(FILES), make_tar(FILES, "w:gz")], ids=["zip", "tar", "tar.gz"]
)
def test_a_disk_too_small_for_the_files_keeps_the_archive(
    content: bytes, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = serve(server, content)
    with monkeypatch.context() as patch:
        free = iter([10**9, 43_000])
        patch.setattr(shutil, "disk_usage", lambda path: Usage(9, 9, next(free)))
        with pytest.raises(NoRoomError, match=r" files of 43,99\d bytes or more; .* 43,000 bytes are free\. Make room"):
            download("mvtec", about(archive), tmp_path, True)
    assert tree(tmp_path / "mvtec") == {}
    assert kept(tmp_path / "mvtec") == ["1-mvtec.zip"]
    server.asked.clear()
    assert tree(download("mvtec", about(archive), tmp_path, True)) == FILES
    assert server.asked == []


@pytest.mark.parametrize("limit", ["bytes", "files"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_that_holds_too_much_is_refused(
    make: Callable[..., bytes], limit: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 2 if limit == "files" else 99)
    monkeypatch.setattr(archives, "MAX_BYTES", 2 if limit == "bytes" else 99)
    archive = serve(server, make({str(i): b"x" for i in range(3)}))
    with pytest.raises(NoRoomError, match=rf"3 files of 3 bytes .*unpack it to {re.escape(str(tmp_path / 'mvtec'))}"):
        download("mvtec", about(archive), tmp_path, True)
    assert tree(tmp_path / "mvtec") == {}


def test_a_zip_bomb_is_refused_before_a_byte_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = make_zip({f"{i}.png": bytes(2_000_000) for i in range(5)})
    assert len(bomb) < 20_000
    monkeypatch.setattr(archives, "MAX_BYTES", 9_999_999)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *args: pytest.fail("a member was opened"))
    with pytest.raises(NoRoomError, match="10,000,000 bytes"):
        download("mvtec", about(serve(server, bomb)), tmp_path, True)


@pytest.mark.parametrize("claimed", [10, 3_000_000])
def test_a_zip_that_lies_about_its_sizes_is_stopped_at_what_it_said(
    claimed: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = (2_000_000).to_bytes(4, "little")
    lie = make_zip({"1.png": b"1" * 2_000_000}).replace(true, claimed.to_bytes(4, "little"))
    written: list[int] = []
    size = archives.size_of
    monkeypatch.setattr(archives, "MAX_BYTES", claimed)
    for place in (archives, module):
        monkeypatch.setattr(place, "size_of", lambda path: written.append(size(path)) or size(path))  # type: ignore[func-returns-value]
    with pytest.raises(DownloadError, match=r"is damaged: .*1\.png.* It is deleted"):
        download("mvtec", about(serve(server, lie)), tmp_path, True)
    assert max(written) <= max(2_000_000, len(lie))
    assert tree(tmp_path / "mvtec") == {}
    assert kept(tmp_path / "mvtec") == []


LEADS_ELSEWHERE = [
    "../evil",
    "a/../../evil",
    "/evil",
    "C:/evil",
    "a/C:evil",
    "..\\evil",
    "a\\evil",
    ".download/done.json",
]


@pytest.mark.parametrize("name", LEADS_ELSEWHERE)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_path_out_of_the_folder_is_refused(
    make: Callable[..., bytes], name: str, server: Server, tmp_path: Path
) -> None:
    expected = re.escape(f"was not unpacked, for {name!r} is a path that leads elsewhere")
    with pytest.raises(DownloadError, match=expected):
        download("mvtec", about(serve(server, make(FILES | {name: b"evil"}))), tmp_path / "a" / "b", True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("member", "what"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc"}, "link"),
        ({"type": tarfile.LNKTYPE, "linkname": "license.txt"}, "link"),
        ({"type": tarfile.FIFOTYPE}, "device"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "device"),
    ],
)
def test_a_tar_with_links_or_devices_is_refused(
    member: dict[str, Any], what: str, server: Server, tmp_path: Path
) -> None:
    content = make_tar(FILES, "w:gz", name="bottle/evil", **member)
    with pytest.raises(DownloadError, match=f"'bottle/evil' is a {what}"):
        download("mvtec", about(serve(server, content)), tmp_path, True)
    assert tree(tmp_path / "mvtec") == {}


def test_a_zip_with_links_is_refused(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO(make_zip(FILES))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo("bottle/evil")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError, match="'bottle/evil' is a link"):
        download("mvtec", about(serve(server, buffer.getvalue())), tmp_path, True)
    assert tree(tmp_path / "mvtec") == {}


def test_an_encrypted_zip_is_told(server: Server, tmp_path: Path) -> None:
    content = bytearray(make_zip({"1.png": b"1"}))
    content[6] |= 1  # of the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # of the list at the end
    with pytest.raises(DownloadError, match=r"'1\.png' is a file with a password"):
        download("mvtec", about(serve(server, bytes(content))), tmp_path, True)


@pytest.mark.parametrize(
    "content",
    [
        make_zip(FILES)[:-9_000],
        make_zip(FILES).replace(b"bottle/test/hole", b"bottle/test/HOLE", 1),
        make_tar(FILES)[:30_000],
        make_tar(FILES)[: 512 + 4096],  # all of the first member, and nothing after it
        make_tar(FILES, "w:gz")[:-9_000],
        make_tar(FILES, "w:xz")[:-9_000],
        gzip.compress(b"not a tar", mtime=0),
        b"<!DOCTYPE html> Please log in",
        b"",
    ],
    ids=["zip cut", "zip bent", "tar cut", "tar of one", "tar.gz cut", "tar.xz cut", "no tar", "page", "empty"],
)
def test_a_damaged_archive_is_deleted_and_nothing_of_it_is_left(content: bytes, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"(is damaged: |is neither zip nor tar: ).*It is deleted"):
        download("mvtec", about(serve(server, content)), tmp_path, True)
    assert tree(tmp_path / "mvtec") == {}
    assert kept(tmp_path / "mvtec") == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device", "x")])
def test_an_interrupted_unpacking_leaves_nothing_but_the_archive(
    stop: BaseException, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = serve(server, make_tar(FILES))
    copies: list[int] = []

    copyfileobj = shutil.copyfileobj

    def copy(*args: Any) -> None:
        copies.append(1)
        if len(copies) == 2:
            raise stop
        copyfileobj(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfileobj", copy)
        expected = DownloadError if isinstance(stop, OSError) else KeyboardInterrupt
        with pytest.raises(
            expected, match="Cannot use x: No space left on device" if expected is DownloadError else ""
        ):
            download("mvtec", about(archive), tmp_path, True)
    assert tree(tmp_path / "mvtec") == {}
    assert kept(tmp_path / "mvtec") == ["1-mvtec.zip"]
    server.asked.clear()
    assert tree(download("mvtec", about(archive), tmp_path, True)) == FILES
    assert server.asked == []


def test_what_a_killed_unpacking_left_is_cleaned(server: Server, tmp_path: Path) -> None:
    left = tmp_path / "mvtec" / ".download" / "unpacking" / "bottle" / "half.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert tree(download("mvtec", about(serve(server, make_zip(FILES))), tmp_path, True)) == FILES


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_move_into_place_that_was_killed_is_finished(
    moved: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mvtec = about(serve(server, make_zip(FILES)))
    replace, moves = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if "unpacking" in path.parts:
            moves.append(path)
            if len(moves) > moved:
                raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        if moved < 3:
            with pytest.raises(KeyboardInterrupt):
                download("mvtec", mvtec, tmp_path, True)
            assert len(tree(tmp_path / "mvtec")) == moved
        else:
            download("mvtec", mvtec, tmp_path, True)
    server.asked.clear()
    assert tree(download("mvtec", mvtec, tmp_path, True)) == FILES
    assert server.asked == []
    assert kept(tmp_path / "mvtec") == ["done.json"]


def test_a_person_s_own_files_are_left_alone(server: Server, tmp_path: Path) -> None:
    own = tmp_path / "mvtec" / "bottle" / "own.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    (tmp_path / "mvtec" / ".DS_Store").touch()  # is not counted
    with pytest.raises(DownloadError, match=r"already holds files .*\(bottle\).*kanoclip data check mvtec"):
        download("mvtec", about(serve(server, make_zip(FILES))), tmp_path, True)
    assert tree(tmp_path / "mvtec") == {"bottle/own.png": b"own", ".DS_Store": b""}
    assert server.asked == []


def test_a_data_set_whose_files_were_deleted_is_fetched_again(server: Server, tmp_path: Path) -> None:
    mvtec = about(serve(server, make_zip(FILES)))
    home = download("mvtec", mvtec, tmp_path, True)
    shutil.rmtree(home / "bottle")
    with pytest.raises(DownloadError, match=re.escape(f"{home} lacks bottle. Delete the whole folder")):
        download("mvtec", mvtec, tmp_path, True)
    (home / "license.txt").unlink()
    assert tree(download("mvtec", mvtec, tmp_path, True)) == FILES


def test_another_edition_is_not_mixed_with_the_one_that_is_there(server: Server, tmp_path: Path) -> None:
    old = serve(server, make_zip(FILES))
    home = download("mvtec", about(old), tmp_path, True)
    for new in (old._replace(sha256="0" * 64), serve(server, make_zip(FILES), "/2026.zip")):
        with pytest.raises(DownloadError, match=re.escape(f"{home} holds another edition, from {old.url}. Move it")):
            download("mvtec", about(new), tmp_path, True)


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    with pytest.raises(DownloadError, match=re.escape(f"Cannot use {tmp_path / 'root' / 'mvtec'}")):
        download("mvtec", about(serve(server, make_zip(FILES))), tmp_path / "root", True)


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"sparse"]
)
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_whose_header_is_as_large_as_a_film_is_refused_before_it_is_read(
    kind: bytes, mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "mvtec.tar"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("x")
        info.size = 3_000_000
        if kind == b"sparse":  # a list of pieces without an end
            info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        else:
            info.type = kind
        archive.addfile(info, io.BytesIO(b"99999999\n" + b"1\n" * 1_500_000))
    with pytest.raises(DownloadError, match=r"tells too much of its files\. It is deleted"):
        archives.unpack(path, tmp_path / "mvtec")
    assert not path.exists()


def test_a_zip_whose_list_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mvtec.zip"
    path.write_bytes(make_zip({str(i): b"" for i in range(5_000)}))
    monkeypatch.setattr(archives, "MAX_LIST", 200_000)
    with pytest.raises(DownloadError, match="tells too much of its files"):
        archives.unpack(path, tmp_path / "mvtec")
    assert not path.exists()


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"a": b"1", "a/b": b"2"}, "a file in it is also a folder"),
        ({"a/b": b"2", "a": b"1"}, "a file in it is also a folder"),
        ({"x" * 256 + "/1.png": b"1"}, "name of more than 255 bytes"),
        ({"\u5b57" * 86: b"1"}, "name of more than 255 bytes"),
        ({"a/\x1b[31m.png": b"1"}, r"'a/\\x1b\[31m.png' is a name with control characters"),
    ],
)
def test_names_that_no_disk_can_have_are_refused_and_the_archive_is_not_tried_again(
    make: Callable[..., bytes], files: dict[str, bytes], why: str, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match=f"{why}.* It is deleted") as error:
        download("mvtec", about(serve(server, make(files))), tmp_path, True)
    assert len(str(error.value)) < 700
    assert kept(tmp_path / "mvtec") == []


def test_an_answer_without_an_end_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1_000_000)
    with pytest.raises(DownloadError, match=r"/endless sends more than 1,000,000 bytes\. Look for a new link"):
        download("mvtec", about(Archive(f"{server.url}/endless")), tmp_path, True)
    assert all(path.stat().st_size < 10_000 for path in tmp_path.rglob("*"))


def test_what_a_server_says_controls_no_terminal(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="Cannot download") as error:
        download("mvtec", about(Archive(f"{server.url}/escape")), tmp_path, True)
    assert "\x1b" not in str(error.value)


@pytest.mark.slow
def test_it_is_whole_or_told_whenever_it_is_killed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = serve(server, make_zip({"mvtec/a/test/good/1.png": b"1", "mvtec/a/test/hole/1.png": b"2"}), "/1.zip")
    second = serve(server, make_tar({"mvtec/a/ground_truth/hole/1_mask.png": b"3"}), "/2.tar")
    published = about(first, second)

    class Small(Tree):
        about = published
        name = "set"
        folders = ("mvtec",)
        images = r"(?P<category>\w+)/test/(?P<defect>\w+)/(?P<stem>\d+)\.png"

    told = []
    for moment in range(1, 1000):
        root = tmp_path / str(moment)
        root.mkdir()
        if not killed_at(moment, root, lambda root=root: download("set", published, root, True)):
            break
        data = Small(root=root)
        try:
            assert len([path for path in data.find()[1] if path.endswith(".png")]) == 3
        except MissingError:
            told.append("absent")
        except DamagedDataError as error:
            told.append(str(error).partition(": ")[2].partition(str(root))[0])
        else:
            told.append("whole")
        assert len(tree(download("set", published, root, True))) == 3
        assert len(data.find()[1]) == 3
        assert kept(root / "set") == ["done.json"]
    assert moment > 40
    stopped = "its download was stopped. To go on: kanoclip data download set --root "
    assert [kind for kind, _ in groupby(told)] == ["absent", stopped, "whole"]


def killed_at(moment: int, root: Path, act: Callable[[], object]) -> bool:
    """Act in a process that is killed before its n-th change of what is below a folder; whether it was."""
    child = os.fork()
    if child == 0:
        left = [moment]

        def watch(event: str, args: tuple[Any, ...]) -> None:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
            writes = event == "open" and args[2] and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if (changes or writes) and str(root) in str(args[0]):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0
