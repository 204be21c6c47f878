"""The house: what a room may import, and how large a file may grow."""

import ast
import re
from pathlib import Path

import pytest

import kanoclip

PACKAGE = Path(kanoclip.__file__).parent
ROOMS = ["types", "registry", "ranks", "data", "backbone", "heads", "knowledge", "metrics", "models", "outputs",
         "inspector", "verbs", "__main__"]  # fmt: skip
"""From the first to the last; a room imports only itself and rooms before it."""
DEEP = {"data/sets", "data/drawn", "models/rivals"}
FILES = sorted(PACKAGE.rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by a relative name"
            found |= {f"{node.module}.{one.name}" for one in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
    modules = {path.with_suffix("") if path.stem != "__init__" else path.parent for path in FILES}
    known = {".".join(("kanoclip", *module.relative_to(PACKAGE).parts)) for module in modules}
    return {name for name in found if name in known and name != "kanoclip"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    if path != PACKAGE / "__init__.py":
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert {name.split(".")[1] for name in imports(path)} <= set(ROOMS[: ROOMS.index(room) + 1])


def test_no_file_imports_itself_by_way_of_others() -> None:
    name = {
        path: ".".join(("kanoclip", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in FILES
    }
    arrows = {name[path]: imports(path) - {name[path]} for path in FILES if name[path] != "kanoclip"}
    while free := {module for module, taken in arrows.items() if not taken & arrows.keys()}:
        arrows = {module: taken for module, taken in arrows.items() if module not in free}
    assert not arrows, f"a circle among {sorted(arrows)}"


def test_there_are_at_most_14_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert len(rooms) <= 14
    assert {name.removesuffix(".py") for name in rooms} <= {"__init__", *ROOMS}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_file_has_more_than_300_lines_and_each_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))


def test_folders_are_two_deep_where_stated_alone_and_nothing_is_called_utils() -> None:
    deep = {path.parent.relative_to(PACKAGE).as_posix() for path in FILES if len(path.relative_to(PACKAGE).parts) > 2}
    assert deep <= DEEP
    assert not [path for path in FILES if "util" in path.name]


def test_the_wheel_has_every_package() -> None:
    listed = re.search(r"^packages = (\[.*\])$", (PACKAGE.parent / "pyproject.toml").read_text(), re.M)
    packages = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in FILES}
    assert listed
    folders = [PACKAGE.parent / "configs", *(path for path in (PACKAGE.parent / "configs").rglob("*") if path.is_dir())]
    configs = {".".join(("kanoclip", *path.relative_to(PACKAGE.parent).parts)) for path in folders}
    assert set(ast.literal_eval(listed[1])) == packages | configs
