"""Memory: features of reference images that the patches of an image are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kanoclip.backbone.head import Head
from kanoclip.data.references import References
from kanoclip.data.resizing import Tile
from kanoclip.types import Batch, Features

Vectors = list[Tensor]
"""What is compared, in sets such as levels or windows: ``(B, M, W)`` each, M vectors of an image, of any length."""
Encode = Callable[[Iterator[Batch]], Vectors]
"""Reference images of one category -> all their vectors, ``(M, W)`` of each set."""


class Memory(Head):
    """Compares an image with reference images.

    A model chooses them before a run (``choose``), encodes them at its start (``fill``), and then asks for distances.

    Attributes:
        chosen: The reference images; None: none are.
    """

    learns = False
    fitted: ClassVar[bool] = False
    """Whether a fit fills it: it is then part of the checkpoint, and its options are not free at test."""
    chosen: References | None = None

    def choose(self, data: Any, seed: int | None) -> None:
        """Choose the reference images of a run; nothing is encoded yet.

        Args:
            data: The data module that is scored; None if there is none.
            seed: Of the run.
        """

    def collect(self, batches: Iterable[Batch], encode: Callable[[Batch], Features], seed: int) -> None:
        """Remember the auxiliary set when a fit starts, if it is one that does (``fitted``). Collective.

        Args:
            batches: Images with labels and masks, this rank's share.
            encode: What makes features of them.
            seed: By which is drawn.
        """

    def fill(self, encode: Encode, size: int, tile: Tile = False) -> None:
        """Remember the reference images that are chosen.

        Args:
            encode: What makes vectors of them.
            size: Height and width that images are resized to, in pixels.
            tile: As in ``AnomalyDataModule``.
        """

    def distances(self, vectors: Vectors, category: Sequence[str]) -> Vectors | None:
        """Return how far each vector is from what is remembered, ``(B, M)`` in [0, 1] of each set.

        Args:
            vectors: Of the images.
            category: What each of them shows.
        """
        return None

    def forward(self, features: Features, category: Sequence[str]) -> Tensor | None:
        """Return how far each patch is from what is remembered, ``(B, h, w)`` in [0, 1]; None: nothing is remembered.

        The mean over levels.

        Args:
            features: Of the images.
            category: What each of them shows.
        """
        distances = self.distances(list(features.patches), category)  # L times (B, N)
        return None if distances is None else torch.stack(distances).mean(0).unflatten(-1, features.grid)


class NoMemory(Memory):
    """Remember nothing: zero-shot."""
