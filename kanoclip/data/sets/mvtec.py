"""MVTec AD and the data sets laid out like it: a folder a category, good images and kinds of defect below it."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from kanoclip.data.about import About, Archive
from kanoclip.data.base import Sample
from kanoclip.data.listing import list_tree
from kanoclip.data.sets.tree import IMAGE, Tree
from kanoclip.types import UNKNOWN, MissingError

_NC = "CC BY-NC-SA 4.0"
_MVTEC = "https://www.mvtec.com/company/research/datasets"
_SHARES = "https://www.mydrive.ch/shares"
_CATEGORIES = {  # that the publisher ships
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
}  # fmt: skip


class MVTecTree(Tree):
    """Base of data sets in MVTec AD's layout; ``root`` may also be the folder of a single category."""

    unambiguous: ClassVar[bool] = False
    domain: ClassVar[str] = "industrial"
    images = rf"(?P<category>[^/]+)/(?P<split>train|validation|test)/(?P<defect>[^/]+)/(?P<stem>.+){IMAGE}"
    masks = rf"(?P<category>[^/]+)/ground_truth/(?P<defect>[^/]+)/(?P<stem>.+?)(?:_mask)?{IMAGE}"
    expected = "bottle/test/good/000.png"

    def find(self) -> tuple[Path, list[str]]:
        """Find the folder of the categories, or of one category."""
        try:
            return super().find()
        except MissingError:
            root = self.place.resolve()
            if not os.path.isdir(root / "test") or self._mistaken(root.parent):
                raise
            return root.parent, [f"{root.name}/{path}" for path in list_tree(root)]


