import pytest
import torch
from torch.nn.functional import leaky_relu, normalize

from kanoclip.backbone.attention import QKV, VV
from kanoclip.backbone.residual import ResidualTuning
from kanoclip.heads.prompts import LearnedPrompts
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.types import KanoclipError


def built(backbone, **options):
    torch.manual_seed(0)
    tuning = ResidualTuning(**options)
    tuning.build(backbone)
    return tuning


def test_tokens_turn_toward_what_the_adapter_makes_of_them_and_keep_their_share_of_length(backbone) -> None:
    hooks = built(backbone, image_blocks=2, image_weight=0.25).image()
    tokens = torch.randn(3, 5, 32)
    adapted = leaky_relu(tokens @ hooks[1].weight.T)
    expected = 0.25 * normalize(adapted, dim=-1) * tokens.norm(dim=-1, keepdim=True) + 0.75 * tokens
    torch.testing.assert_close(hooks.after(2, tokens), expected)
    assert hooks.after(3, tokens) is tokens  # no adapter there
    assert hooks.before(1, tokens) is tokens


def test_adapters_stand_behind_the_first_quarter_of_both_towers(backbone) -> None:
    tuning = built(backbone)
    assert (len(tuning.visual), len(tuning.textual)) == (2, 1)  # of 6 and of 3
    assert (tuning.image_blocks, tuning.text_blocks) == (2, 1)
    assert {name.split(".")[0] for name, _ in tuning.named_parameters()} == {"visual", "textual"}


@pytest.mark.parametrize(
    ("options", "image", "text"), [({"text_blocks": 0}, True, False), ({"image_blocks": 0}, False, True)]
)
def test_a_tower_without_adapters_is_left_alone(options, image, text, backbone, images) -> None:
    tuning = built(backbone, **options)
    assert (tuning.in_image, tuning.in_text) == (image, text)
    assert (tuning.image() is not None, tuning.text() is not None) == (image, text)
    plain, tuned = backbone(images, QKV()), backbone.tuned(images, QKV(), tuning.image())
    assert torch.equal(plain.patches, tuned.patches) != image
    words = ["a nut", "a broken nut"]
    assert torch.equal(backbone.encode_text(words), backbone.encode_text(words, tuning.text())) != text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_blocks": 0, "text_blocks": 0}, "not both 0. For no tuning use --model.tuning none"),
        ({"image_blocks": -1}, "image_blocks is -1"),
        ({"image_blocks": 7}, r"image_blocks is 7, but that tower of .* has 6\. Use --model\.tuning\.image_blocks 6"),
        ({"text_blocks": 4}, r"text_blocks is 4, but that tower of .* has 3"),
        ({"text_weight": 0}, r"text_weight is 0, expected a share in \(0, 1\]"),
        ({"image_weight": 1.5}, r"image_weight is 1\.5"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message, backbone) -> None:
    with pytest.raises(KanoclipError, match=message):
        built(backbone, **options)


def test_kanoclip_learns_it_beside_its_own_heads_and_keeps_it_in_its_checkpoint(tiny_clip, synthetic_batch) -> None:
    torch.manual_seed(0)
    model = KAnoCLIP(tiny_clip, attention=VV(), prompts=LearnedPrompts(context=2), tuning=ResidualTuning())
    assert model.features_key is None  # the image tower changes with every step
    sum(model.losses(synthetic_batch, model(synthetic_batch)).values()).backward()
    learned = {name: one for name, one in model.named_parameters() if name.startswith("tuning.")}
    assert set(learned) == {"tuning.visual.0.weight", "tuning.visual.1.weight", "tuning.textual.0.weight"}
    assert all(one.grad.abs().max() > 0 for one in learned.values())
    assert all(one.grad is None for one in model.backbone.parameters())
    assert model.describe_components()["tuning"] == "ResidualTuning"
    text_alone = KAnoCLIP(tiny_clip, prompts=LearnedPrompts(context=2), tuning=ResidualTuning(image_blocks=0))
    assert text_alone.features_key is not None


def test_half_precision_weights_are_met_halfway(backbone) -> None:
    hooks = built(backbone).image()
    assert hooks.after(1, torch.randn(2, 3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
