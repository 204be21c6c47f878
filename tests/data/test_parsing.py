"""YAML and JSON made to do harm are refused at once; names stay names."""

import pytest

from kanoclip.data.parsing import UnreadableTextError, local_path, read_json, read_yaml
from kanoclip.types import KanoclipError, printable

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{one}: &{one} [{', '.join(['*' + before] * 9)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "x0: &x0 {k: 1}\n" + "".join(f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}\n" for i in range(1, 60))
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, "stands for more than 10,000,000 characters"),
        (MERGES, "stands for more than 10,000,000 characters"),
        (CHAIN, "is nested more than 100 levels deep"),
        ("a: &a [*a]", "is nested more than 100 levels deep"),
        ("[" * 200 + "]" * 200, "is nested more than 100 levels deep"),
        ("[" * 100_000, "is not YAML: .*maximum nesting depth"),
        ("a: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML: could not determine a constructor"),
        ("a: [1", "is not YAML: .*line 2"),
        (b"a: caf\xe9", "is not UTF-8 text"),
    ],
)
def test_yaml_that_would_do_harm_is_refused_at_once(text, why) -> None:
    with pytest.raises(UnreadableTextError, match=rf"^bad\.yaml {why}"):
        read_yaml(text, "bad.yaml")


def test_aliases_of_a_usual_size_are_read() -> None:
    assert read_yaml("a: &a {k: 1}\nb: {<<: *a, m: 2}\nc: [*a, *a]", "") == {
        "a": {"k": 1}, "b": {"k": 1, "m": 2}, "c": [{"k": 1}, {"k": 1}],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["01", "1e3", "no", "0x10", "1_0", "2024-01-01", "1:30", ".5"])
def test_a_category_and_a_label_are_names_as_on_the_command_line(name) -> None:
    assert read_yaml(f"init_args: {{category: {name}}}", "") == {"init_args": {"category": name}}
    assert read_yaml(f"category: [{name}, bolt]", "") == {"category": [name, "bolt"]}
    assert read_yaml(f"categories: {{{name}: {{normal: [a]}}}}", "") == {"categories": {name: {"normal": ["a"]}}}
    assert read_yaml(f"label: {name}", "") == {"label": name}


def test_other_values_are_numbers_as_jsonargparse_reads_them() -> None:
    said = read_yaml("{a: 1e-3, b: 0.5, c: 12, d: no, e: 2024-01-01, f: null, g: .inf, category: null, h: 1.}", "")
    assert said == {"a": 0.001, "b": 0.5, "c": 12, "d": False, "e": "2024-01-01", "f": None, "g": float("inf"),
                    "category": None, "h": 1.0}  # fmt: skip


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read_yaml("{root: ~/x, list: [~/y], text: a ~/z}", "") == {
        "root": "/home/me/x", "list": ["/home/me/y"], "text": "a ~/z",
    }  # fmt: skip
    assert str(local_path("~/x", "--output")) == "/home/me/x"


def test_an_address_is_no_place_on_this_machine() -> None:
    with pytest.raises(KanoclipError, match=r"--output s3://bucket/x is an address\. Give a folder or file"):
        local_path("s3://bucket/x", "--output")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 5000, "", "[1"])
def test_json_that_would_do_harm_is_a_value_error(text) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of several kinds
        read_json(text)


def test_text_from_outside_is_one_line_without_control_characters() -> None:
    assert printable("Öl \U0001f600 \x1b[2J\r\n\u202e\u2028\udcff") == (
        "Öl \U0001f600 \\x1b[2J\\r\\n\\u202e\\u2028\\udcff"
    )
    cut = printable("a" * 300_000_000)
    assert len(cut) < 4100
    assert "[... 299,996," in cut
