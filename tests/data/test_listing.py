from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from kanoclip.data import listing
from kanoclip.data.listing import list_tree, remembered


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """Three files in two folders, folders an hour old, and a cache that keeps any list."""
    monkeypatch.setenv("KANOCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "WORTH_CACHING", 1)
    for name in ("a/2.png", "a/1.png", "b.txt", ".hidden", ".git/c.png"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    age(tmp_path / "tree")
    return tmp_path / "tree"


def age(root: Path) -> None:
    hour_ago = time.time() - 3600
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (hour_ago, hour_ago))


def cached(tree: Path) -> list[Path]:
    return list((tree.parent / "cache").rglob("*.json"))


def test_files_are_sorted_and_hidden_ones_left_out(tree):
    assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt"]


def test_the_list_is_taken_from_the_cache_until_a_folder_changes(tree, monkeypatch):
    list_tree(tree)
    assert len(cached(tree)) == 1
    monkeypatch.setattr(listing, "_walk", lambda root: pytest.fail("it was listed again"))
    assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt"]
    monkeypatch.undo()
    monkeypatch.setenv("KANOCLIP_CACHE", str(tree.parent / "cache"))
    (tree / "a/3.png").touch()
    assert list_tree(tree) == ["a/1.png", "a/2.png", "a/3.png", "b.txt"]


def test_a_folder_that_has_just_changed_is_not_trusted_yet(tree):
    (tree / "a/3.png").touch()
    list_tree(tree)
    assert cached(tree) == []


@pytest.mark.parametrize(
    "content", ['{"folders": {"', "[1]", '{"folders": 3}', '{"folders": {".": 0}, "files": 3}', "[" * 200_000, ""]
)
def test_a_damaged_cache_is_made_anew(tree, content):
    list_tree(tree)
    (file,) = cached(tree)
    file.write_text(content)
    assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt"]
    file.unlink()
    remembered("facts", tree, ["b.txt"], os.path.getsize)
    (file,) = cached(tree)
    file.write_text(content.replace("folders", "b.txt"))
    assert remembered("facts", tree, ["b.txt"], os.path.getsize) == {"b.txt": 0}


def test_a_list_of_other_things_than_files_is_made_anew(tree):
    list_tree(tree)
    (file,) = cached(tree)
    good = json.loads(file.read_text())
    for bad in (good | {"files": [1, None]}, good | {"folders": {"\0": 1}}):
        file.write_text(json.dumps(bad))
        assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt"]


def test_a_cache_that_cannot_be_written_stops_nothing(tree, monkeypatch):
    (tree.parent / "cache").write_text("a file where a folder should be")
    assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt"]


def test_a_link_back_to_the_tree_is_followed_once(tree):
    (tree / "loop").symlink_to(tree)
    assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt"]


def test_the_own_name_of_a_folder_goes_before_that_of_a_link(tree):
    for name in ("0", "z"):
        (tree / name).symlink_to(tree / "a")
    assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt"]


def deny(monkeypatch, name: str, folder: str) -> None:
    plain = getattr(os, name)

    def denied(path, *args, **options):
        if str(path).endswith(f"/{folder}"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *args, **options)

    monkeypatch.setattr(listing.os, name, denied)


@pytest.mark.parametrize("what", ["stat", "scandir"])
def test_a_folder_that_may_not_be_read_is_told_once_and_left_out(tree, monkeypatch, caplog, what):
    (tree / "lost+found").mkdir()
    age(tree)
    deny(monkeypatch, what, "lost+found")
    for _ in range(2):
        assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt"]
    assert caplog.messages == [f"{tree / 'lost+found'} may not be read, so it is left out."]
    assert cached(tree) == []  # it may be read tomorrow, and no time tells


def test_a_root_that_may_not_be_read_is_an_error(tree, monkeypatch):
    deny(monkeypatch, "scandir", "tree")
    with pytest.raises(PermissionError):
        list_tree(tree)


def test_a_link_to_nowhere_or_to_itself_is_a_file(tree):
    (tree / "loop").symlink_to("loop")
    (tree / "gone").symlink_to("nowhere")
    assert list_tree(tree) == ["a/1.png", "a/2.png", "b.txt", "gone", "loop"]


def test_the_place_of_the_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for own, shared, place in (
        ("~/x", "", "/home/me/x"),
        ("/fast", "/c", "/fast"),
        ("", "/c", "/c/kanoclip"),
        ("", "", "/home/me/.cache/kanoclip"),
    ):
        monkeypatch.setenv("KANOCLIP_CACHE", own)
        monkeypatch.setenv("XDG_CACHE_HOME", shared)
        assert listing.cache_folder() == Path(place)


def test_a_fact_is_computed_again_only_for_changed_files(tree):
    asked = []

    def nonempty(path: str) -> bool:
        asked.append(Path(path).name)
        return os.path.getsize(path) > 0

    assert remembered("full", tree, ["a/1.png", "a/2.png"], nonempty) == {"a/1.png": False, "a/2.png": False}
    (tree / "a/2.png").write_text("more")
    assert remembered("full", tree, ["a/1.png", "a/2.png"], nonempty) == {"a/1.png": False, "a/2.png": True}
    assert sorted(asked) == ["1.png", "2.png", "2.png"]


def test_two_files_that_exchange_their_names_are_seen_though_size_and_time_are_equal(tree):
    one, two = tree / "a/1.png", tree / "a/2.png"
    for path, text in ((one, "one"), (two, "two")):
        path.write_text(text)
        os.utime(path, ns=(10**18, 10**18))

    def read() -> list[str]:
        return list(remembered("texts", tree, ["a/1.png", "a/2.png"], lambda path: Path(path).read_text()).values())

    assert read() == ["one", "two"]
    one.rename(tree / "between")
    two.rename(one)
    (tree / "between").rename(two)
    for path in (one, two):
        os.utime(path, ns=(10**18, 10**18))
    assert read() == ["two", "one"]


def test_a_file_written_over_with_equal_size_and_time_is_seen(tree):
    file = tree / "b.txt"
    file.write_text("old")
    os.utime(file, ns=(10**18, 10**18))
    for text in ("old", "new"):
        file.write_text(text)
        os.utime(file, ns=(10**18, 10**18))
        assert remembered("texts", tree, ["b.txt"], lambda path: Path(path).read_text()) == {"b.txt": text}
