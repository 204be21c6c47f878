"""The embedded data set: surfaces and parts, drawn while they are read, so that nothing has to be downloaded."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kanoclip.data.base import AnomalyDataModule, Sample
from kanoclip.data.drawn.drawing import CATEGORIES, DEFECTS, draw
from kanoclip.data.parsing import check_option
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError

MOST = 100_000  # images of a category: more are only a slip of the keyboard
UNSEEN_CATEGORIES = ("leather", "grid", "carpet", "marble", "pill", "gear", "connector")
UNSEEN_DEFECTS = ("thread", "dent", "burn", "bubble")
SEEN_CATEGORIES = tuple(name for name in CATEGORIES if name not in UNSEEN_CATEGORIES)
SEEN_DEFECTS = tuple(name for name in DEFECTS if name not in UNSEEN_DEFECTS)


class Surfaces(AnomalyDataModule):
    """Drawn categories that neither the embedded backbone nor the auxiliary set shows, with known kinds of defect.

    Surfaces leather, grid, carpet, marble and parts pill, gear, connector; defects scratch, crack, hole, stain,
    contamination, discolouration, chip and wear. 128 x 128 pixels, exact masks; half of the images are intact. The
    drawings are for learning and testing: a score on them says nothing about real images. Licence: Apache-2.0.

    Args:
        root: Not used: nothing is read from disk.
        images: Images drawn per category, 2 to 100,000.
        drawing_seed: Another seed draws other images; 0 or more.
        **kwargs: As in ``AnomalyDataModule``, without ``mask_threshold`` and ``tile``.

    Raises:
        KanoclipError: For a setting out of its range, or two that exclude each other.

    Reference:
        Ours.
    """

    name = "surfaces"
    domain: ClassVar[str] = "drawn"
    drawn_categories: ClassVar[tuple[str, ...]] = UNSEEN_CATEGORIES
    drawn_defects: ClassVar[tuple[str, ...]] = SEEN_DEFECTS
    stream: ClassVar[int] = 1  # keeps the drawings of the three sets apart; another one needs another `name`
    drawing_version: ClassVar[str] = "1"

    def __init__(self, root: str = "data", images: int = 64, drawing_seed: int = 0, **kwargs: Any) -> None:
        super().__init__(root=root, mask_threshold=None, tile=False, **kwargs)  # two that would change nothing
        if images < 2:
            raise KanoclipError(
                f"images is {images}, but a category needs at least 2: one intact and one with a defect."
            )
        check_option("images", images, images <= MOST, f"at most {MOST:,} of each category")
        check_option("drawing_seed", drawing_seed, drawing_seed >= 0, "0 or more")
        self.images = images
        self.drawing_seed = drawing_seed

    def samples(self) -> list[Sample]:
        """List what will be drawn; every other image of a category has a defect, all kinds in turn."""
        found = []
        for category in self.drawn_categories:
            for i in range(self.images):
                defect = self.drawn_defects[i // 2 % len(self.drawn_defects)] if i % 2 else "good"
                label = NORMAL if defect == "good" else ANOMALOUS
                image = f"{self.name}://{category}/{defect}/{self.drawing_seed}-{i:05d}.png"
                found.append(Sample(image, (), label, category, defect, "test"))
        return found

    def read(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Draw one sample: image ``(128, 128, 3)`` and mask ``(128, 128)``."""
        number = int(sample.image.rsplit("-", 1)[1].removesuffix(".png"))
        seed = [self.stream, self.drawing_seed, CATEGORIES.index(sample.category), number]
        drawing = draw(sample.category, None if sample.label == NORMAL else sample.defect, seed)
        return drawing.image, drawing.mask

    def _location(self) -> str:
        return "the drawings"


class SurfacesAuxiliary(Surfaces):
    """Drawn categories and kinds of defect to fit on: 19 categories that the embedded backbone has seen undamaged.

    The backbone has read captions of these kinds of defect, but no mask of them. Arguments as ``surfaces``.
    """

    name = "surfaces_auxiliary"
    drawn_categories: ClassVar[tuple[str, ...]] = SEEN_CATEGORIES
    stream: ClassVar[int] = 2


class SurfacesDefects(Surfaces):
    """The unseen categories with kinds of defect that nothing was trained on: thread, dent, burn, bubble.

    Arguments as ``surfaces``.
    """

    name = "surfaces_defects"
    drawn_defects: ClassVar[tuple[str, ...]] = UNSEEN_DEFECTS
    stream: ClassVar[int] = 3
