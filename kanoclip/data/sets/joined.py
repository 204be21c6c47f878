"""Several data sets as one, to fit on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kanoclip.data.about import BALANCED, JOINED, PLUS
from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.choosing import check_samples
from kanoclip.types import KanoclipError

USUAL_ROOT = "data"
OF_THE_WHOLE = ("augment", "holdout", "tile", "cache", "image_size")


class Joined(AnomalyDataModule):
    """Several data sets as one, to fit on, as AdaCLIP fits on MVTec AD and CVC-ColonDB together.

    Each image is read as its own set reads it, with its ``mask_threshold`` and as large as it is. A category that two
    sets share is told apart by the set: ``brain (br35h)``. What a set is asked for, such as ``category`` or ``limit``,
    is its own option; loading is the whole's.

    Args:
        sets: Data sets, each a name or a ``class_path`` with ``init_args``.
        root: Folder that contains all data sets, for those that name none.
        balance: In fit, repeat images of the smaller sets, drawn by seed, until each set has as many as the largest.
            False: the sets as they are.
        **kwargs: As in ``AnomalyDataModule``, without ``mask_threshold``.

    Raises:
        KanoclipError: Fewer than two sets, one with an option that is the whole's, or two that have the same image.

    Reference:
        Ours; Y. Cao et al., *AdaCLIP*, ECCV 2024, fits on two sets as they are.
    """

    name: str = "joined"
    domain: ClassVar[str] = "several"

    def __init__(
        self, sets: list[AnomalyDataModule], root: str = USUAL_ROOT, balance: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(root=root, mask_threshold=None, **kwargs)
        if len(sets) < 2 or not all(isinstance(one, AnomalyDataModule) for one in sets):
            raise KanoclipError("sets should list two data sets or more. Type: --data.sets [mvtec,cvc_colondb].")
        for one in sets:
            for option in OF_THE_WHOLE:
                if getattr(one, option):
                    raise KanoclipError(
                        f"{option} of {one.name} is {getattr(one, option)}, but joined sets share it. Set "
                        f"--data.{option} instead."
                    )
            if one.root == USUAL_ROOT:
                one.root = root
        self.sets = sets
        self.balance = balance
        self._owners: dict[str, tuple[AnomalyDataModule, str]] = {}  # category here -> its set, and its name there

    @property
    def identity(self) -> str:
        """Those of all sets, in order, and whether they are balanced."""
        return JOINED + PLUS.join(one.identity for one in self.sets) + BALANCED * self.balance

    @property
    def origins(self) -> dict[str, tuple[AnomalyDataModule, str]]:
        """Category -> the set that it is of, and what it is called there."""
        self.index()
        return self._owners

    def samples(self) -> list[Sample]:
        """List the samples of all sets, in their order; files are looked for anew."""
        listed = [one.index_anew() for one in self.sets]
        self.left_out[:] = [left for one in self.sets for left in one.left_out]
        shared = Counter(category for samples in listed for category in {sample.category for sample in samples})
        found: list[Sample] = []
        has: dict[str, str] = {}  # image -> its set
        for label, one, samples in zip(self._labels(), self.sets, listed, strict=True):
            for sample in samples:
                if (first := has.setdefault(sample.image, label)) != label:
                    raise KanoclipError(
                        f"{first} and {label} both have {sample.image}, and an image counts once. Leave one of the "
                        f"sets out, or give them different categories."
                    )
                category = sample.category if shared[sample.category] == 1 else f"{sample.category} ({label})"
                self._owners[category] = one, sample.category
                found.append(replace(sample, category=category))
        return found

    def part(self, stage: str) -> list[Sample]:
        """Samples that a stage uses; in a balanced fit, those of smaller sets several times."""
        samples = super().part(stage)
        if not self.balance or stage != "fit":
            return samples
        groups = [[samples[place] for place in places] for _, places, _ in self.owned(samples)]
        most, found = max(map(len, groups), default=0), []
        for number, group in enumerate(groups):
            order = np.random.default_rng((self.seed, number)).permutation(len(group))
            found += group * (most // len(group)) + [group[i] for i in order[: most % len(group)]]
        return found

    def owned(self, samples: Sequence[Sample]) -> Iterator[tuple[AnomalyDataModule, list[int], list[Sample]]]:
        """Yield each set that has any of the samples, with their places in the list, and as the set itself has them."""
        owners = [self._owners[sample.category] for sample in samples]
        for one in self.sets:
            places = [place for place, (owner, _) in enumerate(owners) if owner is one]
            if places:
                yield one, places, [replace(samples[place], category=owners[place][1]) for place in places]

    def read(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Read one sample as its own set does."""
        owner, category = self._owners[sample.category]
        return owner.read(replace(sample, category=category))

    def pixel_options(self) -> dict[str, Any]:
        """As for any data set, and those of each set."""
        own = [one.pixel_options() for one in self.sets]
        read_as = [{name: value for name, value in one.items() if name not in ("image_size", "tile")} for one in own]
        return {**super().pixel_options(), "sets": read_as}

    def fit_options(self) -> dict[str, Any]:
        """As for any data set, and those of each set."""
        return {**super().fit_options(), "sets": [one.fit_options() for one in self.sets]}

    def notes(self) -> list[str]:
        """Say what each set says."""
        return [note for one in self.sets for note in one.notes()]

    def hashes_of(self, samples: Sequence[Sample]) -> list[tuple[str, ...]] | None:
        """As each set hashes its own."""
        found: list[tuple[str, ...]] = [()] * len(samples)
        for one, places, own in self.owned(samples):
            hashes = one.hashes_of(own)
            if hashes is None:
                return None
            for place, those in zip(places, hashes, strict=True):
                found[place] = those
        return found

    def _check_part(self, stage: str) -> None:
        for one in self.sets:
            one._check_part("predict" if stage == "predict" else "test")
        check_samples(self.part(stage), stage, f"{', '.join(self.categories)} in {self._location()}", self.holdout, "")

    def _location(self) -> str:
        return ", ".join(dict.fromkeys(one._location() for one in self.sets))

    def _labels(self) -> list[str]:
        """Names of the sets; several of one name are numbered."""
        names = [one.name for one in self.sets]
        numbers = [f" {names[: i + 1].count(name)}" * (names.count(name) > 1) for i, name in enumerate(names)]
        return [name + number for name, number in zip(names, numbers, strict=True)]
