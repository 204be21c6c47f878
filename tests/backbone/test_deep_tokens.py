import copy

import pytest
import torch

from kanoclip.backbone.attention import QKV, VV
from kanoclip.backbone.blocks import embed_patches
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.deep_tokens import DeepTokens
from kanoclip.backbone.tuning import NoTuning
from kanoclip.heads.prompts import EnsemblePrompts, LearnedPrompts
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.outputs.export import Frozen
from kanoclip.types import Batch


@pytest.fixture
def block(tiny):
    """The tiny CLIP, read as its blocks return their tokens."""
    return CLIPBackbone(tiny[1], image_size=32, levels_at="block")


def built(backbone, **options) -> DeepTokens:
    torch.manual_seed(4)
    tuning = DeepTokens(**{"length": 3, "depth": 2} | options)
    tuning.build(backbone)
    for parameter in tuning.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return tuning


def part(batch: Batch, i: int) -> Batch:
    return Batch(*(value[i : i + 1] for value in batch[:-1]))


def dynamic(layer: torch.nn.Linear, model, backbone, images: torch.Tensor) -> torch.Tensor:
    """Tokens made from open_clip's own global feature, one layer after the other: (B, t, W)."""
    with torch.no_grad():
        cls = model.encode_image((images - backbone.mean) / backbone.std)
    width = layer.out_features // 3
    layers = zip(layer.weight.split(width), layer.bias.split(width), strict=True)
    return torch.stack([cls @ weight.T + bias for weight, bias in layers], 1)