class MVTecAD(MVTecTree):
    """MVTec AD: 15 categories of objects and textures, with masks.

    Layout: ``mvtec/<category>/{train/good,test/good,test/<defect>,ground_truth/<defect>}``; whatever categories are
    found are read. A mask belongs to the image of the same defect folder and name, with or without ``_mask``, of any
    image suffix. ``root`` may also be the folder of the categories itself, or that of a single category.
    """

    name: str = "mvtec"
    unambiguous = True  # it serves any set in this layout, so any name will do
    folders = ("mvtec_anomaly_detection", "MVTecAD", "mvtec_ad")
    about = About(
        title="MVTec AD",
        reference="P. Bergmann et al., *MVTec AD - A Comprehensive Real-World Dataset for Unsupervised Anomaly "
        "Detection*, CVPR 2019",
        licence=_NC,
        homepage=f"{_MVTEC}/mvtec-ad",
        counts=(467, 1258),
        train=3629,
        confirmed=True,
        archives=(
            Archive(
                f"{_SHARES}/150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/mvtec_anomaly_detection.tar.xz",
                "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            ),
        ),
        paper=True,
    )

    def _mistaken(self, folder: Path) -> str:
        return ""  # it serves any set

    @property
    def identity(self) -> str:
        """The name; with the folder if most of its categories are not the publisher's: then it is a set of its own."""
        return f"{self.name}{self._own_folder}"

    @cached_property
    def _own_folder(self) -> str:
        """A blank and the folder for a set of one's own, else nothing; found once, as a command asks several times."""
        try:
            folder, files = self.find()
        except MissingError:
            return ""
        matches = (re.fullmatch(self.images, path, re.IGNORECASE) for path in files)
        found = {match["category"].lower() for match in matches if match}
        # not if any is not: a category of one's own beside the publisher's makes no zero-shot test of theirs
        return "" if 2 * len(found & _CATEGORIES) > len(found) else f" {folder.resolve()}"


class MPDD(MVTecTree):
    """MPDD: six categories of metal parts, with masks.

    Layout as ``mvtec``. The publisher ships bracket_black, bracket_brown, bracket_white, connector, metal_plate and
    tubes.
    """

    name: str = "mpdd"
    folders = ("MPDD",)
    expected = "tubes/test/good/000.png"
    about = About(
        title="MPDD",
        reference="S. Jezek et al., *Deep learning-based defect detection of metal parts*, ICUMT 2021",
        licence="none stated",
        homepage="https://github.com/stepanje/MPDD",
        counts=(176, 282),
        train=888,
        note="The link in the README leads to a OneDrive folder.",
    )


class DTDSynthetic(MVTecTree):
    """DTD-Synthetic: twelve textures of DTD with drawn defects, with masks.

    Layout as ``mvtec``: ``dtd_synthetic/Blotchy_099/test/good/...``.
    """

    name: str = "dtd_synthetic"
    folders = ("DTD-Synthetic", "dtd-synthetic", "DTD")
    expected = "Blotchy_099/test/good/000.png"
    about = About(
        title="DTD-Synthetic",
        reference="T. Aota et al., *Zero-shot versus Many-shot: Unsupervised Texture Anomaly Detection*, WACV 2023",
        licence="not found",
        homepage="https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1",
        counts=(357, 947),
    )


class BTAD(Tree):
    """BTAD: three industrial products, with masks.

    Layout: ``btad/<01|02|03>/{train/ok,test/ok,test/ko,ground_truth/ko}``; the archive's own folder
    ``BTech_Dataset_transformed`` is found too. Images and masks are ``.bmp`` or ``.png`` and their numbers repeat in ok
    and ko.
    """

    name: str = "btad"
    domain: ClassVar[str] = "industrial"
    folders = ("BTech_Dataset_transformed", "BTAD")
    images = rf"(?P<category>\d\d)/(?P<split>train|test)/(?P<defect>ok|ko)/(?P<stem>[^/]+){IMAGE}"
    masks = rf"(?P<category>\d\d)/ground_truth/(?P<defect>ko)/(?P<stem>[^/]+?)(?:_mask)?{IMAGE}"
    normal = ("ok",)
    expected = "01/test/ko/0000.bmp"
    about = About(
        title="BTAD",
        reference="P. Mishra et al., *VT-ADL: A Vision Transformer Network for Image Anomaly Detection and "
        "Localization*, ISIE 2021",
        licence=f"{_NC} (by anomalib)",
        homepage="https://avires.dimi.uniud.it/papers/btad/",
        counts=(451, 290),
        train=1799,
        archives=(
            Archive(
                "https://avires.dimi.uniud.it/papers/btad/btad.zip",
                "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
            ),
        ),
        paper=True,
    )


class MVTecLOCO(MVTecTree):
    """MVTec LOCO AD: five scenes with structural and logical anomalies, with masks.

    Layout: ``mvtec_loco/<category>/{train,validation}/good``, ``test/{good,logical_anomalies,structural_anomalies}``
    and ``ground_truth/<kind>/000/000.png, 001.png``: a folder of masks an image, one mask a defect, which are merged.
    A pixel of a mask holds the number of its defect.
    """

    name: str = "mvtec_loco"
    folders = ("mvtec_loco_anomaly_detection", "MVTecLOCO")
    masks = rf"(?P<category>[^/]+)/ground_truth/(?P<defect>[^/]+)/(?P<stem>[^/]+)/[^/]+{IMAGE}"
    usual_threshold = 0
    expected = "breakfast_box/test/logical_anomalies/000.png"
    about = About(
        title="MVTec LOCO AD",
        reference="P. Bergmann et al., *Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly "
        "Detection and Localization*, IJCV 2022",
        licence=_NC,
        homepage=f"{_MVTEC}/mvtec-loco",
        counts=(575, 993),
        train=1778,
        confirmed=True,
        archives=(
            Archive(
                f"{_SHARES}/48237/1b9106ccdfbb09a0c414bd49fe44a14a/download/430647091-1646842701/mvtec_loco_anomaly_detection.tar.xz",
                "9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
            ),
        ),
        note="1772 training images in the paper, 1778 in the archive.",
    )


class MVTecAD2(MVTecTree):
    """MVTec AD 2: eight categories; masks of the public test images only.

    Layout: ``mvtec_ad2/<category>/{train,validation}/good``, ``test_public/{good,bad,ground_truth/bad}``,
    ``test_private`` and ``test_private_mixed``. ``test`` uses the public images. ``predict`` scores the private ones,
    whose ground truth only the publisher's server has; all images if there are none.
    """

    name: str = "mvtec_ad2"
    folders = ("mvtec_ad_2", "MVTec_AD_2")
    images = (
        r"(?P<category>[^/]+)/(?P<split>train|validation|test_public|test_private(?:_mixed)?)/"
        rf"(?:(?P<defect>good|bad)/)?(?P<stem>[^/]+){IMAGE}"
    )
    masks = rf"(?P<category>[^/]+)/test_public/ground_truth/(?P<defect>bad)/(?P<stem>[^/]+?)(?:_mask)?{IMAGE}"
    expected = "can/test_public/good/000_regular.png"
    about = About(
        title="MVTec AD 2",
        reference="L. Heckler-Kram et al., *The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised Anomaly "
        "Detection*, 2025",
        licence=_NC,
        homepage=f"{_MVTEC}/mvtec-ad-2",
        counts=(379, 705),
        train=2528,
        confirmed=True,
        archives=(
            Archive(
                f"{_SHARES}/150997/701c90d3aea6588f404936e32a674602/download/466712769-1743429042/mvtec_ad_2.tar.gz",
                "c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4",
            ),
        ),
    )

    def part(self, stage: str) -> list[Sample]:
        """Samples that a stage uses; for predict the private ones, if there are any."""
        samples = super().part(stage)
        private = [sample for sample in samples if sample.label == UNKNOWN]
        return private if stage == "predict" and private else samples
