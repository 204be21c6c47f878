"""What the README shows is run, small."""

import json
import re
from pathlib import Path

import pytest
import yaml

from kanoclip.__main__ import VERBS, main
from kanoclip.registry import NAMES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_every_config_and_verb_that_is_named_exists() -> None:
    for path in set(re.findall(r"configs/[\w/]+\.yaml", README)):
        assert (ROOT / path).is_file(), path
    assert set(re.findall(r"^kanoclip (\w+)", README, re.MULTILINE)) <= set(VERBS)


def test_every_registered_name_is_in_it() -> None:
    for kind, names in NAMES.items():
        for name in names:
            assert re.search(rf"\b{name}\b", README), f"{kind} {name}"


def test_the_python_example_runs(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    code = next(block for block in PYTHON if "trainer.fit" in block)
    quiet = "max_epochs=1, enable_progress_bar=False, logger=False, accelerator='cpu'"
    code = code.replace("images=16", "images=2, num_workers=0").replace("max_epochs=1", quiet)
    found: dict = {}
    exec(code, found)
    assert {"gear", "pill", "mean"} <= set(found["model"].results)


def test_a_component_of_ones_own_is_used_by_its_path(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_lab.py").write_text(next(block for block in PYTHON if "GatedAdapter" in block))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = re.search(r"`kanoclip (fit --config \S+ --model.adapter my_lab.GatedAdapter)`", README)
    assert command
    small = ["--data.images", "2", "--data.category", "ring", "--data.num_workers", "0", "--trainer.max_epochs", "1"]
    assert main([*command[1].split(), *small, "--trainer.enable_progress_bar", "false"]) == 0
    (record,) = tmp_path.glob("runs/fit/kanoclip/surfaces_auxiliary/*/run.json")
    assert json.loads(record.read_text())["categories"] == ["ring"]
    config = yaml.safe_load((record.parent / "config.yaml").read_text())
    assert config["model"]["init_args"]["adapter"]["class_path"] == "my_lab.GatedAdapter"


@pytest.mark.parametrize("text", ["pip install . && kanoclip benchmark --config", 'pip install ".[test]" && python -m'])
def test_the_two_commands_stand_at_the_top(text: str) -> None:
    assert text in README[:1500]
