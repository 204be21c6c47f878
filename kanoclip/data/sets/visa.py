"""VisA, as archived and as prepared by its publisher's script."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from kanoclip.data.about import About, Archive, DamagedDataError
from kanoclip.data.base import Sample
from kanoclip.data.sets.lists import read_csv
from kanoclip.data.sets.tree import IMAGE, Tree
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError

PROTOCOLS = ("1cls", "2cls_fewshot", "2cls_highshot")
COLUMNS = ("object", "split", "label", "image", "mask")


class VisA(Tree):
    """VisA: twelve objects in 10,821 photos, with masks.

    Layouts: the archive as it is, ``visa/<category>/Data/Images/{Normal,Anomaly}`` with ``split_csv/1cls.csv``; or what
    the publisher's ``prepare_data.py`` makes of it, ``VisA_pytorch/1cls/<category>/{train,test}/{good,bad}``. The
    publisher ships candle, capsules, cashew, chewinggum, fryum, macaroni1, macaroni2, pcb1 to pcb4 and pipe_fryum.
    Masks of the archive hold numbers of defects; the prepared ones are 0/255.

    Args:
        root: Folder that contains all data sets, or the data set's own.
        protocol: Which of the publisher's splits: 1cls (all anomalous images are test images; what zero-shot papers
            use), 2cls_fewshot or 2cls_highshot.
    """

    name: str = "visa"
    domain: ClassVar[str] = "industrial"
    folders = ("VisA_20220922", "VisA", "VisA_pytorch")
    images = (
        rf"(?:(?:1cls|2cls_\w+)/)?(?P<category>[^/]+)/(?:(?P<split>train|test)/(?P<defect>good|bad)|"
        rf"Data/Images/(?:Normal|Anomaly))/(?P<stem>[^/]+){IMAGE}"
    )
    masks = rf"(?:(?:1cls|2cls_\w+)/)?(?P<category>[^/]+)/ground_truth/(?P<defect>bad)/(?P<stem>[^/]+){IMAGE}"
    usual_threshold = 0
    expected = "candle/Data/Images/Normal/0000.JPG and split_csv/1cls.csv"
    about = About(
        title="VisA",
        reference="Y. Zou et al., *SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and "
        "Segmentation*, ECCV 2022",
        licence="CC BY 4.0",
        homepage="https://github.com/amazon-science/spot-diff",
        counts=(962, 1200),
        train=8659,
        confirmed=True,
        archives=(
            Archive(
                "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
                "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            ),
        ),
        paper=True,
    )

    def __init__(self, root: str = "data", protocol: str = "1cls", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        if protocol not in PROTOCOLS:
            raise KanoclipError(
                f"protocol is {protocol!r}, expected one of {', '.join(PROTOCOLS)}. Set --data.protocol."
            )
        self.protocol = protocol

    def samples(self) -> list[Sample]:
        """Index the prepared folders, or the rows of the split."""
        folder, files = self.find()
        split = f"split_csv/{self.protocol}.csv"
        if split in files:
            return self._read_split(folder, split, set(files))
        prepared = [path for path in files if "/Data/" not in path]
        nested = [path for path in prepared if path.startswith(f"{self.protocol}/")]
        if any(path.startswith(tuple(f"{name}/" for name in PROTOCOLS)) for path in prepared):
            prepared = nested
        samples = self._index_files(folder, prepared)
        if not samples:
            raise DamagedDataError(
                f"No split {self.protocol} of VisA in {folder}: expected {split} beside the categories, as in the "
                f"archive, or a folder {self.protocol}/. Copy {split} there from {self.about.homepage}."
            )
        return samples

    def _read_split(self, folder: Path, split: str, listed: set[str]) -> list[Sample]:
        columns, rows = read_csv(folder / split)
        if missing := [column for column in COLUMNS if column not in columns]:
            raise DamagedDataError(
                f"{folder / split}, header: no column {missing[0]}. Copy the publisher's file again."
            )
        samples = []
        for number, row in enumerate(rows, 1):
            normal = row["label"] == "normal"
            paths = [row["image"], *([row["mask"]] if row["mask"] and not normal else [])]
            for path in paths:
                if path not in listed:
                    raise DamagedDataError(f"{folder / split}, row {number}: no file {folder / path[:300]}.")
            image, *masks = (f"{folder}/{path}" for path in paths)
            label, defect = (NORMAL, "good") if normal else (ANOMALOUS, "anomalous")
            samples.append(Sample(image, tuple(masks), label, row["object"], defect, row["split"]))
        return samples
