"""Write what a vision model would say of each damaged image of ``surfaces_auxiliary``: kanoclip/knowledge/*.jsonl.

No model was asked. The answers are made of what the drawing knows of itself: kind of defect, and by its mask size,
place, color and contrast. So they are those of a vision model that is never wrong: an upper bound, for tests and for
the miniature ablation. Usage: python benchmarks/surfaces_answers.py
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from kanoclip.data.drawn.surfaces import SurfacesAuxiliary
from kanoclip.data.files import write_text
from kanoclip.heads.prompts import readable
from kanoclip.knowledge.base import FOLDER
from kanoclip.knowledge.images import image_hashes
from kanoclip.types import ANOMALOUS

IMAGES = 144  # of each category, as in configs/benchmarks
NOUNS = {
    "scratch": "thin straight line",
    "crack": "jagged branching line",
    "hole": "round pit",
    "stain": "blotch with a soft edge",
    "contamination": "cluster of foreign particles",
    "discolouration": "wide patch of shifted color",
    "chip": "broken-out piece",
    "wear": "rubbed patch",
}
SIZES = (0.01, "tiny"), (0.03, "small"), (0.08, "large"), (1.0, "very large")
COLORS = {
    "black": (0, 0, 0), "dark gray": (70, 70, 70), "gray": (130, 130, 130), "light gray": (190, 190, 190),
    "white": (240, 240, 240), "red": (190, 50, 50), "brown": (120, 75, 40), "orange": (225, 140, 50),
    "yellow": (220, 210, 70), "green": (70, 160, 70), "blue": (60, 90, 190), "purple": (130, 70, 160),
    "pink": (225, 140, 170),
}  # fmt: skip


def answers(category: str, defect: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> list[str]:
    """Return two phrases: what the spot looks like and where it is, and how it stands out."""
    inside, outside = image[mask == 1].mean(0), image[mask == 0].mean(0)
    color = min(COLORS, key=lambda name: float(np.abs(inside - COLORS[name]).sum()))
    size = next(name for share, name in SIZES if mask.mean() <= share)
    rows, columns = (places / side for places, side in zip(np.nonzero(mask), mask.shape, strict=True))
    height = ("upper", "middle", "lower")[min(2, int(3 * rows.mean()))]
    width = ("left", "center", "right")[min(2, int(3 * columns.mean()))]
    place = "center" if (height, width) == ("middle", "center") else f"{height} {width}"
    contrast = "darker than" if inside.mean() < outside.mean() - 15 else "as bright as"
    contrast = "brighter than" if inside.mean() > outside.mean() + 15 else contrast
    noun, thing = NOUNS[defect], readable(category)
    return [f"a {size} {color} {noun} in the {place} of the {thing}", f"{thing} with a {noun} {contrast} around it"]


def main() -> None:
    """Write the file, a line for each damaged image."""
    data = SurfacesAuxiliary(images=IMAGES)
    samples = [sample for sample in data.samples() if sample.label == ANOMALOUS]
    lines = []
    for sample, image in zip(samples, image_hashes(samples, data), strict=True):
        entry = {"image": image, "category": sample.category, "state": "anomalous"}
        entry |= {"answers": answers(sample.category, sample.defect, *data.read(sample)), "model": "the drawing's mask"}
        lines.append(json.dumps(entry, separators=(",", ":")) + "\n")
    file = FOLDER / f"{data.name}.jsonl"
    write_text(file, "".join(lines))
    print(f"{file}: {len(lines)} images, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
