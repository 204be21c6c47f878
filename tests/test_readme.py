"""The README: short, true in what it names, with the two commands at its top. Its code is run by test_docs.py."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_has_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 120


def test_its_files_are_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert "docs/overlay.jpg" in links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("text", ["pip install . && kanoclip benchmark --config", 'pip install ".[test]" && python -m'])
def test_the_two_commands_stand_at_the_top(text: str) -> None:
    assert text in README[:2000]


def test_the_tests_of_the_repository_end_by_its_command() -> None:
    (command,) = re.findall(r'pip install "\.\[test\]" && (.*)', README)
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").rstrip().endswith(command)
