import pytest
import torch
from torch.nn.functional import normalize

from kanoclip.backbone.attention import QKV, VV
from kanoclip.heads.adapter import ConvAdapter, LinearAdapter, NoAdapter
from kanoclip.heads.interaction import BiCMCI, NoInteraction
from kanoclip.heads.labelled_memory import LabelledMemory, ProjectedMemory
from kanoclip.heads.memory import NoMemory
from kanoclip.heads.prompts import EnsemblePrompts, LearnedPrompts
from kanoclip.heads.scoring import level_maps, smooth
from kanoclip.models.ablations import CLIP, CLIPVV, CLIPVVKnPL, CLIPVVKnPLBiCMCI
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.remembering import average
from kanoclip.models.rivals.anomalyclip import AnomalyCLIP
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.types import Batch, KanoclipError


def part(batch: Batch, i: int) -> Batch:
    return Batch(*(value[i : i + 1] for value in batch[:-1]))


def train_all(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)


def test_before_training_the_whole_model_scores_exactly_as_clip_vv(make_model, synthetic_batch) -> None:
    whole = make_model(KAnoCLIP, prompts=EnsemblePrompts()).eval()
    plain = make_model(CLIPVV).eval()
    with torch.no_grad():
        ours, theirs = whole(synthetic_batch), plain(synthetic_batch)
    torch.testing.assert_close(ours.anomaly_map, theirs.anomaly_map, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.image_score, theirs.image_score, rtol=0, atol=1e-6)


def test_a_batch_of_four_is_four_batches_of_one(make_model, synthetic_batch) -> None:
    model = make_model().eval()
    train_all(model)
    with torch.no_grad():
        together = model(synthetic_batch)
        for i in range(4):
            alone = model(part(synthetic_batch, i))
            torch.testing.assert_close(together.anomaly_map[i : i + 1], alone.anomaly_map, rtol=0, atol=1e-5)
            torch.testing.assert_close(together.image_score[i : i + 1], alone.image_score, rtol=0, atol=1e-5)


def test_levels_differ_from_each_other(make_model, synthetic_batch) -> None:
    maps = make_model().eval()(synthetic_batch).level_maps
    for i in range(len(maps)):
        for j in range(i):
            assert (maps[i] - maps[j]).abs().max() > 1e-4


def test_scores_are_in_range_and_smoothed_only_outside_training(make_model, synthetic_batch) -> None:
    model = make_model(sigma=20.0)
    train_all(model)
    rough, calm = model.train()(synthetic_batch), model.eval()(synthetic_batch)
    assert 0 <= float(calm.anomaly_map.min()) <= float(calm.anomaly_map.max()) <= 1
    assert calm.anomaly_map.diff(dim=2).abs().sum() < rough.anomaly_map.diff(dim=2).abs().sum()
    assert model.sigma == pytest.approx(20 * 32 / 518)


def test_only_heads_have_gradients_and_every_head_learns(make_model, synthetic_batch) -> None:
    model = make_model()
    train_all(model)
    model.on_fit_start = lambda: None
    model._facts = model.backbone.encode_text(["a scratched thing", "a cracked thing"])
    losses = model.losses(synthetic_batch, model(synthetic_batch))
    assert set(losses) == {"global", "local", "kd"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("backbone.")), name
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name


def test_images_without_a_mask_have_no_local_loss(make_model, synthetic_batch) -> None:
    model = make_model()
    without = synthetic_batch._replace(has_mask=torch.zeros(4, dtype=torch.bool))
    assert float(model.losses(without, model(without))["local"]) == 0
    scores = model(synthetic_batch)
    other_mask = synthetic_batch.mask.clone()
    other_mask[3] = 1  # its mask is unknown, so whatever stands there is not read
    changed = model.losses(synthetic_batch._replace(mask=other_mask), scores)["local"]
    torch.testing.assert_close(changed, model.losses(synthetic_batch, scores)["local"], rtol=0, atol=0)


def test_loss_weights_scale_their_terms(make_model, synthetic_batch) -> None:
    one, double = make_model(), make_model(gamma=2.0)
    first = one.losses(synthetic_batch, one(synthetic_batch))
    second = double.losses(synthetic_batch, double(synthetic_batch))
    torch.testing.assert_close(2 * first["local"], second["local"])
    torch.testing.assert_close(first["global"], second["global"])


@pytest.mark.parametrize(
    ("kind", "components"),
    [
        (CLIP, (QKV, EnsemblePrompts, NoInteraction, NoAdapter)),
        (CLIPVV, (VV, EnsemblePrompts, NoInteraction, NoAdapter)),
        (CLIPVVKnPL, (VV, LearnedPrompts, NoInteraction, NoAdapter)),
        (CLIPVVKnPLBiCMCI, (VV, LearnedPrompts, BiCMCI, NoAdapter)),
        (KAnoCLIP, (VV, LearnedPrompts, BiCMCI, ConvAdapter)),
    ],
)
def test_each_row_of_the_ablation_is_its_components(make_model, kind, components) -> None:
    model = make_model(kind)
    found = (model.attention, model.prompts, model.interaction, model.adapter)
    assert tuple(type(component) for component in found) == components
    assert model.needs_training == (LearnedPrompts in components)
    assert "forward" not in vars(kind) or kind is KAnoCLIP  # a variant only chooses


