import logging

import pytest
import torch
from torch.nn.functional import normalize

from kanoclip.backbone import text
from kanoclip.backbone.clip import CLIPBackbone

TEXTS = ["a scratch", "wood with scratch", "", "tile"]

LAYOUTS = {
    "flat": {},
    "custom_text": {"custom_text": True},
    "linear projection": {"custom_text": True, "text": {"proj_bias": True}},
    "no projection": {"custom_text": True, "text": {"proj_type": "none", "width": 20}},
    "both ways, last token": {"text": {"no_causal_mask": True, "pool_type": "last"}},
    "end token by number": {"text": {"pool_type": "eos", "eos_id": 519}},
    "first token": {"text": {"no_causal_mask": True, "pool_type": "first"}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_texts_are_encoded_as_open_clip_encodes_them(tmp_path, layout, make_clip, write_clip):
    config, model = make_clip(**LAYOUTS[layout])
    backbone = CLIPBackbone(write_clip(tmp_path, config, model.state_dict()), image_size=32)
    with torch.no_grad():
        expected = model.encode_text(backbone.text.tokenize(TEXTS), normalize=True)
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected, atol=1e-6, rtol=0)
    assert (expected[0] - expected[3]).abs().max() > 0.01


def test_a_folder_brings_its_own_vocabulary(backbone):
    ids = backbone.text.tokenize(["scratch"])[0].tolist()
    assert ids == [518, 517, 519] + [0] * 13


def test_long_lists_are_encoded_in_pieces_with_the_same_result(backbone, monkeypatch):
    whole = backbone.encode_text(TEXTS)
    monkeypatch.setattr(text, "TEXTS_AT_ONCE", 3)
    torch.testing.assert_close(backbone.encode_text(TEXTS), whole, atol=1e-6, rtol=0)


def test_a_text_that_is_too_long_is_named_once(backbone, caplog):
    fits, long = "a b c d e f g h i j k l m n", "a b c d e f g h i j k l m n o"
    with caplog.at_level(logging.WARNING):
        backbone.encode_text([fits, long])
        backbone.encode_text([long])
    assert [record.getMessage() for record in caplog.records] == [
        f"Longer than CLIP's 16 tokens, the rest is not read: {long!r}"
    ]


def test_embeddings_can_be_edited_and_encode_to_the_same_as_texts(backbone):
    embeddings, eot = backbone.token_embeddings(TEXTS)
    assert eot.tolist() == [3, 10, 1, 5]  # "wood", "with" and "tile" are four single letters
    torch.testing.assert_close(backbone.encode_embeddings(embeddings, eot), backbone.encode_text(TEXTS))
    embeddings[:, 1] = 1.0
    assert (backbone.encode_embeddings(embeddings, eot) - backbone.encode_text(TEXTS)).abs().max() > 0.01


def test_shorter_embeddings_than_the_context_are_taken(backbone):
    embeddings, eot = backbone.token_embeddings(["scratch"])
    torch.testing.assert_close(backbone.encode_embeddings(embeddings[:, :3], eot), backbone.encode_text(["scratch"]))


def test_gradients_reach_embeddings_and_deep_tokens_but_no_weight(backbone):
    embeddings, eot = backbone.token_embeddings(TEXTS[:2])
    embeddings = embeddings.clone().requires_grad_()
    deep = torch.zeros(2, 1, 24, requires_grad=True)
    backbone.encode_embeddings(embeddings, eot, deep)[:, 0].sum().backward()
    assert embeddings.grad.abs().sum(-1)[0].gt(0).tolist() == [True] * 4 + [False] * 12  # up to the end token
    assert deep.grad.abs().sum(-1).gt(0).all()
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_deep_tokens_replace_those_after_the_first_from_the_second_block_on(backbone, tiny):
    embeddings, eot = backbone.token_embeddings(TEXTS[:2])
    deep = torch.randn(2, 1, 24)
    with torch.no_grad():
        tokens = embeddings + tiny[0].positional_embedding
        for number, block in enumerate(tiny[0].transformer.resblocks, start=1):
            if number > 1:
                tokens[:, 1] = deep[number - 2, 0]
            tokens = block(tokens, attn_mask=tiny[0].attn_mask)
        read = tiny[0].ln_final(tokens)[torch.arange(2), eot] @ tiny[0].text_projection
    actual = backbone.encode_embeddings(embeddings, eot, deep)
    torch.testing.assert_close(actual, normalize(read, dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sets", "tokens"), [(3, 1), (1, 11)])
def test_more_deep_tokens_than_fit_are_refused(backbone, sets, tokens):
    embeddings, eot = backbone.token_embeddings(TEXTS[:2])
    with pytest.raises(ValueError, match=r"of 3 blocks and texts of 11 tokens. Use at most 2 sets of 10 tokens"):
        backbone.encode_embeddings(embeddings, eot, torch.zeros(sets, tokens, 24))
