"""Alignment loss: patches of an image are like their own kind, and unlike the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.heads.scoring import dot
from kanoclip.ranks import total


def patch_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize masks ``(B, H, W)`` to patches ``(B, h, w)``: 0 or 1, or 1/2 where exactly half is anomalous.

    Reference:
        AF-CLIP's code: bilinear without antialias, so that a patch is read at the pixels around its centre.
    """
    share = F.interpolate(mask.float()[:, None], size=grid, mode="bilinear")[:, 0]
    return torch.where(share == 0.5, share, (share > 0.5).float())


def alignment_loss(sets: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return by how much unlike patches of an image are more alike than like ones, at least 0; the mean over sets.

    The mean cosine of all pairs of a normal and an anomalous patch, less that of all pairs of one kind. Pairs are
    within an image, the means over all pairs of the batch.

    Args:
        sets: Patches ``(B, N, D)`` of each set, such as a level or window, unit length.
        mask: ``(B, h, w)`` with ``h * w = N``: 1 = anomalous, 0 = normal; others are in no pair.

    Reference:
        Q. Fang et al., *AF-CLIP: Zero-Shot Anomaly Detection via Anomaly-Focused CLIP Adaptation*, ACM MM 2025, patch
        alignment loss, and its code. By sums of the patches of a kind, since ``sum_ij p_i . p_j = |sum_i p_i|^2``: the
        same values without a matrix of all pairs.
    """
    kinds = [(mask == kind).flatten(1)[..., None].float() for kind in (0, 1)]  # (B, N, 1) each
    normals, anomalies = (kind.sum(1) for kind in kinds)  # (B, 1)
    sums = [2 * (normals * anomalies).sum(), (normals**2 + anomalies**2).sum()]  # numbers of unlike and of like pairs
    for patches in sets:
        normal, anomalous = ((kind * patches).sum(1) for kind in kinds)  # (B, D)
        sums += [2 * dot(normal, anomalous).sum(), (dot(normal, normal) + dot(anomalous, anomalous)).sum()]
    unlike, like = total(torch.stack(sums)).unflatten(0, (-1, 2)).unbind(1)  # (1 + S,): counts, and sums of each set
    # Without unlike pairs, as in a batch of intact images, the difference is negative: nothing to learn.
    return (unlike[1:] / unlike[0].clamp_min(1) - like[1:] / like[0].clamp_min(1)).clamp_min(0).mean()
