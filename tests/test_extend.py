"""What docs/extend.md shows is run, in its order, and does what the page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from documented import blocks, commands, smaller
from lightning import Trainer
from PIL import Image

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.registry import NAMES
from kanoclip.verbs.plan import read_plan
from kanoclip.verbs.table import main

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "extend.md"
PAGE = FILE.read_text(encoding="utf-8")
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu",
         "enable_model_summary": False, "max_epochs": 1}  # fmt: skip


@pytest.fixture
def shown(monkeypatch):
    module = ModuleType("my_lab")
    monkeypatch.setitem(sys.modules, "my_lab", module)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, vars(module))
    return module


def fitted(model):
    trainer = Trainer(**QUIET)
    trainer.fit(model, SurfacesAuxiliary(images=4, category=["ring"], num_workers=0))
    trainer.test(model, Surfaces(images=4, category=["pill"], num_workers=0), verbose=False)
    return trainer


def test_the_components_of_the_page_learn_in_kanoclip(shown) -> None:
    model = KAnoCLIP(
        EmbeddedBackbone(image_size=32), prompts=shown.Shifted(), tuning=shown.BiasTuning(), terms={"shift": 2.0}
    )
    fitted(model)
    assert model.tuning.vectors.detach().abs().max() > 0
    assert model.prompts.shift.weight.detach().abs().max() > 0


def test_the_model_of_the_page_is_fitted_and_tested(shown) -> None:
    model = shown.Small(EmbeddedBackbone(image_size=32))
    fitted(model)
    assert model.tuning.vectors.detach().abs().max() > 0
    assert torch.tensor(model.results["mean"]["pixel_auroc"]).isfinite()
    assert model.describe_components()["prompts"] == "Shifted"


def test_every_kind_has_its_contract_on_the_page() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert told == set(NAMES) - {"data", "model", "backbone"}


@pytest.fixture
def walk(monkeypatch, tmp_path):
    """A folder with the files that the four walks tell to write, where kanoclip is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    titled = [block for block in blocks(FILE) if block.title]
    for block in titled:
        (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    yield tmp_path
    for block in titled:
        sys.modules.pop(block.title.removesuffix(".py"), None)


def shown_command(beginning: str) -> list[str]:
    """The words of the command of the page that begins so, small."""
    lines = [line for block in blocks(FILE) for line in commands(block.text)]
    return smaller(next(line for line in lines if line.startswith(beginning)))


def test_a_data_set_of_ones_own_is_read_by_its_two_patterns(walk, capsys) -> None:
    for name, value in {"train/ok/0": 90, "test/ok/1": 90, "test/scratched/2": 90, "masks/2": 255}.items():
        path = walk / f"data/lids/round/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(path)
    assert main(shown_command("kanoclip data check")) == 0
    said = capsys.readouterr().out
    assert "3 images, 40 to 40 wide" in said
    assert "1 mask with 100.00%" in said
    assert main(shown_command("kanoclip test --data my_data.Lids")) == 0
    (report,) = walk.glob("runs/test/clip_vv/lids*/*/results.json")
    assert json.loads(report.read_text())["results"]["round"]["image_auroc"] is not None


def test_a_component_of_ones_own_is_fitted_and_tested_by_its_path(walk) -> None:
    assert main(shown_command("kanoclip fit --config my.yaml")) == 0
    (record,) = walk.glob("runs/fit/kanoclip/surfaces_auxiliary/*/run.json")
    config = yaml.safe_load((record.parent / "config.yaml").read_text())
    assert config["model"]["init_args"]["adapter"]["class_path"] == "my_adapter.Gate"
    heads = torch.load(record.parent / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert heads["adapter.gate"].abs().max() > 0  # it has learned
    assert main(shown_command("kanoclip test --data surfaces --model.adapter")) == 0
    (report,) = walk.glob("runs/test/kanoclip/surfaces/*/results.json")
    assert json.loads(report.read_text())["components"]["adapter"] == "Gate"


def test_a_model_of_ones_own_has_its_parts(walk) -> None:
    words = shown_command("kanoclip fit --model my_model.GatedCLIP")
    assert main(words) == 0
    (checkpoint,) = walk.glob("runs/fit/gated_clip/surfaces_auxiliary/*/checkpoints/last.ckpt")
    about = torch.load(checkpoint, weights_only=True)["kanoclip"]
    assert about["components"]["adapter"] == "Gate"


def test_a_rival_of_ones_own_is_a_row_and_learns_by_its_losses(walk) -> None:
    jobs = read_plan("my_rivals.yaml", walk / "out").jobs
    assert [job.label for job in jobs] == ["focal", "kanoclip"]
    from my_rival import Focal

    model = Focal(EmbeddedBackbone(image_size=32))
    trainer = Trainer(**QUIET)
    trainer.fit(model, SurfacesAuxiliary(images=4, category=["ring"], num_workers=0))
    assert {"train/global", "train/local"} <= set(trainer.callback_metrics)
    assert "train/kd" not in trainer.callback_metrics
    assert model.describe_components()["prompts"] == "ObjectAgnosticPrompts"


def test_a_console_script_finds_a_module_where_it_is_run(walk) -> None:
    script = walk / "bin" / "kanoclip"  # what pip writes: its own folder is on the path, the current one is not
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
