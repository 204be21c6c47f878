import torch
from torch.distributions import Normal, kl_divergence
from torch.func import jacrev

from kanoclip.heads.flows import ImageFlow, StateFlows, draw, planar


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_log_determinant_of_a_planar_flow_is_that_of_its_jacobian() -> None:
    z, u, w, b = numbers(5), numbers(5, seed=1), numbers(5, seed=2), numbers(1, seed=3)
    jacobian = jacrev(lambda one: planar(one, u, w, b)[0])(z)
    torch.testing.assert_close(planar(z, u, w, b)[1], jacobian.det().abs().add(1e-5).log(), rtol=0, atol=1e-5)


def test_what_is_drawn_without_bends_has_the_divergence_of_a_gaussian() -> None:
    mean, variance = numbers(4), numbers(4, seed=1).exp()
    drawn = draw(numbers(200_000, 4, seed=2), mean, variance, torch.zeros(1, 4), numbers(1, 4), torch.zeros(1))
    expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(0, 1)).sum()
    assert drawn.log_det.abs().max() < 1e-4
    torch.testing.assert_close((drawn.gaussian - drawn.log_det).mean(), expected, rtol=0.01, atol=0)
    torch.testing.assert_close(drawn.latent.var(0), variance, rtol=0.02, atol=0)


def test_bends_change_the_density_by_their_determinants() -> None:
    mean, variance, noise = numbers(4), numbers(4, seed=1).exp(), numbers(4, seed=2)
    u, w, b = 0.3 * numbers(3, 4, seed=3), 0.3 * numbers(3, 4, seed=4), numbers(3, seed=5)
    drawn = draw(noise, mean, variance, u, w, b)
    jacobian = jacrev(lambda one: draw(one, mean, variance, u, w, b).latent)(noise)  # of the whole, scale and all
    own = Normal(0, 1).log_prob(noise).sum() - jacobian.det().abs().log()
    expected = own - Normal(0, 1).log_prob(drawn.latent).sum()
    torch.testing.assert_close(drawn.gaussian - drawn.log_det, expected, rtol=0, atol=1e-3)


def test_each_image_and_each_state_has_a_distribution_of_its_own() -> None:
    torch.manual_seed(0)
    image, states = ImageFlow(6, 3, 4, flows=2), StateFlows(3, 4, flows=2)
    seen, noise = numbers(3, 6), numbers(3, 5, 4, seed=1)
    together = image(seen, noise)
    assert [tuple(one.shape) for one in together] == [(3, 5, 4), (3, 5), (3, 5)]
    for i in range(3):
        for whole, alone in zip(together, image(seen[i : i + 1], noise[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], alone)
    same = numbers(7, 1, 4, seed=2).expand(-1, 2, -1)
    drawn = states(same)
    assert [tuple(one.shape) for one in drawn] == [(7, 2, 4), (7, 2), (7, 2)]
    assert (drawn.latent[:, 0] - drawn.latent[:, 1]).abs().max() > 0.1
    assert {float(part.bias.abs().sum()) for part in (image.u, image.w, image.b)} == {0.0}
