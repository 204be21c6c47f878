"""What identifies the data of a run: which images it reads, and with which options.

Digests of contents, not of names: a data set that was moved, renamed or copied is the same one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from kanoclip.data.digests import digest, file_hashes, is_ours, is_plain
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.loading import Sample


class DataIdentity:
    """The part of ``AnomalyDataModule`` that tells its data and options from those of another run."""

    category: str | list[str] | None
    mask_threshold: int | None
    mask_values: list[int] | None
    usual_threshold: ClassVar[int | None]
    drawing_version: ClassVar[str]
    augment: bool
    holdout: float
    seed: int
    limit: int | None
    tile: bool | int | Literal["native"]
    _size: int | None
    _hashes: dict[str, list[tuple[str, ...]]]
    _shared: set[str]
    """Attributes that all data sets have."""

    @abstractmethod
    def part(self, stage: str) -> list[Sample]:
        """Samples that a stage uses: "fit", "validate", "test" or "predict"."""

    def image_digests(self, stage: str) -> list[int] | None:
        """Number each image of a stage by its content, to find the images that two data sets share.

        The numbers are 8 bytes of the hash of the file, or for a drawn image of its name and ``drawing_version``.
        Files are hashed once, and again only when they change.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Returns:
            One signed 64-bit integer for each sample of ``part(stage)``, in order. None if contents are not known: an
            image is no readable file, or a class outside the package has a ``read`` of its own and no version.
        """
        hashes = self._known_hashes(stage)
        if hashes is None:
            return None
        return [content_number(image) for image, *_ in hashes]

    def samples_digest(self, stage: str) -> str | None:
        """Hash the samples of a stage: contents of images and masks, label, category and split, in order.

        Returns:
            16 hexadecimal digits; None if contents are not known, as in ``image_digests``, or a mask is no file.
        """
        hashes = self._known_hashes(stage)
        if hashes is None or not all(map(all, hashes)):
            return None
        samples = self.part(stage)
        return digest([(*h, s.label, s.category, s.split) for h, s in zip(hashes, samples, strict=True)])[:16]

    def pixel_options(self) -> dict[str, Any]:
        """Return the options that change which pixels are read: results and cached features depend on them.

        Returns:
            Plain values: ``image_size`` (None until it is known), ``mask_threshold`` and ``mask_values`` as they are
            used, and ``tile``; for a class outside the package also the options that are its own.
        """
        threshold = self._used_threshold if self.mask_values is None else None
        used = {"image_size": self._size, "mask_threshold": threshold, "mask_values": self.mask_values}
        return {**({} if is_ours(type(self)) else self._own_options()), **used, "tile": self.tile}

    def fit_options(self) -> dict[str, Any]:
        """Return the options that a resumed fit must share with the fit it goes on with.

        Returns:
            Plain values of the options that change which samples are used, their order or their pixels; not ``root``,
            ``batch_size``, ``num_workers`` and ``cache``.
        """
        asked = self._asked_categories()
        options = {"category": asked and sorted(asked), "holdout": self.holdout, "limit": self.limit, "seed": self.seed}
        return {**self._own_options(), **self.pixel_options(), "augment": self.augment, **options}

    @property
    def _used_threshold(self) -> int | None:
        return self.usual_threshold if self.mask_threshold is None else self.mask_threshold

    def _asked_categories(self) -> list[str] | None:
        if self.category is None or self.category == "all":
            return None
        return [self.category] if isinstance(self.category, str) else list(self.category)

    def _own_options(self) -> dict[str, Any]:
        """Return the plain options that a class adds to those of all data sets; not ``file``, which is a place."""
        own = {name: value for name, value in vars(self).items() if name[0] != "_" and name not in self._shared}
        return {name: value for name, value in own.items() if name != "file" and is_plain(value)}

    def _known_hashes(self, stage: str) -> list[tuple[str, ...]] | None:
        """Hash those of a stage; see ``hashes_of``."""
        if stage not in self._hashes:  # once: a checkpoint of each epoch and every report ask again
            found = self.hashes_of(self.part(stage))
            if found is None:
                return None
            self._hashes[stage] = found
        return self._hashes[stage]

    def hashes_of(self, samples: Sequence[Sample]) -> list[tuple[str, ...]] | None:
        """Hash image and masks of samples as this set knows them, "" for a mask that is no file; None if one is not."""
        if not self.drawing_version and not is_ours(type(self).read):  # type: ignore[attr-defined]  # of AnomalyDataModule
            return None
        try:
            found = content_hashes(samples, self.drawing_version)
        except UnreadableImageError:
            return None
        known = all(image is not None for image, *_ in found)
        return [tuple(one or "" for one in hashes) for hashes in found] if known else None


def content_number(content: str) -> int:
    """Return the first 8 bytes of a hash in hexadecimal digits, as a signed integer."""
    return int.from_bytes(bytes.fromhex(content[:16]), "big", signed=True)


def content_hashes(samples: Sequence[Sample], drawing_version: str) -> list[tuple[str | None, ...]]:
    """Hash the contents of each sample.

    Args:
        samples: Any samples.
        drawing_version: Determines, together with its name, the pixels of a drawn image (``name://...``).

    Returns:
        For each sample the hash of its image, then those of its masks; None for one that is no file.

    Raises:
        UnreadableImageError: A file cannot be read.
    """
    known = {s.image: digest(s.image, drawing_version) for s in samples if "://" in s.image}
    known |= file_hashes({path for s in samples for path in (s.image, *s.masks)} - known.keys())
    return [tuple(known.get(path) for path in (s.image, *s.masks)) for s in samples]
