import pytest
import torch

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.prompts import EnsemblePrompts, LearnedPrompts, ObjectAgnosticPrompts, readable
from kanoclip.registry import NAMES, load_class
from kanoclip.types import KanoclipError

OF_IMAGE = ["fg_des", "pre_vcp", "regional", "bayesian", "synthesized", "fine_grained"]


def test_folder_names_become_words() -> None:
    assert readable("metal_nut") == "metal nut"


def test_hand_written_states_are_unit_length_differ_by_category_and_are_encoded_once(tiny_clip, monkeypatch) -> None:
    prompts, calls, encode = EnsemblePrompts(), [], tiny_clip.encode_text
    monkeypatch.setattr(tiny_clip, "encode_text", lambda texts, hooks=None: calls.append(texts) or encode(texts))
    states = prompts(["nut", "bolt", "nut"], tiny_clip)
    assert states.shape == (3, 2, 16)
    torch.testing.assert_close(states.norm(dim=-1), torch.ones(3, 2))
    torch.testing.assert_close(states[0], states[2], rtol=0, atol=0)
    assert (states[0] - states[1]).abs().max() > 1e-3
    prompts(["bolt"], tiny_clip)
    assert len(calls) == 4  # two states of two categories
    assert any("damaged nut" in text for text in calls[1] + calls[3])


def test_hand_written_states_are_those_of_the_backbone_at_hand(tiny_clip, make_clip, write_clip, tmp_path) -> None:
    config, weights = make_clip(embed_dim=16, text={"context_length": 48}, seed=1)
    second = CLIPBackbone(write_clip(tmp_path / "second", config, weights.state_dict()), image_size=32)
    prompts = EnsemblePrompts()
    first = prompts(["nut"], tiny_clip)
    prompts.build(second)
    assert (prompts(["nut"], second) - first).abs().max() > 1e-3
    torch.testing.assert_close(prompts(["nut"], tiny_clip), first, rtol=0, atol=0)  # one object may serve both


