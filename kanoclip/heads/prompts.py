"""Prompts: the text features of the two states, written by hand or learned (KnPL)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.head import Head
from kanoclip.backbone.tuning import Hooks
from kanoclip.types import Features, KanoclipError

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

# The prompts of WinCLIP and APRIL-GAN: every phrase in every template.
_FLAWLESS = [
    "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage",
]  # fmt: skip
_FLAWED = ["damaged {}", "{} with flaw", "{} with defect", "{} with damage"]
_LOOKS = ["cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry"]
_MORE_LOOKS = [*_LOOKS, "bad", "good", "low resolution", "black and white"]
_WINCLIP = [
    template.format(article, "{}")
    for article in ("a", "the")
    for template in [
        "a photo of {} {}.", *(f"a {look} photo of {{}} {{}}." for look in _LOOKS), "a photo of {} small {}.",
        "a photo of {} large {}.", "a photo of {} {} for visual inspection.", "a photo of {} {} for anomaly detection.",
    ]
]  # fmt: skip
_APRIL_GAN = [
    *(f"a {look} photo of {which} {{}}." for look in _MORE_LOOKS for which in ("a", "the")),
    *(f"a photo of {which} {{}}." for which in ("a", "the", "my", "one")),
    *(f"a photo of {which} {kind} {{}}." for kind in ("cool", "large", "small") for which in ("a", "the")),
    *(f"there is {which} {{}} in the scene." for which in ("a", "the")),
    *(f"this is {which} {{}} in the scene." for which in ("a", "the", "one")),
]
_ADACLIP = ["a bad photo of a {}.", *(f"a {look} photo of the {{}}." for look in ("low resolution", "bad", "cropped"))]
WORDINGS = {
    "kanoclip": (NORMAL_STATES, ANOMALOUS_STATES, TEMPLATES),
    "winclip": (_FLAWLESS, _FLAWED, _WINCLIP),
    "april_gan": (_FLAWLESS, [*_FLAWED, "broken {}"], _APRIL_GAN),
    "adaclip": (_FLAWLESS, [*_FLAWED, "broken {}"], _ADACLIP),
}


def readable(category: str) -> str:
    """Turn the name of a folder into words: metal_nut -> metal nut."""
    return category.replace("_", " ").replace("-", " ").strip()


class Prompts(Head, ABC):
    """Text features of the two states, normal and anomalous."""

    @abstractmethod
    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return the states of each image, unit length, index 0 = normal: ``(B, 2, D)``, or ``(B, S, 2, D)``.

        Args:
            category: What each image shows.
            backbone: Frozen CLIP, whose text tower encodes the prompts.
            features: Of the images, for prompts that see them. With S pairs of states, probabilities are averaged over
                the pairs.
            hooks: What is trained inside the text tower; None: nothing.
        """


class EnsemblePrompts(Prompts):
    """Describe the two states by hand: each phrase in each template, averaged per state.

    The features of a category are computed when it is first asked for, and kept.

    Args:
        class_name: Whether the phrases name the category; false: all say "object".
        wording: Whose phrases and templates to use: ours, those of WinCLIP (7 normal and 4 anomalous phrases in 22
            templates), those of APRIL-GAN (7 and 5 in 35) or of AdaCLIP (the same phrases in 4 of the templates).

    Reference:
        J. Jeong et al., *WinCLIP*, CVPR 2023, section 4.1 (compositional prompt ensemble) and its appendix; X. Chen et
        al., *APRIL-GAN*, arXiv 2305.17382, 2023, and its code; Y. Cao et al., *AdaCLIP*, ECCV 2024, and its code. Names
        of folders are turned into words.
    """

    learns = False

    def __init__(
        self, class_name: bool = True, wording: Literal["kanoclip", "winclip", "april_gan", "adaclip"] = "kanoclip"
    ) -> None:
        super().__init__()
        self.class_name = class_name
        self.wording = wording
        *self._phrases, self._templates = WORDINGS[wording]
        # (backbone, precision) -> category -> states (2, D)
        self._known: dict[tuple[str, torch.dtype | None], dict[str, Tensor]] = {}

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, 2, D)``."""
        names = [readable(name) if self.class_name else "object" for name in category]
        if hooks is not None:  # they learn: nothing can be kept
            states = {name: self._encode(name, backbone, hooks) for name in set(names)}
            return torch.stack([states[name] for name in names])
        known = self._known.setdefault((backbone.fingerprint, autocast_type(backbone.mean)), {})
        for name in set(names) - set(known):
            known[name] = self._encode(name, backbone, None)
        return torch.stack([known[name].to(backbone.mean.device) for name in names])

    def _encode(self, name: str, backbone: CLIPBackbone, hooks: Hooks | None) -> Tensor:
        """Return the states of one category ``(2, D)``."""
        texts = [[t.format(one.format(name)) for one in phrases for t in self._templates] for phrases in self._phrases]
        return F.normalize(torch.stack([backbone.encode_text(one, hooks).mean(0) for one in texts]), dim=-1)


class LearnedPrompts(Prompts):
    """Learn a normal and an abnormal prompt for objects of any kind (LNP and LAP of KnPL).

    ``[V1]..[VE] object.`` and ``[W1]..[WE] damaged object.``: E learned vectors each, in the embedding space of the
    frozen text encoder. They name no category, so they apply to categories never seen.

    Args:
        context: Learned vectors E per prompt.
        deep_tokens: Learned tokens that replace as many after the begin token inside the text encoder; 0 for none.
        deep_depth: Number of text blocks, from the second on, that get such tokens; at most all of them.
        normal: Words after the learned vectors of the normal prompt.
        anomalous: Words after those of the abnormal prompt.

    Raises:
        KanoclipError: If ``context`` is below 1, or a prompt is longer than the text encoder reads.

    Reference:
        KAnoCLIP, section 2.2 (class-agnostic LNP and LAP). The words, E = 12 and the deep tokens are those of Q. Zhou
        et al., *AnomalyCLIP*, ICLR 2024, which has 4 deep tokens in 9 blocks; the default here is none.
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
            raise KanoclipError(f"prompts.context is {context}, but a learned prompt needs at least 1 vector.")
        self.context = context
        self.deep_tokens = deep_tokens
        self.deep_depth = deep_depth
        self.normal = normal
        self.anomalous = anomalous
        self._kept: tuple[list[Tensor], torch.dtype | None, Tensor] | None = None  # weights, precision -> states

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the learned vectors from N(0, 0.02), and embed the words that follow them."""
        words = [self.normal, self.anomalous]
        embeddings, eot = backbone.token_embeddings(words)  # (2, M, W), (2,)
        check_room(backbone, words, self.context)
        keep = backbone.context_length - self.context
        self.register_buffer("begin", embeddings[:, :1].clone(), persistent=False)
        self.register_buffer("end", embeddings[:, 1:keep].clone(), persistent=False)
        self.register_buffer("eot", backbone.text.moved(eot, self.context), persistent=False)
        width = backbone.text_width
        self.vectors = nn.Parameter(0.02 * torch.randn(2, self.context, width))  # none shared by the states
        self.deep = deep_vectors(backbone, self.deep_tokens, self.deep_depth)

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, 2, D)``: the same states for each image. Without gradients they are encoded once and kept."""
        weights, precision, kept = list(self.parameters()), autocast_type(self.begin), self._kept
        fresh = kept is None or hooks is not None or torch.is_grad_enabled() or kept[1] != precision
        if kept is None or fresh or not same_weights(kept[0], weights):
            prompts = torch.cat([self.begin, self.vectors, self.end], 1)  # (2, M, W)
            states = backbone.encode_embeddings(prompts, self.eot, self.deep, hooks)  # (2, D)
            # Comparing with a copy of the weights (a few kB) notices every change, whoever made it.
            copies = [] if states.requires_grad else [weight.detach().clone() for weight in weights]
            self._kept = None if states.requires_grad or hooks is not None else (copies, precision, states)
        else:
            states = kept[2]
        return states.expand(len(category), -1, -1)


