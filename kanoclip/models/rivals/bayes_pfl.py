"""Bayes-PFL: prompts drawn from learned distributions, and texts that look at the patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.attention import QKV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import Adapter
from kanoclip.heads.bayesian_prompts import BayesianPrompts
from kanoclip.heads.flows import small
from kanoclip.heads.interaction import Interaction
from kanoclip.heads.level_fusion import LevelFusion
from kanoclip.heads.losses import global_loss, with_mask
from kanoclip.heads.prompts import Prompts
from kanoclip.heads.rca import RCA
from kanoclip.heads.scoring import SIDE, TopKScore, check_blur, dot, level_maps, scaled, smooth
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.rivals.bayes_pfl_import import from_published
from kanoclip.models.stages import Stage
from kanoclip.ranks import total
from kanoclip.types import ANOMALOUS, Batch, KanoclipError, Scores


class BayesPFL(CLIPModule):
    """Draw prompts from learned distributions, and let them attend to the patches of each level (Bayes-PFL).

    It is fitted in two stages: prompts and maps first, then the image score alone. A component left null is the
    model's own; every one can be replaced by name, class path or object.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, levels 6, 12, 18 and 24 as the
            blocks return them, with GELU, as in its code, though the weights were trained with QuickGELU.
        attention: What the second path of the image tower attends to. null: there is none (qkv).
        prompts: Text features of the two states. null: drawn from learned distributions.
        interaction: How patches and texts attend to each other. null: residual cross-attention of the texts.
        adapter: What the second stage adds to the global feature. null: the patches of all levels.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; scaled to other sizes.
        top_k: Highest pixels of the map before its blur whose mean is half of the image score, of a 518 pixel image;
            scaled to other sizes.
        terms: Weights of the loss terms ``global``, ``local``, ``kl`` and ``ort``, by name; 0.01 for ``kl`` and 1 for
            the others if they are not named, as in its code.
        lr: Learning rate of a fit without stages.
        betas: The two decay rates of Adam.
        stages: Which heads learn in which epochs at what rate; null: the two of its code. All but the first fit the
            image score, with what the adapter adds.

    Raises:
        KanoclipError: If a number is out of its range, or a part does not fit the backbone.

    Reference:
        Z. Qu et al., *Bayesian Prompt Flow Learning for Zero-Shot Anomaly Detection*, CVPR 2025, and its code. Where we
        differ: outside of a fit all images have the same noise, see ``BayesianPrompts``; stages have a fixed number of
        epochs, since its code ends them by the results on test classes of another data set; both halves of the image
        score are taken as they are, where its code stretches each to [0, 1] over the test images of a category; one
        ``top_k`` for all categories, where it has 20 for seven of them; its mosaics of four images of MVTec AD are left
        out; images without a mask have no local loss.
    """

    name = "bayes_pfl"
    own_prompts: type[Prompts] = BayesianPrompts
    own_interaction: type[Interaction] = RCA
    own_adapter: type[Adapter] = LevelFusion
    own_stages = (
        Stage(
            train=("prompts", "interaction", "text_map", "pixel_scale", "image_scale"),
            epochs=20,
            lr=1e-4,
            schedule="cosine",
            warmup=0.1,
            rates={
                "prompts": 1e-3,
                "prompts.context_flow.encoder": 1e-4,
                "prompts.state_flows.encoder": 1e-4,
                "pixel_scale": 0.01,
                "image_scale": 0.01,
            },
        ),
        Stage(train=("text_map", "adapter"), epochs=10, lr=1e-4),
    )
    heads = ("prompts", "interaction", "adapter")
    prompts: Prompts
    interaction: Interaction
    adapter: Adapter

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        prompts: Prompts | None = None,
        interaction: Interaction | None = None,
        adapter: Adapter | None = None,
        sigma: float = 8.0,
        top_k: int = 2000,
        terms: dict[str, float] | None = None,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        stages: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(lr, betas, stages)
        self.save_hyperparameters(logger=False)
        check_blur(sigma)
        if not 1 <= top_k <= SIDE**2:
            raise KanoclipError(f"top_k is {top_k}, expected 1 to {SIDE**2} pixels. Use --model.top_k 2000.")
        self.assemble(
            backbone or CLIPBackbone(activation="gelu", levels_at="block"),
            attention or QKV(),
            prompts=prompts or self.own_prompts(),
            interaction=interaction or self.own_interaction(),
            adapter=adapter or self.own_adapter(),
        )
        self.text_map = nn.Linear(self.backbone.dim, self.backbone.dim)
        small(self.text_map)
        self.pixel_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # of the logits: its exponential
        self.image_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.sigma = scaled(sigma, self.image_size)
        self.top_k = top_k
        self.top = TopKScore(top_k / SIDE**2)
        self.weigh({"global": 1.0, "local": 1.0}, terms)

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges."""
        features = self.features(batch)  # patches (L, B, N, W), cls (B, D)
        states = self.prompts(batch.category, self.backbone, features)  # (B, S, 2, D)
        states = states if states.ndim == 4 else states[:, None]
        if self.training:  # one prompt a step: those of a state become different, and the step is cheaper
            states = states[:, [int(torch.randint(states.shape[1], ()))]]

        seen = self.backbone.unscaled(features)  # (B, D)
        seen = self.adapter(seen, features.patches, features.grid) if self.stage else seen
        image = F.normalize(seen, dim=-1)
        texts = F.normalize(self.text_map(states).float(), dim=-1)
        logits = self.image_scale.exp() * dot(image[:, None, None], texts)  # (B, S, 2)
        logits = logits.log_softmax(-1).logsumexp(1) - math.log(states.shape[1])  # (B, 2), of the mean probability

        patches, level_states = self.interaction(features.patches, states.flatten(1, 2))  # (L, B, N, D), (L, B, 2S, D)
        pairs = (self.pixel_scale.exp() * level_states).unflatten(2, (-1, 2)).unbind(2)
        shape = (*features.patches.shape[:2], self.image_size, self.image_size)
        maps = seen.new_zeros(shape)  # (L, B, H, W)
        for pair in pairs:  # one at a time: the maps of 30 do not fit a memory
            maps = maps + level_maps(patches, pair, features.grid, self.image_size, 1.0, "logits", align_corners=True)
        maps = maps / len(pairs)
        heat = maps.mean(0)
        score = (logits.exp()[:, ANOMALOUS] + self.top(logits, heat)) / 2
        heat = heat if self.training else smooth(heat, self.sigma)
        return self.with_terms(Scores(heat, score, maps, logits, states[:, 0]))

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the weighted terms: ``global``, and in the first stage ``local`` and those of the prompts."""
        assert scores.level_maps is not None  # for the type checker: forward returns both
        assert scores.logits is not None
        terms = {"global": global_loss(scores.logits, batch.label)}
        if self.stage == 0:
            maps, mask = with_mask(scores.level_maps, batch)
            terms["local"] = balanced_focal_loss(maps, mask) + whole_dice_loss(maps, mask)
        return self.weighted(terms, scores if self.stage == 0 else scores._replace(terms=None))

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Turn the file that its authors publish into options and heads of ours, see ``from_published`` there."""
        return from_published(files)


