"""Medical sets of lesions with masks: endoscopy, dermoscopy and ultrasound."""

from __future__ import annotations

from typing import ClassVar

from kanoclip.data.about import About, Archive
from kanoclip.data.sets.tree import IMAGE, Tree

_RESEARCH = "for research and education"


class Medical(Tree):
    """Base of the medical sets: everything is a test image, and anomalous unless a folder says otherwise."""

    domain: ClassVar[str] = "medical"


class ISIC2016(Medical):
    """ISIC 2016 task 1, test part: photos of skin lesions with masks; there are no normal images.

    Layout: ``isic2016/ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg`` and
    ``ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png``.
    """

    name: str = "isic2016"
    folders = ("ISIC", "isic")
    images = rf"(?:.+/)?ISBI2016_ISIC_Part1_Test_Data/(?P<stem>ISIC_\d+){IMAGE}"
    masks = rf"(?:.+/)?ISBI2016_ISIC_Part1_Test_GroundTruth/(?P<stem>ISIC_\d+)_Segmentation{IMAGE}"
    subject = "skin"
    expected = "ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg"
    about = About(
        title="ISIC 2016, task 1",
        reference="D. Gutman et al., *Skin Lesion Analysis toward Melanoma Detection*, ISBI 2016",
        licence="CC-0",
        homepage="https://challenge.isic-archive.com/data/#2016",
        counts=(0, 379),
        archives=(
            Archive("https://isic-challenge-data.s3.amazonaws.com/2016/ISBI2016_ISIC_Part1_Test_Data.zip"),
            Archive("https://isic-challenge-data.s3.amazonaws.com/2016/ISBI2016_ISIC_Part1_Test_GroundTruth.zip"),
        ),
    )


class Polyps(Medical):
    """Base of the polyp sets: endoscopic photos, each with a polyp and its mask; there are no normal images.

    They are also found in the collection that many have, ``TestDataset/<set>/{images,masks}``, of which it holds all
    or a part.
    """

    images = rf"(?:images|Original)/(?P<stem>[^/]+){IMAGE}"
    masks = rf"(?:masks|Ground Truth)/(?P<stem>[^/]+){IMAGE}"
    subject = "colon"
    usual_threshold = 127


class ColonDB(Polyps):
    """CVC-ColonDB: endoscopic photos of polyps with masks; there are no normal images.

    Layouts: the publisher's one folder, ``cvc_colondb/1.tiff`` with the mask ``p1.tiff`` (and a contour, ``cp1.tiff``,
    that is not used), or ``{images,masks}/1.png`` of the common polyp archive.
    """

    name: str = "cvc_colondb"
    folders = ("CVC-ColonDB", "TestDataset/CVC-ColonDB")
    images = rf"(?:images/|(?=\d+\.tiff?$))(?P<stem>[^/]+){IMAGE}"
    masks = rf"(?:masks/|p(?=\d+\.tiff?$))(?P<stem>[^/]+){IMAGE}"
    expected = "1.tiff and p1.tiff, or images/1.png"
    about = About(
        title="CVC-ColonDB",
        reference="N. Tajbakhsh et al., *Automated Polyp Detection in Colonoscopy Videos*, TMI 2015",
        licence=_RESEARCH,
        homepage="https://figshare.com/articles/figure/Polyp_DataSet_zip/21221579",
        counts=(0, 380),
    )


class ClinicDB(Polyps):
    """CVC-ClinicDB: endoscopic photos of polyps with masks; there are no normal images.

    Layouts: the publisher's ``cvc_clinicdb/Original/1.tif`` with ``Ground Truth/1.tif`` (TIFs that Pillow refuses are
    read all the same), or ``{images,masks}/1.png`` of the common polyp archive; a copy with folders ``PNG`` and ``TIF``
    is read from ``PNG``.
    """

    name: str = "cvc_clinicdb"
    folders = ("PNG", "CVC-ClinicDB", "CVC-ClinicDB/PNG", "TestDataset/CVC-ClinicDB")
    expected = "Original/1.tif"
    about = About(
        title="CVC-ClinicDB",
        reference="J. Bernal et al., *WM-DOVA maps for accurate polyp highlighting in colonoscopy*, CMIG 2015",
        licence=_RESEARCH,
        homepage="https://figshare.com/articles/figure/Polyp_DataSet_zip/21221579",
        counts=(0, 612),
        confirmed=True,
    )


