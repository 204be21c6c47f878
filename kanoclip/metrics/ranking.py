"""AUROC, AP, F1-max and AUPRO from histograms of scores."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from kanoclip.metrics.histogram import EDGES, Histogram, Ints, bounds
from kanoclip.types import KanoclipError

REGION_WEIGHT = 2**38  # of all pixels of a region together; an integer: sums do not depend on their order

Curve = NDArray[np.float64]


class RankingMetric(Metric):
    """Ranks normal and anomalous images or pixels by their scores, over all ranks.

    Its state is a torchmetrics state, so that merging, synchronising and ``MetricCollection`` work as usual.

    Attributes:
        counts: After ``compute``: number of normal and of anomalous images or pixels, over all ranks.
    """

    full_state_update = False
    seen: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # a list, because torchmetrics gathers lists of tensors of unequal sizes, but not unequal tensors
        self.add_state("seen", [], dist_reduce_fx=None)
        self.counts = (0, 0)

    def reset(self) -> None:
        """Forget all batches."""
        self.seen = []  # metrics of a collection may share the list, which torchmetrics would empty
        super().reset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch, and return the metrics of this batch alone."""
        values = super().forward(*args, **kwargs)
        self.seen = [self._joined()]
        return values

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric has seen, without changing that one."""
        super().merge_state(incoming_state)
        self.seen = [self._joined()]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Exchange what was seen with the other ranks, as one tensor each, also if it is empty."""
        self.seen = [self._joined().to(self.device)]
        super().sync(*args, **kwargs)

    @abstractmethod
    def _joined(self) -> Tensor:
        """What was seen, as one new tensor on the CPU."""

    def _curves(self, scored: NDArray[Any], anomalous: NDArray[Any]) -> tuple[Curve, Curve]:
        """Cumulate counts, given from the lowest score up, from the highest down: normal and anomalous, from 0 on."""
        everything, defective = cumulated(scored), cumulated(anomalous)
        self.counts = (int(everything[-1] - defective[-1]), int(defective[-1]))
        return everything - defective, defective


class ImageMetrics(RankingMetric):
    """AUROC, AP and F1-max of image scores.

    Scores are kept, at 8 bytes per image, and sorted at the end: exact. Undefined values (one class only) are NaN.

    Attributes:
        scored: After ``compute``: ``(2, n)``, scores and labels over all ranks.

    Shapes:
        image_score ``(B,)``, any real numbers, and label ``(B,)`` in {0, 1}.

    Raises:
        KanoclipError: If a score is NaN or infinite.
    """

    scored: NDArray[np.float32] = np.zeros((2, 0), np.float32)

    def update(self, image_score: Tensor, label: Tensor) -> None:
        """Add a batch."""
        batch = torch.stack([part.detach().float().cpu().ravel() for part in (image_score, label)])
        if batch.numel():
            bounds(batch[0].numpy())  # raises now for NaN, not at the end
        self.seen = [*self.seen, batch]

    def compute(self) -> dict[str, Tensor]:
        """Return ``auroc``, ``ap`` and ``f1_max`` in [0, 1]."""
        scores, label = self.scored = self._joined().numpy()
        values, place = np.unique(scores, return_inverse=True)
        counts = (np.bincount(place[chosen], minlength=len(values)) for chosen in (label >= 0, label > 0))
        return _tensors(ranking(*self._curves(*counts)))

    def _joined(self) -> Tensor:
        none = torch.zeros(2, 0, dtype=torch.float32)
        return torch.cat([none, *(part.cpu() for part in self.seen)], 1)  # scores and labels


