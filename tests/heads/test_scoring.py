import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from kanoclip.heads.scoring import (
    GlobalScore,
    MapMaxScore,
    MeanScore,
    TopKScore,
    anomaly_map,
    harmonic_mean,
    level_maps,
    smooth,
    window_map,
)


def test_a_level_map_is_the_softmax_of_cosine_over_temperature_in_its_place() -> None:
    patches = torch.zeros(1, 1, 4, 2)
    patches[..., 0] = 1
    patches[0, 0, 3] = torch.tensor([0.0, 1.0])  # the lower right patch is anomalous
    states = torch.eye(2)[None, None]
    maps = level_maps(patches, states, (2, 2), 2, temperature=0.5)
    sure = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(maps[0, 0], torch.tensor([[1 - sure, 1 - sure], [1 - sure, sure]]))


def test_swapping_the_states_flips_the_map() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = F.normalize(torch.randn(3, 2, 6, 8, generator=generator), dim=-1)
    states = F.normalize(torch.randn(3, 2, 2, 8, generator=generator), dim=-1)
    heat, flipped = (anomaly_map(level_maps(patches, s, (2, 3), 12, 0.07)) for s in (states, states.flip(2)))
    torch.testing.assert_close(heat, 1 - flipped)
    assert heat.min() >= 0
    assert heat.max() <= 1


@given(st.floats(0.3, 6), st.integers(8, 40), st.integers(8, 40))
def test_smoothing_is_scipys_gaussian(sigma: float, height: int, width: int) -> None:
    maps = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height * width))
    radius = min(math.ceil(4 * sigma), min(height, width) - 1)
    expected = [gaussian_filter(m, sigma, mode="mirror", radius=radius) for m in maps.double().numpy()]
    wanted = torch.stack([torch.from_numpy(e) for e in expected])
    torch.testing.assert_close(smooth(maps, sigma).double(), wanted, atol=1e-5, rtol=0)


def test_no_sigma_leaves_the_map() -> None:
    maps = torch.rand(1, 5, 5)
    assert smooth(maps, 0) is maps


def test_image_scores_by_hand() -> None:
    probability = torch.tensor([0.2, 0.6])
    heat = torch.tensor([[[0.0, 0.5], [1.0, 0.1]], [[0.3, 0.3], [0.3, 0.3]]])
    assert GlobalScore()(probability, heat).tolist() == pytest.approx([0.2, 0.6])
    assert MapMaxScore()(probability, heat).tolist() == pytest.approx([1.0, 0.3])
    assert MeanScore()(probability, heat).tolist() == pytest.approx([0.6, 0.45])
    assert TopKScore(share=0.5)(probability, heat).tolist() == pytest.approx([0.75, 0.3])
    assert TopKScore(share=0.001)(probability, heat).tolist() == pytest.approx([1.0, 0.3])


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="expected a share in"):
        TopKScore(share=share)


def test_a_patch_gets_the_harmonic_mean_of_the_windows_that_cover_it() -> None:
    windows = torch.tensor([[0.5, 0.25]])  # two windows of 2 x 2 patches side by side on a grid of 2 x 3
    expected = torch.tensor([[[0.5, 1 / 3, 0.25]] * 2])
    torch.testing.assert_close(window_map(windows, (2, 3), 2), expected)


def test_the_largest_window_is_the_same_everywhere_and_the_smallest_its_patch() -> None:
    torch.testing.assert_close(window_map(torch.tensor([[0.3]]), (4, 4), 4), torch.full((1, 4, 4), 0.3))
    patches = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(window_map(patches, (3, 4), 1), patches.unflatten(1, (3, 4)))


def test_one_scale_that_sees_nothing_clears_the_map() -> None:
    maps = torch.tensor([0.5, 0.25, 1.0])[:, None, None, None]
    torch.testing.assert_close(harmonic_mean(maps), torch.full((1, 1, 1), 3 / 7))
    assert float(harmonic_mean(maps * torch.tensor([1.0, 0.0, 1.0])[:, None, None, None])) < 1e-9
    assert float(window_map(torch.tensor([[0.0, 1.0]]), (1, 2), 1)[0, 0, 0]) < 1e-9
    torch.testing.assert_close(harmonic_mean(torch.ones(3, 1, 2, 2)), torch.ones(1, 2, 2), rtol=0, atol=0)