class Kvasir(Polyps):
    """Kvasir-SEG: endoscopic photos of polyps with masks; there are no normal images.

    Layout: ``kvasir/Kvasir-SEG/{images,masks}/<id>.jpg``. Masks are JPEG, with noise around 0 and 255.
    """

    name: str = "kvasir"
    folders = ("Kvasir-SEG", "kvasir-seg", "Kvasir", "TestDataset/Kvasir")
    expected = "Kvasir-SEG/images/cju0qkwl35piu0993l0dewei2.jpg"
    about = About(
        title="Kvasir-SEG",
        reference="D. Jha et al., *Kvasir-SEG: A Segmented Polyp Dataset*, MMM 2020",
        licence=_RESEARCH,
        homepage="https://datasets.simula.no/kvasir-seg",
        counts=(0, 1000),
        confirmed=True,
    )


class Endo(Polyps):
    """EndoTect 2020, test part: endoscopic photos of polyps with masks; there are no normal images.

    Layout: ``endo/EndoTect_2020_Segmentation_Test_Dataset/{images,masks}``.
    """

    name: str = "endo"
    folders = ("EndoTect_2020_Segmentation_Test_Dataset",)
    expected = "EndoTect_2020_Segmentation_Test_Dataset/images/<id>.jpg"
    about = About(
        title="EndoTect 2020",
        reference="S. Hicks et al., *The EndoTect 2020 Challenge*, ICPR 2021",
        licence=_RESEARCH,
        homepage="https://drive.google.com/file/d/1LNpLkv5ZlEUzr_RPN5rdOHaqk0SkZa3m",
        counts=(0, 200),
    )


class TN3K(Medical):
    """TN3K: ultrasound images of thyroid nodules with masks; there are no normal images.

    Layout: ``tn3k/Thyroid Dataset/tn3k/{test,trainval}-{image,mask}/0000.jpg``. Masks are JPEG.
    """

    name: str = "tn3k"
    folders = ("Thyroid Dataset/tn3k", "TN3K")
    images = rf"(?:.+/)?(?P<split>test|trainval)-image/(?P<stem>[^/]+){IMAGE}"
    masks = rf"(?:.+/)?(?P<split>test|trainval)-mask/(?P<stem>[^/]+){IMAGE}"
    usual_threshold = 127
    subject = "thyroid"
    expected = "Thyroid Dataset/tn3k/test-image/0000.jpg"
    about = About(
        title="TN3K",
        reference="H. Gong et al., *Thyroid region prior guided attention for ultrasound segmentation of thyroid "
        "nodules*, CIBM 2023",
        licence="see the page",
        homepage="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
        counts=(0, 614),
        train=2879,
    )


class BUSI(Medical):
    """BUSI: ultrasound images of the breast, normal, benign and malignant, with masks.

    Layout: ``busi/Dataset_BUSI_with_GT/<normal|benign|malignant>/benign (1).png`` with ``benign (1)_mask.png`` and, for
    a second lesion, ``benign (1)_mask_1.png``; the masks of an image are merged.
    """

    name: str = "busi"
    folders = ("Dataset_BUSI_with_GT", "BUSI")
    images = rf"(?:.+/)?(?P<defect>normal|benign|malignant)/(?P<stem>[^/]+ \(\d+\)){IMAGE}"
    masks = rf"(?:.+/)?(?P<defect>normal|benign|malignant)/(?P<stem>[^/]+ \(\d+\))_mask(?:_\d+)?{IMAGE}"
    normal = ("normal",)
    usual_threshold = 127
    subject = "breast"
    expected = "Dataset_BUSI_with_GT/benign/benign (1).png"
    about = About(
        title="BUSI",
        reference="W. Al-Dhabyani et al., *Dataset of breast ultrasound images*, Data in Brief 2020",
        licence="CC BY 4.0 by the article",
        homepage="https://www.kaggle.com/datasets/aryashah2k/breast-ultrasound-images-dataset",
        counts=(133, 647),
        confirmed=True,
    )
