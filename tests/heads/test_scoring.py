import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kanoclip.heads.scoring import (
    GlobalScore,
    MapMaxScore,
    MeanScore,
    TopKScore,
    anomaly_map,
    check_blur,
    check_temperature,
    dot,
    harmonic_mean,
    level_maps,
    scaled,
    smooth,
    window_map,
)
from kanoclip.types import KanoclipError


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


@given(st.floats(0.1, 6), st.integers(1, 40), st.integers(1, 40))
def test_smoothing_is_scipys_gaussian_at_the_borders_too(sigma: float, height: int, width: int) -> None:
    maps = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height * width))
    wanted = torch.stack([torch.from_numpy(gaussian_filter(m, sigma)) for m in maps.double().numpy()])
    torch.testing.assert_close(smooth(maps, sigma).double(), wanted, atol=1e-6, rtol=0)


class TF32(TorchDispatchMode):
    """Round the factors of convolutions and matrix products to 10 bits, as cuDNN does unless it is told not to."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in ROUNDING:
            args = [rounded(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


ROUNDING = [getattr(torch.ops.aten, name) for name in ("convolution", "mm", "bmm", "addmm", "baddbmm", "mv", "dot")]


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    return ((tensor.view(torch.int32) + 2**12) & ~(2**13 - 1)).view(torch.float32)


def saturated(device: str = "cpu") -> dict[str, Callable[[], torch.Tensor]]:
    """What makes maps and scores of features and windows, where all are within 1e-3 of 1."""
    generator = torch.Generator().manual_seed(1)
    near = (1 - 1e-3 * torch.rand(2, 36, 36, generator=generator)).to(device)
    patches = F.normalize(torch.randn(3, 2, 16, 8, generator=generator), dim=-1).to(device)
    states = F.normalize(torch.randn(3, 2, 2, 8, generator=generator), dim=-1).to(device)
    return {
        "smooth": lambda: smooth(near, 2),
        "window_map": lambda: window_map(near.flatten(1), (38, 38), 3),
        "harmonic_mean": lambda: harmonic_mean(near[:, None]),
        "level_maps": lambda: level_maps(patches, states, (4, 4), 24, 0.01),
        "dot": lambda: dot(patches, patches.flip(1)),
    }


@pytest.mark.parametrize("name", saturated())
def test_nothing_that_makes_a_score_rounds_to_tf32(name) -> None:
    make = saturated()[name]
    plain = make()
    with TF32():
        torch.testing.assert_close(make(), plain, atol=0, rtol=0)


def test_the_emulation_of_tf32_rounds_a_convolution() -> None:
    near = 1 - 1e-3 * torch.rand(1, 1, 9, 9)
    with TF32():
        rough = F.conv2d(near, torch.full((1, 1, 3, 3), 1 / 9))
    assert (rough - F.conv2d(near, torch.full((1, 1, 3, 3), 1 / 9))).abs().max() > 1e-5


@pytest.mark.parametrize("name", saturated())
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_nothing_that_makes_a_score_rounds_under_autocast(name, kind) -> None:
    make = saturated()[name]
    plain = make()
    with torch.autocast("cpu", kind):
        found = make()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, atol=0, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("name", saturated())
def test_a_gpu_makes_the_scores_of_a_cpu_with_and_without_tf32(name, precision, device) -> None:
    before = torch.get_float32_matmul_precision()
    plain = saturated()[name]()
    torch.set_float32_matmul_precision(precision)
    try:
        found = saturated(device)[name]().cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    # a last digit of a cosine, divided by a temperature of 0.01; TF32 would be wrong by 1e-2
    torch.testing.assert_close(found, plain, atol=2e-5 if name == "level_maps" else 2e-6, rtol=0)


@pytest.mark.parametrize("sigma", [-1, math.nan, math.inf, 1e40])
def test_a_blur_out_of_range_is_refused(sigma) -> None:
    with pytest.raises(KanoclipError, match=r"sigma is .*expected 0 to 518 pixels\. Use --model\.sigma 4"):
        check_blur(sigma)
    check_blur(0)


def test_a_blur_is_told_in_pixels_of_a_518_pixel_image() -> None:
    assert [scaled(4, size) for size in (518, 259, 1036)] == [4, 2, 8]


@pytest.mark.parametrize("temperature", [0, -0.07, math.nan, math.inf])
def test_a_temperature_out_of_range_is_refused(temperature) -> None:
    with pytest.raises(KanoclipError, match=r"temperature is .*expected a number above 0\. Use --model\.temperature"):
        check_temperature(temperature)


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
