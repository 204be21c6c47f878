"""Distributions that are learned: a Gaussian bent by planar flows, made from an image or the same for all images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Drawn(NamedTuple):
    """What was drawn from a distribution, with what its distance from the standard normal one is made of.

    The Kullback-Leibler divergence is the expectation of ``gaussian - log_det``.

    Attributes:
        latent: ``(..., W)``, behind the last flow.
        gaussian: ``(...)``, log density of the start under its Gaussian minus that of ``latent`` under N(0, 1).
        log_det: ``(...)``, log of by how much the flows have stretched the space at the start.
    """

    latent: Tensor
    gaussian: Tensor
    log_det: Tensor


def planar(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Bend a space along one direction: ``f(z) = z + u tanh(w.z + b)``.

    Args:
        z: ``(..., W)``.
        u: ``(..., W)``, where points move to.
        w: ``(..., W)``, across which plane.
        b: ``(..., 1)``, shift of the plane.

    Returns:
        ``f(z)`` and ``log |det df/dz|``, ``(...)``. Nothing keeps the flow invertible; 1e-5 keeps the logarithm finite.

    Reference:
        D. Rezende and S. Mohamed, *Variational Inference with Normalizing Flows*, ICML 2015, eq. 10 to 12.
    """
    bent = torch.tanh((w * z).sum(-1, keepdim=True) + b)  # (..., 1)
    stretch = 1 + (1 - bent**2) * (w * u).sum(-1, keepdim=True)
    return z + u * bent, (stretch.abs() + 1e-5).log().squeeze(-1)


def draw(noise: Tensor, mean: Tensor, variance: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Drawn:
    """Draw from ``N(mean, variance)`` and pass K planar flows.

    Args:
        noise: ``(..., W)``, standard normal.
        mean: ``(..., W)``.
        variance: ``(..., W)``.
        u: ``(..., K, W)`` of the flows, likewise ``w``.
        w: ``(..., K, W)``.
        b: ``(..., K)``.
    """
    z = mean + variance.sqrt() * noise
    log_det = z.new_zeros(z.shape[:-1])
    for flow in zip(u.unbind(-2), w.unbind(-2), b[..., None].unbind(-2), strict=True):
        z, one = planar(z, *flow)
        log_det = log_det + one
    gaussian = (z**2 - noise**2 - variance.log()).sum(-1) / 2  # both without log(2 pi)
    return Drawn(z, gaussian, log_det)


class Encoder(nn.Module):
    """Make mean and variance of a Gaussian from a vector, each by three linear layers with Softplus between them.

    Args:
        seen: Width of the vector.
        hidden: Width inside.
        width: Width W of the Gaussian.
    """

    def __init__(self, seen: int, hidden: int, width: int) -> None:
        super().__init__()
        self.mean, self.log_variance = (
            nn.Sequential(
                nn.Linear(seen, hidden), nn.Softplus(), nn.Linear(hidden, hidden), nn.Softplus(),
                nn.Linear(hidden, width),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance ``(..., W)``, the latter ``exp(s / 2)``, as Bayes-PFL's code has it."""
        return self.mean(vector).float(), (self.log_variance(vector).float() / 2).exp()


class ImageFlow(nn.Module):
    """A distribution for each image: Gaussian and flows are made from its global feature.

    Args:
        seen: Width of the feature.
        hidden: Width inside the encoder.
        width: Width W of what is drawn.
        flows: Number K of planar flows.
    """

    def __init__(self, seen: int, hidden: int, width: int, flows: int) -> None:
        super().__init__()
        self.encoder = Encoder(seen, hidden, width)
        self.u, self.w = nn.Linear(seen, flows * width), nn.Linear(seen, flows * width)
        self.b = nn.Linear(seen, flows)
        small(self)

    def forward(self, seen: Tensor, noise: Tensor) -> Drawn:
        """Draw S times for each image: features ``(B, seen)`` and noise ``(B, S, W)`` -> latents ``(B, S, W)``."""
        mean, variance = self.encoder(seen)  # (B, W)
        u, w = (layer(seen).float().unflatten(-1, (-1, mean.shape[-1])) for layer in (self.u, self.w))  # (B, K, W)
        own = (mean, variance, u, w, self.b(seen).float())
        return draw(noise, *(one[:, None] for one in own))


class StateFlows(nn.Module):
    """One distribution for each of the two states, the same for all images; they share the encoder.

    Args:
        hidden: Width inside the encoder.
        width: Width W of what is drawn.
        flows: Number K of planar flows.
    """

    def __init__(self, hidden: int, width: int, flows: int) -> None:
        super().__init__()
        self.encoder = Encoder(width, hidden, width)
        self.state = nn.Parameter(torch.randn(2, width))
        self.u, self.w = (nn.Parameter(torch.randn(2, flows, width)) for _ in range(2))
        self.b = nn.Parameter(torch.randn(2, flows))
        small(self)

    def forward(self, noise: Tensor) -> Drawn:
        """Draw S times for each state: noise ``(S, 2, W)`` -> latents ``(S, 2, W)``."""
        mean, variance = self.encoder(self.state)  # (2, W)
        return draw(noise, mean, variance, self.u, self.w, self.b)


def small(module: nn.Module) -> None:
    """Draw the matrices of linear layers from N(0, 0.02), with biases of zero, as Bayes-PFL's code does."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
