"""Prompts synthesized from an image: its states from prototypes of the patches, its class from a latent (CoPS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.casting import cast_once
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.towers import tower_of
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.prompts import Prompts, check_room, deep_vectors, of_image
from kanoclip.heads.prototypes import GlobalVAE, Prototypes
from kanoclip.types import ANOMALOUS, NORMAL, Features, KanoclipError

OBJECT = 2  # learned vectors that stand for the object


class SynthesizedPrompts(Prompts):
    """Learn ``[C1]..[CE] [S1]..[SP] [O1][O2].`` for each state, and add to S and O what the image gives.

    To the P state vectors the P prototypes of the state are added, see ``Prototypes``; to both object vectors one that
    is decoded from a latent. While fitting, the latent is drawn from a distribution made of the global feature, with
    the loss terms ``kl`` and ``recon``, see ``GlobalVAE``. Outside of a fit it is drawn from N(0, 1), ``samples`` times
    and the same for all images, and the text features of a state are averaged.

    Args:
        context: Learned vectors E that the prompt of a state begins with.
        prototypes: State vectors P of each state.
        heads: Attention heads of the prototypes; must divide the joint width. null: one for each 64 values.
        pool: Side in patches of the neighbourhood whose mean stands for a patch, odd.
        samples: Latents outside of a fit.
        seed: Of these.
        swapped_prototypes: Whether the normal prompt gets the prototypes of the anomalous state and the reverse, a slip
            of CoPS's code. Its published weights need it.
        recon: Whether what is decoded of an "image" is compared with its own feature, or "pairs" of all images of a
            batch are compared, as in CoPS's code.
        deep_tokens: Learned tokens that replace as many after the begin token inside the text encoder; 0 for none.
        deep_depth: Number of text blocks, from the second on, that get such tokens; at most all of them.
        round_tokens: Whether those tokens are rounded to half precision, as in CoPS's code.

    Raises:
        KanoclipError: If a number is out of its range, or a prompt is longer than the text encoder reads.

    Reference:
        Q. Chen et al., *CoPS: Conditional Prompt Synthesis for Zero-Shot Anomaly Detection*, CVPR 2026 Findings, arXiv
        2508.03447, and its code. Where we differ: its latents at a test are drawn anew for each image. If images and
        token embeddings differ in width, which in its code must not be, a linear layer comes between.
    """

    term_weights: ClassVar[dict[str, float]] = {"kl": 1.0, "recon": 1.0}
    begin: Tensor
    end: Tensor
    eot: Tensor
    latents: Tensor

    def __init__(
        self,
        context: int = 6,
        prototypes: int = 6,
        heads: int | None = None,
        pool: int = 5,
        samples: int = 10,
        seed: int = 0,
        swapped_prototypes: bool = False,
        recon: Literal["image", "pairs"] = "image",
        deep_tokens: int = 4,
        deep_depth: int = 8,
        round_tokens: bool = False,
    ) -> None:
        super().__init__()
        for name, count in {"context": context, "prototypes": prototypes, "pool": pool, "samples": samples}.items():
            if count < 1 or (name == "pool" and count % 2 == 0):
                kind = "an odd number of 1" if name == "pool" else "1"
                raise KanoclipError(
                    f"prompts.{name} is {count}, expected {kind} or more. Leave it out for the paper's."
                )
        if recon not in ("image", "pairs"):
            raise KanoclipError(
                f"prompts.recon is {recon!r}, expected image or pairs. Use --model.prompts.recon image."
            )
        self.context = context
        self.count = prototypes
        self.heads = heads
        self.pool = pool
        self.samples = samples
        self.seed = seed
        self.swapped_prototypes = swapped_prototypes
        self.recon = recon
        self.deep_tokens = deep_tokens
        self.deep_depth = deep_depth
        self.round_tokens = round_tokens

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the learned vectors from N(0, 0.02), create the layers, and draw the latents for tests."""
        embedded, eot = backbone.token_embeddings(["."])  # (1, M, W), (1,)
        learned, width, dim = self.context + self.count + OBJECT, backbone.text_width, backbone.dim
        check_room(backbone, ["."], learned, "learned vectors")
        self.register_buffer("begin", embedded[:, :1].clone(), persistent=False)
        self.register_buffer("end", embedded[:, 1 : backbone.context_length - learned].clone(), persistent=False)
        self.register_buffer("eot", backbone.text.moved(eot, learned), persistent=False)
        self.vectors = nn.Parameter(0.02 * torch.randn(2, learned, width))
        self.prototypes = Prototypes(dim, self.count, self.heads)
        self.latent = GlobalVAE(dim)
        self.widen = nn.Identity() if dim == width else nn.Linear(dim, width)
        self.deep = deep_vectors(backbone, self.deep_tokens, self.deep_depth)
        generator = torch.Generator().manual_seed(self.seed)
        self.register_buffer("latents", torch.randn(self.samples, dim, generator=generator), persistent=False)

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
        features = of_image(features, "synthesized")
        prototypes = self.prototypes(self.local(features, backbone))
        return self.synthesize(prototypes, features.cls, backbone, hooks)

    def local(self, features: Features, backbone: CLIPBackbone) -> Tensor:
        """Return the patches of the last level, averaged with their neighbours, in the joint space ``(B, N, D)``.

        Neighbours outside the image count as 0. Patches have the length that CLIP's projection gives them where
        ``levels_at`` is "norm", or "block", and unit length before the average where it is "joint".
        """
        patches, visual = features.patches[-1], cast_once(backbone.visual)  # (B, N, W)
        patches = visual.ln_post(patches).float() if backbone.levels_at == "block" else patches
        grid = patches.mT.unflatten(2, features.grid)  # (B, W, h, w)
        patches = F.avg_pool2d(grid, self.pool, stride=1, padding=self.pool // 2).flatten(2).mT
        return patches if backbone.levels_at == "joint" else tower_of(visual).project(patches).float()

    def synthesize(self, prototypes: Tensor, cls: Tensor, backbone: CLIPBackbone, hooks: Hooks | None = None) -> Tensor:
        """Return the states ``(B, 2, D)`` of prototypes ``(B, 2, P, D)`` and a global feature ``(B, D)``."""
        B, E, P = len(cls), self.context, self.count
        if self.training:
            decoded, self.terms = self.latent(cls, self.draw(cls), self.recon == "pairs")
            object_ = decoded[:, None]  # (B, S = 1, D)
        else:
            object_ = self.latent.decode(self.latents).expand(B, -1, -1)  # (B, S, D)
        order = [ANOMALOUS, NORMAL] if self.swapped_prototypes else [NORMAL, ANOMALOUS]
        S = object_.shape[1]
        shape = (B, S, 2, -1, -1)
        states = self.vectors[:, E : E + P] + self.widen(prototypes[:, order])  # (B, 2, P, W)
        objects = self.vectors[:, E + P :] + self.widen(object_)[:, :, None, None]  # (B, S, 2, 2, W)
        parts = [self.begin, self.vectors[:, :E], states[:, None], objects, self.end]
        prompts = torch.cat([part.expand(shape) for part in parts], -2).flatten(0, 2)  # (B * S * 2, M, W)
        deep = self.deep.half() if self.round_tokens and self.deep is not None else self.deep
        encoded = backbone.encode_embeddings(prompts, self.eot.expand(len(prompts)), deep, hooks)
        return F.normalize(encoded.unflatten(0, (B, S, 2)).mean(1), dim=-1)

    def draw(self, cls: Tensor) -> Tensor:
        """Draw noise for the latents of a fit, as many as ``cls`` ``(B, D)`` has values."""
        return torch.randn_like(cls)
