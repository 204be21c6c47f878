"""The prompts of AF-CLIP as a component; what its own code computes is in models/rivals/test_af_clip.py."""

import pytest
import torch

from kanoclip.heads.prefix import PrefixPrompts
from kanoclip.models.kanoclip import KAnoCLIP


def test_a_prefix_stands_before_the_begin_token_of_both_texts(tiny_clip) -> None:
    prompts = PrefixPrompts(context=2)
    prompts.build(tiny_clip)
    words, eot = tiny_clip.token_embeddings(["without defect.", "with defect."])
    expected = tiny_clip.encode_embeddings(torch.cat([prompts.prefix.expand(2, -1, -1), words], 1)[:, :48], eot + 2)
    torch.testing.assert_close(prompts(["nut"], tiny_clip)[0], expected, rtol=0, atol=1e-6)
    prompts.prefix.data = torch.randn(prompts.prefix.shape, generator=torch.Generator().manual_seed(0))
    assert ((prompts(["nut"], tiny_clip)[0] - expected).abs().amax(-1) > 0.01).all()  # both states


def test_it_serves_kanoclip(tiny_clip, synthetic_batch) -> None:
    model = KAnoCLIP(tiny_clip, prompts=PrefixPrompts()).train()
    sum(model.losses(synthetic_batch, model(synthetic_batch)).values()).backward()
    assert (model.prompts.prefix.grad.abs().sum(-1) > 0).all()


def test_a_prefix_that_cannot_be_is_refused(tiny_clip) -> None:
    with pytest.raises(ValueError, match=r"prompts\.context is 0, but a learned prompt needs at least 1"):
        PrefixPrompts(context=0)
    with pytest.raises(ValueError, match=r"takes \d+ tokens, but .* reads 48\. Use a smaller --model\.prompts"):
        PrefixPrompts(context=46).build(tiny_clip)
