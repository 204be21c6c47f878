"""Real-IAD, split by the publisher's json files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from kanoclip.data.about import About, DamagedDataError
from kanoclip.data.base import Sample
from kanoclip.data.listing import list_tree
from kanoclip.data.sets.lists import read_json
from kanoclip.data.sets.tree import IMAGE, Tree
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError, MissingError


class RealIAD(Tree):
    """Real-IAD: 30 objects seen from five sides in 151,050 photos, with masks.

    Layout: ``real_iad/realiad_1024/<category>/{OK,NG/<defect>}/S0001/*.jpg`` with ``*_mask.png``, and
    ``realiad_jsons/realiad_jsons/<category>.json`` for the splits, as published, or ``realiad_jsons/<category>.json``.
    Kinds of defect are the publisher's codes: AK pit, BX deformation, CH abrasion, HS scratch, PS damage, QS missing
    parts, YW foreign objects, ZW contamination.

    Args:
        root: Folder that contains all data sets, or the data set's own.
        resolution: Which archive: 256, 512, 1024 or raw.
        splits: Folder of the json files; realiad_jsons (all views), realiad_jsons_sv (single view), or
            realiad_jsons_fuiad_0.1 and the like.
    """

    name: str = "real_iad"
    domain: ClassVar[str] = "industrial"
    folders = ("Real-IAD", "realiad")
    images = rf"realiad_\w+/(?P<category>[^/]+)/(?:OK|NG/(?P<defect>[^/]+))/.+?(?<!_mask){IMAGE}"
    expected = "realiad_1024/audiojack/OK/S0001/*.jpg and realiad_jsons/realiad_jsons/audiojack.json"
    about = About(
        title="Real-IAD",
        reference="C. Wang et al., *Real-IAD: A Real-World Multi-View Dataset for Benchmarking Versatile Industrial "
        "Anomaly Detection*, CVPR 2024",
        licence="CC BY-NC-SA 4.0",
        homepage="https://huggingface.co/datasets/REAL-IAD/Real-IAD",
        note="Access is granted on request. Published in all: 99,721 normal and 51,329 anomalous images.",
    )

    def __init__(
        self, root: str = "data", resolution: str = "1024", splits: str = "realiad_jsons", **kwargs: Any
    ) -> None:
        super().__init__(root=root, **kwargs)
        if str(resolution) not in ("256", "512", "1024", "raw"):
            raise KanoclipError(f"resolution is {resolution!r}, expected 256, 512, 1024 or raw. Set --data.resolution.")
        self.resolution = str(resolution)
        self.splits = splits

    def samples(self) -> list[Sample]:
        """Index the entries of the json files; every file of a split must be there."""
        below = f"realiad_{self.resolution}"
        places = [place for place in self.places() if os.path.isdir(place)]
        for place in places:
            for splits in (place / "realiad_jsons" / self.splits, place / self.splits):  # as published, or moved up
                files = sorted(splits.glob("*.json"))
                if files and (place / below).is_dir():
                    listed = set(list_tree(place / below))
                    return [sample for file in files for sample in self._read_category(file, place / below, listed)]
        is_there = any(any(place.glob("realiad_*")) for place in places)  # another resolution or split
        raise (DamagedDataError if is_there else MissingError)(
            f"No Real-IAD at {self.place / self.name}: expected {below}/ and "
            f"realiad_jsons/{self.splits}/*.json. Set --data.root, --data.resolution or --data.splits; get it: "
            f"{self.about.homepage}"
        )

    def _read_category(self, path: Path, images: Path, listed: set[str]) -> list[Sample]:
        content, samples = read_json(path), []
        try:
            good = content["meta"]["normal_class"]
            rows = [(split, number, row) for split in ("train", "test") for number, row in enumerate(content[split], 1)]
            for split, number, row in rows:
                category, normal = row["category"], row["anomaly_class"] == good
                files = [row["image_path"], *([row["mask_path"]] if row["mask_path"] and not normal else [])]
                for file in files:
                    if f"{category}/{file}" not in listed:
                        where = f"{path}, entry {number} of {split}"
                        raise DamagedDataError(f"{where}: no file {str(images / category / file)[:300]}. Unpack again.")
                image, *masks = (f"{images}/{category}/{file}" for file in files)
                label, defect = (NORMAL, "good") if normal else (ANOMALOUS, row["anomaly_class"])
                samples.append(Sample(image, tuple(masks), label, category, defect, split))
        except (KeyError, TypeError) as error:
            raise DamagedDataError(
                f"{path} is not a split of Real-IAD ({error!r}). Copy the publisher's again."
            ) from error
        return samples
