"""Defects by name: texts of each kind of defect, what each pixel says of them, and the score of the highest pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.prompts import EnsemblePrompts, readable
from kanoclip.heads.scoring import Score, dot
from kanoclip.types import Features, KanoclipError

COMMON = ("scratch", "crack", "hole", "dent", "stain", "contamination", "missing part")
"""Kinds of defect that are named where nobody says which there are."""
PHRASES = ("{0} with a {1} defect", "{0} with {1}", "{1} on {0}")
"""How an object, {0}, and a kind of defect, {1}, are put into words. Ours."""


class DefectPrompts(EnsemblePrompts):
    """Describe by hand a good object, and one with each kind of defect: each phrase in each template, averaged.

    In a model that knows two states alone, each kind of defect makes a pair with the good state.

    Args:
        names: Kinds of defect, as one says them, if the model is not told others.
        phrases: Of a defect: {0} is the object, {1} the kind of defect. null: ours, three.
        normal: Of a good object, {0}. null: those of ``wording``.
        class_name: As in ``EnsemblePrompts``.
        wording: As in ``EnsemblePrompts``, for the templates and the phrases of a good object.

    Raises:
        KanoclipError: If there is no name, or a phrase has other places than {0} and {1}.

    Reference:
        Y. Sadikaj et al., *MultiADS*, ICCV 2025, whose phrases are written for each kind of defect of each data set;
        ours take any name.
    """

    def __init__(
        self,
        names: Sequence[str] = COMMON,
        phrases: Sequence[str] | None = None,
        normal: Sequence[str] | None = None,
        class_name: bool = True,
        wording: Literal["kanoclip", "winclip", "april_gan", "adaclip"] = "april_gan",
    ) -> None:
        super().__init__(class_name, wording)
        self.names = check_names(names, "prompts.names")
        self.phrases = None if phrases is None else list(phrases)
        self.normal = None if normal is None else list(normal)
        self._texts_of_defects = [_checked(one, "phrases", ("{0}", "{1}")) for one in self.phrases or PHRASES]
        self._texts_of_good = [_checked(one, "normal", ("{0}",)) for one in self.normal or ()] or self._phrases[0]
        self._kept: dict[tuple[str, torch.dtype | None, str, str], Tensor] = {}  # (D,) each

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, K, 2, D)``: the good state beside that of each of the K kinds of defect."""
        states = self.describe(category, self.names, backbone, hooks)  # (B, 1 + K, D)
        return torch.stack([states[:, :1].expand_as(states[:, 1:]), states[:, 1:]], 2)

    def describe(
        self, category: Sequence[str], names: Sequence[str], backbone: CLIPBackbone, hooks: Hooks | None = None
    ) -> Tensor:
        """Return the states of each image ``(B, 1 + K, D)``, unit length: the good one, and one for each name."""
        shown = [readable(name) if self.class_name else "object" for name in category]
        kinds = ["", *names]
        states = {one: torch.stack([self._state(one, kind, backbone, hooks) for kind in kinds]) for one in set(shown)}
        return torch.stack([states[one] for one in shown])

    def _state(self, shown: str, kind: str, backbone: CLIPBackbone, hooks: Hooks | None) -> Tensor:
        """Return the state of an object with a kind of defect, "" for a good one: ``(D,)``."""
        device = backbone.mean.device
        precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        key = backbone.fingerprint, precision, shown, kind
        if hooks is None and key in self._kept:
            return self._kept[key].to(device)
        phrases = self._texts_of_defects if kind else self._texts_of_good
        texts = [t.format(one.format(shown, kind)) for one in phrases for t in self._templates]
        state = F.normalize(backbone.encode_text(texts, hooks).mean(0), dim=-1)
        if hooks is None:
            self._kept[key] = state
        return state


def check_names(names: Sequence[str], option: str) -> list[str]:
    """Return names of kinds of defect as a list.

    Raises:
        KanoclipError: If there is none, one is empty, or one is there twice.
    """
    found = [readable(name) for name in names]
    if isinstance(names, str) or not found or not all(found) or len(set(found)) < len(found):
        raise KanoclipError(
            f"{option} is {names if isinstance(names, str) else list(names)}, expected different names of kinds of "
            f"defect. Use such as --model.{option} '[scratch, hole, missing cap]'."
        )
    return found


