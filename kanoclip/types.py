"""What passes between the rooms, and the letters used for dimensions everywhere.

``B`` images, ``C`` channels, ``H, W`` pixels, ``h, w`` patch grid, ``N = h * w`` patches, ``L`` tapped levels,
``D`` joint width of images and texts, ``K`` knowledge texts, ``M`` context tokens.
The two states always come in this order: index 0 = normal, 1 = anomalous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # errors are also raised where torch is not imported yet
    from torch import Tensor

NORMAL, ANOMALOUS, UNKNOWN = 0, 1, -1


class KanoclipError(ValueError):
    """A mistake that the user can mend; the command line prints its message in one line.

    The message says what was wrong, where, what was expected and what to type. Anything else that is raised is a fault
    of the program, and keeps its traceback.
    """


class MissingError(KanoclipError, FileNotFoundError):
    """A file, folder or data set that is not there."""


def counted(number: int, one: str, many: str = "") -> str:
    """Write how many there are: "1 image", "2 images"; ``many`` where an s does not do."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def printable(text: str, most: int = 4000) -> str:
    r"""Return a text from outside in one line that any terminal may see.

    Control characters, which could rewrite what is on the screen, become escapes such as ``\x1b``; of a text of more
    than ``most`` characters the middle is left out.
    """
    if len(text) > most:
        begin, end = most * 2 // 3, most // 3
        text = f"{text[:begin]} [... {len(text) - begin - end:,} characters ...] {text[-end:]}"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class Features(NamedTuple):
    """What the frozen image encoder returns.

    Attributes:
        patches: ``(L, B, N, D)``, unit length on D, one slice per tapped level. From a backbone whose ``levels_at`` is
            "norm" or "block": ``(L, B, N, W)``, of the tower's own width and any length.
        cls: ``(B, D)``, unit length: CLIP's global feature.
        grid: ``(h, w)`` with ``h * w = N``, row-major.
        level_cls: ``(L, B, W)``, the class token of each level, where patches are ``(L, B, N, W)``; else None.
    """

    patches: Tensor
    cls: Tensor
    grid: tuple[int, int]
    level_cls: Tensor | None = None


class Batch(NamedTuple):
    """What a dataloader yields. A named tuple, so that Lightning moves it between devices by itself.

    Attributes:
        image: ``(B, 3, H, W)`` float32 in [0, 1]; the backbone applies its own mean and std.
        mask: ``(B, H, W)`` uint8, 1 = anomalous pixel; all zeros where there is no mask.
        label: ``(B,)`` int64, 0 = normal, 1 = anomalous, -1 = unknown (prediction only).
        has_mask: ``(B,)`` bool. False: the mask says nothing (anomalous or unknown image without ground truth).
            A normal image has a known, empty mask: True.
        size: ``(B, 2)`` int64, height and width of the file in pixels, before any resizing.
        category: What is shown, per image: bottle, pcb1, brain.
        defect: Kind of defect, per image; "good" for a normal one, "" when unknown.
        path: Path of the image file (or ``name://...`` for a drawn one), per image.
        features: What the frozen backbone makes of the images, at half precision, if it comes from a cache.
    """

    image: Tensor
    mask: Tensor
    label: Tensor
    has_mask: Tensor
    size: Tensor
    category: list[str]
    defect: list[str]
    path: list[str]
    features: Features | None = None


class Scores(NamedTuple):
    """What a model returns; higher = more anomalous.

    Attributes:
        anomaly_map: ``(B, H, W)`` in [0, 1], at the size of the input image.
        image_score: ``(B,)`` in [0, 1].
        level_maps: ``(L, B, H, W)`` in [0, 1], probability of anomalous before fusion and smoothing, for the local
            loss; None for models that do not train.
        logits: ``(B, 2)`` global similarity to the two states divided by the temperature, for the global loss; None
            for models that do not train.
        states: ``(B, 2, D)`` text features of the two states, unit length, for the knowledge loss; None likewise.
        terms: Loss terms that heads made on the way, by name, unweighted; None for none.
        defects: ``(B, K)`` probability of each of the model's ``defect_names`` if an image has a defect; None for
            models that name none.
    """

    anomaly_map: Tensor
    image_score: Tensor
    level_maps: Tensor | None = None
    logits: Tensor | None = None
    states: Tensor | None = None
    terms: dict[str, Tensor] | None = None
    defects: Tensor | None = None
