"""What the embedded CLIP reads: captions of drawn images, and the merges of its small tokenizer.

Only categories and defects that its training sees are worded here. Ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

NAMES = {
    "wood": ["wood", "wooden board", "wood surface"],
    "fabric": ["fabric", "woven fabric", "cloth"],
    "tile": ["tile", "tiled wall", "tiled floor"],
    "brushed_metal": ["brushed metal", "metal sheet", "steel surface"],
    "cast_iron": ["cast iron", "rough metal surface", "iron casting"],
    "concrete": ["concrete", "concrete wall", "cement surface"],
    "plastic": ["plastic", "plastic sheet", "plastic surface"],
    "paper": ["paper", "sheet of paper"],
    "rubber": ["rubber", "rubber sheet"],
    "terrazzo": ["terrazzo", "terrazzo floor"],
    "perforated_sheet": ["perforated sheet", "perforated metal"],
    "ring": ["ring", "washer", "seal"],
    "nut": ["nut", "hexagonal nut", "metal nut"],
    "bolt": ["bolt", "screw", "threaded bolt"],
    "cap": ["cap", "bottle cap", "lid"],
    "plate": ["plate", "rectangular plate"],
    "button": ["button", "round button"],
    "cable": ["cable", "cable cross section"],
    "seed": ["hazelnut", "seed", "kernel"],
    "stripes": ["stripes", "striped pattern"],
    "checks": ["checks", "checkered pattern"],
    "dots": ["dots", "dotted pattern"],
    "clouds": ["clouds", "blurred pattern"],
    "speckles": ["speckles", "speckled pattern"],
}
BACKGROUND = ["background", "empty background", "plain background"]
GENERIC = ["object", "surface", "product", "part", "item", "sample", "material"]
NORMAL = [
    "{}", "normal {}", "intact {}", "flawless {}", "perfect {}", "clean {}", "good {}", "undamaged {}",
    "{} without defect", "{} without damage", "{} without flaw", "{} in good condition", "even {}", "uniform {}",
]  # fmt: skip
ANOMALOUS = [
    "damaged {}", "defective {}", "broken {}", "abnormal {}", "anomalous {}", "faulty {}", "imperfect {}",
    "{} with a defect", "{} with damage", "{} with a flaw", "{} with an anomaly", "{} in bad condition",
]  # fmt: skip
DEFECTS = {
    "scratch": ["scratched {}", "{} with a scratch", "{} with a long thin scratch", "{} with straight thin lines"],
    "crack": ["cracked {}", "{} with a crack", "{} with a dark jagged crack", "{} with a branching crack"],
    "hole": ["{} with a hole", "{} with a small dark hole", "{} with a pit", "punctured {}"],
    "stain": ["stained {}", "{} with a stain", "{} with a blotch", "{} with a spot of another color"],
    "contamination": ["contaminated {}", "dirty {}", "{} with foreign particles", "{} with dirt on it"],
    "discolouration": ["discolored {}", "{} with a discolored area", "{} with an uneven color", "{} with a dark area"],
    "chip": ["chipped {}", "{} with a missing piece", "{} with a broken edge", "{} with a chip"],
    "wear": ["worn {}", "{} with a worn patch", "{} with a rubbed area", "{} with abrasion"],
}
TEMPLATES = [
    "a photo of a {}", "a photo of the {}", "a close-up photo of a {}", "a {}", "an image of a {}", "a picture of a {}",
    "a blurry photo of a {}", "a dark photo of a {}", "a bright photo of a {}", "a cropped photo of a {}", "{}",
]  # fmt: skip
COLOURS = {
    "black": (0.06, 0.06, 0.06), "gray": (0.45, 0.45, 0.45), "white": (0.92, 0.92, 0.92), "red": (0.75, 0.15, 0.15),
    "orange": (0.85, 0.5, 0.2), "yellow": (0.85, 0.8, 0.3), "green": (0.25, 0.6, 0.25), "cyan": (0.3, 0.7, 0.7),
    "blue": (0.2, 0.3, 0.7), "purple": (0.5, 0.25, 0.65), "pink": (0.9, 0.55, 0.7), "brown": (0.4, 0.26, 0.16),
}  # fmt: skip
_COLOUR_TABLE = np.array(list(COLOURS.values()), np.float32)


def nearest_colour(rgb: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the index into ``COLOURS`` of the nearest colour; rgb ``(..., 3)`` in [0, 1]."""
    return np.linalg.norm(rgb[..., None, :] - _COLOUR_TABLE, axis=-1).argmin(-1)


@dataclass(frozen=True)
class Caption:
    """A caption and what it claims; None claims nothing."""

    text: str
    category: str | None
    colour: int | None
    state: str  # "normal", "anomalous" or a kind of defect

    def holds(self, category: str, colour: int, defect: str | None) -> bool:
        """Tell whether the caption is true of an image, so that it is not taken for a wrong one."""
        state = self.state == (defect or "normal") or (self.state == "anomalous" and defect is not None)
        return state and self.category in (None, category) and self.colour in (None, colour)


def caption(rng: np.random.Generator, category: str, colour: int, defect: str | None) -> Caption:
    """Word a caption of an image: any of kind, colour and state may stay general; so does a kind without a name."""
    kind = category if category in NAMES and rng.random() < 0.65 else None
    name = str(rng.choice(GENERIC if kind is None else NAMES[kind]))
    tint = colour if rng.random() < 0.4 else None
    if tint is not None:
        name = f"{list(COLOURS)[tint]} {name}"
    if defect is None:
        state, phrases = "normal", NORMAL
    elif rng.random() < 0.4:
        state, phrases = "anomalous", ANOMALOUS
    else:
        state, phrases = defect, DEFECTS[defect]
    return Caption(str(rng.choice(TEMPLATES)).format(str(rng.choice(phrases)).format(name)), kind, tint, state)


def merges(words: list[str], count: int) -> list[str]:
    """Learn byte-pair merges so that each given word becomes one token (P. Gage 1994; R. Sennrich et al., ACL 2016)."""
    spelled = {word: (*word[:-1], word[-1] + "</w>") for word in dict.fromkeys(words)}
    learned: list[str] = []
    while len(learned) < count:
        pairs = Counter(pair for parts in spelled.values() for pair in pairwise(parts))
        if not pairs:
            break
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(f"{first} {second}")
        for word, parts in spelled.items():
            joined, i = [], 0
            while i < len(parts):
                if parts[i : i + 2] == (first, second):
                    joined.append(first + second)
                    i += 2
                else:
                    joined.append(parts[i])
                    i += 1
            spelled[word] = tuple(joined)
    return learned
