"""Sets from the inspection of single goods and structures: magnetic tiles, rails, roads, solar cells, circuits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kanoclip.data.about import About, DamagedDataError
from kanoclip.data.base import Sample
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.images import read_image
from kanoclip.data.sets.lists import read_lines, short
from kanoclip.data.sets.tree import IMAGE, Tree
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN


class Inspection(Tree):
    """Base of these sets: one category, everything is a test image."""

    domain: ClassVar[str] = "industrial"


class MagneticTile(Inspection):
    """Magnetic tile defects: normal tiles and five kinds of defect, with masks.

    Layout: ``magnetic_tile/MT_<defect>/Imgs/<name>.jpg`` with its mask ``<name>.png``; ``MT_Free`` is normal. Masks are
    anti-aliased. Four masks of MT_Uneven are empty.
    """

    name: str = "magnetic_tile"
    folders = ("Magnetic-tile-defect-datasets.", "Magnetic-tile-defect-datasets.-master")
    images = r"MT_(?P<defect>\w+)/Imgs/(?P<stem>[^/]+)\.jpg"
    masks = r"MT_(?P<defect>\w+)/Imgs/(?P<stem>[^/]+)\.png"
    normal = ("free",)
    usual_threshold = 127
    subject = "magnetic_tile"
    expected = "MT_Free/Imgs/exp1_num_4727.jpg"
    about = About(
        title="Magnetic tile defects",
        reference="Y. Huang et al., *Surface defect saliency of magnetic tile*, The Visual Computer 2020",
        licence="none stated",
        homepage="https://github.com/abin24/Magnetic-tile-defect-datasets.",
        counts=(952, 392),
        confirmed=True,
    )


class RSDDs(Inspection):
    """RSDDs: narrow images of rails, all with defects, with masks.

    Layout: any folders below ``rsdds``, one a type, with images and a folder of masks whose name contains
    ``ground truth``; names may hold spaces and Chinese characters. It is as tolerant as that because the folders' names
    differ between copies, and we could not see the publisher's own. Masks are JPEG. Images are 160 x 1000 (type I) and
    55 x 1250 pixels (type II): ``--data.tile true`` keeps their shape.
    """

    name: str = "rsdds"
    unambiguous = False
    folders = ("RSDDs", "RSDDs dataset")
    images = rf"(?:(?P<type>.+)/)?(?![^/]*ground ?truth)[^/]+/(?P<stem>[^/]+){IMAGE}"
    masks = rf"(?:(?P<type>.+)/)?[^/]*ground ?truth[^/]*/(?P<stem>[^/]+){IMAGE}"
    usual_threshold = 127
    subject = "rail"
    expected = "Type-II RSDDs dataset/Rail surface images/rail_1.jpg and .../GroundTruth/rail_1.jpg"
    about = About(
        title="RSDDs",
        reference="J. Gan et al., *A Hierarchical Extractor-Based Visual Rail Surface Inspection System*, IEEE Sensors "
        "2017",
        licence="see the page",
        homepage="https://ieee-dataport.org/documents/rsdds",
        counts=(0, 195),
        confirmed=True,
    )


class CrackForest(Inspection):
    """CrackForest: photos of cracked roads with masks; there are no normal images.

    Layout: ``crackforest/image/001.jpg`` with ``groundTruth/001.mat``. Label 2 of a mask is a crack; 3 and 4 are other
    things. Images without ground truth (37 of 155) are not tested, only predicted.
    """

    name: str = "crackforest"
    folders = ("CrackForest-dataset", "CrackForest-dataset-master")
    images = r"image/(?P<stem>\d+)\.jpg"
    masks = r"groundTruth/(?P<stem>\d+)\.mat"
    mask_values: list[int] | None = [2]  # noqa: RUF012  # never changed; other sets set it in their constructor
    subject = "road"
    expected = "image/001.jpg and groundTruth/001.mat"
    about = About(
        title="CrackForest",
        reference="Y. Shi et al., *Automatic Road Crack Detection Using Random Structured Forests*, TITS 2016",
        licence="non-commercial research",
        homepage="https://github.com/cuilimeng/CrackForest-dataset",
        counts=(0, 118),
        confirmed=True,
    )

    def _index_files(self, folder: Path, files: list[str]) -> list[Sample]:
        samples = super()._index_files(folder, files)
        return [s if s.masks else replace(s, label=UNKNOWN, defect="", split="unlabelled") for s in samples]


class ELPV(Inspection):
    """ELPV: electroluminescence images of solar cells, no masks.

    Layout: ``elpv/images/cell0001.png`` and ``labels.csv`` (path, probability of a defect, mono or poly, no header).

    Args:
        root: Folder that contains all data sets, or the data set's own.
        probability: A cell is anomalous from this probability on; the experts gave 0, 1/3, 2/3 and 1.
    """

    name: str = "elpv"
    folders = ("elpv-dataset", "elpv-dataset-master", "src/elpv_dataset/data", "elpv-dataset/src/elpv_dataset/data")
    images = rf"images/(?P<stem>cell\d+){IMAGE}"
    subject = "solar_cell"
    expected = "images/cell0001.png and labels.csv"
    about = About(
        title="ELPV",
        reference="S. Deitsch et al., *Automatic classification of defective photovoltaic module cells in "
        "electroluminescence images*, Solar Energy 2019",
        licence="CC BY-NC-SA 4.0",
        homepage="https://github.com/zae-bayern/elpv-dataset",
        counts=(1803, 821),
        masks=False,
        note="Counts with a probability of 0.5 or more as anomalous.",
    )

    def __init__(self, root: str = "data", probability: float = 0.5, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.probability = probability

    def _index_files(self, folder: Path, files: list[str]) -> list[Sample]:
        path, listed, samples = folder / "labels.csv", set(files), []
        if "labels.csv" not in listed:
            raise DamagedDataError(f"No {path}: ELPV's labels are in it. Copy it from {self.about.homepage}.")
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            try:
                image, words, kind = line.split()[:3]
                probability = float(words)
            except ValueError as error:
                raise DamagedDataError(
                    f"{path}, row {number}: expected path, probability and kind, found {short(line)}."
                ) from error
            if image not in listed:
                raise DamagedDataError(f"{path}, row {number}: no file {str(folder / image)[:300]}. Copy it again.")
            anomalous = probability >= self.probability
            label, defect = (ANOMALOUS, f"{kind} {probability:.2f}") if anomalous else (NORMAL, "good")
            samples.append(Sample(f"{folder}/{image}", (), label, self.subject, defect))
        return samples


class DeepPCB(Inspection):
    """DeepPCB: pairs of a flawless and a tested circuit board, with boxes around six kinds of defect.

    Layout: ``deeppcb/PCBData/group00041/00041/00041000_test.jpg`` and ``_temp.jpg`` (the flawless one, a normal image),
    boxes in ``group00041/00041_not/00041000.txt``: ``x1 y1 x2 y2 kind`` a line. A mask is the union of the boxes, which
    are larger than the defects. ``PCBData/test.txt`` lists the publisher's test part; all others are of the split
    train.
    """

    name: str = "deeppcb"
    folders = ("DeepPCB", "DeepPCB-master")
    images = r"(?:PCBData/)?group\d+/\d+/(?P<stem>\d+)_(?P<defect>temp|test)\.jpg"
    masks = r"(?:PCBData/)?group\d+/\d+_not/(?P<stem>\d+)\.txt"
    normal = ("temp",)
    subject = "pcb"
    expected = "PCBData/group00041/00041/00041000_test.jpg"
    about = About(
        title="DeepPCB",
        reference="S. Tang et al., *Online PCB Defect Detector On A New PCB Defect Dataset*, 2019",
        licence="for research only",
        homepage="https://github.com/tangsanli5201/DeepPCB",
        counts=(500, 500),
        train=2000,
        confirmed=True,
    )

    def _key(self, groups: Mapping[str, str]) -> tuple[str, ...]:
        return (groups["stem"], "flawless" if groups.get("defect") == "temp" else "")  # it has no boxes

    def _index_files(self, folder: Path, files: list[str]) -> list[Sample]:
        lists = [path for path in files if path.rsplit("/", 1)[-1] == "test.txt"]
        if not lists:
            raise DamagedDataError(f"No test.txt in {folder}: it lists the test part. Copy it from the repository.")
        # a line names <number>.jpg, and the files are <number>_test.jpg and <number>_temp.jpg
        listed = {Path(line.split()[0]).stem for line in read_lines(folder / lists[0]) if line.strip()}
        samples = super()._index_files(folder, files)
        return [s if Path(s.image).stem.split("_")[0] in listed else replace(s, split="train") for s in samples]

    def read(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Read an image ``(H, W, 3)`` and draw its boxes ``(H, W)``.

        Raises:
            UnreadableImageError: The image cannot be read, or a line of the file of boxes is not as expected.
        """
        image = read_image(sample.image)
        mask = np.zeros(image.shape[:2], np.uint8)
        for path in sample.masks:
            for number, line in enumerate(read_lines(Path(path)), 1):
                if not line.strip():
                    continue
                try:
                    left, top, right, bottom = (int(word) for word in line.replace(",", " ").split()[:4])
                except ValueError as error:
                    raise UnreadableImageError(
                        path, f"line {number} is {short(line)}, expected x1 y1 x2 y2 kind."
                    ) from error
                mask[top:bottom, left:right] = 1
        return image, mask if sample.masks or sample.label == NORMAL else None
