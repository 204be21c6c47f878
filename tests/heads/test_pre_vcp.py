"""Pre-VCP: prompts that the image completes."""

import pytest
import torch

from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.pre_vcp import PreVCP
from kanoclip.types import Features


class Seen(Hooks):
    """Remember what goes through the tower."""

    def __init__(self) -> None:
        self.tokens: dict[int, torch.Tensor] = {}

    def before(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        self.tokens[number] = tokens
        return tokens


def made(backbone, **options) -> PreVCP:
    torch.manual_seed(0)
    prompts = PreVCP(**options)
    prompts.build(backbone)
    return prompts.eval()


def features(images: int, dim: int) -> Features:
    cls = torch.nn.functional.normalize(torch.randn(images, dim), dim=-1)
    return Features(torch.empty(1, images, 0, dim), cls, (0, 0))


@torch.no_grad()
def test_the_vectors_of_the_image_stand_before_the_end_token_and_learned_tokens_behind_the_begin(tiny_clip) -> None:
    prompts, seen = made(tiny_clip, deep_tokens=2, normal="a cat", anomalous="a scratch cat"), Seen()
    given = features(2, tiny_clip.dim)
    prompts(["x"] * 2, tiny_clip, given, seen)
    for number, tokens in seen.tokens.items():  # all blocks
        expected = prompts.map_deep(prompts.deep[number - 1])
        torch.testing.assert_close(tokens[:, 1:3], expected.expand(4, -1, -1))
    assert list(seen.tokens) == list(range(1, len(tiny_clip.text.blocks) + 1))
    named = prompts.query + prompts.convolve(prompts.widen(given.cls)[:, None])  # (2, r, W)
    words, _ = tiny_clip.token_embeddings(["a cat", "a scratch cat"])
    positions = tiny_clip.text.positional_embedding
    for row, (state, image) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        end = prompts.ends[state]
        whole = torch.cat([words[state, :end], named[image], words[state, end : end + 1]])
        without = torch.cat([seen.tokens[1][row, :1], seen.tokens[1][row, 3:]])  # the learned ones have no position
        torch.testing.assert_close(without[: end + 3], whole + positions[: end + 3])


@torch.no_grad()
def test_each_image_has_states_of_its_own_at_unit_length(tiny_clip) -> None:
    given = features(3, tiny_clip.dim)
    states = made(tiny_clip)(["x"] * 3, tiny_clip, given)
    torch.testing.assert_close(states.norm(dim=-1), torch.ones(3, 2))
    assert float((states[0] - states[1]).abs().max()) > 1e-4
    alone = made(tiny_clip)(["x"], tiny_clip, given._replace(cls=given.cls[1:2]))
    torch.testing.assert_close(alone[0], states[1])


@torch.no_grad()
def test_tokens_are_dropped_while_fitting_alone_and_none_have_no_norm(tiny_clip) -> None:
    given, prompts = features(1, tiny_clip.dim), made(tiny_clip, dropout=0.5)
    assert torch.equal(*(prompts(["x"], tiny_clip, given) for _ in range(2)))
    prompts.train()
    assert not torch.equal(*(prompts(["x"], tiny_clip, given) for _ in range(2)))
    assert {name.split(".")[0] for name, _ in made(tiny_clip, deep_tokens=0).named_parameters()} == {
        "widen",
        "query",
        "convolve",
    }


def test_what_does_not_fit_is_refused(tiny_clip) -> None:
    for options, told in (
        ({"context": 0}, r"prompts\.context is 0 and prompts\.deep_tokens 1, expected at least 1 and 0"),
        ({"dropout": 1.0}, r"prompts\.dropout is 1\.0, expected a share in \[0, 1\)"),
        ({"context": 60}, r"A prompt of 61 learned tokens and the words .* reads 48"),
    ):
        with pytest.raises(ValueError, match=told):
            made(tiny_clip, **options)
