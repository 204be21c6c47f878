"""A model of a checkpoint, and images alone."""

import pytest
import torch
from lightning.pytorch import Trainer

from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.heads.adapter import LinearAdapter
from kanoclip.models.ablations import CLIP
from kanoclip.models.baselines import LocalStats
from kanoclip.models.contents import CheckpointError
from kanoclip.models.inference import batch_of, load_model
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.types import KanoclipError

EMBEDDED = "kanoclip.backbone.embedded.EmbeddedBackbone"


@pytest.fixture(scope="module")
def fitted():
    model = KAnoCLIP(backbone=EmbeddedBackbone(), adapter=LinearAdapter())
    trainer = Trainer(max_epochs=1, logger=False, accelerator="cpu", enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(model, SurfacesAuxiliary(images=2, category="ring", num_workers=0))
    return model.eval(), trainer


@pytest.fixture(scope="module")
def from_python(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "last.ckpt"
    fitted[1].save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def typed(from_python):
    """The same checkpoint as the command line would write it."""

    def change(**options):
        content = torch.load(from_python, weights_only=True)
        given = {"_class_path": "kanoclip.models.kanoclip.KAnoCLIP", "backbone": {"class_path": EMBEDDED}}
        given |= {"adapter": {"class_path": "kanoclip.heads.adapter.LinearAdapter"}}
        content["hyper_parameters"] = given | {"_instantiator": "lightning.pytorch.cli.instantiate_module"} | options
        path = from_python.with_name("typed.ckpt")
        torch.save(content, path)
        return path

    return change


def test_a_checkpoint_tells_the_model_to_build(fitted, typed) -> None:
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    path = typed()
    model = load_model(path)
    assert (type(model.adapter), model.auxiliary, model.loaded_from) == (LinearAdapter, "surfaces_auxiliary", f"{path}")
    with torch.no_grad():
        assert torch.equal(model.eval()(images).anomaly_map, fitted[0](images).anomaly_map)


def test_a_model_that_is_fitted_on_is_no_more_that_of_its_checkpoint(typed) -> None:
    model = load_model(typed())
    trainer = Trainer(max_epochs=1, limit_train_batches=1, logger=False, accelerator="cpu", enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(model, SurfacesAuxiliary(images=2, category="ring", num_workers=0))
    assert model.loaded_from is None


def test_a_model_that_was_built_in_python_is_to_be_loaded_by_its_class(from_python) -> None:
    with pytest.raises(CheckpointError, match=r"does not tell of what parts\. .*KAnoCLIP\.load_from_checkpoint\(path"):
        load_model(from_python)
    parts = {"backbone": EmbeddedBackbone(), "adapter": LinearAdapter()}
    assert KAnoCLIP.load_from_checkpoint(from_python, **parts).loaded_from == f"{from_python}"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"_class_path": "evilmod.X"}, "--model evilmod.X"),
        ({"adapter": {"class_path": "evilmod.X"}}, "--model.adapter evilmod.X"),
        ({"backbone": {"class_path": "kanoclip.backbone.clip.CLIPBackbone", "init_args": {"name": "hf-hub:a/b"}}},
         "--model.backbone.name hf-hub:a/b"),
    ],
)  # fmt: skip
def test_nothing_that_a_strangers_checkpoint_names_is_imported_or_fetched(typed, tmp_path, monkeypatch, options, named):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evilmod.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass")
    with pytest.raises(CheckpointError, match=f"If you trust it, name it yourself: {named}"):
        load_model(typed(**options))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "hot"}, r"typed\.ckpt is damaged: its options are none that its model takes \(.*hot\)\.$"),
        ({"adapter": 5}, r"is damaged: its options are none that its model takes"),
        (
            {"_class_path": "kanoclip.heads.adapter.ConvAdapter"},
            r"is of kanoclip\.heads\.adapter\.ConvAdapter, which is",
        ),
    ],
)
def test_options_that_are_none_are_told_in_one_line(typed, options, message) -> None:
    with pytest.raises(CheckpointError, match=message) as told:
        load_model(typed(**options))
    assert "\n" not in f"{told.value}"


@pytest.mark.parametrize("other", ["os.system", None])
def test_what_a_checkpoint_names_to_build_it_with_plays_no_part(typed, other) -> None:
    assert type(load_model(typed(_instantiator=other)).adapter) is LinearAdapter


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*none\.ckpt"):
        load_model(tmp_path / "none.ckpt")


def test_a_model_takes_images_alone_as_it_takes_a_batch(synthetic_batch) -> None:
    model = LocalStats(32)
    batch = synthetic_batch
    assert torch.equal(model(batch.image).anomaly_map, model(batch).anomaly_map)
    named = CLIP(backbone=EmbeddedBackbone()).eval()
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        scores = [named(images, category=one).image_score for one in ("bottle", "carpet", "object")]
        assert torch.equal(scores[2], named(images).image_score)
        assert torch.equal(scores[0], named(batch_of(images, "bottle")).image_score)
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize(
    "images", [torch.rand(3, 32, 32), torch.rand(1, 32, 32, 3), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)]
)
def test_what_are_no_images_is_told_by_shape_and_type(images) -> None:
    with pytest.raises(KanoclipError, match=r"expected \(B, 3, H, W\) of floats in \[0, 1\]\. .* kanoclip\.Inspector"):
        LocalStats(32)(images)
