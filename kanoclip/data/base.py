"""What every data set shares: choosing samples by category, split and seed, and the loaders of each stage.

A data set of your own is a subclass with ``name``, ``domain`` and ``samples()``. One without files, whose images are
drawn, overrides ``read()`` too.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

from kanoclip.data.cache import cached
from kanoclip.data.choosing import check_samples, held_out, left_out_notes, limited
from kanoclip.data.identity import DataIdentity
from kanoclip.data.images import read_pair
from kanoclip.data.loading import AnomalyDataset, AnomalyLoader, Item, Sample, collate, make_loader
from kanoclip.data.parsing import check_option, local_path
from kanoclip.registry import did_you_mean
from kanoclip.types import ANOMALOUS, KanoclipError

__all__ = ["AnomalyDataModule", "AnomalyDataset", "Item", "Sample", "collate"]

log = logging.getLogger(__name__)


class AnomalyDataModule(DataIdentity, LightningDataModule, ABC):
    """Serve a data set of anomalies by the zero-shot protocol.

    Zero-shot methods train on the **test** split of an auxiliary data set, the only one with anomalies and masks:
    ``fit`` uses that split, and so does ``test``, of another data set. ``predict`` uses all images, and no masks.

    Args:
        root: Folder that contains all data sets.
        category: Categories to use, one or several; null or "all" for all of them.
        image_size: Side of the square that images are resized to, pixels. Null: the model's.
        batch_size: Images per batch, of each process.
        num_workers: Processes that read images; 0 reads in the main process.
        augment: Flip, turn and mildly recolour images in fit.
        mask_threshold: Grey level (0-254) above which a pixel of a mask is anomalous. Null: the data set's own, or 127
            for masks with brighter pixels, else 0. The paper's relatives use 0 for all, which swells JPEG and
            anti-aliased masks.
        holdout: Share of the test split, in [0, 1), that fit leaves out; validate uses it, and so does test when it is
            not 0. Drawn by seed within each category and label.
        seed: Of the held-out part, the limit, the order and the augmentation in fit. Null: that of the run,
            ``--seed_everything``; 111 where the data set is made in Python.
        limit: Use at most this many images of each category and split, drawn by seed, as many normal as anomalous ones
            where there are enough: AP and F1-max depend on that share, and are not those of the whole set. Null: all.
        tile: How a picture that is larger than the model's square, or of another shape, is scored. False: squeezed to
            the square. True: in its own shape; ``image_size`` becomes its short side, for strips. "native": at its own
            scale. A number: so many pixels of the picture fill one square, such as 1024 for photos of 12 megapixels.
            Tiles overlap by half and are scored ``batch_size`` at a time: a picture m squares high and n wide costs
            about (2m - 1)(2n - 1) of them. In fit, each epoch takes one square from a random place of each image; a
            square of an anomalous image counts as normal if it shows nothing of the mask.
        cache: Encode each image once and keep the frozen features on disk, for all epochs and heads to come; see
            docs/cache.md. Not with ``augment`` or ``tile``, and of no use to ``predict``.

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
    drawing_version: ClassVar[str] = ""
    """For a class whose ``read`` draws: an image's name and this version determine its pixels. Raise it when the
    drawings change. A subclass that replaces ``read`` again needs a version of its own."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep a class that replaces ``read`` from the version of the class before it."""
        super().__init_subclass__(**kwargs)
        if "read" in vars(cls):
            cls.drawing_version = vars(cls).get("drawing_version", "")

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
        seed: int | None = None,
        limit: int | None = None,
        tile: bool | int | Literal["native"] = False,
        cache: bool = False,
    ) -> None:
        before = set(vars(self))
        super().__init__()
        check_option("image_size", image_size, image_size is None or image_size > 0, "1 pixel or more, or null")
        check_option("batch_size", batch_size, batch_size > 0, "1 or more")
        check_option("num_workers", num_workers, num_workers >= 0, "0 or more")
        valid = mask_threshold is None or 0 <= mask_threshold < 255
        check_option("mask_threshold", mask_threshold, valid, "a grey level from 0 to 254, or null")
        check_option("holdout", holdout, 0 <= holdout < 1, "a share in [0, 1), such as 0.2")
        check_option("seed", seed, seed is None or seed >= 0, "0 or more, or null")
        check_option("limit", limit, limit is None or limit > 0, "1 or more, or null")
        sized = isinstance(tile, bool) or tile == "native" or (isinstance(tile, int) and tile >= 16)
        check_option("tile", tile, sized, "true, false, native, or 16 pixels or more")
        if cache and (augment or tile):
            other = "augment" if augment else "tile"
            raise KanoclipError(
                f"cache and {other} are both true, but with {other} no image is the same twice, or of one size. "
                f"Set --data.cache false or --data.{other} false."
            )
        check_option("category", category, category != [], "a name, a list of at least one, or null")
        check_option("root", root, "://" not in str(root), "a folder of this machine, no address")
        self.root = root
        self.category = category
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.mask_threshold = mask_threshold
        self.holdout = holdout
        self.seed = 111 if seed is None else seed
        self.limit = limit
        self.tile = tile
        self.cache = cache
        self.unreadable: list[tuple[str, str]] = []  # path and reason, of the last test or predict
        self.left_out: list[tuple[str, str]] = []  # the same, of files that were not taken for samples
        self.leave_out: Collection[str] = frozenset()  # images that predict does not score, as they have been
        self._samples: list[Sample] | None = None
        self._hashes: dict[str, list[tuple[str, ...]]] = {}  # of the indexed samples, by stage
        self._size = image_size
        self._told: set[str] = set()  # warnings of what the samples lack
        self._shared = set(vars(self)) - before

    @abstractmethod
    def samples(self) -> list[Sample]:
        """List all samples there are, of every category and split, in an order that does not depend on the machine."""

    def read(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Read one sample.

        Returns:
            Image ``(H, W, 3)`` RGB 0-255 and mask ``(H, W)`` 0/1, or None if the sample has no mask.

        Raises:
            UnreadableImageError: A file cannot be read, or image and mask differ in size.
        """
        return read_pair(sample.image, sample.masks, self._used_threshold, self.mask_values)

    @property
    def identity(self) -> str:
        """Name of the data set for run folders and reports; a class for sets of one's own adds which one."""
        return self.name

    @property
    def place(self) -> Path:
        """``root`` as a path, with the home folder for ``~``."""
        return local_path(self.root, "--data.root")

    @property
    def categories(self) -> list[str]:
        """Categories in use, sorted."""
        return sorted({sample.category for sample in self.index()})

    def setup(self, stage: str | None = None) -> None:
        """List the samples (once), find the image size and check that the stage has what it needs.

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
            return [replace(sample, masks=()) if sample.masks else sample for sample in self.index()]
        samples = [sample for sample in self.index() if sample.split == "test"]
        if not self.holdout:
            return [] if stage == "validate" else samples
        apart = held_out(samples, self.holdout, self.seed)
        return [sample for sample in samples if (sample in apart) == (stage != "fit")]

    def dataset(self, stage: str, plain: bool = False) -> AnomalyDataset:
        """The data set of a stage: "fit", "validate", "test" or "predict"; ``plain``: never augmented."""
        from kanoclip.data.transforms import Transform  # late: importing Albumentations takes seconds

        size, crop = self._size or self._model_size(), bool(self.tile) and stage == "fit"
        transform = Transform(size, self.augment and stage == "fit" and not plain, self.tile, crop)
        noted = self.unreadable if stage in ("test", "predict") else None
        used = [one for one in self.part(stage) if stage != "predict" or one.image not in self.leave_out]
        return AnomalyDataset(used, self.read, transform, self.seed, noted, crops=crop)

    def train_dataloader(self) -> AnomalyLoader:
        """Batches in an order drawn by seed and epoch; the last may be smaller."""
        return self._loader("fit", shuffle=True, persistent=True)

    def fitted_dataloader(self) -> AnomalyLoader:
        """Batches of the images of fit in their order, never augmented; what a memory is filled with."""
        return self._loader("fit", plain=True)

    def val_dataloader(self) -> AnomalyLoader | list[AnomalyLoader]:
        """Batches of the held-out part; no loader when nothing is held out."""
        return self._loader("validate", persistent=True) if self.holdout else []

    def test_dataloader(self) -> AnomalyLoader:
        """Batches of the test split, or of its held-out part; unreadable images as in predict."""
        self.unreadable.clear()
        return self._loader("test")

    def predict_dataloader(self) -> AnomalyLoader:
        """Batches of all images; unreadable ones are noted in ``unreadable`` and left out."""
        self.unreadable.clear()
        return self._loader("predict")

    def __getstate__(self) -> dict[str, Any]:
        # `read` takes this object along to the workers: trainer and model must stay behind where workers are spawned.
        return {**self.__dict__, "trainer": None}

    def _loader(
        self, stage: str, shuffle: bool = False, persistent: bool = False, plain: bool = False
    ) -> AnomalyLoader:
        batch_size = 1 if self.tile and stage != "fit" else self.batch_size  # whole pictures differ in shape
        dataset, workers = self.dataset(stage, plain), self.num_workers
        found = cached(self, dataset) if self.cache and stage != "predict" else None
        if found is not None:
            found.build(self.trainer, batch_size, workers)
            dataset, workers = found, 0  # a mapped file is read faster than a worker hands it over
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
                raise KanoclipError(f"No images in {self._location()}. Check --data.root.")
            found, asked = {sample.category for sample in everything}, self._asked_categories()
            for category in sorted(set(asked or ()) - found):
                raise KanoclipError(
                    f"Unknown category {category!r} of {self.name}.{did_you_mean(category, found)} "
                    f"In {self._location()} are: {', '.join(sorted(found))}."
                )
            chosen = [sample for sample in everything if asked is None or sample.category in asked]
            self._samples = limited(chosen, self.limit, self.seed)
        return self._samples

    def index_anew(self) -> list[Sample]:
        """All samples there are now: files may have come or gone since they were listed; raises as ``setup``."""
        self._samples, self._hashes = None, {}
        return self.index()

    def notes(self) -> list[str]:
        """Say what a reader of the results must know of the samples, such as which files were left out, and why."""
        return left_out_notes(self.left_out)

    def _check_part(self, stage: str) -> None:
        where = f"{', '.join(self.categories)} in {self._location()}"
        check_samples(self.part(stage), stage, where, self.holdout, "" if stage == "predict" else self._label_remedy())
        reads_files = type(self).read is AnomalyDataModule.read  # a data set with its own `read` needs no mask files
        anomalous = [one for one in self.index() if one.label == ANOMALOUS]
        without = sum(not one.masks for one in anomalous)
        notes = self.notes()
        if without and reads_files and stage != "predict":
            counts = f"{without} of {len(anomalous)} anomalous images of {self.identity}"
            notes.append(f"{counts} have no mask: pixel metrics and the local loss leave them out.")
        for note in notes:
            if note not in self._told:
                log.warning("%s", note)
        self._told.update(notes)

    def _location(self) -> str:
        """Where the images are, for messages."""
        return str(self.place)

    def _label_remedy(self) -> str:
        return "Run predict instead, which needs no labels."
