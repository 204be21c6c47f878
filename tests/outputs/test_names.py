import csv
import io

import pytest

from kanoclip.outputs.names import csv_text, file_name, markdown, read_csv


def test_a_name_is_kept_unless_it_is_too_long_and_then_stays_apart_from_others():
    assert file_name("缺口", ".png") == "缺口.png"
    assert file_name("x" * 251, ".png") == "x" * 251 + ".png"
    long = [file_name("缺" * 100 + end, ".png") for end in "ab"]
    assert long[0] != long[1]
    assert all(len(name.encode()) <= 255 and name.endswith(".png") and name.startswith("缺" * 70) for name in long)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@SUM(1)", "\tx", "\rx", "\nx", "'x", "''", "a=1", "", 'x\ry,"'])
def test_no_cell_begins_like_a_formula_and_each_comes_back(tmp_path, text):
    (tmp_path / "x.csv").write_bytes(csv_text([["name", "score"], [text, -0.5]]).encode())
    assert read_csv(tmp_path / "x.csv") == [{"name": text, "score": "-0.5"}]
    (_, (cell, _)) = csv.reader(io.StringIO(csv_text([["name", "score"], [text, -0.5]]), newline=""))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("[x](javascript:y)", r"[x\](javascript:y)"),
        ("*a* `b` _c_ d_e", r"\*a\* \`b\` \_c\_ d_e"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text, shown):
    assert markdown(text) == shown
