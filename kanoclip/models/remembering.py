"""What models with a memory of reference images share: when it is chosen and filled, and what it is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.data.resizing import Tile
from kanoclip.heads.memory import Memory, NoMemory, Vectors
from kanoclip.heads.scoring import smooth
from kanoclip.models.base import AnomalyModule
from kanoclip.models.checkpoint import run_seed
from kanoclip.models.tiling import tiled
from kanoclip.types import Batch, Scores

log = logging.getLogger(__name__)


class WithMemory(AnomalyModule):
    """A model that may compare images with reference images; a subclass says with which of their vectors.

    The memory is filled at the start of each validation, test and prediction, since the towers may have been trained;
    without a trainer call ``remember``. It is no part of a checkpoint.

    Attributes:
        memory: What it remembers.
    """

    memory: Memory

    def vectors(self, batch: Batch) -> Vectors:
        """Return what is remembered of images, in sets: ``(B, M, W)`` each."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Choose the reference images, so that a mistake is told and the identity of the scores is known."""
        super().setup(stage)
        if stage != "fit" or getattr(self._data, "holdout", False):
            self.memory.choose(self._data, run_seed())
            part, chosen = getattr(self._data, "part", None), self.memory.chosen
            if part and chosen and (seen := chosen.paths_among(part(stage))):
                log.warning("%s of those to score are references too, and score lower than new ones.", seen)

    def on_validation_epoch_start(self) -> None:
        """Fill the memory."""
        super().on_validation_epoch_start()
        self._fill(getattr(self._data, "tile", False))

    def on_test_epoch_start(self) -> None:
        """Fill the memory."""
        super().on_test_epoch_start()
        self._fill(getattr(self._data, "tile", False))

    def on_predict_epoch_start(self) -> None:
        """Fill the memory."""
        super().on_predict_epoch_start()
        self._fill(getattr(self._data, "tile", False))

    def remember(self, tile: Tile = False) -> None:
        """Choose the reference images and remember them, for scores without a trainer.

        Args:
            tile: As in ``AnomalyDataModule``; what is scored should have the same.
        """
        if self._data is not None or self.memory.chosen is None:
            self.memory.choose(self._data, run_seed())
        self._fill(tile)

    @torch.no_grad()
    def _fill(self, tile: Tile) -> None:
        if isinstance(self.memory, NoMemory):
            return
        training = self.training
        plugin = self._trainer and self._trainer.precision_plugin
        with plugin.forward_context() if plugin else nullcontext():  # as tested images are encoded
            self.eval().memory.fill(self._encode, self.image_size, tile)
        self.train(training)

    def _encode(self, batches: Iterator[Batch]) -> Vectors:
        found: list[Vectors] = []

        def keep(batch: Batch) -> Scores:
            found.append([one.flatten(0, 1) for one in self.vectors(batch)])
            return Scores(torch.zeros_like(batch.image[:, 0]), batch.image.new_zeros(len(batch.image)))

        for batch in batches:
            tiled(keep, batch._replace(image=batch.image.to(self.device)), self.image_size, self.tiles_at_once or 1)
        return [torch.cat(one) for one in zip(*found, strict=True)]


def enlarge(distances: Tensor, size: int, align_corners: bool = False) -> Tensor:
    """Resize distances of patches ``(B, h, w)`` to pixels ``(B, size, size)``, bilinear."""
    return F.interpolate(distances[:, None], size=(size, size), mode="bilinear", align_corners=align_corners)[:, 0]


def average(heat: Tensor, score: Tensor, distance: Tensor, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
    """Join the map and the score by texts with distances from references, half and half, as WinCLIP.

    Args:
        heat: ``(B, H, W)`` in [0, 1].
        score: ``(B,)`` in [0, 1].
        distance: Of the patches, ``(B, h, w)`` in [0, 1].
        sigma: Blur of the enlarged distances, in pixels.

    Returns:
        The mean of both maps, and that of the score and the largest distance of a patch.

    Reference:
        J. Jeong et al., *WinCLIP*, CVPR 2023, section 4.3 (WinCLIP+).
    """
    pixels = smooth(enlarge(distance, heat.shape[-1]), sigma)  # (B, H, W)
    return (heat + pixels) / 2, (score + distance.flatten(1).amax(1)) / 2
