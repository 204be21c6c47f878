"""FG-Des: what may be wrong with a category in words, behind learned vectors that the image shifts (FiLo)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.prompts import WORDINGS, Prompts, check_room, of_image, readable
from kanoclip.types import Features, KanoclipError

POSITIONS = (
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
REDUCTION = 16  # of the layer between the image and the shift


class FGDes(Prompts):
    """Say what a good object is and what may be wrong with it and where, behind learned vectors.

    ``[V1]..[VE] flawless bottle.`` and ``[W1]..[WE] abnormal bottle with a cracked rim at top left.``
    Each description of what may be wrong stands at each position, beside five common phrases such as "damaged bottle".
    To all vectors of a state two layers add what they make of the global feature. A state is the mean of its texts.

    Args:
        context: Learned vectors E per state.
        descriptions: Category -> what may be wrong with it, as in "a cracked rim". A category without any has the
            common phrases alone.
        names: Category -> words for it. null, or one that is not named: the words of its name.
        positions: Where, each text once for each of them; an empty list: no text says where.

    Raises:
        KanoclipError: If ``context`` is below 1, or a prompt is longer than the text encoder reads.

    Reference:
        Z. Gu et al., *FiLo: Zero-Shot Anomaly Detection by Fine-Grained Description and High-Quality Localization*, ACM
        MM 2024, and its code, whose descriptions of MVTec AD and VisA are by an LLM.
    """

    def __init__(
        self,
        context: int = 12,
        descriptions: dict[str, list[str]] | None = None,
        names: dict[str, str] | None = None,
        positions: Sequence[str] = POSITIONS,
    ) -> None:
        super().__init__()
        if context < 1:
            raise KanoclipError(f"prompts.context is {context}, but a learned prompt needs at least 1 vector.")
        self.context = context
        self.descriptions: Mapping[str, list[str]] = descriptions or {}
        self.names: Mapping[str, str] = names or {}
        self.positions = list(positions)

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the learned vectors from N(0, 0.02), and create two layers for each state."""
        named = [text for name in (*self.descriptions, "object") for text in self.texts(name)[1]]
        check_room(backbone, named, self.context, "learned vectors and a description")
        dim, width = backbone.dim, backbone.text_width
        self.vectors = nn.Parameter(0.02 * torch.randn(2, self.context, width))
        hidden = max(1, dim // REDUCTION)
        self.shift = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(2)
        )

    def texts(self, category: str) -> tuple[list[str], list[str]]:
        """Return the normal and the anomalous texts of a category, behind the learned vectors."""
        flawless, flawed, _ = WORDINGS["april_gan"]
        name = self.names.get(category, readable(category))
        found = [f"abnormal {name} with {one}" for one in self.descriptions.get(category, ())]
        found += [phrase.format(name) for phrase in flawed]
        where = [f" at {one}." for one in self.positions] or ["."]
        return [f"{phrase.format(name)}." for phrase in flawless], [text + at for text in found for at in where]

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, 2, D)``.

        Raises:
            KanoclipError: Without features.
        """
        features = of_image(features, "fg_des")
        shift = torch.stack([layers(features.cls) for layers in self.shift], 1)  # (B, 2, W)
        vectors = self.vectors + shift[:, :, None]  # (B, 2, E, W)
        return torch.stack(
            [
                torch.stack([self._mean(*one, backbone, hooks) for one in zip(self.texts(name), own, strict=True)])
                for name, own in zip(category, vectors, strict=True)
            ]
        )

    def _mean(self, texts: list[str], vectors: Tensor, backbone: CLIPBackbone, hooks: Hooks | None) -> Tensor:
        """Return the mean feature ``(D,)`` of texts behind vectors ``(E, W)``, unit length."""
        words, eot = backbone.token_embeddings(texts)  # (K, M, W), (K,)
        room = backbone.context_length - self.context
        prompts = torch.cat([words[:, :1], vectors.expand(len(texts), -1, -1), words[:, 1:room]], 1)
        encoded = backbone.encode_embeddings(prompts, backbone.text.moved(eot, self.context), hooks=hooks)
        return F.normalize(encoded.mean(0), dim=-1)
