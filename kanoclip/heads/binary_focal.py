"""Focal loss on the probability of anomalous, where targets may lie between the two labels."""

from __future__ import annotations

from torch import Tensor

from kanoclip.ranks import mean


def binary_focal_loss(probability: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Average ``(1 - p_t)^gamma`` times the binary cross-entropy, ``p_t = p t + (1 - p)(1 - t)``.

    Args:
        probability: ``(...)`` in [0, 1] that something is anomalous.
        target: Of the same shape, in [0, 1].
        gamma: The higher, the less counts what is right already.

    Reference:
        T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, eq. 4; as AF-CLIP and FAPrompt have it.
    """
    p, t = probability.float(), target.float()
    # Logarithms are cut at a probability of 1e-12: float32 has many p that are exactly 1.
    entropy = -t * p.clamp_min(1e-12).log() - (1 - t) * (1 - p).clamp_min(1e-12).log()
    p_t = p * t + (1 - p) * (1 - t)
    return mean((1 - p_t) ** gamma * entropy)
