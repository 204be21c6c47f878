"""Anomalies drawn onto your own photos of good parts, to fit on when there are no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.digests import digest, file_hashes
from kanoclip.data.drawn.anomalies import KINDS, damage
from kanoclip.data.drawn.surfaces import MOST
from kanoclip.data.faults import UnreadableImageError, remark
from kanoclip.data.images import read_image
from kanoclip.data.parsing import check_option
from kanoclip.data.sets.folder import Folder
from kanoclip.data.sets.pairing import ANOMALOUS_WORDS, NORMAL_WORDS
from kanoclip.registry import did_you_mean
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError, MissingError


class Plan(NamedTuple):
    """What one image is made of: a photo, one to take texture from, and the number that seeds it."""

    photo: str
    other: str
    number: int


class Synthetic(AnomalyDataModule):
    """Anomalies drawn onto your own photos of good parts, with exact masks: an auxiliary set for who has no bad ones.

    Kinds: pasted pieces of the photo (cut_paste, scar; CutPaste), blotches of a foreign texture or colour (texture,
    colour; DRAEM), seamless pieces of other photos (blend; NSA), and the drawn defects of ``surfaces`` (scratch, crack,
    hole, stain, contamination, discolouration, chip, wear, thread, dent, burn, bubble). Textures come from the photos
    themselves. The same photos and options give the same images. They stand for no real defect: test on real ones.
    A kind that cannot be seen on a photo is drawn as colour there, with a warning; its name stays, as names come before
    any drawing.

    Photos are all pictures below ``root``, or, if it has folders named normal, good or ok, those in them. Images that
    are held out show the same photos as those of the fit.

    Args:
        root: Folder of photos of good parts.
        images: How many images to make, 2 to 100,000; photos are used in turn.
        anomalous: Share of them that get an anomaly, in (0, 1).
        kinds: Kinds of anomaly, used in turn. Null: all.
        side: Longest side of the images, pixels; larger photos are reduced to it.
        drawing_seed: Another seed draws other images; 0 or more.
        category_name: What the photos show; prompts may use it.
        **kwargs: As in ``AnomalyDataModule``, without ``mask_threshold``.

    Raises:
        KanoclipError: For a setting out of its range, or a kind that is not there.
        MissingError: No such root, or no photo of a good part in it.

    Reference:
        C.-L. Li et al., *CutPaste*, CVPR 2021; V. Zavrtanik et al., *DRAEM*, ICCV 2021; H. M. Schlüter et al., *NSA*,
        ECCV 2022. Where we differ is said of each kind in ``data/drawn/anomalies.py``.
    """

    name: str = "synthetic"
    domain: ClassVar[str] = "own"
    drawing_version: ClassVar[str] = "1"

    def __init__(
        self,
        root: str = "data",
        images: int = 500,
        anomalous: float = 0.5,
        kinds: list[str] | None = None,
        side: int = 512,
        drawing_seed: int = 0,
        category_name: str = "object",
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, mask_threshold=None, **kwargs)
        check_option("images", images, 2 <= images <= MOST, f"2 to {MOST:,}")
        check_option("anomalous", anomalous, 0 < anomalous < 1, "a share in (0, 1), such as 0.5")
        check_option("kinds", kinds, kinds != [], "a list of at least one, or null")
        check_option("side", side, side >= 32, "32 pixels or more")
        check_option("drawing_seed", drawing_seed, drawing_seed >= 0, "0 or more")
        for kind in kinds or ():
            if kind not in KINDS:
                raise KanoclipError(f"Unknown kind {kind!r}.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
        self.images = images
        self.anomalous = anomalous
        self.kinds = kinds
        self.side = side
        self.drawing_seed = drawing_seed
        self.category_name = category_name
        self._plans: dict[str, Plan] = {}

    @property
    def identity(self) -> str:
        """The name and the folder."""
        return f"{self.name} {self.place.resolve()}"

    def samples(self) -> list[Sample]:
        """List what will be drawn. A name tells all that its pixels depend on."""
        photos = self._photos()
        contents, kinds = file_hashes(photos), self.kinds or list(KINDS)
        rng = np.random.default_rng(self.drawing_seed)
        bad = min(max(round(self.images * self.anomalous), 1), self.images - 1)
        used = [photos[i] for i in rng.permutation(len(photos))[: max(bad, self.images - bad)]]
        found = []
        for number in range(self.images):
            turn = number if number < bad else number - bad
            photo, other = used[turn % len(used)], used[rng.integers(len(used))]
            kind = kinds[(turn + turn // len(used)) % len(kinds)] if number < bad else "good"
            made_of = digest(contents.get(photo), contents.get(other), kind, self.side, self.drawing_seed, number)
            image = f"{self.name}://{kind}/{number:05d}-{made_of[:16]}/{Path(photo).stem}.png"
            self._plans[image] = Plan(photo, other, number)
            label = ANOMALOUS if number < bad else NORMAL
            found.append(Sample(image, (), label, self.category_name, kind))
        return found

    def read(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Make one sample: image ``(H, W, 3)`` and mask ``(H, W)``."""
        plan = self._plans[sample.image]
        photo = self._reduced(plan.photo)
        if sample.label == NORMAL:
            return photo, np.zeros(photo.shape[:2], np.uint8)
        rng = np.random.default_rng((self.drawing_seed, plan.number))
        damaged, mask, kind = damage(rng, sample.defect, photo, self._reduced(plan.other))
        if kind != sample.defect:
            remark(sample.image, f"{sample.defect} would hardly be seen on its photo, so it shows {kind} instead.")
        return damaged, mask

    def _photos(self) -> list[str]:
        root, folder = self.place, Folder(self.root)
        paths = [sample.image for sample in folder.index()]
        self.left_out[:] = folder.left_out
        words = {path: {part.lower() for part in Path(path).parent.relative_to(root).parts} for path in paths}
        good = [path for path in paths if words[path].intersection(NORMAL_WORDS)]
        good = good or [path for path in paths if words[path].isdisjoint(ANOMALOUS_WORDS)]
        self.left_out += [(path, "in no folder of good photos") for path in sorted(set(paths) - set(good))]
        if not good:
            raise MissingError(f"No photos of good parts in {root}. Set --data.root to the folder of them.")
        return sorted(good)

    def _reduced(self, path: str) -> NDArray[np.uint8]:
        photo = read_image(path)
        height, width = photo.shape[:2]
        scale = self.side / max(height, width)
        if min(height, width) * min(scale, 1) < 16:
            raise UnreadableImageError(path, f"it is {width} x {height} pixels, too thin to draw on. Leave it out.")
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return photo if scale >= 1 else np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)

    def hashes_of(self, samples: Any) -> list[tuple[str, ...]] | None:
        """Begin each hash with the photo's own: a test on it would not be zero-shot, whatever was drawn on it."""
        try:
            photos = file_hashes({self._plans[sample.image].photo for sample in samples})
            own = [digest(sample.image, self.drawing_version) for sample in samples]
            return [
                (photos[self._plans[s.image].photo][:16] + made[16:],) for s, made in zip(samples, own, strict=True)
            ]
        except (KeyError, UnreadableImageError):
            return None  # a photo is gone

    def _location(self) -> str:
        return f"{self.place}, with drawn anomalies"
