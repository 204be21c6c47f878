"""The house: what a room may import, and how large a file may grow."""

import ast
from pathlib import Path

import pytest

import kanoclip

PACKAGE = Path(kanoclip.__file__).parent
ROOMS = [
    "types", "ranks", "data", "backbone", "prompts", "knowledge", "adapter", "interaction", "scoring", "tiling",
    "losses", "metrics", "models", "outputs", "registry", "runs", "__main__", "arguments", "terminal", "cli",
    "specs", "plan", "processes", "benchmark", "benchmark_verb", "datasets", "knowledge_verb",
]  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kanoclip."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    late = {
        "__main__": {"arguments", "terminal", "cli", "benchmark_verb", "datasets", "knowledge_verb"}
    }  # imported inside a function, when a verb needs them
    allowed = set(ROOMS[: ROOMS.index(room(path)) + 1]) | late.get(room(path), set())
    assert imports(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_has_more_than_300_lines_and_each_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))


def test_folders_are_one_deep_and_nothing_is_called_utils() -> None:
    assert max(len(path.relative_to(PACKAGE).parts) for path in FILES) == 2
    assert not [path for path in FILES if "util" in path.name]
