"""KolektorSDD, KolektorSDD2 and DAGM: sets whose masks say which images are anomalous."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from kanoclip.data.about import About, Archive
from kanoclip.data.base import Sample
from kanoclip.data.images import read_mask
from kanoclip.data.listing import remembered
from kanoclip.data.sets.mvtec import MVTecTree
from kanoclip.data.sets.tree import IMAGE, Tree
from kanoclip.types import ANOMALOUS, NORMAL

_VICOS = "CC BY-NC-SA 4.0"


class LabelledByMask(Tree):
    """Base of data sets in which an image is anomalous if any pixel of its mask is not 0.

    What a mask says is read once and remembered until the file changes.
    """

    domain: ClassVar[str] = "industrial"
    usual_threshold = 0

    def _index_files(self, folder: Path, files: list[str]) -> list[Sample]:
        samples = super()._index_files(folder, files)
        masks = [Path(mask).relative_to(folder).as_posix() for sample in samples for mask in sample.masks]
        found = remembered("anomalous", folder, masks, lambda path: bool(read_mask([path], 0).any()))
        anomalous = {f"{folder}/{path}" for path, any_pixel in found.items() if any_pixel}
        return [
            replace(sample, label=ANOMALOUS, defect="defect")
            if any(mask in anomalous for mask in sample.masks)
            else replace(sample, label=NORMAL, defect="good", masks=())
            for sample in samples
        ]


class KolektorSDD(LabelledByMask):
    """KolektorSDD as published: 50 electrical commutators in 399 tall images, with masks.

    Layout: ``ksdd/kos01/Part0.jpg`` with ``Part0_label.bmp``; an image is anomalous if any pixel of its mask is not 0.
    The publisher gives no split for zero-shot use: all images are test images. The two splits that zero-shot papers
    use are ``ksdd_anomalyclip`` and ``ksdd_adaclip``; the numbers of the three are not comparable. Images are about
    500 x 1250 pixels: ``--data.tile true`` keeps their shape.
    """

    name: str = "ksdd"
    folders = ("KolektorSDD",)
    images = r"(?P<item>kos\d+)/(?P<stem>Part\d+)\.jpg"
    masks = r"(?P<item>kos\d+)/(?P<stem>Part\d+)_label\.bmp"
    subject = "electrical commutators"
    expected = "kos01/Part0.jpg"
    about = About(
        title="KolektorSDD",
        reference="D. Tabernik et al., *Segmentation-Based Deep-Learning Approach for Surface-Defect Detection*, JIM "
        "2020",
        licence=_VICOS,
        homepage="https://www.vicos.si/resources/kolektorsdd/",
        counts=(347, 52),
        archives=(
            Archive(
                "https://go.vicos.si/kolektorsdd",
                "65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
            ),
        ),
    )


class _CutKolektorSDD(MVTecTree):
    subject = "electrical commutators"
    expected = "electrical commutators/test/good/kos01_Part5_0.png"


class KolektorSDDAnomalyCLIP(_CutKolektorSDD):
    """KolektorSDD as AnomalyCLIP's authors share it: images cut into three, with masks.

    Layout: ``ksdd_anomalyclip/electrical commutators/{train,test}/{good,defect}``, ``ground_truth/defect``; the folder
    may be spelled ``electrical_commutators`` or ``SDD`` too.
    """

    name: str = "ksdd_anomalyclip"
    folders = ("SDD_anomaly_detection", "SDD")
    about = About(
        title="KolektorSDD, AnomalyCLIP's split",
        reference="Q. Zhou et al., *AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection*, "
        "ICLR 2024",
        licence=_VICOS,
        homepage="https://github.com/zqhang/AnomalyCLIP",
        counts=(181, 74),
        paper=True,
        note="The Google Drive link is in the README of AnomalyCLIP.",
        pieces_of="ksdd",
    )


class KolektorSDDAdaCLIP(_CutKolektorSDD):
    """KolektorSDD as AdaCLIP's preparation cuts it: three pieces an image, a quarter of the good ones in the test.

    Layout: ``ksdd_adaclip/electrical commutators/{train,test}/{good,defect}``, ``ground_truth/defect``.
    """

    name: str = "ksdd_adaclip"
    folders = ("SDD_adaclip",)
    about = About(
        title="KolektorSDD, AdaCLIP's split",
        reference="Y. Cao et al., *AdaCLIP: Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly "
        "Detection*, ECCV 2024",
        licence=_VICOS,
        homepage="https://github.com/caoyunkang/AdaCLIP",
        counts=(286, 54),
        note="Made from KolektorSDD by a script in AdaCLIP's repository.",
        pieces_of="ksdd",
    )


class KolektorSDD2(LabelledByMask):
    """KolektorSDD2: images of a production surface, with masks.

    Layout: ``ksdd2/{train,test}/10000.png`` with ``10000_GT.png``; an image is anomalous if any pixel of its mask is
    not 0. Files whose name is not five digits (a stray copy is in some archives) are left out.
    """

    name: str = "ksdd2"
    folders = ("KolektorSDD2",)
    images = r"(?P<split>train|test)/(?P<stem>\d{5})\.png"
    masks = r"(?P<split>train|test)/(?P<stem>\d{5})_GT\.png"
    subject = "surface"
    expected = "test/20000.png"
    about = About(
        title="KolektorSDD2",
        reference="J. Bozic et al., *Mixed supervision for surface-defect detection*, Computers in Industry 2021",
        licence=_VICOS,
        homepage="https://www.vicos.si/resources/kolektorsdd2/",
        counts=(894, 110),
        train=2331,
        archives=(Archive("https://go.vicos.si/kolektorsdd2"),),
    )


class DAGM(Tree):
    """DAGM 2007: ten drawn textures with weakly labelled defects: a mask is an ellipse around the defect.

    Layout: ``dagm/Class1/{Train,Test}/0576.PNG`` with ``Label/0576_label.PNG`` for images with a defect.
    """

    name: str = "dagm"
    domain: ClassVar[str] = "industrial"
    folders = ("DAGM_KaggleUpload", "DAGM2007", "DAGM")
    images = rf"(?P<category>Class\d+)/(?P<split>Train|Test)/(?P<stem>\d+){IMAGE}"
    masks = rf"(?P<category>Class\d+)/(?P<split>Train|Test)/Label/(?P<stem>\d+)_label{IMAGE}"
    expected = "Class1/Test/0001.PNG"
    about = About(
        title="DAGM 2007",
        reference="M. Wieler and T. Hahn, *Weakly Supervised Learning for Industrial Optical Inspection*, DAGM 2007",
        licence="CDLA-Sharing-1.0",
        homepage="https://zenodo.org/records/12750201",
        counts=(6996, 1054),
        note="The licence is that of the copy on Zenodo.",
    )

    def _index_files(self, folder: Path, files: list[str]) -> list[Sample]:
        samples = super()._index_files(folder, files)  # all anomalous so far: no folder says otherwise
        return [s if s.masks else replace(s, label=NORMAL, defect="good") for s in samples]
