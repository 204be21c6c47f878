"""Prompts that regions of the image shift: what shifts them, and their use in KAnoCLIP."""

import pytest
import torch

from kanoclip.backbone.attention import QKV
from kanoclip.heads.prompts import ObjectAgnosticPrompts
from kanoclip.heads.regional_prompts import RegionalPrompts
from kanoclip.types import KanoclipError


def made(backbone) -> RegionalPrompts:
    torch.manual_seed(0)
    prompts = RegionalPrompts(context=3, deep_tokens=1, deep_depth=1)
    prompts.build(backbone)
    return prompts


@torch.no_grad()
def test_each_state_is_shifted_by_the_mean_of_its_own_region_and_an_empty_one_by_the_bias(tiny_clip) -> None:
    prompts = made(tiny_clip)
    patches = torch.randn(2, 5, tiny_clip.dim)
    anomalous = torch.tensor([[True, False, False, True, False], [False] * 5])
    states = prompts.shifted(patches, anomalous, tiny_clip)
    means = [[patches[0, [1, 2, 4]].mean(0), patches[0, [0, 3]].mean(0)], [patches[1].mean(0), torch.zeros(())]]
    for image in (0, 1):
        plain = ObjectAgnosticPrompts(context=3, deep_tokens=1, deep_depth=1)
        plain.build(tiny_clip)
        plain.deep.copy_(prompts.deep)
        for state, layer in enumerate(prompts.shift):
            mean = means[image][state].expand(tiny_clip.dim)
            plain.vectors[state] = prompts.vectors[state] + layer(mean)
        torch.testing.assert_close(states[image], plain(["nut"], tiny_clip)[0], rtol=0, atol=1e-5)


def test_without_a_memory_the_prompts_tell_the_regions_apart_themselves(tiny_clip, synthetic_batch) -> None:
    prompts, features = made(tiny_clip), tiny_clip(synthetic_batch.image, QKV())
    states = prompts(synthetic_batch.category, tiny_clip, features)
    plain = ObjectAgnosticPrompts.forward(prompts, ["nut"], tiny_clip)[0].detach()
    anomalous = (features.patches[-1] @ plain.T).softmax(-1)[..., 1] > 0.5
    torch.testing.assert_close(states, prompts.shifted(features.patches[-1], anomalous, tiny_clip))
    states.sum().backward()
    assert all(float(layer.weight.grad.abs().sum()) > 0 for layer in prompts.shift)


def test_patches_outside_the_joint_space_are_refused_with_what_to_use_instead(tiny_clip, monkeypatch) -> None:
    prompts, features = made(tiny_clip), tiny_clip(torch.rand(1, 3, 32, 32), QKV())
    monkeypatch.setattr(tiny_clip, "levels_at", "block")
    with pytest.raises(KanoclipError, match=r"levels_at is 'block'\. Use .*levels_at joint, or .* object_agnostic"):
        prompts(["nut"], tiny_clip, features)
