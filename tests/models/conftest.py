import pytest
import torch
from lightning.pytorch import Trainer

from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.models.kanoclip import KAnoCLIP


@pytest.fixture
def make_model(tiny_clip):
    def make(kind=KAnoCLIP, seed=0, **options):
        torch.manual_seed(seed)
        return kind(backbone=tiny_clip, **options)

    return make


@pytest.fixture
def make_trainer(tmp_path):
    def make(**options):
        options = {"max_epochs": 1, "logger": False, "default_root_dir": tmp_path} | options
        return Trainer(
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, deterministic=True, **options
        )

    return make


@pytest.fixture
def make_data():
    def make(kind=SurfacesAuxiliary, **options):
        return kind(**{"images": 4, "batch_size": 4, "num_workers": 0} | options)

    return make
