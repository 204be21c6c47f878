import pytest
import torch
from torch.nn import functional as F

from kanoclip.backbone.attention import QKV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.bayesian_prompts import BayesianPrompts

NAMES = ["pcb3", "metal_plate", "chewinggum", "nut"]


def make(backbone, **options) -> BayesianPrompts:
    torch.manual_seed(0)
    prompts = BayesianPrompts(**{"flows": 2, "samples": 2} | options)
    prompts.build(backbone)
    for parameter in prompts.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return prompts


@pytest.fixture
def features(tiny_clip, synthetic_batch):
    return tiny_clip(synthetic_batch.image, QKV())


def part(features, which):
    return features._replace(patches=features.patches[:, which], cls=features.cls[which])


@torch.no_grad()
def test_outside_a_fit_states_depend_on_the_image_and_its_category_alone(tiny_clip, features) -> None:
    prompts = make(tiny_clip).eval()
    states = prompts(NAMES, tiny_clip, features)
    assert states.shape == (4, 6, 2, 16)
    random = torch.get_rng_state()
    for i in (2, 0, 3, 1):
        alone = prompts([NAMES[i]], tiny_clip, part(features, [i]))
        torch.testing.assert_close(alone[0], states[i], rtol=0, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), random)
    assert prompts.terms == {}
    swapped = prompts(NAMES, tiny_clip, part(features, [1, 0, 2, 3]))
    assert (swapped[0] - states[0]).abs().max() > 1e-3  # it sees the image


@torch.no_grad()
def test_another_seed_draws_other_states_and_the_draws_are_in_no_checkpoint(tiny_clip, features) -> None:
    first, same, other = (make(tiny_clip, seed=seed).eval()(NAMES, tiny_clip, features) for seed in (3, 3, 4))
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert (first - other).abs().max() > 0.01
    assert not [name for name in make(tiny_clip).state_dict() if "noise" in name]


def test_a_prompt_is_context_state_and_category_each_with_what_was_drawn_for_it(
    tiny_clip, features, monkeypatch
) -> None:
    prompts = make(tiny_clip, bank=2, context=3, state=1).eval()
    contexts, states = torch.randn(4, 5, 24), torch.randn(5, 2, 24)
    encoded = {}

    def spy(embeddings, eot, deep, hooks):
        encoded["embeddings"], encoded["eot"] = embeddings, eot
        return torch.zeros(len(embeddings), 16)

    monkeypatch.setattr(tiny_clip, "encode_embeddings", spy)
    prompts.states(NAMES, tiny_clip, features, contexts, states)
    words, end = tiny_clip.token_embeddings(["printed circuit board", "metal plate", "chewing gum", "nut"])
    found = encoded["embeddings"].unflatten(0, (4, 5, 2, 2))  # image, draw, prompt, state
    latent, bent = prompts.context_flow(features.cls, contexts).latent, prompts.state_flows(states).latent
    torch.testing.assert_close(found[3, 4, 1, 0, 1:4], prompts.context_vectors[1] + latent[3, 4])
    torch.testing.assert_close(found[2, 1, 0, 1, 4:5], prompts.state_vectors[0, 1] + bent[1, 1])
    torch.testing.assert_close(found[:, 0, 0, 0, 5:], words[:, 1:44])
    assert torch.equal(encoded["eot"].unflatten(0, (4, -1))[:, 7], end + 4)


def test_many_prompts_are_encoded_in_parts(tiny_clip, features, monkeypatch) -> None:
    prompts = make(tiny_clip).eval()
    whole = prompts(NAMES, tiny_clip, features)
    monkeypatch.setattr("kanoclip.heads.bayesian_prompts.TEXTS_AT_ONCE", 7)
    torch.testing.assert_close(prompts(NAMES, tiny_clip, features), whole, rtol=0, atol=1e-6)


def test_a_fit_draws_anew_in_each_step_and_tells_its_losses(tiny_clip, features) -> None:
    prompts = make(tiny_clip)
    states = prompts(NAMES, tiny_clip, features)
    terms = prompts.take_terms()
    assert states.shape == (4, 3, 2, 16)
    assert set(terms) == {"kl", "ort"}
    assert (prompts(NAMES, tiny_clip, features) - states).abs().max() > 0.01
    off = 1 - torch.eye(3)
    expected = sum(
        (states[:, :, state] @ states[:, :, state].mT).square().mul(off).mean() for state in (0, 1)
    )  # of the prompts of a state, with each other
    torch.testing.assert_close(terms["ort"], expected)
    sum(terms.values()).backward()
    assert all(one.grad is not None for one in prompts.parameters())


def test_the_exact_divergence_does_not_depend_on_the_batch_and_that_of_its_code_does(tiny_clip, features) -> None:
    found = {}
    for kl in ("exact", "batch"):
        prompts = make(tiny_clip, kl=kl)
        for images in (1, 4):
            noise = torch.ones(images, 1, 24), torch.ones(1, 2, 24)
            same = part(features, [0] * images)
            prompts.states(["nut"] * images, tiny_clip, same, *noise)
            found[kl, images] = float(prompts.take_terms()["kl"].detach())
    assert found["exact", 1] == pytest.approx(found["exact", 4], rel=1e-5)
    assert found["batch", 1] == pytest.approx(found["exact", 1], rel=1e-5)
    assert abs(found["batch", 4] - found["exact", 4]) > 0.01


def test_state_vectors_begin_apart_and_context_vectors_around_zero(tiny_clip) -> None:
    prompts = BayesianPrompts()
    prompts.build(tiny_clip)
    assert prompts.state_vectors.mean((0, 2, 3)).tolist() == pytest.approx([0.5, -0.5], abs=0.01)
    assert float(prompts.context_vectors.mean().detach()) == pytest.approx(0, abs=0.01)


@torch.no_grad()
def test_the_global_feature_has_the_length_that_the_tower_gives_it(tiny_name, synthetic_batch) -> None:
    backbone = CLIPBackbone(tiny_name, image_size=32, levels=[2, 6], levels_at="block")
    features = backbone(synthetic_batch.image, QKV())
    found = backbone.unscaled(features)
    expected = backbone.visual.ln_post(features.level_cls[-1]) @ backbone.visual.proj
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found.norm(dim=-1) - 1).abs().min() > 0.1
    torch.testing.assert_close(F.normalize(found, dim=-1), features.cls, rtol=0, atol=1e-6)


def test_what_cannot_be_is_told(tiny_clip, features) -> None:
    with pytest.raises(ValueError, match=r"prompts.bank is 0, expected 1 or more. Use --model.prompts.bank 1"):
        BayesianPrompts(bank=0)
    with pytest.raises(ValueError, match=r"prompts.kl is 'sum', expected exact or batch"):
        BayesianPrompts(kl="sum")
    prompts = make(tiny_clip, context=40)
    with pytest.raises(ValueError, match=r"45 learned.*'a_name_of_many_words'.*reads 48. Use a smaller --model.prompt"):
        prompts(["nut", "a_name_of_many_words"], tiny_clip, part(features, [0, 1]))
