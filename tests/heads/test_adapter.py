import pytest
import torch
from torch.nn import functional as F

from kanoclip.heads.adapter import ConvAdapter, LinearAdapter, NoAdapter


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    cls = F.normalize(torch.randn(3, 16, generator=generator), dim=-1)
    return cls, F.normalize(torch.randn(2, 3, 12, 16, generator=generator), dim=-1), (3, 4)


@pytest.mark.parametrize("adapter", [NoAdapter(), LinearAdapter(), ConvAdapter(), ConvAdapter(pool="max")])
def test_before_training_an_adapter_changes_nothing(tiny_clip, features, adapter) -> None:
    adapter.build(tiny_clip)
    torch.testing.assert_close(adapter(*features), features[0])


@pytest.mark.parametrize("adapter", [LinearAdapter(), ConvAdapter(), ConvAdapter(pool="max", class_token=False)])
def test_a_trained_adapter_returns_unit_length_and_learns_all_its_weights(tiny_clip, features, adapter) -> None:
    adapter.build(tiny_clip)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    adapted = adapter(*features)
    torch.testing.assert_close(adapted.norm(dim=-1), torch.ones(3))
    (adapted @ torch.arange(16.0)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())


def test_the_convolution_sees_the_neighbours_on_the_grid_of_the_last_level(tiny_clip, features) -> None:
    adapter = ConvAdapter(pool="max", class_token=False)
    adapter.build(tiny_clip)
    torch.nn.init.normal_(adapter.up.weight)
    cls, patches, grid = features
    before = adapter(cls, patches, grid)
    first_level = patches.clone()
    first_level[0] = 0
    torch.testing.assert_close(adapter(cls, first_level, grid), before)
    shuffled = patches[:, :, torch.randperm(12, generator=torch.Generator().manual_seed(2))]
    assert (adapter(cls, shuffled, grid) - before).abs().max() > 1e-4  # the places matter


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ValueError, match=r"adapter\.pool is 'sum', expected mean or max"):
        ConvAdapter(pool="sum")
