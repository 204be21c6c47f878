"""What docs/extend.md shows is run, in its order."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lightning import Trainer

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.registry import NAMES

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
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
