"""BMAD: six medical sets, each archive with its own folders."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from kanoclip.data.about import About
from kanoclip.data.sets.tree import IMAGE, Tree

_SPLIT = r"(?P<split>train|val|valid|test)"
_MASKS = r"(?:label|anomaly_mask|test_label|val_label)"
_about = partial(
    About,
    reference="J. Bao et al., *BMAD: Benchmarks for Medical Anomaly Detection*, CVPR Workshops 2024",
    licence="CC BY-NC-SA 4.0 (by anomalib)",
    homepage="https://github.com/DorisBao/BMAD",
    note="Sets of BMAD come in one archive each; upstream terms of use apply too.",
)


class BMAD(Tree):
    """Base of the sets of BMAD.

    Images are below ``train``, ``val`` or ``valid``, and ``test``, in any case, and in ``good`` or ``Ungood``; ``img``
    may stand above or below that, and a split may be nested (``Test/test``). Masks are in ``label``, ``anomaly_mask``
    or ``test_label``, above or below ``Ungood``. Only the test part is used: normal and anomalous images with masks,
    where there are any.
    """

    domain: ClassVar[str] = "medical"
    unambiguous: ClassVar[bool] = False
    images = rf"(?:.+/)?{_SPLIT}/(?:img/)?(?P<defect>good|ungood)/(?:img/)?(?P<stem>[^/]+){IMAGE}"
    masks = rf"(?:.+/)?{_SPLIT}/(?:{_MASKS}/ungood|ungood/{_MASKS})/(?P<stem>[^/]+){IMAGE}"
    expected = "test/Ungood/img/*.png"


class BMADBrain(BMAD):
    """BMAD brain: slices of BraTS 2021, with masks.

    Layout: ``bmad_brain/BraTS2021_slice/test/{good,Ungood}/img`` with ``test/Ungood/label``; ``BMAD/Brain_AD`` is found
    too.
    """

    name: str = "bmad_brain"
    folders = ("Brain_AD", "BMAD/Brain_AD", "bmad/Brain_AD", "BMAD/Brain", "bmad/Brain", "BraTS2021_slice")
    subject = "brain"
    about = _about("BMAD brain MRI", counts=(640, 3075), train=7500, paper=True)


class BMADLiver(BMAD):
    """BMAD liver: CT slices, with masks.

    Layout: ``bmad_liver/hist_DIY/test/img/{good,Ungood}`` with ``test/label/Ungood``; ``BMAD/Liver_AD`` is found too.
    """

    name: str = "bmad_liver"
    folders = ("Liver_AD", "BMAD/Liver_AD", "bmad/Liver_AD", "BMAD/Liver", "bmad/Liver", "hist_DIY")
    subject = "liver"
    about = _about("BMAD liver CT", counts=(833, 660), train=1542, paper=True)


class BMADRESC(BMAD):
    """BMAD RESC: optical coherence tomography of the retina, with masks.

    Layout: ``bmad_resc/RESC/Test/test/{good,Ungood}`` with ``Test/test_label/Ungood``; ``BMAD/Retina_RESC_AD`` is found
    too.
    """

    name: str = "bmad_resc"
    folders = ("Retina_RESC_AD", "BMAD/Retina_RESC_AD", "bmad/Retina_RESC_AD", "BMAD/Retina_RESC", "RESC")
    subject = "retina"
    about = _about("BMAD RESC", counts=(1041, 764), train=4297, paper=True)


class BMADOCT2017(BMAD):
    """BMAD OCT2017: optical coherence tomography of the retina, no masks.

    Layout: ``bmad_oct2017/OCT2017/test/{good,Ungood}``; ``BMAD/Retina_OCT2017_AD`` is found too.
    """

    name: str = "bmad_oct2017"
    folders = ("Retina_OCT2017_AD", "BMAD/Retina_OCT2017_AD", "bmad/Retina_OCT2017_AD", "OCT2017")
    subject = "retina"
    about = _about("BMAD OCT2017", counts=(242, 726), train=26315, confirmed=True, masks=False)


class BMADRSNA(BMAD):
    """BMAD RSNA: chest X-rays, no masks.

    Layout: ``bmad_rsna/Chest-RSNA/test/{good,Ungood}``; ``BMAD/Chest_AD`` is found too.
    """

    name: str = "bmad_rsna"
    folders = ("Chest_AD", "Chest-AD", "BMAD/Chest_AD", "bmad/Chest_AD", "BMAD/Chest", "Chest-RSNA")
    subject = "chest"
    about = _about("BMAD RSNA", counts=(781, 16413), train=8000, masks=False)


class BMADCamelyon(BMAD):
    """BMAD Camelyon16: patches of lymph nodes, no masks.

    Layout: ``bmad_camelyon/camelyon16_256/test/{good,Ungood}``; ``BMAD/Histopathology_AD`` is found too.
    """

    name: str = "bmad_camelyon"
    folders = ("Histopathology_AD", "BMAD/Histopathology_AD", "bmad/Histopathology_AD", "camelyon16_256")
    subject = "histopathology"
    about = _about("BMAD Camelyon16", counts=(1000, 1000), train=5088, masks=False)