def test_the_image_tower_has_the_tokens_behind_its_patches(tiny, block, images) -> None:
    model, tuning = tiny[0], built(block)
    features = block.tuned(images, QKV(), tuning.image(block(images, QKV())))
    extra = dynamic(tuning.image_dynamic, model, block, images)
    visual, levels = model.visual, []
    tokens = embed_patches(visual, (images - block.mean) / block.std, visual.positional_embedding)
    for number, layer in enumerate(visual.transformer.resblocks):
        if number < 2:
            tokens = torch.cat([tokens[:, :17], tuning.image_tokens[number] + extra], 1)
        tokens = layer(tokens)
        levels.append(tokens[:, 1:17])
    expected = torch.stack([levels[number - 1] for number in block.levels])
    torch.testing.assert_close(features.patches, expected, rtol=0, atol=1e-5)
    cls = visual.ln_post(tokens[:, 0]) @ visual.proj
    torch.testing.assert_close(block.unscaled(features), cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(features.cls, torch.nn.functional.normalize(cls, dim=-1), rtol=0, atol=1e-5)


def test_the_text_tower_has_them_instead_of_its_first_words(tiny, block, images) -> None:
    model, tuning, texts = tiny[0], built(block), ["scratch", "a scratch on a nut"]
    found = block.encode_text(texts, tuning.text(block(images[:1], QKV())))
    extra = dynamic(tuning.text_dynamic, model, block, images[:1])
    ids = block.text.tokenize(texts)
    tokens = model.token_embedding(ids) + model.positional_embedding
    for number, layer in enumerate(model.transformer.resblocks):
        if number == 1:
            tokens = torch.cat([tokens[:, :1], (tuning.text_tokens[0] + extra).expand(2, -1, -1), tokens[:, 4:]], 1)
        tokens = layer(tokens, attn_mask=model.attn_mask)
    read = model.ln_final(tokens)[range(2), ids.argmax(-1)] @ model.text_projection
    torch.testing.assert_close(found, torch.nn.functional.normalize(read, dim=-1), rtol=0, atol=1e-5)
    assert (found - block.encode_text(texts)).abs().max() > 0.01


def test_a_backbone_that_keeps_no_tokens_gives_a_global_feature_of_unit_length(backbone, block, images) -> None:
    joint, raw = backbone(images, QKV()), block(images, QKV())
    assert torch.equal(backbone.unscaled(joint), joint.cls)
    assert (block.unscaled(raw).norm(dim=-1) - 1).abs().min() > 0.1


@pytest.mark.parametrize(
    ("options", "tensors"),
    [
        ({}, 6),
        ({"dynamic": False}, 2),
        ({"towers": "image"}, 3),
        ({"towers": "text"}, 3),
        ({"towers": "text", "dynamic": False}, 1),
    ],
)
def test_each_weight_learns_in_kanoclip_and_none_of_the_towers(options, tensors, tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    model = KAnoCLIP(tiny_clip, tuning=DeepTokens(**options)).train()
    sum(model.losses(synthetic_batch, model(synthetic_batch)).values()).backward()
    learned = dict(model.tuning.named_parameters())
    assert len(learned) == tensors
    assert [name for name, one in learned.items() if not one.grad.abs().sum()] == []
    if "image_tokens" in learned:
        assert learned["image_tokens"].grad.abs().sum(-1).gt(0).all()  # in each block
    assert all(one.grad is None for one in model.backbone.parameters())
    assert model.backbone.text.blocks[0].training is False
    assert (model.features_key is None) == model.tuning.in_image  # what a text tower reads can be kept


@pytest.mark.parametrize("options", [{}, {"dynamic": False}, {"towers": "text"}])
@pytest.mark.parametrize("prompts", [EnsemblePrompts, LearnedPrompts])
def test_a_batch_of_four_is_four_batches_of_one(options, prompts, tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    model = KAnoCLIP(tiny_clip, tuning=DeepTokens(**options), prompts=prompts()).eval()
    with torch.no_grad():
        together = model(synthetic_batch)
        alone = [model(part(synthetic_batch, i)) for i in range(4)]
    for name in ("anomaly_map", "image_score", "states"):
        expected = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), expected, rtol=0, atol=1e-5)
    own = (together.states[0] - together.states[1]).abs().max()  # of two nuts
    assert (own > 1e-3) == model.tuning.needs_features


def test_the_loss_terms_of_prompts_are_the_mean_over_images_with_texts_of_their_own(tiny_clip, synthetic_batch):
    class Loud(LearnedPrompts):
        def forward(self, category, backbone, features=None, hooks=None):
            states = super().forward(category, backbone, features, hooks)
            self.terms = {"loud": states.sum()}
            return states

    scores = KAnoCLIP(tiny_clip, tuning=DeepTokens(), prompts=Loud()).train()(synthetic_batch)
    torch.testing.assert_close(scores.terms["loud"], scores.states.sum() / 4)


def test_tokens_are_rounded_if_asked_for(block, images) -> None:
    plain, features = built(block), block(images, QKV())
    half = built(block, round_tokens=True)
    for tower in ("image", "text"):
        exact, rounded = (getattr(one, tower)(features).tokens.float() for one in (plain, half))
        assert torch.equal(exact.half().float(), rounded)
        assert not torch.equal(exact, rounded)


def test_a_tower_with_fewer_blocks_has_tokens_in_all_of_them(block) -> None:
    tuning = built(block, depth=99)
    assert (len(tuning.image_tokens), len(tuning.text_tokens)) == (6, 2)


def test_a_copy_and_a_checkpoint_hold_the_tokens_and_no_tower(tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    first, second = (KAnoCLIP(tiny_clip, tuning=DeepTokens()).eval() for _ in range(2))
    weights = {name: one for name, one in first.state_dict().items() if not name.startswith("backbone.")}
    assert [name for name in weights if "tuning" in name] == [
        f"tuning.{name}"
        for name in ("image_tokens", "text_tokens", "image_dynamic.weight", "image_dynamic.bias",
                     "text_dynamic.weight", "text_dynamic.bias")
    ]  # fmt: skip
    second.load_state_dict(weights, strict=False)
    with torch.no_grad():
        scores = [model(synthetic_batch).image_score for model in (first, second, copy.deepcopy(first))]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


@torch.no_grad()
def test_an_export_has_static_tokens_of_both_towers_and_refuses_texts_of_each_image(tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    model = KAnoCLIP(tiny_clip, tuning=DeepTokens(dynamic=False)).eval()
    torch.nn.init.normal_(model.tuning.text_tokens)
    pixels = (synthetic_batch.image[:2] * 255).round()
    scores = model(pixels / 255, category="nut")
    found = Frozen(model, "nut")(pixels.permute(0, 2, 3, 1).byte())
    torch.testing.assert_close(found[1], scores.image_score, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"kanoclip cannot be exported: its DeepTokens encodes the texts for each"):
        Frozen(KAnoCLIP(tiny_clip, tuning=DeepTokens()), "nut")


@torch.no_grad()
def test_autocast_runs_the_tuned_towers_in_half_precision(tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    model = KAnoCLIP(tiny_clip, attention=VV(), tuning=DeepTokens()).eval()
    exact = model(synthetic_batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(synthetic_batch)
    assert 0 < (exact.image_score - rough.image_score).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"length": 0}, r"tuning.length is 0 and tuning.depth 4, expected at least 1 token in at least 2 blocks"),
        ({"depth": 1}, r"tuning.depth 1, expected at least 1 token in at least 2 blocks. Use --model.tuning.length 5"),
        ({"depth": 0, "towers": "image"}, r"in at least 1 blocks"),
        ({"towers": "vision"}, r"tuning.towers is 'vision', expected both, image or text. Use --model.tuning.towers"),
    ],
)
def test_what_cannot_be_is_refused(options, told) -> None:
    with pytest.raises(ValueError, match=told):
        DeepTokens(**options)


def test_more_tokens_than_a_text_has_room_for_are_refused(backbone) -> None:
    with pytest.raises(ValueError, match=r"tuning.length is 15, but the texts of .* have room for 14. Use a smaller"):
        DeepTokens(15).build(backbone)
    DeepTokens(15, towers="image").build(backbone)
    assert NoTuning().image(None) is None
