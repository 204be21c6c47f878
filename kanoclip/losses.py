"""Losses: knowledge (KD), global and local (focal and Dice)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.types import ANOMALOUS, NORMAL


def global_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of the global logits ``(B, 2)`` and the labels ``(B,)``."""
    return F.cross_entropy(logits, label)


def focal_loss(probability: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over pixels of ``(1 - p)^gamma * -log p``, p the probability of the pixel's true state.

    Args:
        probability: ``(B, 2, H, W)`` of the two states.
        mask: ``(B, H, W)``, 1 = anomalous.
        gamma: How much pixels that are right already are left alone.

    Reference:
        T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, eq. 4, without class weights.
    """
    true = torch.where(mask.bool(), probability[:, ANOMALOUS], probability[:, NORMAL]).clamp_min(1e-5)
    return ((1 - true) ** gamma * -true.log()).mean()


def dice_loss(probability: Tensor, mask: Tensor, over: str = "batch") -> Tensor:
    """One minus the overlap of maps ``(B, H, W)`` with masks ``(B, H, W)``.

    Args:
        probability: Of what the mask marks.
        mask: 1 where it is.
        over: "batch" counts the pixels of all images together; "image" takes each image apart, then the mean. Apart,
            an image with an empty mask costs almost 1 until its probabilities sum to less than a single pixel, which
            drives maps into saturation.

    Reference:
        F. Milletari et al., *V-Net*, 3DV 2016, with 1 added above and below so that empty masks are defined.
    """
    first = 1 if over == "image" else 0
    mask = mask.float()
    overlap = (probability * mask).flatten(first).sum(-1)
    both = probability.flatten(first).sum(-1) + mask.flatten(first).sum(-1)
    return (1 - (2 * overlap + 1) / (both + 1)).mean()


def local_loss(maps: Tensor, mask: Tensor, dice: str = "batch") -> Tensor:
    """Sum over levels of focal + Dice(anomalous, mask) + Dice(normal, 1 - mask).

    Args:
        maps: ``(L, B, 2, H, W)`` probabilities.
        mask: ``(B, H, W)``, 1 = anomalous; only of images whose mask is known.
        dice: What Dice is taken over, see ``dice_loss``.

    Reference:
        KAnoCLIP, L_local; its terms are those of AnomalyCLIP (ICLR 2024), whose Dice is per image.
    """
    terms = [
        focal_loss(level, mask)
        + dice_loss(level[:, ANOMALOUS], mask, dice)
        + dice_loss(level[:, NORMAL], 1 - mask, dice)
        for level in maps
    ]
    return torch.stack(terms).sum()


class KDLoss(nn.Module, ABC):
    """Pulls the abnormal prompt toward what the knowledge base says of damage."""

    needs_knowledge = True

    @abstractmethod
    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return a scalar from states ``(2, D)`` and knowledge ``(K, D)``, all unit length."""


class NoKD(KDLoss):
    """Learn the prompts without knowledge."""

    needs_knowledge = False

    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return 0."""
        return states.new_zeros(())


class MeanKD(KDLoss):
    """Pull the abnormal prompt to the mean of the knowledge: ``d(w_a, k_mean)``, d the squared distance.

    Reference:
        H. Yao et al., *KgCoOp*, CVPR 2023, pulls learned to hand-written prompts so; here to the knowledge.
    """

    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return the squared distance, in [0, 4]."""
        return _distance(states[ANOMALOUS], F.normalize(knowledge.mean(0), dim=-1))


class MeanMarginKD(KDLoss):
    """Pull the abnormal prompt to the knowledge, and keep the knowledge nearer to it than to the normal prompt.

    ``d(w_a, k_mean) + mean_i max(0, margin + d(w_a, k_i) - d(w_n, k_i))``, d the squared distance.

    Args:
        margin: By how much nearer, as a squared distance of unit vectors.

    Reference:
        KAnoCLIP, section 2.2: the KD loss brings LAP near the knowledge and pushes it from LNP. The formula is ours.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, states: Tensor, knowledge: Tensor) -> Tensor:
        """Return the pull and the margin's violations."""
        pull = _distance(states[ANOMALOUS], F.normalize(knowledge.mean(0), dim=-1))
        nearer = _distance(states[ANOMALOUS], knowledge) - _distance(states[NORMAL], knowledge)  # (K,)
        return pull + (self.margin + nearer).clamp_min(0).mean()


class ContrastiveKD(KDLoss):
    """Tell the abnormal from the normal prompt by each piece of knowledge (InfoNCE with one negative).

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
