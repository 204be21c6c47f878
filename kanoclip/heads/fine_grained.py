"""Fine-grained prompts: one normal prompt and several abnormal ones, which patches of the image shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.prompts import Prompts, check_room, deep_vectors, of_image
from kanoclip.heads.scoring import dot
from kanoclip.types import ANOMALOUS, NORMAL, Features, KanoclipError

REDUCTION = 16  # of the layer between the chosen patches and the prior


class FineGrainedPrompts(Prompts):
    """Learn one normal prompt and ten abnormal ones that continue it, and shift those by patches of the image.

    ``[V1]..[VE] object.`` and, for each of K kinds of anomaly, ``[V1]..[VE][W1]..[WA] damaged object.`` The abnormal
    state is the mean of the K text features. There are two pairs of states: static ones, and those for which a shift
    made of the image's k most abnormal patches, by the static states, was added to every ``W`` (the prior).

    Loss term ``orthogonality``: the sum over pairs of abnormal prompts of the absolute cosine of their static features.

    Args:
        context: Learned vectors E that all prompts begin with.
        abnormal: Number of abnormal prompts K.
        abnormal_context: Learned vectors A of each abnormal prompt.
        patches: Number of patches k that the prior is made of.
        prior_patches: Which patches: "top", the most abnormal ones; or "first", those at the begin of the first row,
            as in FAPrompt's code, which ranks the patches and then reads them by rank instead of place. Its published
            weights need "first".
        deep_tokens: Learned tokens that replace as many after the begin token inside the text encoder; 0 for none.
        deep_depth: Number of text blocks, from the second on, that get such tokens; at most all of them.
        round_tokens: Whether those tokens are rounded to half precision, as in FAPrompt's code.

    Raises:
        KanoclipError: If a number is below 1, a prompt is longer than the text encoder reads, an image has fewer
            patches than k, or the backbone's patches are not in the joint space.

    Reference:
        J. Zhu et al., *Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection* (FAPrompt), ICCV 2025,
        compound abnormality prompts and data-dependent abnormality prior, and its code.
    """

    term_weights: ClassVar[dict[str, float]] = {"orthogonality": 0.1}
    embedded: Tensor
    eot: Tensor

    def __init__(
        self,
        context: int = 5,
        abnormal: int = 10,
        abnormal_context: int = 2,
        patches: int = 10,
        prior_patches: Literal["top", "first"] = "top",
        deep_tokens: int = 4,
        deep_depth: int = 8,
        round_tokens: bool = False,
    ) -> None:
        super().__init__()
        counts = {"context": context, "abnormal": abnormal, "abnormal_context": abnormal_context, "patches": patches}
        for name, count in counts.items():
            if count < 1:
                raise KanoclipError(f"prompts.{name} is {count}, expected 1 or more. Leave it out for the paper's.")
        if prior_patches not in ("top", "first"):
            raise KanoclipError(
                f"prompts.prior_patches is {prior_patches!r}, expected top or first. "
                f"Use --model.prompts.prior_patches top."
            )
        self.context = context
        self.abnormal = abnormal
        self.abnormal_context = abnormal_context
        self.patches = patches
        self.prior_patches = prior_patches
        self.deep_tokens = deep_tokens
        self.deep_depth = deep_depth
        self.round_tokens = round_tokens

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the learned vectors from N(0, 0.02), embed the words around them, and create the prior's two layers."""
        learned = self.context + self.abnormal_context
        words = ["object.", "damaged object."]
        embedded, eot = backbone.token_embeddings(words)  # (2, M, W), (2,)
        check_room(backbone, words, learned)
        side = backbone.image_size // backbone.patch_size
        if self.patches > side**2:
            raise KanoclipError(
                f"prompts.patches is {self.patches}, but an image has {side} x {side} patches. "
                f"Use --model.prompts.patches {side**2}, or a larger --model.backbone.image_size."
            )
        if backbone.levels_at != "joint":
            raise KanoclipError(
                f"The prompts fine_grained compare patches with texts, but levels_at is {backbone.levels_at!r}. "
                f"Use --model.backbone.levels_at joint."
            )
        self.register_buffer("embedded", embedded[:, : backbone.context_length - learned].clone(), persistent=False)
        shift = [self.context, learned]
        moved = torch.stack([backbone.text.moved(one, by) for one, by in zip(eot, shift, strict=True)])
        self.register_buffer("eot", moved, persistent=False)
        width = backbone.text_width
        self.shared = nn.Parameter(0.02 * torch.randn(self.context, width))
        self.own = nn.Parameter(0.02 * torch.randn(self.abnormal, self.abnormal_context, width))
        self.deep = deep_vectors(backbone, self.deep_tokens, self.deep_depth)
        chosen = self.patches * backbone.dim
        hidden = max(1, chosen // REDUCTION)
        self.to_prior = nn.Sequential(nn.Linear(chosen, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, 2, 2, D)``: the static pair of states, and the pair with the prior of each image."""
        features = of_image(features, "fine_grained")
        static = self.static(backbone, hooks)
        informed = self.informed(self.prior(features, static), backbone, hooks)
        return torch.stack([static.expand_as(informed), informed], 1)

    def static(self, backbone: CLIPBackbone, hooks: Hooks | None = None) -> Tensor:
        """Return the states ``(2, D)`` that no image has shifted, unit length."""
        normal, abnormal = self._encode(self.own[None], backbone, hooks)  # (D,), (1, K, D)
        if self.training:
            kinds = F.normalize(abnormal[0], dim=-1)
            self.terms = {"orthogonality": dot(kinds[:, None], kinds).abs().triu(1).sum()}
        return _pair(normal, abnormal)[0]

    def prior(self, features: Features, static: Tensor) -> Tensor:
        """Return what the image adds to every abnormal vector, ``(B, text_width)``.

        Args:
            features: Of the images; the last level is read.
            static: ``(2, D)``, by which patches are ranked.
        """
        patches = features.patches[-1]  # (B, N, D)
        if self.prior_patches == "first":
            chosen = patches[:, : self.patches]
        else:
            abnormality = dot(patches, static[ANOMALOUS] - static[NORMAL]).detach()  # (B, N)
            place = abnormality.topk(self.patches, dim=1).indices  # (B, k)
            chosen = patches.gather(1, place[..., None].expand(-1, -1, patches.shape[-1]))
        return self.to_prior(chosen.flatten(1))  # type: ignore[no-any-return]  # a Sequential's type is not known

    def informed(self, prior: Tensor, backbone: CLIPBackbone, hooks: Hooks | None = None) -> Tensor:
        """Return the states ``(B, 2, D)`` of images with a prior ``(B, text_width)``, unit length."""
        return _pair(*self._encode(self.own + prior[:, None, None], backbone, hooks))

    def _encode(self, own: Tensor, backbone: CLIPBackbone, hooks: Hooks | None) -> tuple[Tensor, Tensor]:
        """Encode the normal prompt and those with ``own`` (B, K, A, W): ``(D,)`` and ``(B, K, D)``, of any length."""
        own = own.flatten(0, 1)  # (B * K, A, W)
        begin, (object_, damaged) = self.embedded[:1, :1], self.embedded[:, 1:]
        padding = object_.new_zeros(self.abnormal_context, object_.shape[-1])  # behind the end: never read
        normal = torch.cat([begin[0], self.shared, object_, padding])[None]  # (1, M, W)
        every = (len(own), -1, -1)
        abnormal = torch.cat([begin.expand(every), self.shared.expand(every), own, damaged.expand(every)], 1)
        eot = torch.cat([self.eot[:1], self.eot[1:].expand(len(own))])
        deep = self.deep.half() if self.round_tokens and self.deep is not None else self.deep
        encoded = backbone.text(torch.cat([normal, abnormal]), eot, deep, hooks, unit=False)  # (1 + B * K, D)
        return encoded[0], encoded[1:].unflatten(0, (-1, self.abnormal))


def _pair(normal: Tensor, abnormal: Tensor) -> Tensor:
    """Normal ``(D,)`` and abnormal features ``(B, K, D)`` -> states ``(B, 2, D)``, unit length."""
    anomalous = abnormal.mean(1)
    return F.normalize(torch.stack([normal.expand_as(anomalous), anomalous], 1), dim=-1)
