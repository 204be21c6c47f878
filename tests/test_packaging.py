"""What the package declares is what it needs: dependencies, the files of a source distribution, who wrote what."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import kanoclip

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "kanoclip").rglob("*.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
NAMED = {"PIL": "pillow", "cv2": "opencv-python-headless", "open_clip": "open_clip_torch", "yaml": "pyyaml"}
"""Modules that do not have the name of what is installed for them."""
OF_OTHERS = {"export": {"onnx", "onnxscript"}, "siglip": {"transformers", "sentencepiece"}}
"""What torch and open_clip import on our behalf, by extra."""


def declared(key: str) -> list[str]:
    """What pyproject.toml lists under ``key``, without versions; tomllib is not in Python 3.10."""
    listed = re.search(rf"^{key} = (\[.*?\])\n", PYPROJECT, re.M | re.S)
    assert listed, key
    return [re.split(r"[\[<>=]", one)[0] for one in ast.literal_eval(listed[1])]


def imported(path: Path, top: bool = False) -> set[str]:
    """The modules that a file imports; with ``top`` those alone that are imported with it, not by a function of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node) for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
             for node in ast.walk(function)} if top else set()  # fmt: skip
    nodes = [node for node in ast.walk(tree) if id(node) not in inner]
    names = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def others(*paths: Path) -> set[str]:
    """What is installed for what these files import."""
    modules = set().union(*map(imported, paths)) - set(sys.stdlib_module_names) - {"kanoclip"}
    return {NAMED.get(module, module.replace("pillow_heif", "pillow-heif")) for module in modules}


def importers(module: str, top: bool = False) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in FILES if module in imported(path, top)}


def test_each_dependency_is_imported_and_what_is_imported_is_one() -> None:
    extras = {extra: set(declared(extra)) for extra in ("demo", "export", "heic", "knowledge", "siglip")}
    optional = {name for extra, names in extras.items() for name in names - OF_OTHERS.get(extra, set())}
    assert others(*FILES) == set(declared("dependencies")) | optional
    assert optional.isdisjoint(declared("dependencies"))


def test_each_dependency_says_its_oldest_version() -> None:
    lists = PYPROJECT[PYPROJECT.index("\ndependencies = [") : PYPROJECT.index("[project.scripts]")]
    listed = [one for one in re.findall(r'"([^"]+)"', lists) if not one.startswith("kanoclip[")]
    assert len(listed) > 40
    assert not [one for one in listed if ">=" not in one]


def test_albumentations_is_the_last_of_its_licence_and_imported_in_one_file() -> None:
    assert '"albumentations>=2.0,<2.1"' in PYPROJECT
    assert importers("albumentations") == {"kanoclip/data/transforms.py"}
    assert not importers("albucore")


def test_scipy_is_imported_by_three_functions_when_they_run() -> None:
    users = {"kanoclip/data/masks.py", "kanoclip/heads/hybrid.py", "kanoclip/metrics/calibration.py"}
    assert (importers("scipy"), importers("scipy", top=True)) == (users, set())


FIT = """
import sys
import kanoclip
loaded = {name.partition(".")[0] for name in sys.modules}
assert loaded <= {*sys.stdlib_module_names, "__main__", "kanoclip", *sys.argv[1:]}, loaded

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name == "scipy" or name.startswith("scipy."):
            frame, files = sys._getframe(), []
            while frame := frame.f_back:
                files.append(frame.f_code.co_filename)
            nearest = next(file for file in files if "importlib" not in file)
            assert "/kanoclip/" not in nearest.replace("\\\\", "/"), nearest

sys.meta_path.insert(0, Refused())
from kanoclip.verbs.table import main
small = ["--data.images", "2", "--data.num_workers", "0", "--data.category"]
quiet = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--model.backbone", "embedded"]
assert main(["fit", "--model", "kanoclip", "--data", "surfaces_auxiliary", *small, "ring", *quiet]) == 0
assert main(["test", "--data", "surfaces", *small, "gear", "--model.backbone", "embedded"]) == 0
"""


def test_import_loads_the_standard_library_alone_and_a_fit_asks_for_no_scipy(tmp_path: Path) -> None:
    """What torchmetrics and Albumentations import of it is theirs; both want it whatever we do."""
    (tmp_path / "fit.py").write_text(FIT)
    run: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True}
    names = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    bare = subprocess.run([sys.executable, "-c", names], **run, text=True, check=True).stdout.split()
    ran = subprocess.run([sys.executable, "fit.py", *bare], **run, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("key", ["dependencies", "demo", "export", "heic", "knowledge", "siglip", "notebooks"])
def test_docs_say_why_each_dependency_is_there(key: str) -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", page, flags=re.M)
    section = next(one for one in sections if one.startswith("Always" if key == "dependencies" else f"`{key}`"))
    assert re.findall(r"^\| `([\w-]+)`", section, re.M) == declared(key)


def test_a_source_distribution_holds_what_its_tests_need_and_no_leavings(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    source = tmp_path / "source"
    leavings = (".git", "runs", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis", ".venv*")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*leavings))
    (source / "kanoclip" / "__pycache__").mkdir(exist_ok=True)
    (source / "kanoclip" / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("kanoclip", "configs", "tests", "docs", "notebooks", "benchmarks", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    wanted |= {"README.md", "LICENSE", "CITATION.cff", "pyproject.toml"}
    assert wanted <= held
    assert not [name for name in held if "__pycache__" in name or name.endswith((".pyc", ".ckpt"))]


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == kanoclip.__version__
    assert cited["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2501.03786"
    changes = (ROOT / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.M)[0] == kanoclip.__version__


def test_type_checkers_are_told_of_the_hints() -> None:
    assert (ROOT / "kanoclip" / "py.typed").is_file()
    assert '"py.typed"' in PYPROJECT