def balanced_focal_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """Sum over levels of the mean of ``-(1 - p)^2 log(p + 1e-8)`` over anomalous pixels, plus that over normal ones.

    Args:
        maps: ``(L, B, H, W)``, the probability that a pixel is anomalous; p is that of the true state.
        mask: ``(B, H, W)``, 1 = anomalous.

    Reference:
        Z. Qu et al., *Bayes-PFL*, CVPR 2025, of its code: a small defect weighs as much as all that is normal.
    """
    p = torch.where(mask.bool(), maps, 1 - maps)
    lost = -((1 - p) ** 2) * (p + 1e-8).log()
    classes = torch.stack([mask.float(), 1 - mask.float()])  # (2, B, H, W)
    added, pixels = total(torch.stack([(lost * classes[:, None]).sum((1, 2, 3, 4)), classes.sum((1, 2, 3))]))
    return (added / (pixels + 1e-8)).sum()


def whole_dice_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """Sum over levels of ``1 - (2 |map * mask| + e) / (|map| + |mask| + e)`` over the batch, with an e of 1e-5.

    Arguments as in ``balanced_focal_loss``.
    """
    mask = mask.float()
    both, found = (values.flatten(1).sum(-1) for values in (maps * mask, maps))  # (L,)
    both, found, marked = total(torch.stack([both, found, mask.sum().expand_as(found)]))
    return (1 - (2 * both + 1e-5) / (found + marked + 1e-5)).sum()
