"""Slices of the head, with a label and no mask: magnetic resonance and computed tomography."""

from __future__ import annotations

from pathlib import Path

from kanoclip.data.about import About, DamagedDataError
from kanoclip.data.base import Sample
from kanoclip.data.sets.lists import read_csv, short
from kanoclip.data.sets.medical import Medical
from kanoclip.data.sets.tree import IMAGE
from kanoclip.types import ANOMALOUS, NORMAL


class BrainMRI(Medical):
    """Brain MRI: slices with and without a tumour, no masks.

    Layout: ``brainmri/{yes,no}``. The archive of Kaggle holds the same tree twice, once in ``brain_tumor_dataset``: one
    of them is read.
    """

    name: str = "brainmri"
    folders = ("brain_tumor_dataset",)
    images = rf"(?P<defect>yes|no)/(?P<stem>[^/]+){IMAGE}"
    normal = ("no",)
    subject = "brain"
    expected = "yes/Y1.jpg"
    about = About(
        title="Brain MRI (Kaggle)",
        reference="N. Chakrabarty, *Brain MRI Images for Brain Tumor Detection*, Kaggle 2019",
        licence="see the page",
        homepage="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
        counts=(98, 155),
        confirmed=True,
        masks=False,
    )


class Br35H(BrainMRI):
    """Br35H: slices with and without a brain tumour, no masks.

    Layout: ``br35h/{yes,no}``; the unlabelled ``pred`` and the repeated images of ``Br35H-Mask-RCNN`` are left out.
    """

    name: str = "br35h"
    folders = ("Br35H",)
    expected = "yes/y0.jpg"
    about = About(
        title="Br35H",
        reference="A. Hamada, *Br35H: Brain Tumor Detection 2020*, Kaggle",
        licence="see the page",
        homepage="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
        counts=(1500, 1500),
        masks=False,
    )


class HeadCT(Medical):
    """Head CT: slices with and without a haemorrhage, no masks.

    Layout: ``headct/**/head_ct/000.png`` and ``labels.csv`` (``id, hemorrhage``) in a folder above it.
    """

    name: str = "headct"
    unambiguous = False
    folders = ("head_ct", "head-ct-hemorrhage")
    images = rf"(?:.+/)?head_ct/(?P<stem>\d+){IMAGE}"
    subject = "head"
    expected = "head_ct/000.png and labels.csv"
    about = About(
        title="Head CT (Kaggle)",
        reference="F. Kitamura, *Head CT - hemorrhage*, Kaggle 2018",
        licence="see the page",
        homepage="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        counts=(100, 100),
        confirmed=True,
        masks=False,
    )

    def _index_files(self, folder: Path, files: list[str]) -> list[Sample]:
        tables = [path for path in files if path.rsplit("/", 1)[-1].lower() == "labels.csv"]
        if not tables:
            raise DamagedDataError(f"No labels.csv in {folder}: Head CT's labels are in it. Copy it from the archive.")
        path = folder / tables[0]
        # by the digits without leading zeros: the list says 7 where the file is 007.png
        images = {Path(s.image).stem.lstrip("0"): s.image for s in super()._index_files(folder, files)}
        samples = []
        for number, row in enumerate(read_csv(path)[1], 1):
            words = [str(word).strip() for word in row.values()]  # id, hemorrhage
            if len(words) < 2 or not words[0].isdecimal() or words[1] not in ("0", "1"):
                raise DamagedDataError(f"{path}, row {number}: expected an id and 0 or 1, found {short(words)}.")
            if words[0].lstrip("0") not in images:
                raise DamagedDataError(f"{path}, row {number}: no image {words[0][:20]:>03} in {folder}.")
            label, defect = (ANOMALOUS, "hemorrhage") if words[1] == "1" else (NORMAL, "good")
            samples.append(Sample(images[words[0].lstrip("0")], (), label, self.subject, defect))
        return samples
