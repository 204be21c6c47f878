"""Focal loss on the probability of anomalous, where targets may lie between the two labels."""

from __future__ import annotations

from torch import Tensor

from kanoclip.ranks import mean


def binary_focal_loss(
    probability: Tensor, target: Tensor, gamma: float = 2.0, overwritten: Tensor | None = None
) -> Tensor:
    """Average ``(1 - p_t)^gamma`` times the binary cross-entropy, ``p_t = p t + (1 - p)(1 - t)``.

    Args:
        probability: ``(...)`` in [0, 1] that something is anomalous.
        target: Of the same shape, in [0, 1].
        gamma: The higher, the less counts what is right already.
        overwritten: What the gradient takes for the target where it multiplies by it, as if the target had been
            overwritten after the loss was computed; the loss is the same. AF-CLIP's code does so.

    Reference:
        T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, eq. 4; as AF-CLIP and FAPrompt have it.
    """
    p, t = probability.float(), target.float()
    entropy, p_t = _entropy(p, t), p * t + (1 - p) * (1 - t)
    if overwritten is not None:
        wrong = _entropy(p, overwritten), p * overwritten + (1 - p) * (1 - t)
        entropy, p_t = (
            value.detach() + other - other.detach() for value, other in zip((entropy, p_t), wrong, strict=True)
        )
    return mean((1 - p_t) ** gamma * entropy)


def _entropy(p: Tensor, t: Tensor) -> Tensor:
    # Logarithms are cut at a probability of 1e-12: float32 has many p that are exactly 1.
    return -t * p.clamp_min(1e-12).log() - (1 - t) * (1 - p).clamp_min(1e-12).log()
