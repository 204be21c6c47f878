"""What the embedded CLIP reads: captions of drawn images, and the merges of its small tokenizer.

Only categories and defects that its training sees are worded here. Ours.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

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
