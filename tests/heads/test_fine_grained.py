"""The prompts of FAPrompt as a component; what its own code computes is in models/rivals/test_faprompt.py."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.fine_grained import FineGrainedPrompts
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.types import Features


def built(backbone, **options) -> FineGrainedPrompts:
    torch.manual_seed(0)
    prompts = FineGrainedPrompts(**options)
    prompts.build(backbone)
    return prompts


@torch.no_grad()
@pytest.mark.parametrize(("which", "places"), [("top", [11, 3]), ("first", [0, 1])])
def test_the_prior_reads_the_most_abnormal_patches_of_the_last_level_in_their_order(tiny_clip, which, places) -> None:
    prompts = built(tiny_clip, patches=2, prior_patches=which)
    static = prompts.static(tiny_clip)
    last = 0.1 * normalize(torch.randn(1, 16, 16), dim=-1)
    last[0, 3], last[0, 11] = static[1] - static[0], 2 * (static[1] - static[0])
    features = Features(torch.stack([torch.randn(1, 16, 16), last]), static[:1], (4, 4))
    expected = prompts.to_prior(last[0, places].flatten())
    torch.testing.assert_close(prompts.prior(features, static)[0], expected)


def test_abnormal_prompts_that_are_alike_cost_a_term_while_training(tiny_clip) -> None:
    prompts = built(tiny_clip, abnormal=3)
    prompts.own.data[:] = prompts.own.data[:1].clone()
    prompts.static(tiny_clip)
    torch.testing.assert_close(prompts.take_terms()["orthogonality"], torch.tensor(3.0))  # the pairs of three
    prompts.eval().static(tiny_clip)
    assert prompts.take_terms() == {}


def test_its_prompts_serve_kanoclip_with_both_pairs_of_states(tiny_clip, synthetic_batch) -> None:
    model = KAnoCLIP(tiny_clip, prompts=FineGrainedPrompts()).train()
    scores = model(synthetic_batch)
    losses = model.losses(synthetic_batch, scores)
    assert {"global", "local", "orthogonality"} <= set(losses)
    sum(losses.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.prompts.parameters())
    states = model.prompts(synthetic_batch.category, model.backbone, model.features(synthetic_batch))
    assert states.shape == (4, 2, 2, 16)
    with torch.no_grad():
        logits = [model.compare(model.features(synthetic_batch), pair)[0] for pair in states.unbind(1)]
    both = torch.stack([one.softmax(-1) for one in logits]).mean(0)
    torch.testing.assert_close(scores.logits.softmax(-1).detach(), both)
    torch.testing.assert_close(
        losses["global"].detach(), cross_entropy(both.log(), synthetic_batch.label), rtol=0, atol=1e-5
    )


def test_prompts_that_cannot_be_are_refused_with_what_to_type(tiny_name, tiny_clip) -> None:
    with pytest.raises(ValueError, match=r"prompts\.patches is 10, but an image has 2 x 2 patches. Use .*patches 4"):
        FineGrainedPrompts().build(CLIPBackbone(tiny_name, image_size=16))
    with pytest.raises(ValueError, match=r"takes 58 tokens, but .* reads 48\. Use a smaller --model\.prompts\.context"):
        FineGrainedPrompts(context=40, deep_tokens=0).build(CLIPBackbone(tiny_name, image_size=32))
    with pytest.raises(ValueError, match=r"levels_at is 'block'\. Use --model\.backbone\.levels_at joint"):
        FineGrainedPrompts().build(CLIPBackbone(tiny_name, image_size=32, levels_at="block"))
    with pytest.raises(ValueError, match=r"prior_patches is 'best', expected top or first"):
        FineGrainedPrompts(prior_patches="best")
    with pytest.raises(ValueError, match=r"prompts\.abnormal is 0, expected 1 or more"):
        FineGrainedPrompts(abnormal=0)
