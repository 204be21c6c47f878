"""Fails when pixels or features change while the version by which caches and digests know them stays.

If the change is meant, raise READING_VERSION, Surfaces.drawing_version or FEATURES_VERSION, delete that version's old
file in tests/golden, and write the new one: PYTHONPATH=. python tests/data/test_versions.py
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kanoclip.backbone import attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.embedded import FOLDER, EmbeddedBackbone
from kanoclip.data.digests import FEATURES_VERSION, READING_VERSION
from kanoclip.data.drawn.drawing import CATEGORIES, DEFECTS, draw
from kanoclip.data.drawn.surfaces import Surfaces
from kanoclip.data.sets.folder import Folder

GOLDEN = Path(__file__).parents[1] / "golden"
Arrays = dict[str, NDArray[np.generic]]


def pixels_of_files() -> Arrays:
    """A JPEG, a cut-out with a soft edge, a grey PNG of 16 bits, a colour one with a soft mask."""
    data = Folder(root=str(GOLDEN / "reading"), image_size=24, num_workers=0).dataset("test")
    items = [data[i] for i in range(len(data))]
    images = np.stack([(item.image * 255).round().byte().numpy() for item in items])
    return {"images": images, "masks": np.stack([item.mask.numpy() for item in items])}


def pixels_of_drawings() -> Arrays:
    """Every fourth pixel of each category with a kind of defect, all kinds in turn, and without."""
    defects = list(DEFECTS)
    pairs = [(name, defects[i % len(defects)]) for i, name in enumerate(CATEGORIES)]
    drawings = [draw(name, defect, 5) for name, kind in pairs for defect in (kind, None)]
    images = np.stack([one.image[2::4, 2::4] for one in drawings])
    return {"images": images, "masks": np.stack([one.mask[2::4, 2::4] for one in drawings])}


def features() -> Arrays:
    """One image through each attention, and through a backbone with other settings than the default."""
    image = torch.tensor(np.random.default_rng(3).random((1, 3, 128, 128)), dtype=torch.float32)
    other = CLIPBackbone(f"local-dir:{FOLDER}", None, 112, [2, 5], "bilinear", cls_norm=False)
    kinds = [attention.QKV, attention.VV, attention.QQ, attention.KK, attention.CSA]
    found = [(EmbeddedBackbone(), image, kind()) for kind in kinds]
    found.append((other, image[..., :112, :112], attention.VV(first=2)))
    seen = [backbone(image, mixing) for backbone, image, mixing in found]
    return {
        "patches": np.stack([one.patches[:, 0, ::28].numpy()[:, :7] for one in seen]),
        "cls": np.stack([one.cls[0].numpy() for one in seen]),
    }


KINDS: dict[str, tuple[int | str, Callable[[], Arrays], float]] = {
    "reading": (READING_VERSION, pixels_of_files, 0.05),  # grey levels on average: decoders of JPEG differ a little
    "drawing": (Surfaces.drawing_version, pixels_of_drawings, 0.25),  # as do machines, in rounding what is drawn
    "features": (FEATURES_VERSION, features, 1e-5),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_version_stands_for_has_not_changed(name) -> None:
    version, make, tolerance = KINDS[name]
    file = GOLDEN / f"{name}-{version}.npz"
    assert file.is_file(), f"A new version: delete the old {name}-*.npz, and write this one as {__file__} says."
    found, expected = make(), np.load(file)
    assert set(found) == set(expected)
    for key, values in found.items():
        assert values.shape == expected[key].shape
        apart = np.abs(values.astype(float) - expected[key])
        off = apart.max() if name == "features" else apart.mean()
        assert off < (1e-3 if key == "masks" else tolerance), f"Raise the version of {name}, as {__file__} says."


if __name__ == "__main__":
    for name, (version, make, _) in KINDS.items():
        np.savez_compressed(GOLDEN / f"{name}-{version}.npz", **make())
