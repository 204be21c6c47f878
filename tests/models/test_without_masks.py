"""A fit by image labels alone: no masks, no local loss."""

import pytest
import torch
from lightning import Trainer
from PIL import Image

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.data.sets.folder import Folder
from kanoclip.models.kanoclip import KAnoCLIP


@pytest.fixture
def labelled(tmp_path):
    """Four drawn photos in two folders, without masks."""
    drawn = SurfacesAuxiliary(images=4, category="wood")
    for number, sample in enumerate(drawn.index()):
        folder = tmp_path / "photos" / ("abnormal" if sample.label else "normal")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.read(sample)[0]).save(folder / f"{number}.png")
    return Folder(str(tmp_path / "photos"), num_workers=0, batch_size=4)


def fitted(data, tmp_path, **options):
    torch.manual_seed(0)
    model = KAnoCLIP(EmbeddedBackbone(), lr=1e-2, **options)
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=2, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, data)
    changed = {
        name.partition(".")[0] for name, value in before.items() if not torch.equal(value, model.state_dict()[name])
    }
    return {name: float(value) for name, value in trainer.logged_metrics.items()}, changed


def test_image_labels_alone_teach_prompts_and_adapter_and_no_map(labelled, tmp_path, caplog) -> None:
    losses, changed = fitted(labelled, tmp_path, gamma=0)
    assert "2 of 2 anomalous images" in caplog.text
    assert "have no mask: pixel metrics and the local loss leave them out" in caplog.text
    assert losses["train/local"] == 0
    assert losses["train/global"] > 0
    assert losses["train/kd"] > 0
    assert changed == {"prompts", "adapter"}


def test_with_a_local_loss_normal_images_alone_would_teach_the_maps(labelled, tmp_path) -> None:
    losses, changed = fitted(labelled, tmp_path)
    assert losses["train/local"] > 0
    assert "interaction" in changed
