import pytest
import torch

from kanoclip.heads.token_adapter import TokenAdapter, gaussian_window


@pytest.mark.parametrize("side", [1, 3, 5])
def test_a_window_is_a_gaussian_mean_with_zeros_beyond_the_border(side) -> None:
    patches = torch.randn(2, 12, 5)
    shift = torch.arange(side) - side // 2
    weights = torch.exp(-(shift[:, None] ** 2 + shift**2) / 32.0)  # sigma 4
    weights = (weights / weights.sum()).expand(5, 1, side, side)
    image = patches.mT.unflatten(-1, (3, 4))
    expected = torch.conv2d(image, weights, padding=side // 2, groups=5).flatten(2).mT
    torch.testing.assert_close(gaussian_window(patches, (3, 4), side), expected)


def test_tokens_are_replaced_by_what_they_gather_and_keep_nothing_of_themselves(tiny_clip) -> None:
    adapter = TokenAdapter(heads=2, head_width=4)
    adapter.build(tiny_clip)
    for weight in (adapter.query.weight, adapter.value.weight):
        weight.data.zero_()
    adapter.value.weight.data[:, 0] = 1
    tokens = torch.randn(3, 7, 32)
    mean = adapter.norm(tokens)[..., :1].mean(1, keepdim=True).expand(3, 7, 8)  # queries of 0: all count alike
    torch.testing.assert_close(adapter(tokens), adapter.out(mean))


def test_all_weights_learn_and_there_is_one_layer_whatever_the_levels(tiny_clip) -> None:
    adapter = TokenAdapter()
    adapter.build(tiny_clip)
    adapter(torch.randn(2, 5, 32)).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in adapter.parameters())
    assert sum(weight.numel() for weight in adapter.parameters()) == 4 * 512 * 32 + 32 + 2 * 32