def test_a_head_cannot_serve_two_models_and_what_has_no_weights_can(make_model, synthetic_batch) -> None:
    prompts, adapter = EnsemblePrompts(), LinearAdapter()
    first = make_model(CLIP, prompts=prompts, adapter=adapter)
    with torch.no_grad():
        before = first(synthetic_batch).image_score
        with pytest.raises(ValueError, match=r"This LinearAdapter has the weights of another model\. Give each model"):
            make_model(CLIP, adapter=adapter, seed=1)
        make_model(CLIP, prompts=prompts)
        torch.testing.assert_close(first(synthetic_batch).image_score, before, rtol=0, atol=0)


@torch.no_grad()
def test_autocast_does_not_round_what_is_made_of_the_features(make_model, synthetic_batch) -> None:
    model = make_model(CLIP).eval()
    with torch.autocast("cpu", torch.bfloat16):
        scores, (patches, cls, grid, _) = model(synthetic_batch), model.features(synthetic_batch)
        states = model.prompts(synthetic_batch.category, model.backbone)
        assert make_model(KAnoCLIP)(synthetic_batch).logits.dtype == torch.float32
    logits = torch.einsum("bd,bsd->bs", cls, states) / model.temperature
    torch.testing.assert_close(scores.logits, logits, rtol=0, atol=1e-5)
    maps = level_maps(patches, states.expand(4, -1, -1, -1), grid, 32, model.temperature)
    torch.testing.assert_close(scores.anomaly_map, smooth(maps.mean(0), model.sigma), rtol=0, atol=1e-6)


def test_an_unknown_way_to_take_dice_is_refused(make_model) -> None:
    for kind in (KAnoCLIP, AprilGAN, AnomalyCLIP):
        with pytest.raises(ValueError, match=r"dice is 'images', expected batch or image"):
            make_model(kind, dice="images")


class OfCategory(LearnedPrompts):
    """Moves the states of each category elsewhere."""

    def forward(self, category, backbone, features=None, hooks=None):
        moved = torch.stack([torch.full((2, 1), float(len(name))) for name in category])
        return normalize(super().forward(category, backbone) + moved * torch.arange(16.0), dim=-1)


def test_the_knowledge_loss_is_of_all_images(make_model, synthetic_batch, monkeypatch) -> None:
    model, plain = make_model(prompts=OfCategory()), make_model()
    facts = model.backbone.encode_text(["a scratched thing", "a cracked thing"])
    model._facts = plain._facts = facts
    scores = model(synthetic_batch)
    each = [model.kd_loss(states, facts) for states in scores.states]
    assert abs(float(each[0] - each[2])) > 1e-4
    torch.testing.assert_close(model.losses(synthetic_batch, scores)["kd"], torch.stack(each).mean())
    scores, counted, loss = plain(synthetic_batch), [], plain.kd_loss.forward
    monkeypatch.setattr(plain.kd_loss, "forward", lambda *given: counted.append(given) or loss(*given))
    kd = plain.losses(synthetic_batch, scores)["kd"]
    assert len(counted) == 1  # states that all share
    torch.testing.assert_close(kd, loss(scores.states[0], facts), rtol=0, atol=0)


def test_prompts_that_learn_nothing_have_no_knowledge_loss(make_model, synthetic_batch) -> None:
    model = make_model(prompts=EnsemblePrompts())
    model._facts = model.backbone.encode_text(["a scratched thing"])
    assert set(model.losses(synthetic_batch, model(synthetic_batch))) == {"global", "local"}


def test_a_component_can_be_given_as_an_object(make_model, recwarn) -> None:
    assert isinstance(make_model(CLIP, adapter=LinearAdapter()).adapter, LinearAdapter)
    assert make_model(CLIP, adapter=LinearAdapter()).needs_training
    assert not [str(warning.message) for warning in recwarn if "nn.Module" in str(warning.message)]


def test_a_block_that_is_not_there_is_refused_when_the_model_is_built(make_model) -> None:
    with pytest.raises(ValueError, match=r"attention\.first is 9, but the backbone has 6 blocks"):
        make_model(attention=VV(first=9))


@pytest.mark.parametrize(("option", "value"), [("sigma", -1.0), ("temperature", 0.0)])
def test_a_blur_or_temperature_out_of_range_is_refused_before_anything_is_built(option, value) -> None:
    with pytest.raises(ValueError, match=rf"{option} is {value}, expected"):
        KAnoCLIP(**{option: value})


def test_a_labelled_memory_is_filled_by_a_fit_and_moves_maps_and_scores(
    make_model, make_trainer, make_data, synthetic_batch, monkeypatch
) -> None:
    model = make_model(memory=LabelledMemory(temperature=0.05))
    monkeypatch.setattr(model, "_auxiliary_batches", lambda: [synthetic_batch])
    make_trainer(limit_train_batches=1).fit(model, make_data(category="ring"))
    assert model.memory.image_labels.tolist() == synthetic_batch.label.tolist()
    with torch.no_grad():
        joined, distance = model.eval()(synthetic_batch), model.memory(model.features(synthetic_batch), ["ring"])
        model.memory = NoMemory()
        alone = model(synthetic_batch)
    assert distance.std() > 0.01
    expected, _ = average(alone.anomaly_map, alone.image_score, distance, model.sigma)
    torch.testing.assert_close(joined.anomaly_map, expected)


def test_a_memory_that_kanoclip_has_no_losses_for_is_refused(make_model) -> None:
    with pytest.raises(
        KanoclipError, match=r"ProjectedMemory learns .* Use --model\.memory labelled, or --model mrad_"
    ):
        make_model(memory=ProjectedMemory())