def _checked(phrase: str, option: str, places: tuple[str, ...]) -> str:
    """Return a phrase with exactly these places, once each or more."""
    rest = phrase.replace("{}", "{0}") if len(places) == 1 else phrase
    bare = rest
    for place in places:
        bare = bare.replace(place, "")
    if not all(place in rest for place in places) or "{" in bare or "}" in bare:
        raise KanoclipError(
            f"prompts.{option} has the phrase {phrase!r}, expected one with {' and '.join(places)} in it, where "
            f"{{0}} is the object{' and {1} the kind of defect' * (len(places) > 1)}."
        )
    return rest


def kind_maps(
    patches: Tensor,
    states: Tensor,
    listed: Tensor,
    grid: tuple[int, int],
    size: int,
    temperature: float,
    enlarge: Literal["probability", "logits"] = "probability",
    align_corners: bool = False,
) -> Tensor:
    """Compare each patch of a level with the good state and all kinds of defect, and resize the result to pixels.

    Args:
        patches: ``(B, N, D)``, unit length.
        states: ``(B, 1 + K, D)``, unit length, the good one first.
        listed: ``(B, 1 + K)`` bool: which of them an image may be in; the others have probability 0.
        grid: ``(h, w)`` of the patches.
        size: Height and width of the maps in pixels.
        temperature: Divisor of the cosine.
        enlarge: What is resized: probabilities, or logits before their softmax.
        align_corners: Whether the corners of the grid lie in those of the map, instead of patch centres in place.

    Returns:
        Probabilities ``(B, 1 + K, size, size)`` that sum to 1 over the states.

    Reference:
        Y. Sadikaj et al., *MultiADS*, ICCV 2025.
    """
    logits = torch.stack([dot(patches, one[:, None]) for one in states.unbind(1)], 1) / temperature  # (B, 1 + K, N)
    out = ~listed[:, :, None, None]
    small = logits.unflatten(-1, grid)  # (B, 1 + K, h, w)
    small = small if enlarge == "logits" else small.masked_fill(out, -torch.inf).softmax(1)
    maps = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=align_corners)
    return maps.masked_fill(out, -torch.inf).softmax(1) if enlarge == "logits" else maps


def kinds_at_peak(kinds: Tensor, heat: Tensor, pixels: int = 3) -> Tensor:
    """Say which kind of defect an image has, if it has one: what its most anomalous pixels are.

    Args:
        kinds: Probability of each of K kinds ``(B, K, H, W)``.
        heat: Anomaly map ``(B, H, W)``.
        pixels: How many of the highest count.

    Returns:
        Probabilities ``(B, K)`` that sum to 1.

    Reference:
        Ours: MultiADS names the kind of each pixel.
    """
    top = heat.flatten(1).topk(pixels, dim=1).indices  # (B, pixels)
    found = kinds.float().flatten(2).gather(2, top[:, None].expand(-1, kinds.shape[1], -1)).sum(-1)
    return found / found.sum(1, keepdim=True).clamp_min(1e-30)


class PeakScore(Score):
    """Average the few highest pixels of the map.

    Args:
        pixels: How many.

    Raises:
        KanoclipError: If ``pixels`` is below 1.

    Reference:
        Y. Sadikaj et al., *MultiADS*, ICCV 2025, its code: three pixels.
    """

    def __init__(self, pixels: int = 3) -> None:
        super().__init__()
        if pixels < 1:
            raise KanoclipError(f"score.pixels is {pixels}, expected 1 or more. Use --model.score.pixels 3.")
        self.pixels = pixels

    def forward(self, probability: Tensor, anomaly_map: Tensor) -> Tensor:
        """Return the mean of the highest pixels of each map."""
        return anomaly_map.flatten(1).topk(self.pixels, dim=1).values.mean(1)
