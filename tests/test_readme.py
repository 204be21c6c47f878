"""What the README shows is run, small."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from kanoclip.registry import NAMES
from kanoclip.verbs.plan import read_plan
from kanoclip.verbs.table import VERBS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


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


@pytest.fixture
def own_component(monkeypatch, tmp_path) -> Path:
    """The files that the README tells to write, in the folder where kanoclip is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_adapter.py").write_text(next(block for block in PYTHON if "class Gate" in block))
    (tmp_path / "my.yaml").write_text(next(block for block in YAML if "my_adapter.Gate" in block))
    return tmp_path


def test_a_component_of_ones_own_is_fitted_and_tested_by_its_path(own_component, monkeypatch) -> None:
    monkeypatch.syspath_prepend(own_component)
    wanted = r"^kanoclip (fit --config my\.yaml|test --data surfaces --model\.adapter \S+)$"
    fit, test = re.findall(wanted, README, re.MULTILINE)[-2:]
    small = ["--data.images", "2", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
    assert main([*fit.split(), *small, "--data.category", "ring", "--trainer.max_epochs", "1"]) == 0
    (record,) = own_component.glob("runs/fit/kanoclip/surfaces_auxiliary/*/run.json")
    config = yaml.safe_load((record.parent / "config.yaml").read_text())
    assert config["model"]["init_args"]["adapter"]["class_path"] == "my_adapter.Gate"
    heads = torch.load(record.parent / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert heads["adapter.gate"].abs().max() > 0  # it has learned
    assert main([*test.split(), *small, "--data.category", "gear"]) == 0
    (report,) = own_component.glob("runs/test/kanoclip/surfaces/*/results.json")
    assert json.loads(report.read_text())["components"]["adapter"] == "Gate"


def test_a_console_script_finds_a_module_where_it_is_run(own_component) -> None:
    script = (
        own_component / "bin" / "kanoclip"
    )  # what pip writes: its own folder is on the path, the current one is not
    script.parent.mkdir()
    script.write_text("import sys\nfrom kanoclip.verbs.table import main\nsys.exit(main())\n")
    options = ["fit", "--config", "my.yaml", "--model.adapter", "my_adapter.Missing"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 2
    assert "No module named" not in done.stderr
    assert "my_adapter" in done.stderr
    assert "Missing" in done.stderr


def test_the_example_of_a_benchmark_is_one(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_photos" / "normal").mkdir(parents=True)
    cv2.imwrite("my_photos/normal/a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "mine.yaml").write_text(next(block for block in YAML if "cheaper" in block))
    jobs = read_plan("mine.yaml", tmp_path / "out").jobs
    assert {job.label for job in jobs} == {"kanoclip_no_vv", "cheaper"}
    assert [one.label for one in jobs[0].data] == ["mvtec", "folder"]
    assert len(jobs) == 6


@pytest.mark.parametrize("text", ["pip install . && kanoclip benchmark --config", 'pip install ".[test]" && python -m'])
def test_the_two_commands_stand_at_the_top(text: str) -> None:
    assert text in README[:1500]
