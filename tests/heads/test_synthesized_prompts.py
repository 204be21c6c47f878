"""Prompts that are synthesized from an image, their prototypes and their latents."""

import pytest
import torch
from torch.nn import functional as F

from kanoclip.backbone.attention import VV
from kanoclip.heads.prototypes import GlobalVAE, Prototypes
from kanoclip.heads.synthesized_prompts import SynthesizedPrompts
from kanoclip.types import Features


def made(backbone, **options) -> SynthesizedPrompts:
    torch.manual_seed(0)
    prompts = SynthesizedPrompts(**options)
    prompts.build(backbone)
    return prompts.eval()


@torch.no_grad()
def test_each_query_looks_at_the_patches_alone() -> None:
    torch.manual_seed(0)
    part, patches = Prototypes(16, count=3, heads=4), torch.randn(2, 9, 16)
    found = part(patches)
    assert found.shape == (2, 2, 3, 16)
    part.queries.data[1] += 1
    torch.testing.assert_close(part(patches)[:, 0], found[:, 0])
    turned = part(patches[:, torch.randperm(9)])
    torch.testing.assert_close(turned[:, 0], found[:, 0])  # patches are a set
    assert not torch.allclose(part(patches)[:, 1], found[:, 1])


def test_heads_are_one_for_64_values_unless_they_are_given() -> None:
    assert [Prototypes(dim, 1).attention.num_heads for dim in (768, 512, 100, 16)] == [12, 8, 1, 1]
    with pytest.raises(ValueError, match=r"prompts\.heads is 3, expected a divisor of the joint width 16"):
        Prototypes(16, 1, heads=3)


@torch.no_grad()
def test_the_terms_of_the_latents_are_divergence_and_distance() -> None:
    torch.manual_seed(0)
    part, feature, noise = GlobalVAE(8), torch.randn(4, 8), torch.randn(4, 8)
    part.log_variance.bias.data += 0.3
    decoded, terms = part(feature, noise)
    inside = part.inner(feature).relu()
    drawn = torch.distributions.Normal(part.mean(inside), (part.log_variance(inside) / 2).exp())
    kl = torch.distributions.kl_divergence(drawn, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(terms["kl"], kl)
    torch.testing.assert_close(decoded, part.decode(drawn.mean + drawn.stddev * noise))
    torch.testing.assert_close(terms["recon"], (feature - decoded).square().sum(1).mean())
    pairs = torch.stack([(one - other).square().mean() for one in feature for other in decoded]).mean()
    torch.testing.assert_close(part(feature, noise, pairs=True)[1]["recon"], pairs)


@torch.no_grad()
@pytest.mark.parametrize("levels_at", ["joint", "norm", "block"])
def test_a_patch_is_the_mean_of_its_neighbourhood(tiny_clip, images, levels_at) -> None:
    backbone = tiny_clip.reading(levels_at)
    features = backbone(images, VV())
    prompts = made(backbone, pool=3)
    single = made(backbone, pool=1).local(features, backbone)
    grid = single.mT.unflatten(2, (4, 4))
    expected = F.pad(grid, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).mean((-1, -2)).flatten(2).mT
    torch.testing.assert_close(prompts.local(features, backbone), expected, rtol=0, atol=1e-5)
    unit = tiny_clip(images, VV()).patches[-1]
    torch.testing.assert_close(F.normalize(single, dim=-1), unit, rtol=0, atol=1e-5)


@torch.no_grad()
def test_latents_are_the_same_for_all_images_and_follow_the_seed(tiny_clip) -> None:
    prototypes, cls = torch.randn(1, 2, 6, 16).expand(3, -1, -1, -1), torch.randn(3, 16)
    states = made(tiny_clip).synthesize(prototypes, cls, tiny_clip)
    torch.testing.assert_close(states[0], states[2])  # a test does not read the global feature
    torch.testing.assert_close(states.norm(dim=-1), torch.ones(3, 2))
    other = made(tiny_clip, seed=1).synthesize(prototypes, cls, tiny_clip)
    assert not torch.allclose(states, other)
    swapped = made(tiny_clip, swapped_prototypes=True).synthesize(prototypes.flip(1), cls, tiny_clip)
    torch.testing.assert_close(swapped, states)


def test_while_fitting_states_follow_the_global_feature_and_there_are_terms(tiny_clip) -> None:
    prompts = made(tiny_clip).train()
    cls = torch.nn.functional.normalize(torch.randn(2, 16), dim=-1)
    states = prompts(["x"] * 2, tiny_clip, Features(torch.randn(1, 2, 16, 16), cls, (4, 4)))
    assert set(prompts.take_terms()) == {"kl", "recon"}
    states.square().sum(-1).sub(states[..., 0]).sum().backward()
    assert prompts.latent.inner.weight.grad is not None
