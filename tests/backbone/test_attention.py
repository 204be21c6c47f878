import pytest
import torch

from kanoclip.backbone.attention import CSA, KK, QKV, QQ, VV

ALL = {QKV: "qk", VV: "vv", QQ: "qq", KK: "kk"}


@pytest.fixture
def qkv():
    return torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()


def by_hand(a, b, v):
    return (a @ b.transpose(-1, -2) / 8**0.5).softmax(-1) @ v


@pytest.mark.parametrize("kind", ALL)
def test_attention_is_the_softmax_of_its_two_letters_applied_to_the_values(kind, qkv):
    named = dict(zip("qkv", qkv, strict=True))
    left, right = (named[letter] for letter in ALL[kind])
    torch.testing.assert_close(kind()(*qkv), by_hand(left, right, qkv[2]))


def test_csa_adds_query_query_and_key_key_attention(qkv):
    q, k, v = qkv
    torch.testing.assert_close(CSA()(q, k, v), by_hand(q, q, v) + by_hand(k, k, v))


@pytest.mark.parametrize("kind", [VV, QQ, KK, CSA])
def test_the_second_path_begins_after_five_of_twenty_four_blocks(kind):
    assert [kind().start(depth) for depth in (24, 12, 6, 1)] == [6, 3, 2, 1]
    assert kind(first=20).start(24) == 20


def test_plain_clip_has_no_second_path():
    assert QKV().start(24) is None


def test_attention_has_no_weights():
    assert not CSA().state_dict()


def test_blocks_are_counted_from_one():
    with pytest.raises(ValueError, match=r"attention.first is 0.*Use 1 "):
        VV(first=0)


def test_a_first_block_beyond_the_last_says_how_many_there_are():
    with pytest.raises(ValueError, match=r"attention.first is 7, but the backbone has 6 blocks. Use 1 to 6"):
        VV(first=7).start(6)
