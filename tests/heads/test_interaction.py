import pytest
import torch
from torch.nn import functional as F

from kanoclip.heads.interaction import BiCMCI, LinearInteraction, NoInteraction, PatchToText, TextToPatch, unit

ALL = [NoInteraction, LinearInteraction, BiCMCI, TextToPatch, PatchToText]


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(1)
    patches = F.normalize(torch.randn(4, 3, 12, 16, generator=generator), dim=-1)
    return patches, F.normalize(torch.randn(3, 2, 16, generator=generator), dim=-1)


def build(kind, backbone, trained: bool):
    torch.manual_seed(0)
    interaction = kind()
    interaction.build(backbone)
    if trained:
        for parameter in interaction.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return interaction


@pytest.mark.parametrize("kind", ALL)
def test_before_training_an_interaction_changes_nothing(tiny_clip, tokens, kind) -> None:
    patches, states = build(kind, tiny_clip, trained=False)(*tokens)
    torch.testing.assert_close(patches, tokens[0])
    torch.testing.assert_close(states, tokens[1].expand(4, -1, -1, -1))


@pytest.mark.parametrize("kind", ALL[1:])
def test_a_batch_of_three_is_three_batches_of_one_and_all_is_unit_length(tiny_clip, tokens, kind) -> None:
    interaction = build(kind, tiny_clip, trained=True)
    together = interaction(*tokens)
    for i in range(3):
        alone = interaction(tokens[0][:, i : i + 1], tokens[1][i : i + 1])
        for whole, single in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[:, i : i + 1], single, rtol=1e-5, atol=1e-6)
    for values in together:
        torch.testing.assert_close(values.norm(dim=-1), torch.ones(values.shape[:-1]))


@pytest.mark.parametrize(("kind", "changes"), [(BiCMCI, (1, 1)), (TextToPatch, (0, 1)), (PatchToText, (1, 0))])
def test_each_half_changes_only_its_side_and_levels_share_nothing(tiny_clip, tokens, kind, changes) -> None:
    same_levels = tokens[0][:1].expand(4, -1, -1, -1)
    patches, states = build(kind, tiny_clip, trained=True)(same_levels, tokens[1])
    assert bool((patches - same_levels).abs().max() > 1e-3) == bool(changes[0])
    assert bool((states - tokens[1]).abs().max() > 1e-3) == bool(changes[1])
    for values, changed in ((patches, changes[0]), (states, changes[1])):
        assert bool((values[0] - values[1]).abs().max() > 1e-3) == bool(changed)


def looked(query, context, look, norms, level):
    """What a look is by the book, before anything is folded: pre-norm attention of one level with a residual."""

    def layer(name, x):
        part = getattr(look, name)
        return F.linear(x, part.weight[level], part.bias[level])

    asked, seen = (
        F.layer_norm(x, x.shape[-1:], n.weight[level], n.bias[level])
        for x, n in zip((query, context), norms, strict=True)
    )
    q, k, v = layer("query", asked), *layer("key_value", seen).chunk(2, -1)
    q, k, v = (x.unflatten(-1, (look.heads, -1)).transpose(1, 2) for x in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.normalize(query + layer("out", found), dim=-1)


@pytest.mark.parametrize("width", [None, 8])
def test_folded_looks_are_cross_attention_and_so_are_their_gradients(tiny_clip, tokens, width) -> None:
    interaction = build(lambda: BiCMCI(heads=4, width=width), tiny_clip, trained=True)
    patches, states = tokens[0], tokens[1].clone().requires_grad_()
    one, other = interaction.patches_look, interaction.texts_look
    expected = [
        [looked(p, states, one, (one.norm_patches, one.norm_states), i) for i, p in enumerate(patches)],
        [looked(states, p, other, (other.norm_states, other.norm_patches), i) for i, p in enumerate(patches)],
    ]
    weights = [states, *interaction.parameters()]
    for side, found in enumerate(interaction(patches, states)):
        wanted = torch.stack(expected[side])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        towards = torch.linspace(-1, 1, 16)
        mine, theirs = (torch.autograd.grad((x * towards).sum(), weights, allow_unused=True) for x in (found, wanted))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_unit_is_normalize_and_so_is_its_gradient() -> None:
    tokens = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)).requires_grad_()
    towards = torch.linspace(-1, 1, 7)
    for scale in (unit, lambda x: F.normalize(x, dim=-1)):
        tokens.grad, before = None, tokens.grad
        scale(tokens).mul(towards).square().sum().backward()
    torch.testing.assert_close(tokens.grad, before)
    torch.testing.assert_close(unit(tokens), F.normalize(tokens, dim=-1))
    assert unit(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_every_weight_of_the_whole_interaction_learns(tiny_clip, tokens) -> None:
    interaction = build(BiCMCI, tiny_clip, trained=True)
    patches, states = interaction(*tokens)
    (patches @ states.mT).softmax(-1)[..., 1].square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in interaction.parameters())


def test_heads_that_do_not_divide_the_width_are_refused_with_a_number_that_does(tiny_clip) -> None:
    with pytest.raises(ValueError, match=r"heads 6 does not divide the width 16 .* --model.interaction.heads 4"):
        BiCMCI(heads=6).build(tiny_clip)


def test_a_narrow_interaction_is_the_identity_before_training_and_smaller(tiny_clip, tokens) -> None:
    narrow, wide = BiCMCI(heads=2, width=4), BiCMCI(heads=2)
    for interaction in (narrow, wide):
        interaction.build(tiny_clip)
    torch.testing.assert_close(narrow(*tokens)[0], tokens[0])
    sizes = [sum(parameter.numel() for parameter in kind.parameters()) for kind in (narrow, wide)]
    assert sizes[0] < 0.4 * sizes[1]