@pytest.mark.parametrize("kind", [EnsemblePrompts, LearnedPrompts])
@torch.no_grad()
def test_states_that_were_encoded_at_half_precision_are_not_kept_for_full(tiny_clip, kind) -> None:
    prompts, fresh = kind(), kind()
    prompts.build(tiny_clip)
    fresh.build(tiny_clip)
    fresh.load_state_dict(prompts.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        rough = prompts(["nut"], tiny_clip)
    torch.testing.assert_close(prompts(["nut"], tiny_clip), fresh(["nut"], tiny_clip), rtol=0, atol=0)
    assert not torch.equal(rough, prompts(["nut"], tiny_clip))


def test_without_class_names_all_categories_share_their_states(tiny_clip) -> None:
    states = EnsemblePrompts(class_name=False)(["nut", "bolt"], tiny_clip)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize("deep_tokens", [0, 3])
def test_learned_states_serve_any_category_and_gradients_reach_only_the_context(tiny_clip, deep_tokens) -> None:
    torch.manual_seed(0)
    prompts = LearnedPrompts(context=4, deep_tokens=deep_tokens)
    prompts.build(tiny_clip)
    states = prompts(["nut", "never seen"], tiny_clip)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    (states[0, 1] @ torch.arange(16.0)).backward()
    assert prompts.vectors.grad[1].abs().sum() > 0
    assert prompts.vectors.grad[0].abs().sum() == 0  # the normal prompt does not feel the abnormal one
    assert set(prompts.state_dict()) == ({"vectors", "deep"} if deep_tokens else {"vectors"})
    assert all(parameter.grad is None for parameter in tiny_clip.parameters())


def test_learned_states_are_encoded_once_without_gradients_and_anew_when_the_weights_change(
    tiny_clip, monkeypatch
) -> None:
    prompts, other, calls, encode = LearnedPrompts(context=4), LearnedPrompts(4), [], tiny_clip.encode_embeddings
    prompts.build(tiny_clip)
    other.build(tiny_clip)
    monkeypatch.setattr(tiny_clip, "encode_embeddings", lambda *given: calls.append(given) or encode(*given))
    with torch.no_grad():
        before = prompts(["nut"], tiny_clip)
        torch.testing.assert_close(prompts(["nut", "bolt"], tiny_clip)[1:], before, rtol=0, atol=0)
        assert len(calls) == 1
        prompts.eval().load_state_dict(other.state_dict())
        torch.testing.assert_close(prompts(["nut"], tiny_clip), other(["nut"], tiny_clip), rtol=0, atol=0)
        prompts.vectors.data.normal_()
        assert (prompts(["nut"], tiny_clip) - other(["nut"], tiny_clip)).abs().max() > 1e-4
    assert prompts(["nut"], tiny_clip).requires_grad  # what was kept does not cut the gradient


def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(tiny_clip) -> None:
    with pytest.raises(ValueError, match=r"takes \d+ tokens, but .* reads 48\. Use a smaller --model.prompts.context"):
        LearnedPrompts(context=60).build(tiny_clip)
    with pytest.raises(ValueError, match="needs at least 1 vector"):
        LearnedPrompts(context=0)


@pytest.mark.parametrize(
    ("wording", "counts", "said"),
    [
        ("winclip", (7, 4, 22), "a photo of the damaged nut for visual inspection."),
        ("april_gan", (7, 5, 35), "there is a broken nut in the scene."),
    ],
)
def test_the_words_of_a_rival_are_as_many_as_it_publishes_and_each_is_said_once(
    tiny_clip, monkeypatch, wording, counts, said
) -> None:
    prompts, texts, encode = EnsemblePrompts(wording=wording), [], tiny_clip.encode_text
    monkeypatch.setattr(tiny_clip, "encode_text", lambda given, hooks=None: texts.append(given) or encode(given))
    prompts(["nut"], tiny_clip)
    normal, anomalous, templates = counts
    assert [len(set(state)) for state in texts] == [normal * templates, anomalous * templates]
    assert said in texts[1]
    assert not [text for state in texts for text in state if "{" in text]
    assert all(
        any(text.format("nut") in state for state in texts) for text in ("a photo of a {}.", "a photo of the {}.")
    )


def test_the_deep_tokens_of_object_agnostic_prompts_each_count_and_learn(make_clip, write_clip, tmp_path) -> None:
    config, weights = make_clip(embed_dim=16, text={"context_length": 48, "layers": 12})  # as many blocks as CLIP's
    backbone = CLIPBackbone(write_clip(tmp_path / "deep", config, weights.state_dict()), image_size=32)
    torch.manual_seed(0)
    prompts = ObjectAgnosticPrompts()
    prompts.build(backbone)
    assert prompts.vectors.shape[:2] == (2, 12)
    assert prompts.deep.shape[:2] == (8, 4)  # the inputs of blocks 2 to 9
    states = prompts(["nut"], backbone)
    (states @ torch.arange(16.0)).square().sum().backward()
    assert prompts.deep.grad.abs().sum(-1).gt(0).all()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    for block in range(8):
        kept = prompts.deep.data.clone()
        prompts.deep.data[block] = torch.randn(4, 24)
        assert (prompts(["nut"], backbone) - states).abs().max() > 1e-4
        prompts.deep.data = kept


POOLING = {
    "argmax": {},
    "eos": {"pool_type": "eos", "eos_id": 519},
    "first": {"no_causal_mask": True, "pool_type": "first"},
    "last": {"no_causal_mask": True, "pool_type": "last"},
}


@pytest.mark.parametrize("pooling", POOLING)
def test_learned_prompts_read_the_token_that_open_clip_reads(pooling, make_clip, write_clip, tmp_path) -> None:
    config, model = make_clip(text=POOLING[pooling])
    backbone = CLIPBackbone(write_clip(tmp_path, config, model.state_dict()), image_size=32)
    prompts = LearnedPrompts(context=2, normal="tile", anomalous="scratch tile")
    prompts.build(backbone)
    words = backbone.token_embeddings(["a b tile", "c d scratch tile"])[0]
    prompts.vectors.data = words[:, 1:3].clone()  # as if the learned vectors were these words
    with torch.no_grad():
        ids = backbone.text.tokenize(["a b tile", "c d scratch tile"])
        expected = model.encode_text(ids, normalize=True)
        torch.testing.assert_close(prompts(["nut"], backbone)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", POOLING)
def test_a_learned_prompt_may_be_as_long_as_the_text_encoder_reads(pooling, make_clip, write_clip, tmp_path) -> None:
    config, model = make_clip(text=POOLING[pooling])
    backbone = CLIPBackbone(write_clip(tmp_path, config, model.state_dict()), image_size=32)
    LearnedPrompts(context=13, normal="a", anomalous="b").build(backbone)
    with pytest.raises(ValueError, match=r"takes 17 tokens, but .* reads 16"):
        LearnedPrompts(context=14, normal="a", anomalous="b").build(backbone)


@pytest.mark.parametrize("name", OF_IMAGE)
def test_prompts_that_are_made_of_an_image_say_what_to_do_without_one(tiny_clip, name) -> None:
    said = rf"The prompts {name} are made of .* cannot be exported\. Use kanoclip predict\. .*--model\.prompts learned"
    with pytest.raises(KanoclipError, match=said):
        load_class(NAMES["prompts"][name])()(["nut"], tiny_clip)
