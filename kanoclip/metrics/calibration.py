"""Thresholds: from scores to a decision, and what a threshold promises.

All promises are of images that are exchangeable with the good ones that chose the threshold: of the same parts, camera
and light, each seen once. References:

[1] V. Vovk, A. Gammerman and G. Shafer, *Algorithmic Learning in a Random World*, Springer 2005; as split conformal
    prediction in J. Lei et al., *Distribution-Free Predictive Inference for Regression*, JASA 2018.
[2] V. Vovk, *Conditional Validity of Inductive Conformal Predictors*, ACML 2012, proposition 2a; the beta form in
    A. Angelopoulos and S. Bates, *A Gentle Introduction to Conformal Prediction*, 2022, section 3.2.
[3] C. Clopper and E. Pearson, *The Use of Confidence or Fiducial Limits*, Biometrika 1934.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kanoclip.types import KanoclipError

GOOD, DEFECTIVE = "good", "defective"
HALVINGS = 16
"""Of a map's range, when its region score is looked for: that is found to 1/65536 of it, as fine as a map's png."""


class Threshold(NamedTuple):
    """Where "good" ends.

    Attributes:
        image: Highest image score that is still good, in [0, 1].
        pixel: Highest score of a pixel that belongs to no region, in [0, 1]; None: regions are not looked for.
        min_area: Smallest region that counts, as a share of the picture, in [0, 1].
    """

    image: float
    pixel: float | None = None
    min_area: float = 0.0

    def decide(self, score: float) -> str:
        """Return "good" or "defective"."""
        return DEFECTIVE if score > self.image else GOOD

    def margin(self, score: float) -> float:
        """Return how far a score is above the threshold; negative for a good image."""
        return score - self.image


class Share(NamedTuple):
    """So many of a number of images that had no part in choosing the threshold.

    Attributes:
        hits: Of those that count.
        images: Of all.
    """

    hits: int
    images: int

    @property
    def rate(self) -> float:
        """Their share, in [0, 1]."""
        return self.hits / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true rate lies with 95 % confidence: Clopper and Pearson's interval [3], exact for any number."""
        k, n = self
        low = beta_quantile(k, n - k + 1, 0.025) if k > 0 else 0.0
        high = beta_quantile(k + 1, n - k, 0.975) if k < n else 1.0
        return low, high


class Promise(NamedTuple):
    """What a threshold promises that is the k-th smallest of the scores of n good images.

    Attributes:
        rank: k, from 1 to n.
        images: n.
        kept: Whether ``average`` is no more than was asked for.
    """

    rank: int
    images: int
    kept: bool = True

    @property
    def average(self) -> float:
        """False-alarm rate on average over all choices of n images: at most this, and without ties exactly this [1]."""
        return (self.images + 1 - self.rank) / (self.images + 1)

    @property
    def confident(self) -> float:
        """False-alarm rate that 95 % of all choices of n images do not exceed.

        The rate at a threshold is distributed as Beta(n + 1 - k, k) over those choices [2]; ties make it smaller.
        """
        return beta_quantile(self.images + 1 - self.rank, self.rank, 0.95)


def beta_quantile(a: float, b: float, probability: float) -> float:
    """Return the value below which Beta(a, b) lies with ``probability``."""
    from scipy.special import betaincinv  # here, so that an exported model is run without scipy

    return float(betaincinv(a, b, probability))


def check_rate(max_fpr: float) -> None:
    """Raise a ``KanoclipError`` unless a false-alarm rate can be asked for."""
    if not 0 < max_fpr < 1:
        raise KanoclipError(f"max_fpr is {max_fpr}, expected a rate between 0 and 1, such as 0.01. Set --max_fpr.")


def promise(images: int, max_fpr: float) -> Promise:
    """Find the rank of split conformal's threshold: k = ceil((n + 1) (1 - a)) [1].

    Too few images have no such rank. Then it is n, the highest score, which promises the least rate that n images can,
    1 / (n + 1).

    Args:
        images: n, the number of good images.
        max_fpr: a, the false-alarm rate that is asked for, in (0, 1).

    Raises:
        KanoclipError: If there is no image, or the rate is out of its range.
    """
    check_rate(max_fpr)
    if images < 1:
        raise KanoclipError("There is no good image, and the threshold is a score of one. Add images of good parts.")
    above = math.floor((images + 1) * Fraction(str(max_fpr)))  # exact: 0.29 * 100 is 28.999999999999996
    return Promise(images + 1 - max(above, 1), images, above > 0)


def images_for(max_fpr: float) -> int:
    """Return how many good images a false-alarm rate takes: the least n with 1 / (n + 1) <= a."""
    return math.ceil(1 / Fraction(str(max_fpr))) - 1


def conformal_threshold(scores: ArrayLike, max_fpr: float) -> float:
    """Choose the threshold: the score of rank ``promise(n, max_fpr).rank``; an image above it is not good.

    Args:
        scores: ``(n,)``, of good images, each once.
        max_fpr: False-alarm rate that is asked for, in (0, 1).

    Raises:
        KanoclipError: If there is no score, one is NaN or infinite, or the rate is out of its range.
    """
    values = np.asarray(scores, np.float64).ravel()
    rank = promise(len(values), max_fpr).rank
    if not np.isfinite(values).all():
        raise KanoclipError(f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} scores are NaN or infinite.")
    return float(np.partition(values, rank - 1)[rank - 1])


def region_score(anomaly_map: NDArray[np.float32], min_area: float) -> float:
    """Find the least threshold above which a map has no region of at least ``min_area``, see ``find_regions``.

    So an image has such a region if its region score is above the pixel threshold, and the conformal threshold of
    region scores holds for images; pixels are not exchangeable, images are. Ours.

    Args:
        anomaly_map: ``(H, W)`` at the size of the photo.
        min_area: As a share of the picture, in [0, 1].

    Returns:
        The score, or up to 1/65536 of the map's range more: an image of the calibration never makes a threshold lower
        than it should be.
    """
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise KanoclipError("The anomaly map has scores that are NaN or infinite.")
    size = anomaly_map.size
    if 1 / size >= min_area:  # a single pixel is a region
        return high
    inside = anomaly_map
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = (inside > middle).astype(np.uint8)
        if _largest_region(above, size * min_area) / size >= min_area:
            left, top, width, height = cv2.boundingRect(above)
            inside, low = inside[top : top + height, left : left + width], middle  # regions only shrink from here on
        else:
            high = middle
    return high


def _largest_region(above: NDArray[np.uint8], least: float) -> int:
    """Return the pixels of the largest region; 0 where all together are fewer than ``least``."""
    if cv2.countNonZero(above) < math.floor(least):
        return 0
    stats = cv2.connectedComponentsWithStats(above, connectivity=8)[2]
    return int(stats[1:, cv2.CC_STAT_AREA].max(initial=0))
