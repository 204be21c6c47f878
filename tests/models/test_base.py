import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from kanoclip.backbone.attention import QKV, VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.heads.adapter import ConvAdapter, LinearAdapter
from kanoclip.heads.interaction import NoInteraction
from kanoclip.heads.prompts import LearnedPrompts
from kanoclip.heads.scoring import MapMaxScore
from kanoclip.models.ablations import CLIP
from kanoclip.models.base import NonFiniteLossError
from kanoclip.models.contents import CheckpointError
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.types import Scores


def heads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("backbone.")}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_fit_changes_the_heads_only_and_the_same_seed_gives_the_same_heads(make_model, make_trainer, make_data):
    fitted = []
    for _ in range(2):
        model = make_model()
        before, frozen = heads(model), model.backbone.fingerprint
        make_trainer().fit(model, make_data(category=["ring", "wood"]))
        fitted.append(heads(model))
        assert not equal(before, fitted[-1])
        model.backbone._fingerprint = None
        assert model.backbone.fingerprint == frozen
    assert equal(*fitted)
    other = make_model(seed=1)
    make_trainer().fit(other, make_data(category=["ring", "wood"]))
    assert not equal(fitted[0], heads(other))


def test_a_resumed_fit_ends_where_an_uninterrupted_one_does(make_model, make_trainer, make_data, tmp_path) -> None:
    whole, first, resumed = make_model(), make_model(), make_model(seed=5)
    data = {"category": ["ring", "wood"], "augment": True}
    make_trainer(max_epochs=2).fit(whole, make_data(**data))
    trainer = make_trainer(max_epochs=1)
    trainer.fit(first, make_data(**data))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    met = []
    look = LambdaCallback(on_train_epoch_start=lambda *_: met.append(torch.get_rng_state()))
    trainer = make_trainer(max_epochs=2, callbacks=[look])
    trainer.fit(resumed, make_data(**data), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert equal(heads(whole), heads(resumed))
    stored = torch.load(tmp_path / "half.ckpt", weights_only=True)["kanoclip"]["random_state"]
    assert [torch.equal(state, stored) for state in met] == [True]  # one epoch was left, and it began where we stopped


@pytest.fixture
def checkpoint(make_model, make_trainer, make_data, tmp_path):
    model, trainer = make_model(interaction=NoInteraction()), make_trainer()
    trainer.fit(model, make_data(category="ring"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return model, tmp_path / "last.ckpt"


def test_a_checkpoint_holds_the_heads_and_where_they_come_from_and_needs_no_unpickling(checkpoint) -> None:
    model, path = checkpoint
    content = torch.load(path, weights_only=True)
    assert set(content["state_dict"]) == set(heads(model))
    assert not [name for name in content["state_dict"] if name.startswith("backbone.")]
    about = content["kanoclip"]
    assert about["model"] == "kanoclip"
    assert about["auxiliary"] == "surfaces_auxiliary"
    assert about["categories"] == ["ring"]
    assert about["backbone"]["fingerprint"] == model.backbone.fingerprint
    assert about["components"]["interaction"] == "NoInteraction"
    assert not [v for v in content["hyper_parameters"].values() if isinstance(v, torch.nn.Module)]


def test_a_checkpoint_gives_the_same_scores_in_a_new_model(checkpoint, make_model, make_trainer, make_data) -> None:
    model, path = checkpoint
    results = []
    for tested, given in ((model, None), (make_model(seed=9, interaction=NoInteraction()), path)):
        make_trainer().test(tested, make_data(Surfaces, category="pill"), ckpt_path=given, verbose=False)
        results.append(tested.results)
    assert results[0] == results[1]
    assert tested.auxiliary == "surfaces_auxiliary"


def test_a_checkpoint_of_another_backbone_is_refused_by_both_names(
    checkpoint, make_trainer, make_data, make_clip, write_clip, tmp_path
) -> None:
    config, other = make_clip(embed_dim=16, text={"context_length": 48}, seed=1)
    backbone = CLIPBackbone(write_clip(tmp_path / "other", config, other.state_dict()), image_size=32)
    model = KAnoCLIP(backbone=backbone, interaction=NoInteraction())
    with pytest.raises(CheckpointError, match=r"fitted with model\.backbone .* but .* is asked for\. .*the same one"):
        make_trainer().test(model, make_data(Surfaces, category="pill"), ckpt_path=checkpoint[1])


def test_a_foreign_checkpoint_is_refused(checkpoint, make_model, make_trainer, make_data) -> None:
    content = torch.load(checkpoint[1], weights_only=True)
    del content["kanoclip"]
    torch.save(content, checkpoint[1])
    with pytest.raises(CheckpointError, match="was not written by kanoclip"):
        make_trainer().test(make_model(interaction=NoInteraction()), make_data(Surfaces), ckpt_path=checkpoint[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": QKV(), "interaction": NoInteraction()}, r"with model\.attention VV, but QKV is asked for"),
        ({}, r"with model\.interaction NoInteraction, but BiCMCI is asked for\. Leave out --model\.interaction"),
    ],
)
def test_a_checkpoint_of_other_components_is_refused_by_both_names(
    checkpoint, make_model, make_trainer, make_data, options, message
) -> None:
    with pytest.raises(CheckpointError, match=message):
        make_trainer().test(make_model(**options), make_data(Surfaces), ckpt_path=checkpoint[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attention": VV(first=3)},
            r"attention\.first None, but 3 is asked for\. Leave out --model\.attention\.first",
        ),
        ({"prompts": LearnedPrompts(normal="thing.")}, r"prompts\.normal object\., but thing\. is asked for"),
        ({"adapter": ConvAdapter(pool="max")}, r"adapter\.pool mean, but max is asked for"),
        ({"temperature": 0.02}, r"model\.temperature 0\.07, but 0\.02 is asked for"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_both_values(
    checkpoint, make_model, make_trainer, make_data, options, message
) -> None:
    model = make_model(interaction=NoInteraction(), **options)
    with pytest.raises(CheckpointError, match=message):
        make_trainer().test(model, make_data(Surfaces), ckpt_path=checkpoint[1])
    make_trainer().test(make_model(interaction=NoInteraction(), lr=9), make_data(Surfaces), ckpt_path=checkpoint[1])


@pytest.mark.parametrize("setting", [{"levels": [1, 2, 3, 4]}, {"position": "bilinear"}, {"cls_norm": False}])
def test_a_checkpoint_of_other_features_is_refused(checkpoint, tiny_name, setting) -> None:
    ((name, value),) = setting.items()
    model = KAnoCLIP(backbone=CLIPBackbone(tiny_name, image_size=32, **setting), interaction=NoInteraction())
    with pytest.raises(CheckpointError, match=rf"backbone\.{name} .*, but {re.escape(str(value))} is asked for"):
        model.on_load_checkpoint(torch.load(checkpoint[1], weights_only=True))


def test_a_checkpoint_holds_no_numbers_of_numpy_and_no_paths(make_model, make_trainer, make_data, tmp_path) -> None:
    knowledge = Path(__file__).parents[2] / "kanoclip" / "knowledge" / "surfaces.yaml"
    rate, half = np.logspace(-3, -2, 2)[0], np.float64(0.5)
    settings = {"lr": rate, "betas": (half, half), "temperature": half, "knowledge": knowledge}
    adapter = LinearAdapter(reduction=np.int64(2), scale=half)
    model, trainer = make_model(adapter=adapter, **settings), make_trainer()
    trainer.fit(model, make_data(category="ring"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["knowledge"] == str(knowledge)
    assert content["kanoclip"]["settings"]["adapter.reduction"] == 2
    make_model(adapter=LinearAdapter(2, 0.5), temperature=0.5).on_load_checkpoint(content)


def test_a_copy_of_a_model_is_another_model_and_its_arguments_hold_no_second_backbone(make_model) -> None:
    model = make_model()
    assert model.hparams["backbone"] is model._hparams_initial["backbone"] is model.backbone
    copied = copy.deepcopy(model).to(torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert copied.hparams["backbone"] is copied.backbone


def test_a_checkpoint_can_be_tested_with_another_image_score(checkpoint, make_model, make_trainer, make_data) -> None:
    model = make_model(interaction=NoInteraction(), score=MapMaxScore())
    make_trainer().test(model, make_data(Surfaces, category="pill"), ckpt_path=checkpoint[1], verbose=False)
    assert model.results["pill"]["images"] == 4


def test_a_prediction_keeps_only_map_and_score(make_model, synthetic_batch) -> None:
    model = make_model().eval()
    with torch.no_grad():
        kept, whole = model.predict_step(synthetic_batch), model(synthetic_batch)
    assert kept[2:] == (None,) * 5
    torch.testing.assert_close(kept.anomaly_map, whole.anomaly_map, rtol=0, atol=0)


def test_a_new_fit_does_not_go_on_with_the_random_numbers_of_a_tested_checkpoint(
    checkpoint, make_model, make_trainer, make_data
) -> None:
    model = make_model(interaction=NoInteraction())
    make_trainer().test(model, make_data(Surfaces, category="pill"), ckpt_path=checkpoint[1], verbose=False)
    torch.manual_seed(99)
    met = []
    look = LambdaCallback(on_train_epoch_start=lambda *_: met.append(torch.get_rng_state()))
    make_trainer(callbacks=[look]).fit(model, make_data(category="ring"))
    assert not torch.equal(met[0], torch.load(checkpoint[1], weights_only=True)["kanoclip"]["random_state"])


def test_a_loss_that_is_not_finite_stops_the_fit_and_says_which(make_model, make_trainer, make_data) -> None:
    model = make_model()
    model.weights["global"] = math.nan
    before = heads(model)
    with pytest.raises(NonFiniteLossError, match=r"epoch 0, step 0: global nan, local .*Lower --model\.lr"):
        make_trainer().fit(model, make_data(category="ring"))
    assert equal(before, heads(model))


def test_what_learns_nothing_cannot_be_fitted_but_tested(make_model, make_trainer, make_data) -> None:
    model = make_model(CLIP)
    with pytest.raises(ValueError, match=r"clip learns nothing, so it cannot be fitted\. Run: kanoclip test"):
        make_trainer().fit(model, make_data(category="ring"))
    make_trainer().test(model, make_data(Surfaces, category=["pill", "gear"]), verbose=False)
    assert set(model.results) == {"pill", "gear", "mean"}
    mean = (model.results["pill"]["pixel_auroc"] + model.results["gear"]["pixel_auroc"]) / 2
    assert model.results["mean"]["pixel_auroc"] == pytest.approx(mean)
    assert model.results["pill"]["images"] == 4
    assert model.results["pill"]["anomalous"] == 2
    assert model.auxiliary is None


class Oracle(CLIP):
    """Knows the masks, and scores images by their label."""

    def forward(self, batch):
        return Scores(batch.mask.float(), batch.label.float())


def test_a_subclass_goes_by_its_own_name() -> None:
    assert (KAnoCLIP.name, CLIP.name, Oracle.name) == ("kanoclip", "clip", "Oracle")


def test_metrics_are_per_category_and_leave_out_what_is_unknown(make_model, make_trainer, synthetic_batch) -> None:
    model = make_model(Oracle)
    loader = torch.utils.data.DataLoader([0], batch_size=None, collate_fn=lambda _: synthetic_batch)
    make_trainer().test(model, loader, verbose=False)
    nut, plate, mean = (model.results[name] for name in ("nut", "metal_plate", "mean"))
    assert nut["pixel_auroc"] == 1
    assert nut["image_auroc"] == plate["image_auroc"] == 1
    assert plate["pixel_auroc"] is None  # its only anomalous image has no mask: not 0, and not 0.5
    assert mean["pixel_auroc"] == 1  # over the one category where it is defined
    assert (nut["images"], nut["anomalous"]) == (2, 1)


@pytest.mark.parametrize("bad", [0, 1])  # the last one has no batch after it
def test_what_cannot_be_counted_stops_the_test(make_model, make_trainer, synthetic_batch, bad) -> None:
    model = make_model(Oracle)
    wrong = synthetic_batch._replace(mask=synthetic_batch.mask.float() * math.nan)  # which are the Oracle's scores
    batches = [wrong if place == bad else synthetic_batch for place in range(2)]
    loader = torch.utils.data.DataLoader([0, 1], batch_size=None, collate_fn=batches.__getitem__)
    with pytest.raises(ValueError, match="scores are NaN or infinite"):
        make_trainer().test(model, loader, verbose=False)
    copy.deepcopy(model)  # nothing of the stopped epoch is in the way


def test_what_is_held_out_is_validated_each_epoch(make_model, make_trainer, make_data) -> None:
    trainer = make_trainer()
    trainer.fit(make_model(), make_data(category="ring", images=8, holdout=0.5))
    assert 0 <= trainer.logged_metrics["val/pixel_auroc"] <= 1
    assert {"train/loss", "train/kd", "train/global", "train/local"} <= set(trainer.logged_metrics)
