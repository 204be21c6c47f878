"""What is trained inside the frozen towers, and where patches are read."""

import pytest
import torch
from torch import nn

from kanoclip.backbone.attention import QKV, VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks, NoTuning, Tuning
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.types import KanoclipError


class Shift(Hooks):
    """Adds a vector behind some blocks, and tokens behind the last one before the first."""

    def __init__(self, vector, blocks, extra=0):
        self.vector, self.blocks, self.extra = vector, blocks, extra
        self.seen = []

    def before(self, number, tokens):
        self.seen.append(number)
        if number == 1 and self.extra:
            tokens = torch.cat([tokens, self.vector.expand(len(tokens), self.extra, -1)], 1)
        return tokens

    def after(self, number, tokens):
        return tokens + self.vector if number in self.blocks else tokens


class ShiftTuning(Tuning):
    in_image = in_text = True

    def build(self, backbone):
        self.image_vector = nn.Parameter(0.1 * torch.randn(backbone.width))
        self.text_vector = nn.Parameter(0.1 * torch.randn(backbone.text_width))

    def image(self, features):
        return Shift(self.image_vector, [1])

    def text(self, features):
        return Shift(self.text_vector, [1])


@torch.no_grad()
def test_hooks_that_do_nothing_change_nothing_and_see_every_block(backbone, images):
    hooks = Shift(torch.zeros(32), [])
    plain, tuned = backbone(images, VV()), backbone.tuned(images, VV(), hooks)
    assert torch.equal(plain.patches, tuned.patches)
    assert torch.equal(plain.cls, tuned.cls)
    assert hooks.seen == [1, 2, 3, 4, 5, 6]
    texts = ["a scratch", "scratch scratch"]
    assert torch.equal(backbone.encode_text(texts), backbone.encode_text(texts, Hooks()))


def test_gradients_pass_the_frozen_blocks_and_reach_the_hooks_alone(backbone, images):
    vector, text = (torch.zeros(width, requires_grad=True) for width in (32, 24))
    features = backbone.tuned(images, QKV(), Shift(vector, [2]))
    (features.patches.sum() + backbone.encode_text(["a scratch"], Shift(text, [1])).sum()).backward()
    assert vector.grad.abs().sum() > 0
    assert text.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in backbone.parameters())
    assert not backbone(images, QKV()).patches.requires_grad
    assert not backbone.encode_text(["a scratch"]).requires_grad


@torch.no_grad()
def test_tokens_that_hooks_append_are_attended_to_but_not_read(backbone, images):
    plain = backbone(images, QKV())
    tuned = backbone.tuned(images, QKV(), Shift(torch.ones(32), [], extra=3))
    assert tuned.patches.shape == plain.patches.shape
    assert (tuned.patches - plain.patches).abs().max() > 1e-3


def test_a_tuned_model_learns_inside_both_towers_keeps_no_features_and_no_frozen_weight(tiny_clip, synthetic_batch):
    model = KAnoCLIP(tiny_clip, tuning=ShiftTuning())
    sum(model.losses(synthetic_batch, model(synthetic_batch)).values()).backward()
    assert model.tuning.image_vector.grad.abs().sum() > 0
    assert model.tuning.text_vector.grad.abs().sum() > 0
    assert model.features_key is None
    assert KAnoCLIP(tiny_clip).features_key is not None
    assert model.describe_components()["tuning"] == "ShiftTuning"
    assert "tuning" not in KAnoCLIP(tiny_clip, tuning=NoTuning()).describe_components()
    content = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    assert {"tuning.image_vector", "tuning.text_vector"} < set(content["state_dict"])
    assert not [name for name in content["state_dict"] if name.startswith("backbone.")]


@torch.no_grad()
@pytest.mark.parametrize("attention", [QKV(), VV(first=4)])
def test_levels_inside_the_tower_are_those_of_joint_space_before_its_last_steps(tiny, images, attention):
    joint, norm, block = (CLIPBackbone(tiny[1], image_size=32, levels_at=at) for at in ("joint", "norm", "block"))
    expected = joint(images, attention)
    behind, inside = norm(images, attention), block(images, attention)
    assert inside.patches.shape == (4, 2, 16, 32)
    assert inside.level_cls.shape == (4, 2, 32)
    assert (block.patch_dim, joint.patch_dim) == (32, 20)
    torch.testing.assert_close(block.joint(inside.patches), expected.patches, rtol=0, atol=1e-6)
    torch.testing.assert_close(norm.joint(behind.patches, norm=False), expected.patches, rtol=0, atol=1e-6)
    torch.testing.assert_close(inside.cls, expected.cls, rtol=0, atol=0)
    assert joint.settings == {"levels": [2, 3, 5, 6], "position": "bicubic", "cls_norm": True}
    assert block.settings["levels_at"] == "block"


def test_levels_elsewhere_are_refused(tiny):
    with pytest.raises(KanoclipError, match="levels_at is 'pixel', expected joint, norm or block"):
        CLIPBackbone(tiny[1], image_size=32, levels_at="pixel")
