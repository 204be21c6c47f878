import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kanoclip.data.files import plain, read_json, sha256, unit_to_uint16, write_bytes, write_image, write_json


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_bytes(file, b"old")

    def full(self, data):
        with open(self, "wb") as target:
            target.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"Cannot write .*results.json: No space left"):
        write_bytes(file, b"new content")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    file, seen = tmp_path / "x.png", []
    rename = os.replace

    def look(source, target):
        seen.append((file.read_bytes(), Path(source).read_bytes(), Path(source).parent == tmp_path))
        rename(source, target)

    write_bytes(file, b"old")
    monkeypatch.setattr(os, "replace", look)
    write_bytes(file, b"new")
    assert seen == [(b"old", b"new", True)]
    assert file.read_bytes() == b"new"


def test_json_is_strict_and_shows_the_undefined_as_null(tmp_path):
    content = {"a": float("nan"), "b": torch.tensor([1.0, float("inf")]), 3: np.float32(0.5), "p": Path("x"), "c": dict}
    write_json(tmp_path / "x.json", content)

    def refuse(word):
        raise AssertionError(word)

    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert read == {"a": None, "b": [1.0, None], "3": 0.5, "p": "x", "c": "builtins.dict"}


def test_an_object_is_named_by_its_class():
    assert plain([torch.nn.Identity()]) == ["torch.nn.modules.linear.Identity"]


def test_a_colour_image_comes_back_as_it_was_written(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_image(tmp_path / "deep" / "er" / "x.png", image)
    assert np.array_equal(cv2.imread(str(tmp_path / "deep" / "er" / "x.png"))[..., ::-1], image)


def test_scores_fill_16_bits():
    assert unit_to_uint16(np.array([0, 0.5, 1, 2, -1, np.nan])).tolist() == [0, 32768, 65535, 65535, 0, 0]


def test_the_hash_is_the_one_of_sha256sum(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["\u5b57" * 80 + ".json", "\u5b57" * 83 + ".json", "x" * 251 + ".png"])
def test_any_name_that_a_disk_can_have_can_be_written(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


def test_what_a_rerun_trusts_is_on_the_disk_before_it_has_its_name_and_a_picture_need_not_be(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.fstat(handle).st_size) or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("renamed") or rename(*names))
    write_bytes(tmp_path / "x", b"12345")
    assert done == [5, "renamed", tmp_path.stat().st_size]  # the content, then the folder
    done.clear()
    write_image(tmp_path / "x.png", np.zeros((2, 2), np.uint8))
    assert done == ["renamed"]


@pytest.mark.parametrize("content", ["", "\0" * 9, '{"a": 1', "[" * 200_000, "[1]", "{}", '{"a": "1"}', "9" * 5000])
def test_json_that_is_damaged_counts_as_absent_and_that_is_said_once(tmp_path, caplog, content):
    file = tmp_path / "x.json"
    assert read_json(file, a=int) is None
    assert caplog.messages == []
    file.write_text(content)
    for _ in range(2):
        assert read_json(file, a=int) is None
    assert caplog.messages == [f"{file} is empty, damaged or of another version, so it counts as absent."]
    write_json(file, {"a": 1})
    assert read_json(file, a=int) == {"a": 1}


def test_pieces_become_one_file_or_none(tmp_path):
    file = tmp_path / "rows"
    write_bytes(file, (piece for piece in (b"a", b"bc")))
    assert file.read_bytes() == b"abc"

    def fails():
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"Cannot write .*rows: No space left"):
        write_bytes(file, fails())
    assert file.read_bytes() == b"abc"
    assert os.listdir(tmp_path) == ["rows"]
