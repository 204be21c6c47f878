"""Losses: knowledge (KD), global and local (focal and Dice).

In a distributed run the global and the local loss are over the images of all ranks, see ``ranks``. A ``KDLoss`` takes
the states of one image; the model averages it over the images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.ranks import mean, total
from kanoclip.types import ANOMALOUS, NORMAL, Batch


def global_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of the global logits ``(B, 2)`` and the labels ``(B,)``."""
    return mean(F.cross_entropy(logits, label, reduction="none"))


def focal_loss(maps: Tensor, mask: Tensor, gamma: float = 2.0, smooth: float = 0.0) -> Tensor:
    """Sum over levels of the mean over pixels of ``-(1 - p)^gamma log(p + 1e-5)``, p the probability of the true state.

    Args:
        maps: ``(L, B, H, W)``, the probability that a pixel is anomalous.
        mask: ``(B, H, W)``, 1 = anomalous.
        gamma: The higher, the less the pixels count that are right already.
        smooth: Share of the probability of the wrong state in p; the code of many methods has 1e-5.

    Reference:
        T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, eq. 4, without class weights. The 1e-5
        keeps the logarithm finite and, unlike a clamp, its gradient at p = 0; AnomalyCLIP's code adds it too.
    """
    p = torch.where(mask.bool(), maps, 1 - maps)
    p = p + smooth * (1 - 2 * p) if smooth else p
    return len(maps) * mean(-((1 - p) ** gamma) * (p + 1e-5).log())


def dice_loss(maps: Tensor, mask: Tensor, over: str = "batch", normal: bool = False) -> Tensor:
    """Sum over levels of ``1 - (2 |map * mask| + 1) / (|map| + |mask| + 1)``, where ``||`` sums over pixels.

    Args:
        maps: ``(L, B, H, W)``, the probability that a pixel is anomalous.
        mask: ``(B, H, W)``, 1 = anomalous.
        over: "batch" sums over the pixels of all images; "image" takes the loss of each image, then the mean; "rows"
            that of each row of pixels, a slip of AdaCLIP's code. With "image", an image with an empty mask costs almost
            1 until its probabilities sum to less than one pixel, which drives maps into saturation.
        normal: Add the Dice loss of the normal state, of ``1 - maps`` and ``1 - mask``.

    Reference:
        F. Milletari et al., *V-Net*, 3DV 2016. The 1 in both terms defines it for empty masks.
    """
    first = {"batch": 1, "image": 2, "rows": 3}[over]
    mask = mask.float()
    both, found = (values.flatten(first).sum(-1) for values in (maps * mask, maps))  # (L,), (L, B) or (L, B, H)
    marked = mask.flatten(first - 1).sum(-1).expand_as(found)
    pixels = torch.full_like(found, math.prod(maps.shape[first:]))
    if over == "batch":
        both, found, marked, pixels = total(torch.stack([both, found, marked, pixels]))
    lost = 1 - (2 * both + 1) / (found + marked + 1)
    if normal:
        neither = pixels - found - marked + both
        lost = lost + 1 - (2 * neither + 1) / (2 * pixels - found - marked + 1)
    return lost.sum() if over == "batch" else len(maps) * mean(lost)


def local_loss(maps: Tensor, mask: Tensor, dice: str = "batch", smooth: float = 0.0) -> Tensor:
    """Sum over levels of focal + Dice(anomalous) + Dice(normal).

    Args:
        maps: ``(L, B, H, W)``, the probability that a pixel is anomalous, of images whose mask is known; B may be 0.
        mask: ``(B, H, W)``, 1 = anomalous.
        dice: ``over`` of ``dice_loss``.
        smooth: As in ``focal_loss``.

    Reference:
        KAnoCLIP, L_local; its terms are those of AnomalyCLIP (ICLR 2024), whose Dice is per image.
    """
    return focal_loss(maps, mask, smooth=smooth) + dice_loss(maps, mask, dice, normal=True)


def with_mask(maps: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Select level maps ``(L, b, H, W)`` and masks ``(b, H, W)`` of the b images of a batch whose mask is known."""
    known = batch.has_mask  # most often all of them: then nothing is copied
    return (maps, batch.mask) if known.all() else (maps[:, known], batch.mask[known])


class KDLoss(nn.Module, ABC):
    """Pulls the abnormal prompt toward the knowledge base's descriptions of damage."""

    needs_knowledge: ClassVar[bool] = True
    """Whether it reads the knowledge base."""

    @abstractmethod
    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return a scalar from states ``(2, D)`` and knowledge ``(K, D)``, all unit length."""


class NoKD(KDLoss):
    """Learn the prompts without the knowledge base."""

    needs_knowledge = False

    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return 0."""
        return states.new_zeros(())


class MeanKD(KDLoss):
    """Pull the abnormal prompt to the mean of the knowledge: ``d(w_a, k_mean)``, d the squared distance.

    Reference:
        H. Yao et al., *KgCoOp*, CVPR 2023, which pulls learned prompts to hand-written ones by this distance.
    """

    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return the squared distance, in [0, 4]."""
        return _distance(states[ANOMALOUS], F.normalize(knowledge.mean(0), dim=-1))


class MeanMarginKD(KDLoss):
    """Pull the abnormal prompt to the knowledge, and keep it nearer there than the normal prompt.

    ``d(w_a, k_mean) + mean_i max(0, margin + d(w_a, k_i) - d(w_n, k_i))``, d the squared distance.

    Args:
        margin: How much nearer, as a difference of squared distances of unit vectors.

    Reference:
        KAnoCLIP, section 2.2: the KD loss brings LAP near the knowledge and pushes it from LNP. The formula is ours.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return the pull plus the mean violation of the margin."""
        pull = _distance(states[ANOMALOUS], F.normalize(knowledge.mean(0), dim=-1))
        nearer = _distance(states[ANOMALOUS], knowledge) - _distance(states[NORMAL], knowledge)  # (K,)
        return pull + (self.margin + nearer).clamp_min(0).mean()


class ContrastiveKD(KDLoss):
    """Classify each description as the abnormal prompt's, not the normal one's (InfoNCE with one negative).

    Args:
        temperature: Divisor of the cosine.

    Reference:
        Ours, after A. van den Oord et al., *CPC*, arXiv 1807.03748, 2018.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return the cross-entropy of choosing the abnormal prompt."""
        logits = knowledge @ states.mT / self.temperature  # (K, 2)
        return F.cross_entropy(logits, logits.new_full((len(logits),), ANOMALOUS, dtype=torch.long))


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().sum(-1)
