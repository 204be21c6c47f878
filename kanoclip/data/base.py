"""What every data set shares: choosing samples by category, split and seed, and the loaders of each stage.

A data set of your own is a subclass with ``name``, ``domain`` and ``samples()``; drawn ones override ``read()`` too.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

from kanoclip.data.cache import CachedDataset, reading
from kanoclip.data.choosing import held_out, limited
from kanoclip.data.images import read_pair
from kanoclip.data.loading import AnomalyDataset, AnomalyLoader, Item, Read, Sample, collate, make_loader
from kanoclip.types import ANOMALOUS, UNKNOWN, KanoclipError

__all__ = ["AnomalyDataModule", "AnomalyDataset", "Item", "Sample", "collate"]

log = logging.getLogger(__name__)


class AnomalyDataModule(LightningDataModule, ABC):
    """Serve a data set of anomalies by the zero-shot protocol.

    Zero-shot methods train on the **test** split of an auxiliary data set, the only one with anomalies and masks:
    ``fit`` uses that split, and so does ``test``, of another data set. ``predict`` uses all images, and no masks.

    Args:
        root: Folder that contains all data sets.
        category: Categories to use, one or several; null or "all" for all of them.
        image_size: Side of the square that images are resized to, pixels. Null: the model's.
        batch_size: Images per batch, of each process.
        num_workers: Processes that read images; 0 reads in the main one.
        augment: Flip, turn and mildly recolour images in fit.
        mask_threshold: Grey level (0-254) above which a pixel of a mask is anomalous. Null: the data set's own, or 127
            for masks with brighter pixels, else 0. The paper's relatives use 0 for all, which swells JPEG and
            anti-aliased masks.
        holdout: Share of the test split, in [0, 1), that fit leaves out; validate uses it, and so does test when it is
            not 0. Drawn by seed within each category and label.
        seed: Of the held-out part, the limit, the order and the augmentation in fit.
        limit: Use at most this many images of each category and split, drawn by seed. Null: all.
        tile: Keep the shape of images far from square, such as strips: ``image_size`` becomes their short side, and
            they are scored one by one in overlapping squares, ``batch_size`` of these at a time. An image n times as
            long as wide costs about 2n - 1 squares. Fit sees one square of each image an epoch, anywhere in it; one of
            an anomalous image counts as normal if it shows nothing of the mask.
        cache: Encode each image once and keep the frozen features on disk, for all epochs and heads to come; see
            ``kanoclip.data.cache``. Not with ``augment`` or ``tile``, and of no use to ``predict``.

    Raises:
        KanoclipError: For a setting out of its range, or two that exclude each other.
    """

    name: str = ""
    """Registered name, and the data set's folder below ``root``."""
    domain: ClassVar[str] = ""
    """Field it comes from: industrial, medical, ..."""
    mask_values: list[int] | None = None
    """Labels in the mask that are anomalous, instead of a threshold."""
    usual_threshold: ClassVar[int | None] = None
    """What ``mask_threshold: null`` means for this data set; None: 127 or 0, as each mask needs."""

    def __init__(
        self,
        root: str = "data",
        category: str | list[str] | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        augment: bool = False,
        mask_threshold: int | None = None,
        holdout: float = 0.0,
        seed: int = 111,
        limit: int | None = None,
        tile: bool = False,
        cache: bool = False,
    ) -> None:
        super().__init__()
        _check("image_size", image_size, image_size is None or image_size > 0, "a positive number of pixels, or null")
        _check("batch_size", batch_size, batch_size > 0, "1 or more")
        _check("num_workers", num_workers, num_workers >= 0, "0 or more")
        valid = mask_threshold is None or 0 <= mask_threshold < 255
        _check("mask_threshold", mask_threshold, valid, "a grey level from 0 to 254, or null")
        _check("holdout", holdout, 0 <= holdout < 1, "a share in [0, 1), such as 0.2")
        _check("seed", seed, seed >= 0, "0 or more")
        _check("limit", limit, limit is None or limit > 0, "1 or more, or null")
        if cache and (augment or tile):
            other = "augment" if augment else "tile"
            raise KanoclipError(
                f"cache and {other} are both true, but with {other} no image is the same twice, or of one size. "
                f"Set --data.cache false or --data.{other} false."
            )
        self.root = root
        self.category = category
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.mask_threshold = mask_threshold
        self.holdout = holdout
        self.seed = seed
        self.limit = limit
        self.tile = tile
        self.cache = cache
        self.unreadable: list[tuple[str, str]] = []
        self._samples: list[Sample] | None = None
        self._size = image_size
        self._told = False  # about images without masks

    @abstractmethod
    def samples(self) -> list[Sample]:
        """Index everything there is, in an order that does not depend on the machine."""

    def read(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Read one sample.

        Returns:
            Image ``(H, W, 3)`` RGB 0-255 and mask ``(H, W)`` 0/1, or None if the sample has no mask.

        Raises:
            UnreadableImageError: A file cannot be read, or image and mask differ in size.
        """
        return self._read(sample)[:2]

    def _read(
        self, sample: Sample, least: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, tuple[int, int]]:
        threshold = self.usual_threshold if self.mask_threshold is None else self.mask_threshold
        return read_pair(sample.image, sample.masks, threshold, self.mask_values, least)

    @property
    def identity(self) -> str:
        """What a checkpoint remembers, to tell whether a model is tested on what it was fitted on."""
        return self.name

    @property
    def categories(self) -> list[str]:
        """Categories in use, sorted."""
        return sorted({sample.category for sample in self.index()})

    def setup(self, stage: str | None = None) -> None:
        """Read the index (once), find the image size and check that the stage has what it needs.

        Args:
            stage: "fit", "validate", "test" or "predict"; None checks nothing.

        Raises:
            KanoclipError: No images or no labels for the stage, an unknown category, or no image size.
            MissingError: No data set at ``root``.
        """
        self._size = self.image_size or self._model_size()
        for part in ("fit", "validate", "test", "predict"):
            if part == stage or (part == "validate" and stage == "fit" and self.holdout):
                self._check_part(part)

    def part(self, stage: str) -> list[Sample]:
        """Samples that a stage uses: "fit", "validate", "test" or "predict"."""
        if stage == "predict":
            return [replace(sample, masks=()) for sample in self.index()]
        samples = [sample for sample in self.index() if sample.split == "test"]
        if not self.holdout:
            return [] if stage == "validate" else samples
        apart = held_out(samples, self.holdout, self.seed)
        return [sample for sample in samples if (sample in apart) == (stage != "fit")]

    def dataset(self, stage: str) -> AnomalyDataset:
        """The data set of a stage: "fit", "validate", "test" or "predict"."""
        from kanoclip.data.transforms import Frame, Transform  # late: importing Albumentations takes seconds

        frame: Frame = ("crop" if stage == "fit" else "whole") if self.tile else "squeeze"
        size = self._size or self._model_size()
        transform = Transform(size, self.augment and stage == "fit", frame)
        noted = self.unreadable if stage == "predict" else None
        own = type(self).read is not AnomalyDataModule.read
        # with so much to spare, a shrunk JPEG ends within a grey level, on average, of what the whole one gives
        read: Read = self.read if own else partial(self._read, least=5 * size // 2)
        return AnomalyDataset(self.part(stage), read, transform, self.seed, noted, crops=frame == "crop")

    def train_dataloader(self) -> AnomalyLoader:
        """Batches in an order drawn by seed and epoch; the last may be smaller."""
        return self._loader("fit", shuffle=True, persistent=True)

    def val_dataloader(self) -> AnomalyLoader | list[AnomalyLoader]:
        """Batches of the held-out part; no loader when nothing is held out."""
        return self._loader("validate", persistent=True) if self.holdout else []

    def test_dataloader(self) -> AnomalyLoader:
        """Batches of the test split, or of its held-out part."""
        return self._loader("test")

    def predict_dataloader(self) -> AnomalyLoader:
        """Batches of all images; unreadable ones are noted in ``unreadable`` and left out."""
        self.unreadable.clear()
        return self._loader("predict")

    def __getstate__(self) -> dict[str, Any]:
        # `read` takes this object along to the workers: trainer and model must stay behind where workers are spawned.
        return {**self.__dict__, "trainer": None}

    def _loader(self, stage: str, shuffle: bool = False, persistent: bool = False) -> AnomalyLoader:
        batch_size = 1 if self.tile and stage != "fit" else self.batch_size  # whole pictures differ in shape
        dataset, workers = self.dataset(stage), self.num_workers
        if self.cache and stage != "predict":
            model = getattr(self.trainer, "lightning_module", None)
            key = getattr(model, "features_key", None)
            if key is None:
                name = "a loader without a trainer" if model is None else type(model).__name__
                log.warning("cache is true, but %s keeps no frozen features: it does without.", name)
            else:
                dataset = CachedDataset(dataset, f"{key} {self._size} {reading(self)}")
                dataset.build(self.trainer, batch_size, workers)
                workers = 0  # a mapped file is read faster than a worker hands it over
        return make_loader(dataset, batch_size, workers, shuffle, persistent)

    def _model_size(self) -> int:
        model = getattr(self.trainer, "lightning_module", None)
        size = getattr(model, "image_size", None)
        if not isinstance(size, int):
            raise KanoclipError(
                f"image_size of {self.name} is null, and there is no model to take it from. "
                f"Set --data.image_size to the model's, in pixels."
            )
        return size

    def index(self) -> list[Sample]:
        """All samples of the chosen categories, within the limit; raises as ``setup``."""
        if self._samples is None:
            everything = self.samples()
            if not everything:
                raise KanoclipError(f"No images in {self._place()}. Check --data.root.")
            chosen = self._chosen({sample.category for sample in everything})
            self._samples = limited(
                (sample for sample in everything if sample.category in chosen), self.limit, self.seed
            )
        return self._samples

    def adopt(self, other: AnomalyDataModule) -> None:
        """Take the index that another one of the same options has read, not to read it again."""
        self._samples = other.index()

    def _chosen(self, found: set[str]) -> set[str]:
        if self.category in (None, "all"):
            return found
        asked = [self.category] if isinstance(self.category, str) else list(self.category or ())
        for category in asked:
            if category not in found:
                close = get_close_matches(category, found, 1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                known = ", ".join(sorted(found))
                raise KanoclipError(
                    f"Unknown category {category!r} of {self.name}.{hint} In {self._place()} are: {known}."
                )
        return set(asked)

    def _check_part(self, stage: str) -> None:
        if stage == "validate" and not self.holdout:
            raise KanoclipError(
                "validate uses the held-out part, and holdout is 0. Set --data.holdout 0.2, or run test."
            )
        samples = self.part(stage)
        if not samples and stage in ("fit", "validate") and self.holdout:
            raise KanoclipError(
                f"Nothing is left for {stage} of the test images of {', '.join(self.categories)} in {self._place()} "
                f"with holdout {self.holdout}. Set another --data.holdout, or choose more categories."
            )
        if not samples:
            raise KanoclipError(
                f"No test images of {', '.join(self.categories)} in {self._place()}: {stage} uses the test split. "
                f"Add test images, or run predict, which uses all."
            )
        if stage == "predict":
            return
        unknown = [sample for sample in samples if sample.label == UNKNOWN]
        if unknown:
            raise KanoclipError(f"{stage} needs labels, and {unknown[0].image} has none. {self._label_remedy()}")
        drawn = type(self).read is not AnomalyDataModule.read  # a data set with its own `read` needs no mask files
        anomalous = [sample for sample in self.index() if sample.label == ANOMALOUS]
        without = sum(not sample.masks for sample in anomalous)
        if without and not drawn and not self._told:
            self._told = True
            counts = f"{without} of {len(anomalous)} anomalous images of {self.identity}"
            log.warning("%s have no mask: pixel metrics and the local loss leave them out.", counts)

    def _place(self) -> str:
        return str(Path(self.root).expanduser())

    def _label_remedy(self) -> str:
        return "Run predict instead, which needs no labels."


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise KanoclipError(f"{name} is {value}, expected {expected}. Set --data.{name}.")
