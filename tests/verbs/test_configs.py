"""Configs by name: from any folder, and from a wheel as from a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kanoclip.types import MissingError
from kanoclip.verbs import configs
from kanoclip.verbs.arguments import prepare
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["kanoclip", "configs/kanoclip.yaml", "kanoclip.yaml"])
def test_a_config_that_ships_is_found_by_its_name_from_any_folder(name: str) -> None:
    assert configs.find(name) == str(ROOT / "configs" / "kanoclip.yaml")
    assert list(prepare(["fit", "--config", name]).configs) == [str(ROOT / "configs" / "kanoclip.yaml")]


def test_the_kind_of_config_need_not_be_said_where_it_is_known() -> None:
    assert configs.find("quickstart", "benchmarks") == str(ROOT / "configs" / "benchmarks" / "quickstart.yaml")
    assert configs.find("rivals/winclip", "benchmarks") == str(ROOT / "configs" / "rivals" / "winclip.yaml")
    words = prepare(["fit", "--config", "quickstart", "--trainer", "ddp"]).words()
    assert any(word.startswith("--trainer=") and '"strategy"' in word for word in words)


def test_a_file_wins_over_the_config_that_ships_and_a_folder_does_not(elsewhere: Path) -> None:
    (elsewhere / "kanoclip").mkdir()
    assert configs.find("kanoclip") == str(ROOT / "configs" / "kanoclip.yaml")
    (elsewhere / "quickstart").write_text("data: surfaces\n")
    assert configs.find("quickstart") == "quickstart"


@pytest.mark.parametrize(
    ("typed", "inside", "meant"),
    [("kanocilp", "", "kanoclip"), ("quickstrt", "benchmarks", "quickstart"), ("rival/winclip", "", "rivals/winclip")],
)
def test_a_mistyped_name_of_a_config_is_told_with_the_nearest(typed: str, inside: str, meant: str) -> None:
    with pytest.raises(MissingError, match=rf"No config at {typed}.*Did you mean '{meant}'\?.*kanoclip list configs"):
        configs.find(typed, inside)


def test_every_config_is_listed_with_what_it_says_of_itself(capsys) -> None:
    assert main(["list", "configs"]) == 0
    said = capsys.readouterr().out.splitlines()
    files = [path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml")]
    assert sorted(line.split()[0] for line in said[1:]) == sorted(files)
    assert all(len(line.split()) > 3 and "kanoclip fit" not in line for line in said[1:])


def test_a_wheel_holds_all_of_the_package_and_its_configs_work_from_an_empty_folder(elsewhere: Path) -> None:
    pytest.importorskip("setuptools", "77")
    source, empty = elsewhere / "source", elsewhere / "empty"
    empty.mkdir()
    for name in ("kanoclip", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(elsewhere)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(elsewhere.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("kanoclip/")}
        wheel.extractall(elsewhere / "installed")
    files = [path for name in ("kanoclip", "configs") for path in (source / name).rglob("*") if path.is_file()]
    paths = [path.relative_to(source).as_posix() for path in files]
    assert held == {f"kanoclip/{path}" if path.startswith("configs") else path for path in paths}
    env = {**os.environ, "PYTHONPATH": str(elsewhere / "installed")}
    typed = [sys.executable, "-m", "kanoclip", "benchmark", "--config", "quickstart", "--dry_run"]
    done = subprocess.run(typed, cwd=empty, env=env, capture_output=True, text=True)
    assert "1 fit" in done.stdout, done.stderr
