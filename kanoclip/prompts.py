"""Prompts: the text features of the two states, written by hand or learned (KnPL)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone

TEMPLATES = [
    "a photo of a {}", "a photo of the {}", "a close-up photo of a {}", "a cropped photo of a {}", "a picture of a {}",
    "a blurry photo of a {}", "a dark photo of a {}", "a bright photo of a {}",
]  # fmt: skip
NORMAL_STATES = [
    "{}", "normal {}", "intact {}", "flawless {}", "perfect {}", "undamaged {}", "{} without defect",
    "{} without damage", "{} in good condition",
]  # fmt: skip
ANOMALOUS_STATES = [
    "damaged {}", "defective {}", "broken {}", "abnormal {}", "faulty {}", "{} with a defect", "{} with damage",
    "{} with a flaw", "{} in bad condition",
]  # fmt: skip


def readable(category: str) -> str:
    """Turn the name of a folder into words: metal_nut -> metal nut."""
    return category.replace("_", " ").replace("-", " ").strip()


class Prompts(nn.Module, ABC):
    """Text features of the states normal and anomalous."""

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the weights for a backbone; the model calls it once."""

    @abstractmethod
    def forward(self, category: Sequence[str], backbone: CLIPBackbone) -> Tensor:
        """Return the states ``(B, 2, D)``, unit length, index 0 = normal, for the category of each image."""


class EnsemblePrompts(Prompts):
    """Describe the two states by hand: each phrase in each template, averaged per state.

    Nothing is learned. The features of a category are computed when it is first met, and kept.

    Args:
        class_name: Whether the phrases name the category; false says "object" for all.

    Reference:
        J. Jeong et al., *WinCLIP*, CVPR 2023, section 4.1 (compositional prompt ensemble); the wording is ours.
    """

    def __init__(self, class_name: bool = True) -> None:
        super().__init__()
        self.class_name = class_name
        self._known: dict[str, Tensor] = {}

    def build(self, backbone: CLIPBackbone) -> None:
        """Forget what another backbone made of the phrases."""
        self._known = {}

    def forward(self, category: Sequence[str], backbone: CLIPBackbone) -> Tensor:
        """Return ``(B, 2, D)``."""
        names = [readable(name) if self.class_name else "object" for name in category]
        for name in set(names) - set(self._known):
            states = [
                backbone.encode_text([t.format(phrase.format(name)) for phrase in phrases for t in TEMPLATES]).mean(0)
                for phrases in (NORMAL_STATES, ANOMALOUS_STATES)
            ]
            self._known[name] = F.normalize(torch.stack(states), dim=-1)  # (2, D)
        return torch.stack([self._known[name].to(backbone.mean.device) for name in names])


class LearnedPrompts(Prompts):
    """Learn a normal and an abnormal prompt that fit objects of any kind (LNP and LAP of KnPL).

    ``[V1]..[VE] object.`` and ``[W1]..[WE] damaged object.``: E learned vectors each, in the embedding space of the
    frozen text encoder. They name no category, so that they serve categories never seen.

    Args:
        context: Learned vectors E per prompt.
        deep_tokens: Learned tokens that replace those after the begin token inside the text encoder; 0 for none.
        deep_depth: Number of text blocks, from the second on, that get such tokens; at most the blocks there are.
        normal: Words after the normal context.
        anomalous: Words after the abnormal context.

    Raises:
        ValueError: If a prompt is longer than the text encoder reads.

    Reference:
        KAnoCLIP, section 2.2 (class-agnostic LNP and LAP). The words, E = 12 and the deep tokens are those of Q. Zhou
        et al., *AnomalyCLIP*, ICLR 2024, which has 4 deep tokens in 9 blocks; default here none.
    """

    begin: Tensor
    end: Tensor
    eot: Tensor

    def __init__(
        self,
        context: int = 12,
        deep_tokens: int = 0,
        deep_depth: int = 8,
        normal: str = "object.",
        anomalous: str = "damaged object.",
    ) -> None:
        super().__init__()
        if context < 1:
            raise ValueError(f"prompts.context is {context}, but a learned prompt needs at least 1 vector.")
        self.context = context
        self.deep_tokens = deep_tokens
        self.deep_depth = deep_depth
        self.words = (normal, anomalous)
        self._kept: tuple[list[Tensor], Tensor] | None = None  # the weights, and the states they gave

    def build(self, backbone: CLIPBackbone) -> None:
        """Create context vectors from N(0, 0.02) and place the words behind them."""
        embeddings, eot = backbone.token_embeddings(list(self.words))  # (2, M, W), (2,)
        longest = int(eot.max()) + 1 + self.context
        if longest > backbone.context_length:
            raise ValueError(
                f"A prompt of {self.context} learned vectors and the words {self.words} takes {longest} tokens, but "
                f"{backbone.description} reads {backbone.context_length}. Use a smaller --model.prompts.context."
            )
        keep = backbone.context_length - self.context
        self.register_buffer("begin", embeddings[:, :1].clone(), persistent=False)
        self.register_buffer("end", embeddings[:, 1:keep].clone(), persistent=False)
        self.register_buffer("eot", eot + self.context, persistent=False)
        width = backbone.text_width
        self.vectors = nn.Parameter(0.02 * torch.randn(2, self.context, width))  # the states learn apart
        depth = min(self.deep_depth, len(backbone.text.blocks) - 1) if self.deep_tokens else 0
        self.deep = nn.Parameter(0.02 * torch.randn(depth, self.deep_tokens, width)) if depth else None

    def forward(self, category: Sequence[str], backbone: CLIPBackbone) -> Tensor:
        """Return ``(B, 2, D)``: the same states for each image; without gradients, encoded once."""
        weights = list(self.parameters())
        if self._kept is None or torch.is_grad_enabled() or not _equal(self._kept[0], weights):
            prompts = torch.cat([self.begin, self.vectors, self.end], 1)  # (2, M, W)
            states = backbone.encode_embeddings(prompts, self.eot, self.deep)  # (2, D)
            # a copy of the weights tells whether they changed, by whatever way: a few kB beside a pass of the encoder
            self._kept = None if states.requires_grad else ([weight.detach().clone() for weight in weights], states)
        else:
            states = self._kept[1]
        return states.expand(len(category), -1, -1)


def _equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a.device == b.device and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
