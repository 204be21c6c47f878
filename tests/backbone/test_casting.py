"""Frozen weights in mixed precision."""

import pytest
import torch
from torch import nn

from kanoclip.backbone.attention import VV
from kanoclip.backbone.casting import cast_once
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.windows import encode_windows


def plainly(module: nn.Module) -> nn.Module:
    return module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_windows_and_texts_are_those_of_autocast_to_the_last_bit(tiny_clip, dtype, monkeypatch) -> None:
    image = torch.rand(2, 3, tiny_clip.image_size, tiny_clip.image_size, generator=torch.Generator().manual_seed(1))
    seen = []
    for cast in (cast_once, plainly):
        for room in ("clip", "text", "windows"):
            monkeypatch.setattr(f"kanoclip.backbone.{room}.cast_once", cast)
        with torch.autocast("cpu", dtype):
            features = tiny_clip(image, VV())
            prompts, eot = tiny_clip.token_embeddings(["a cup", "a cup with a crack"])
            prompts = prompts.clone().requires_grad_()
            states = tiny_clip.encode_embeddings(prompts, eot)
            windows = encode_windows(tiny_clip, image, [1])
        (gradient,) = torch.autograd.grad(states.square().sum() + states[0, 0], prompts)
        seen.append([features.patches, features.cls, states, gradient, *windows])
    for cast, plain in zip(*seen, strict=True):
        assert torch.equal(cast, plain)


def test_weights_are_cast_once_and_again_when_they_change() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).requires_grad_(False)
    assert cast_once(module) is module  # without autocast
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            first = cast_once(module)
        assert cast_once(module) is first
        assert first[0].weight.dtype == first[0].bias.dtype == torch.bfloat16
        assert first[1].weight is module[1].weight  # autocast leaves norms alone
        assert not first[0].weight.is_inference()  # a fit may follow
        module[0].weight.fill_(0.5)
        assert cast_once(module)[0].weight.eq(0.5).all()
    assert module[0].weight.dtype == torch.float32
    assert len(list(module.state_dict())) == 4


def test_a_backbone_keeps_its_fingerprint_and_weights(tiny_clip) -> None:
    before, names = CLIPBackbone.fingerprint.fget(tiny_clip), list(tiny_clip.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        tiny_clip(torch.zeros(1, 3, tiny_clip.image_size, tiny_clip.image_size), VV())
    tiny_clip._fingerprint = None
    assert tiny_clip.fingerprint == before
    assert list(tiny_clip.state_dict()) == names
