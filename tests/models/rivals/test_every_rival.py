"""Every rival on the embedded backbone: one step of a fit, a test, the same scores in Python, and its export."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from kanoclip import Inspector
from kanoclip.backbone.embedded import EmbeddedBackbone
from kanoclip.data.drawn.surfaces import Surfaces, SurfacesAuxiliary
from kanoclip.models.base import AnomalyModule
from kanoclip.outputs.export import Frozen, describe, write_exported
from kanoclip.registry import NAMES, load_class
from kanoclip.types import KanoclipError

RIVALS = [name for name, path in NAMES["model"].items() if ".rivals." in path]
READS = {  # where each reads its levels, as its paper does
    **{
        name: {"levels_at": "block"}
        for name in ("april_gan", "multiads", "adaclip", "bayes_pfl", "af_clip", "vcp_clip", "filo")
    },
    **{name: {"levels_at": "norm", "levels": [5]} for name in ("mrad_tf", "mrad_ft", "mrad_clip", "cops")},
}
NOT_EXPORTED = {"adaclip", "bayes_pfl", "faprompt", "mrad_clip", "vcp_clip", "cops", "multiads", "filo"}
"""Those whose texts are made from the image, or are of more than two states."""
SMALL = {"num_workers": 0, "batch_size": 4}


class Kept(Callback):
    """Keeps the scores of a test."""

    def __init__(self) -> None:
        self.scores: list[float] = []

    def on_test_batch_end(self, trainer, model, outputs, *_) -> None:
        self.scores += outputs.image_score.tolist()


def fitted(name: str, make_trainer, folder) -> AnomalyModule:
    """A model after one step of each of its stages."""
    torch.manual_seed(0)
    kind = load_class(NAMES["model"][name])
    model = kind(backbone=EmbeddedBackbone(**READS.get(name, {})))
    model.stages = [replace(stage, epochs=1, warmup=0) for stage in model.stages]
    if model.needs_training:
        trainer = make_trainer(max_epochs=len(model.stages) or 1, limit_train_batches=1)
        trainer.fit(model, SurfacesAuxiliary(images=4, category="ring", **SMALL))
        trainer.save_checkpoint(folder / "last.ckpt")
    return model


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_is_fitted_tested_inspected_and_exported_or_refused(name, make_trainer, tmp_path) -> None:
    model, data, kept = fitted(name, make_trainer, tmp_path), Surfaces(images=2, category="pill", **SMALL), Kept()
    make_trainer(callbacks=[kept]).test(model, data, verbose=False)
    assert len(set(kept.scores)) == len(kept.scores) == 2

    photos = [data.read(sample)[0] for sample in data.part("test")]
    found = Inspector(model, device="cpu")(photos, "pill")
    np.testing.assert_allclose([one.score for one in found], kept.scores, rtol=0, atol=1e-6)

    if name in NOT_EXPORTED:
        with pytest.raises(KanoclipError, match="cannot be exported") as told:
            Frozen(model.cpu(), "pill")
        assert "\n" not in str(told.value)
        assert "Use kanoclip predict." in str(told.value)  # other prompts are not those of the checkpoint
        return
    with torch.no_grad():
        maps, scores = Frozen(model.cpu(), "pill")(torch.from_numpy(np.stack(photos)))
    np.testing.assert_allclose(scores.numpy(), kept.scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(maps[0].numpy(), found[0].anomaly_map, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [one for one in RIVALS if one not in NOT_EXPORTED])
def test_what_can_be_exported_is_a_graph_that_scores_alike(name, make_trainer, tmp_path) -> None:
    frozen, file = Frozen(model := fitted(name, make_trainer, tmp_path).cpu(), "pill"), tmp_path / "pill.pt2"
    write_exported(frozen, "torch_export", file, describe(model, None, "pill", False))
    data = Surfaces(images=3, category="pill", image_size=model.image_size, **SMALL)  # unlike the two it is traced with
    photos = torch.from_numpy(np.stack([data.read(sample)[0] for sample in data.part("test")]))
    with torch.no_grad():
        found, expected = torch.export.load(file).module()(photos), frozen(photos)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=1e-5)