class PixelMetrics(RankingMetric):
    """AUROC, AP, F1-max and AUPRO of anomaly maps.

    Pixels are counted by their score, see ``metrics.histogram``; no map is kept. With no more than 131,072 different
    scores the metrics are exact. With more, neighbouring scores tie, which moved no metric by more than 3e-5 for
    probabilities, logits and scores over 30 decades; by 3e-3 where half of the scores lie within 1 % of each other and
    the other half over 10 decades. AUPRO is the area under a weighted ROC curve: each anomalous pixel weighs
    1 / (area of its 8-connected region), for up to ``2**44`` anomalous pixels. Undefined values (no anomalous or no
    normal pixel) are NaN. Maps are moved to the CPU.

    Args:
        max_fpr: False positive rate up to which AUPRO integrates, in (0, 1].

    Attributes:
        overlap: After ``compute``: some false positive rates up to ``max_fpr`` and the mean overlap of regions at each,
            over all ranks, to draw the curve; empty where AUPRO is undefined.
        passed: After ``compute``: numbers of normal and of anomalous pixels over all ranks that score at least as much
            as some scores, from the highest down, to draw curves.
        above: After ``compute``: ``(2, 127)``, likewise of those that score at least 0 ... 1 in even steps.

    Shapes:
        anomaly_map ``(B, H, W)``, any real numbers, and mask ``(B, H, W)``, non-zero = anomalous.

    Raises:
        KanoclipError: If a score is NaN or infinite, or ``max_fpr`` is out of range.
        ValueError: If the shapes of maps and masks differ.

    Reference:
        P. Bergmann et al., *The MVTec Anomaly Detection Dataset*, IJCV 2021, section 5 (PRO curve, FPR up to 0.3).
    """

    def __init__(self, max_fpr: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < max_fpr <= 1:
            raise KanoclipError(f"max_fpr is {max_fpr}, expected a rate in (0, 1], such as 0.3.")
        self.max_fpr = max_fpr
        self.overlap: tuple[Curve, Curve] = (np.zeros(0), np.zeros(0))
        self.passed: tuple[Curve, Curve] = (np.zeros(1), np.zeros(1))
        self.above: Ints = np.zeros((2, len(EDGES)), np.int64)

    def update(self, anomaly_map: Tensor, mask: Tensor) -> None:
        """Add a batch."""
        if anomaly_map.shape != mask.shape:
            raise ValueError(
                f"Maps are {tuple(anomaly_map.shape)} but masks {tuple(mask.shape)}; both should be (B, H, W)."
            )
        anomalous = mask.cpu().numpy() != 0  # NumPy compares bytes faster than torch
        weights = [_region_weights(one) for one in anomalous if one.any()]
        scores = anomaly_map.detach().float().cpu().numpy().ravel()
        counted = self._mine.add(scores, anomalous.ravel(), np.concatenate([*weights, np.zeros(0, np.int64)]))
        self.seen = [counted.pack()]

    def compute(self) -> dict[str, Tensor]:
        """Return ``auroc``, ``ap``, ``f1_max`` and ``aupro`` in [0, 1]."""
        mine = self._mine
        normal, anomalous = self._curves(mine.counts[0], mine.counts[1])
        weights = cumulated(mine.weights)
        rate, overlap = overlap_curve(normal, weights, self.max_fpr)
        at = thinned(rate, overlap)
        self.overlap = rate[at], overlap[at]
        at = thinned(normal, anomalous)
        self.passed, self.above = (normal[at], anomalous[at]), mine.above()
        return _tensors({**ranking(normal, anomalous), "aupro": per_region_overlap(normal, weights, self.max_fpr)})

    def _joined(self) -> Tensor:
        return self._mine.pack()

    @property
    def _mine(self) -> Histogram:
        return Histogram.unpack(self.seen)


def cumulated(counts: NDArray[Any]) -> Curve:
    """Sum counts from the last one to the first: ``(n,)`` -> ``(1 + n,)``, from 0 on."""
    return np.concatenate([[0.0], np.cumsum(counts[::-1], dtype=np.float64)])


def ranking(normal: Curve, anomalous: Curve) -> dict[str, float]:
    """Compute AUROC (ties count half), AP (by steps) and F1-max from cumulated counts, highest score first."""
    normals, anomalies = normal[-1], anomalous[-1]
    if not normals or not anomalies:
        return {"auroc": math.nan, "ap": math.nan, "f1_max": math.nan}
    precision = anomalous[1:] / (anomalous[1:] + normal[1:])
    return {
        "auroc": float(np.trapezoid(anomalous / anomalies, normal / normals)),
        "ap": float(np.sum(np.diff(anomalous / anomalies) * precision)),
        "f1_max": float(np.max(2 * anomalous / (anomalous + normal + anomalies))),
    }


def per_region_overlap(normal: Curve, weights: Curve, max_fpr: float) -> float:
    """Compute AUPRO: the mean overlap of regions, averaged over false positive rates from 0 to ``max_fpr``."""
    rate, overlap = overlap_curve(normal, weights, max_fpr)
    return float(np.trapezoid(overlap, rate) / max_fpr) if len(rate) else math.nan


def overlap_curve(normal: Curve, weights: Curve, max_fpr: float) -> tuple[Curve, Curve]:
    """Return false positive rates from 0 to ``max_fpr`` and the mean overlap of regions at each; empty if undefined."""
    if not normal[-1] or not weights[-1]:
        return normal[:0], weights[:0]
    rate, overlap = normal / normal[-1], weights / weights[-1]
    below = rate <= max_fpr
    at_limit = np.interp(max_fpr, rate, overlap)
    return np.append(rate[below], max_fpr), np.append(overlap[below], at_limit)


def thinned(rate: Curve, other: Curve, points: int = 256) -> NDArray[np.intp]:
    """Choose about so many points of a curve that rises in both coordinates, evenly along it, both ends among them."""
    if len(rate) <= points:
        return np.arange(len(rate))
    way = rate / (rate[-1] or 1) + other / (other[-1] or 1)
    return np.unique(np.append(np.searchsorted(way, np.linspace(0, way[-1], points)), [0, len(way) - 1]))


def _region_weights(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the weight of each anomalous pixel, row by row: ``REGION_WEIGHT`` over the area of its region."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    box = mask[top : top + height, left : left + width]  # most masks are small in their image
    region = cv2.connectedComponents(box.view(np.uint8), connectivity=8)[1][box]
    return np.rint(REGION_WEIGHT / np.maximum(np.bincount(region), 1)).astype(np.int64)[region]


def _tensors(values: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
