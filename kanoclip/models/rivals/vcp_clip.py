"""VCP-CLIP: the image names its object in the prompt, and the prompt looks at the patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kanoclip.backbone.attention import QKV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.interaction import Interaction, LevelProjection
from kanoclip.heads.losses import dice_loss, focal_loss, with_mask
from kanoclip.heads.post_vcp import PostVCP
from kanoclip.heads.pre_vcp import PreVCP
from kanoclip.heads.prompts import Prompts
from kanoclip.heads.scoring import SIDE, TopKScore, check_blur, level_maps, scaled, smooth
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import only_file, part_of, tensor_of
from kanoclip.models.stages import Stage
from kanoclip.types import Batch, KanoclipError, Scores


class VCPCLIP(CLIPModule):
    """Compare projected patches with prompts that the image completes, and raw ones with what these find there.

    It was published for maps; its image scores come with its code. A component left null is the model's own.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, levels 6, 12, 18 and 24 as the
            blocks return them, with GELU, as in its code, though the weights were trained with QuickGELU.
        attention: What the second path of the image tower attends to. null: there is none (qkv).
        prompts: Text features of the two states. null: completed from the image (Pre-VCP).
        interaction: What texts find in the patches of each level. null: Post-VCP.
        share: Weight of the maps by projected patches, in [0, 1]; the rest is that of the maps by the interaction.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; scaled to other sizes.
        top_k: Highest pixels of either map, before its blur, whose mean is half of the image score, of a 518 pixel
            image; scaled to other sizes.
        lr: Learning rate of a fit without stages.
        betas: The two decay rates of Adam.
        stages: Which heads learn in which epochs at what rate; null: the one of its code, in which the two
            temperatures have a rate of their own.

    Raises:
        KanoclipError: If a number is out of its range, or a part does not fit the backbone.

    Reference:
        Z. Qu et al., *VCP-CLIP: A Visual Context Prompting Model for Zero-Shot Anomaly Segmentation*, ECCV 2024, and
        its code, github.com/xiaozhen228/VCP-CLIP. Where we differ: maps and image scores are taken as they are, where
        its code stretches both to [0, 1] over the test images of a category, which ranks those alike, and the image
        score is the mean of its two halves instead of their sum; no category of the other data set is looked at during
        the fit; all is computed in float32, where its code fits and tests in half precision; masks are resized to stay
        0 or 1; its mosaics of four images of MVTec AD are left out; images without a mask have no loss.
    """

    name = "vcp_clip"
    own_prompts: type[Prompts] = PreVCP
    own_interaction: type[Interaction] = PostVCP
    own_stages = (
        Stage(
            train=("prompts", "interaction", "projection", "plain_scale", "seen_scale"),
            epochs=10,
            lr=4e-5,
            rates={"plain_scale": 0.01, "seen_scale": 0.01},
        ),
    )
    heads = ("prompts", "interaction")
    prompts: Prompts
    interaction: Interaction

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        prompts: Prompts | None = None,
        interaction: Interaction | None = None,
        share: float = 0.2,
        sigma: float = 8.0,
        top_k: int = 2000,
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.5, 0.999),
        stages: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(lr, betas, stages)
        self.save_hyperparameters(logger=False)
        check_blur(sigma)
        if not 0 <= share <= 1:
            raise KanoclipError(f"share is {share}, expected a weight in [0, 1]. Use --model.share 0.2.")
        if not 1 <= top_k <= SIDE**2:
            raise KanoclipError(f"top_k is {top_k}, expected 1 to {SIDE**2} pixels. Use --model.top_k 2000.")
        self.assemble(
            backbone or CLIPBackbone(activation="gelu", levels_at="block"),
            attention or QKV(),
            prompts=prompts or self.own_prompts(),
            interaction=interaction or self.own_interaction(),
        )
        self.projection = LevelProjection()
        self.projection.build(self.backbone)
        self.plain_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # of the logits: its exponential
        self.seen_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.share = share
        self.sigma = scaled(sigma, self.image_size)
        self.top_k = top_k
        self.top = TopKScore(top_k / SIDE**2)

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores``. ``level_maps`` has those by projected patches, then those by what is seen."""
        features = self.features(batch)  # patches (L, B, N, W)
        states = self.states(batch, features)  # (B, 2, D)

        def compare(part: Interaction, scale: Tensor) -> Tensor:  # (L, B, H, W)
            patches, of_levels = part(features.patches, states)  # (L, B, N, .), (L, B, 2, .)
            size, texts = self.image_size, scale.exp() * of_levels
            return level_maps(patches, texts, features.grid, size, 1.0, "logits", align_corners=True)

        plain, seen = compare(self.projection, self.plain_scale), compare(self.interaction, self.seen_scale)
        by_texts, by_patches = plain.mean(0), seen.mean(0)  # (B, H, W)
        score = (self.top(by_texts, by_texts) + self.top(by_patches, by_patches)) / 2
        heat = self.share * by_texts + (1 - self.share) * by_patches
        heat = heat if self.training else smooth(heat, self.sigma)
        return self.with_terms(Scores(heat, score, torch.cat([plain, seen]), None, states))

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the term ``local``, focal + Dice(anomalous) summed over the levels of both kinds of map."""
        assert scores.level_maps is not None  # for the type checker: forward returns them
        maps, mask = with_mask(scores.level_maps, batch)
        local = focal_loss(maps, mask, smooth=1e-5) + dice_loss(maps, mask, over="image")
        return self.weighted({"local": local}, scores)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Turn ``train_visa.pth`` or ``train_mvtec.pth`` into options and heads of ours.

        ``prompt_text_projection`` and the bias of the keys, which no score depends on, are left out.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        name, content = only_file(files, "train_visa.pth")
        levels, pre, post = (
            part_of(content, key, name) for key in ("trainable_linearlayer", "New_Lan_Embed", "Zero_try")
        )
        _, context, width = tensor_of(pre, "prompt_query", (1, None, None), name).shape
        tokens = tensor_of(content, "prompt_embeddings", (1, None, width), name)
        inside, dim = tensor_of(post, "q_proj_pre.weight", (None, None, 1), name).shape[:2]
        ours = {
            "prompts.query": tensor_of(pre, "prompt_query", (1, context, width), name)[0],
            "prompts.convolve.weight": tensor_of(pre, "prompt_linear1.fc.weight", (context, 1, 3), name),
            "prompts.convolve.bias": tensor_of(pre, "prompt_linear1.fc.bias", (context,), name),
            "prompts.deep": torch.cat(
                [tokens, tensor_of(content, "deep_prompt_embeddings", (None, tokens.shape[1], width), name)]
            ),
            "prompts.map_deep.weight": tensor_of(content, "prompt_proj.weight", (width, width), name),
            "prompts.map_deep.bias": tensor_of(content, "prompt_proj.bias", (width,), name),
            "prompts.norm.weight": tensor_of(content, "prompt_norm.weight", (width,), name),
            "prompts.norm.bias": tensor_of(content, "prompt_norm.bias", (width,), name),
            "plain_scale": tensor_of(pre, "prompt_temp", (), name),
            "seen_scale": tensor_of(post, "prompt_temp_l1", (), name),
        }
        layers = {"query": "q_proj_pre", "key": "k_proj_pre_1", "value": "v_proj_pre_1", "out": "proj_post_t"}
        for layer, its in layers.items():
            shape = (inside, dim if layer == "query" else inside, 1)
            ours[f"interaction.{layer}.weight"] = tensor_of(post, f"{its}.weight", shape, name)[..., 0]
            if layer != "key":
                ours[f"interaction.{layer}.bias"] = tensor_of(post, f"{its}.bias", (inside,), name)
        for level in range(max(4, len(levels) // 2)):
            for key, size in (("weight", (dim, inside)), ("bias", (dim,))):
                ours[f"projection.layers.{level}.{key}"] = tensor_of(levels, f"fc.{level}.{key}", size, name)
        prompts = {"context": context, "deep_tokens": tokens.shape[1]}
        backbone = {"class_path": "clip", "init_args": {"activation": "gelu", "levels_at": "block"}}
        return {"backbone": backbone, "prompts": {"class_path": "pre_vcp", "init_args": prompts}}, ours
