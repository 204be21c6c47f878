"""Prompts drawn from learned distributions: the context fits the image, the states are the same for all (Bayes-PFL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.text import TEXTS_AT_ONCE
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.flows import Drawn, ImageFlow, StateFlows
from kanoclip.heads.prompts import Prompts, of_image, readable
from kanoclip.heads.scoring import dot
from kanoclip.ranks import mean
from kanoclip.types import Features, KanoclipError

WORDS = {
    **{f"pcb{number}": "printed circuit board" for number in range(1, 5)},
    "macaroni1": "macaroni", "macaroni2": "macaroni", "chewinggum": "chewing gum",
}  # fmt: skip
"""What categories of VisA are called; all others by their folder in words."""


class BayesianPrompts(Prompts):
    """Draw context and state of the prompts from learned distributions.

    A prompt is ``[V1]..[VP] [W1]..[WQ] category``. To its P learned context vectors a vector is added that is drawn
    from a distribution made from the image's global feature; to its Q state vectors one from a distribution of the
    state. While fitting one draw makes as many pairs of states as there are prompts, and the loss terms ``kl``, how far
    the distributions are from N(0, 1), and ``ort``, how alike the prompts of a state are; Bayes-PFL weighs them by 0.01
    and 1. Outside of it, all images have the same ``samples`` draws, so that no score depends on chance, on the other
    images or on their order.

    Args:
        bank: Learned prompts of each state.
        context: Learned vectors P of the context, which both states share.
        state: Learned vectors Q of a state.
        flows: Planar flows that bend each distribution.
        samples: Draws outside of a fit; each makes ``bank`` pairs of states.
        seed: Of these draws.
        kl: Whether the divergence of the states' distributions is "exact", or has its log-determinant alone divided
            by the batch size, as in Bayes-PFL's code.

    Raises:
        KanoclipError: If a number is below 1, or a prompt is longer than the text encoder reads.

    Reference:
        Z. Qu et al., *Bayesian Prompt Flow Learning for Zero-Shot Anomaly Detection*, CVPR 2025, and its code. Where we
        differ: what is drawn outside of a fit, which its code draws anew for each image (context) or keeps of the first
        image (states). Vectors are drawn as wide as token embeddings; there, both widths are equal.
    """

    noise: Tensor
    term_weights: ClassVar[dict[str, float]] = {"kl": 0.01, "ort": 1.0}

    def __init__(
        self,
        bank: int = 3,
        context: int = 5,
        state: int = 5,
        flows: int = 10,
        samples: int = 10,
        seed: int = 0,
        kl: Literal["exact", "batch"] = "exact",
    ) -> None:
        super().__init__()
        counts = {"bank": bank, "context": context, "state": state, "flows": flows, "samples": samples}
        for name, count in counts.items():
            if count < 1:
                raise KanoclipError(f"prompts.{name} is {count}, expected 1 or more. Use --model.prompts.{name} 1.")
        if kl not in ("exact", "batch"):
            raise KanoclipError(f"prompts.kl is {kl!r}, expected exact or batch. Use --model.prompts.kl exact.")
        self.bank = bank
        self.context = context
        self.state = state
        self.flows = flows
        self.samples = samples
        self.seed = seed
        self.kl = kl

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the weights, around +0.5 for normal and -0.5 for anomalous state vectors, and the noise for tests."""
        width, hidden = backbone.text_width, max(1, backbone.width // 2)
        vectors = nn.init.trunc_normal_(torch.empty(self.bank, self.context, width), std=0.02)
        self.context_vectors = nn.Parameter(vectors)  # (bank, P, W)
        around = torch.tensor([0.5, -0.5])[:, None, None]
        vectors = nn.init.trunc_normal_(torch.empty(self.bank, 2, self.state, width), std=0.02) + around
        self.state_vectors = nn.Parameter(vectors)  # (bank, 2, Q, W)
        self.context_flow = ImageFlow(backbone.dim, hidden, width, self.flows)
        self.state_flows = StateFlows(hidden, width, self.flows)
        generator = torch.Generator().manual_seed(self.seed)
        self.register_buffer("noise", torch.randn(3, self.samples, width, generator=generator), persistent=False)

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, S, 2, D)``: while fitting a pair for each prompt, else ``samples`` times as many.

        Raises:
            KanoclipError: Without features, or if a category's name is too long.
        """
        features = of_image(features, "bayesian")
        return self.states(category, backbone, features, *self.make_noise(len(category)), hooks)

    def make_noise(self, images: int) -> tuple[Tensor, Tensor]:
        """Return standard normal noise, for contexts ``(B, S, W)`` and for states ``(S, 2, W)``.

        While fitting S is 1, drawn on the CPU, whose random numbers a run that goes on takes up again.
        """
        if not self.training:
            return self.noise[0].expand(images, -1, -1), self.noise[1:].transpose(0, 1)
        noise = torch.randn(images + 2, self.noise.shape[-1]).to(self.noise)
        return noise[:images, None], noise[None, images:]

    def states(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features,
        for_contexts: Tensor,
        for_states: Tensor,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return the states that given noise makes, see ``make_noise``: ``(B, S * bank, 2, D)``."""
        contexts = self.context_flow(backbone.unscaled(features), for_contexts)  # (B, S, W)
        states = self.state_flows(for_states)  # (S, 2, W)
        first = self.context_vectors + contexts.latent[:, :, None, None]  # (B, S, bank, P, W)
        then = self.state_vectors + states.latent[:, None, :, None]  # (S, bank, 2, Q, W)
        shape = (*first.shape[:3], 2)
        learned = torch.cat(
            [first[:, :, :, None].expand(*shape, -1, -1), then.expand(*shape, -1, -1)], dim=-2
        )  # (B, S, bank, 2, P + Q, W)
        encoded = self._encode(learned.flatten(1, 3).flatten(0, 1), category, backbone, hooks)
        pairs = encoded.unflatten(0, (len(category), -1, 2))  # (B, S * bank, 2, D)
        if self.training:
            self.terms = {"kl": self._divergence(contexts, states), "ort": _likeness(pairs)}
        return pairs

    def _encode(self, learned: Tensor, category: Sequence[str], backbone: CLIPBackbone, hooks: Hooks | None) -> Tensor:
        """Encode prompts ``(K, P + Q, W)``, as many for each image -> ``(K, D)``."""
        names = sorted(set(category))
        words, end = backbone.token_embeddings([WORDS.get(name, readable(name)).lower() for name in names])
        count, longest = learned.shape[1], backbone.context_length
        if int(end.max()) + count >= longest:
            raise KanoclipError(
                f"A prompt of {count} learned vectors and the category {names[int(end.argmax())]!r} takes "
                f"{int(end.max()) + count + 1} tokens, but {backbone.description} reads {longest}. "
                f"Use a smaller --model.prompts.context, or a shorter name."
            )
        end = backbone.text.moved(end, count)
        name_of = torch.tensor([names.index(name) for name in category], device=words.device)
        name_of = name_of.repeat_interleave(len(learned) // len(category))  # (K,)
        encoded = []
        for part, which in zip(learned.split(TEXTS_AT_ONCE), name_of.split(TEXTS_AT_ONCE), strict=True):
            text = words[which]  # (k, M, W)
            prompts = torch.cat([text[:, :1], part, text[:, 1 : longest - count]], dim=1)
            encoded.append(backbone.encode_embeddings(prompts, end[which], None, hooks))
        return torch.cat(encoded)

    def _divergence(self, contexts: Drawn, states: Drawn) -> Tensor:
        """Sum the Kullback-Leibler divergences of context, normal and anomalous state from N(0, 1)."""
        share = 1 if self.kl == "exact" else len(contexts.log_det)
        of_states = (states.gaussian - states.log_det / share).sum(-1).mean()
        return mean(contexts.gaussian - contexts.log_det) + of_states


def _likeness(pairs: Tensor) -> Tensor:
    """Average the squared cosine over all P x P prompts of a state, each with itself counted as 0; sum both states."""
    states = pairs.transpose(1, 2)  # (B, 2, P, D)
    cosine = dot(states[:, :, :, None], states[:, :, None])  # (B, 2, P, P)
    others = 1 - torch.eye(states.shape[2], device=states.device)
    return mean((cosine.square() * others).mean((-1, -2)).sum(-1))
