import pytest
import torch
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.cross_attention import PatchQueries, TextQueries
from kanoclip.heads.folded import FoldedPatchQueries, FoldedTextQueries
from kanoclip.heads.interaction import (
    BiCMCI,
    LevelProjection,
    LinearInteraction,
    NoInteraction,
    PatchToText,
    TextToPatch,
)

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


ROLES = {PatchQueries: ("norm_patches", "norm_states"), TextQueries: ("norm_states", "norm_patches")}


def cross_attention(kind, width=16, heads=4, dtype=torch.float32):
    """One with random weights of every sort, four levels, D = 16."""
    torch.manual_seed(0)
    attention = kind(4, 16, heads, width).to(dtype)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return attention


@pytest.mark.parametrize("kind", ROLES)
def test_cross_attention_is_torchs_multi_head_attention_of_each_level(tokens, kind) -> None:
    patches, states = tokens[0], tokens[1].expand(4, -1, -1, -1)
    attention = cross_attention(kind)
    queries, context = (patches, states) if kind is PatchQueries else (states, patches)
    for level, found in enumerate(attention(patches, states)):

        def layer(name, level=level):
            return {key: value[level] for key, value in getattr(attention, name).state_dict().items()}

        norm, norm_context, reference = torch.nn.LayerNorm(16), torch.nn.LayerNorm(16), torch.nn.MultiheadAttention(
            16, 4, batch_first=True
        )  # fmt: skip
        for module, name in zip((norm, norm_context), ROLES[kind], strict=True):
            module.load_state_dict(layer(name))
        q, kv = layer("query"), layer("key_value")
        reference.load_state_dict(
            {f"in_proj_{key}": torch.cat([q[key], kv[key]]) for key in q}
            | {f"out_proj.{key}": value for key, value in layer("out").items()}
        )
        seen = norm_context(context[level])
        expected = queries[level] + reference(norm(queries[level]), seen, seen)[0]
        torch.testing.assert_close(found, F.normalize(expected, dim=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize(("kind", "folded"), [(PatchQueries, FoldedPatchQueries), (TextQueries, FoldedTextQueries)])
def test_folded_cross_attention_is_cross_attention_and_so_are_its_gradients(tokens, kind, folded, width) -> None:
    for dtype, close, close_gradient in ((torch.float32, 4e-7, 1e-4), (torch.float64, 1e-14, 1e-12)):
        patches, states = tokens[0].to(dtype), tokens[1].to(dtype).expand(4, -1, -1, -1).clone()
        towards, results = torch.linspace(-1, 1, 16, dtype=dtype), []
        for one in (kind, folded):
            attention = cross_attention(one, width, dtype=dtype)
            inputs = [patches.clone().requires_grad_(), states.clone().requires_grad_()]
            out = attention(*inputs)
            results.append((out, torch.autograd.grad((out * towards).sum(), [*inputs, *attention.parameters()])))
        (plain, gradients), (fast, fast_gradients) = results
        torch.testing.assert_close(fast, plain, rtol=0, atol=close)
        for mine, theirs in zip(fast_gradients, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=close_gradient)


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


def test_the_weights_keep_the_names_and_the_order_of_version_0_1_0(tiny_clip) -> None:
    interaction = build(BiCMCI, tiny_clip, trained=False)
    layers = ("query", "key_value", "out", "norm_patches", "norm_states")
    names = [f"{look}.{layer}.{part}" for look in ("patches_look", "texts_look") for layer in layers
             for part in ("weight", "bias")]  # fmt: skip
    assert [name for name, _ in interaction.named_parameters()] == names
    assert interaction.patches_look.key_value.weight.shape == (4, 32, 16)


@pytest.mark.parametrize(("bias", "relu"), [(True, False), (False, False), (False, True)])
def test_a_level_projection_is_a_linear_layer_of_each_level_from_the_towers_width(tiny, bias, relu) -> None:
    backbone = CLIPBackbone(tiny[1], image_size=32, levels_at="block")
    torch.manual_seed(0)
    projection = LevelProjection(bias, relu)
    projection.build(backbone)
    raw, states = torch.randn(4, 2, 16, 32), F.normalize(torch.randn(2, 2, 20), dim=-1)
    patches, after = projection(raw, states)
    for level, layer, projected, same in zip(raw, projection.layers, patches, after, strict=True):
        expected = level @ layer.weight.T + (layer.bias if bias else 0)
        torch.testing.assert_close(projected, F.normalize(F.leaky_relu(expected) if relu else expected, dim=-1))
        assert torch.equal(same, states)
        assert (layer.bias is not None) == bias


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("levels_at", ["norm", "block"])
def test_patches_outside_joint_space_are_compared_with_no_text(kind, levels_at, tiny) -> None:
    with pytest.raises(ValueError, match=rf"levels_at is '{levels_at}'\. Use --model\.backbone\.levels_at joint, or"):
        kind().build(CLIPBackbone(tiny[1], image_size=32, levels_at=levels_at))