class ObjectAgnosticPrompts(LearnedPrompts):
    """Learn a normal and an abnormal prompt for any object, with learned tokens inside the text encoder as well.

    Args:
        deep_tokens: As in ``LearnedPrompts``; with its default ``deep_depth`` they are in text blocks 2 to 9.
        **options: As in ``LearnedPrompts``.

    Reference:
        Q. Zhou et al., *AnomalyCLIP*, ICLR 2024, section 3.2. Its depth of 9 counts the first block, which gets no
        tokens. Its checkpoints also hold a linear layer per block that its code never uses; it is left out here.
    """

    def __init__(self, deep_tokens: int = 4, **options: Any) -> None:
        super().__init__(deep_tokens=deep_tokens, **options)


def of_image(features: Features | None, prompts: str) -> Features:
    """Return the features that texts are made of.

    Args:
        features: Of the images; None: there are none.
        prompts: Registered name of the prompts.

    Raises:
        KanoclipError: Without features.
    """
    if features is None:
        raise KanoclipError(
            f"The prompts {prompts} are made of each image, so there is no text without an image: a model with them "
            f"cannot be exported. Use kanoclip predict. aa_clip and af_clip show their prompts no image: there, use "
            f"--model.prompts learned."
        )
    return features


def check_room(backbone: CLIPBackbone, words: list[str], learned: int, told: str = "") -> None:
    """Raise KanoclipError if the text encoder does not read so many learned vectors and the longest of the words.

    Args:
        backbone: Whose text encoder reads them.
        words: What stands beside the learned vectors.
        learned: How many there are.
        told: What the message says of them; "": learned vectors and the words.
    """
    longest = int(backbone.text.lengths(words).max()) + learned
    if longest > backbone.context_length:
        raise KanoclipError(
            f"A prompt of {learned} {told or f'learned vectors and the words {words}'} takes {longest} tokens, but "
            f"{backbone.description} reads {backbone.context_length}. Use a smaller --model.prompts.context."
        )


def deep_vectors(backbone: CLIPBackbone, tokens: int, depth: int) -> nn.Parameter | None:
    """Draw learned tokens ``(depth, tokens, W)`` for the inside of the text encoder from N(0, 0.02); None for none.

    Args:
        backbone: Whose text encoder gets them.
        tokens: In each block; 0: none.
        depth: Text blocks from the second on; at most all of them.
    """
    depth = min(depth, len(backbone.text.blocks) - 1) if tokens else 0
    return nn.Parameter(0.02 * torch.randn(depth, tokens, backbone.text_width)) if depth else None


def autocast_type(tensor: Tensor) -> torch.dtype | None:
    """Return the type that autocast computes in on a tensor's device; None without autocast."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def same_weights(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Return whether as many tensors are equal, of the same type and on the same device."""
    return len(first) == len(second) and all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )
