"""AdaCLIP: learned tokens in both towers, some of them made from the image, and clusters of odd patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import QKV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.deep_tokens import DeepTokens
from kanoclip.backbone.tuning import Tuning
from kanoclip.heads.adapter import Adapter
from kanoclip.heads.hybrid import ClassProjection, hybrid_semantic_fusion
from kanoclip.heads.interaction import Interaction, LevelProjection
from kanoclip.heads.losses import focal_loss, local_loss, with_mask
from kanoclip.heads.prompts import EnsemblePrompts, Prompts
from kanoclip.heads.scoring import check_blur, check_temperature, dot, scaled, smooth
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import named, only_file, tensor_of
from kanoclip.types import ANOMALOUS, NORMAL, Batch, KanoclipError, Scores


class AdaCLIP(CLIPModule):
    """Learn tokens inside both towers of CLIP, static ones and ones made from the image (AdaCLIP).

    A component left null is the model's own; every one can be replaced by name, class path or object.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, levels 6, 12, 18 and 24 as the
            blocks return them, with GELU and positions without antialias, as in its code.
        attention: What a second path of the image tower attends to. null: there is none.
        tuning: What is trained inside the towers. null: 5 tokens in 4 blocks of both, static and dynamic.
        prompts: Text features of the two states. null: hand-written, in AdaCLIP's words.
        interaction: What takes the patches of each level to the joint space. null: a linear layer per level.
        adapter: What takes the global feature there. null: a linear layer.
        clusters: Clusters of the most anomalous patches whose centres are added to the global feature; 0: none.
        share: Weight of those centres; the global feature has the rest.
        temperature: Divisor of the cosine, of global and local similarities alike.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; scaled to other sizes.
        beta: Weight of the focal loss of the image score.
        gamma: Weight of the local loss.
        dice: Whether the local loss takes Dice over the pixels of the batch, of each image, or of each row of pixels:
            its code has a batch of one image and squeezes the mask, so that rows take the place of images.
        lr: Learning rate of AdamW, whose weight decay is 0.01.
        betas: Its two decay rates.

    Raises:
        KanoclipError: If a number is out of its range.

    Reference:
        Y. Cao et al., *AdaCLIP: Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection*, ECCV
        2024, and its code, which clusters patches otherwise than the paper says. Where we differ: batches may hold
        several images; k-means starts anew for each, where its code goes on with the random numbers of the images
        before, and is SciPy's; Dice is of each image, and tokens are not rounded (``dice``, ``tuning.round_tokens``);
        underscores in names become spaces too; masks are resized to stay 0 or 1;
        its mosaics of four images of MVTec AD are left out, and so is its choice of the best epoch on the test set.
    """

    name = "adaclip"
    of_score = ("clusters", "share")
    own_attention: type[Attention] = QKV
    own_tuning: type[Tuning] = DeepTokens
    own_prompts: type[Prompts] = EnsemblePrompts
    own_interaction: type[Interaction] = LevelProjection
    own_adapter: type[Adapter] = ClassProjection
    heads = ("tuning", "prompts", "interaction", "adapter")
    interaction: Interaction
    adapter: Adapter

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        tuning: Tuning | None = None,
        prompts: Prompts | None = None,
        interaction: Interaction | None = None,
        adapter: Adapter | None = None,
        clusters: int = 20,
        share: float = 0.2,
        temperature: float = 0.01,
        sigma: float = 4.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        dice: Literal["batch", "image", "rows"] = "image",
        lr: float = 0.01,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__(lr, betas)
        self.save_hyperparameters(logger=False)
        if dice not in ("batch", "image", "rows"):
            raise KanoclipError(f"dice is {dice!r}, expected batch, image or rows. Use --model.dice image.")
        if clusters < 0:
            raise KanoclipError(f"clusters is {clusters}, expected 0 or more. Use --model.clusters 20, or 0 for none.")
        if not 0 <= share <= 1:
            raise KanoclipError(f"share is {share}, expected a share in [0, 1]. Use --model.share 0.2.")
        check_blur(sigma)
        check_temperature(temperature)
        self.assemble(
            backbone or CLIPBackbone(position="bicubic_no_antialias", levels_at="block", activation="gelu"),
            attention or self.own_attention(),
            tuning=tuning or self.own_tuning(),
            prompts=prompts or self.own("prompts", EnsemblePrompts, wording="adaclip"),
            interaction=interaction or self.own_interaction(),
            adapter=adapter or self.own_adapter(),
        )
        self.clusters = clusters
        self.share = share
        self.temperature = temperature
        self.sigma = scaled(sigma, self.image_size)
        self.weigh({"global": beta, "local": gamma}, None)
        self.dice = dice

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges."""
        batch = self.with_plain(batch)
        features = self.features(batch)  # patches (L, B, N, W), by the tower with tokens in it
        states = self.states(batch, features)  # (B, 2, D)
        if states.ndim == 4:
            raise KanoclipError(
                f"adaclip compares an image with one pair of states, but {type(self.prompts).__name__} returns "
                f"{states.shape[1]} pairs. Use --model.prompts learned."
            )
        patches, level_states = self.interaction(features.patches, states)  # (L, B, N, D), (L, B, 2, D)
        cls = self.adapter(self.backbone.unscaled(features), patches, features.grid)  # (B, D)

        difference = level_states[:, :, ANOMALOUS] - level_states[:, :, NORMAL]
        local = dot(patches, difference[:, :, None]) / self.temperature  # (L, B, N), a logit for each patch
        odd = local.mean(0)  # (B, N)
        small = torch.cat([local, odd[None]]).unflatten(-1, features.grid)  # (L + 1, B, h, w)
        size = (self.image_size, self.image_size)
        # logits are enlarged, and averaged over levels before the softmax; the loss takes that of each level
        *_, heat = maps = F.interpolate(small, size=size, mode="bilinear", align_corners=True).sigmoid()
        if not self.training:
            heat = smooth(heat, self.sigma)
        if self.clusters:
            cls = hybrid_semantic_fusion(cls, patches, odd, self.clusters, self.share)
        logits = dot(cls[:, None], states) / self.temperature  # (B, 2)
        return self.with_terms(Scores(heat, logits.softmax(-1)[:, ANOMALOUS], maps[:-1], logits, states))

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the weighted terms ``global``, focal of the image score, and ``local``, and those of the heads.

        Images without a known mask have no local one.
        """
        assert scores.level_maps is not None  # for the type checker: forward returns them
        terms = {
            "global": focal_loss(scores.image_score[None, :, None], batch.label[:, None], smooth=1e-5),
            "local": local_loss(*with_mask(scores.level_maps, batch), self.dice, smooth=1e-5),
        }
        return self.weighted(terms, scores)

    def configure_optimizers(self) -> Any:
        """AdamW over the heads."""
        adam = super().configure_optimizers()
        return torch.optim.AdamW(adam.param_groups[0]["params"], lr=self.lr, betas=self.betas)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the weights that the authors publish, ``pretrained_mvtec_colondb.pth`` and others.

        Args:
            files: Name of the file -> its content: one dict of 38 tensors.

        Returns:
            Options of the constructor, and the weights of the heads.

        Raises:
            KanoclipError: If there are several files, or a tensor is missing or has another shape.
        """
        file, content = only_file(files, "pretrained_mvtec_colondb.pth")

        def take(key: str, *shape: int | None) -> Tensor:
            return tensor_of(content, f"clip_model.{key}", shape, file)

        def several(key: str, count: int, *shape: int, end: str = "") -> Tensor:
            return torch.stack([take(f"{key}.{i}{end}", *shape) for i in range(count)])

        def dynamic(tower: str, kind: str, *shape: int) -> Tensor:  # a layer per token in the file, one for all here
            return several(f"dynamic_{tower}_prompt_generator.head", t, *shape, end=f".{kind}").flatten(0, 1)

        t, W = take("visual_prompter.static_prompts.0", None, None).shape
        D = len(take("cls_token_layer.head.0.bias", None))
        names = named(content, file)
        depth = sum(key.startswith("clip_model.visual_prompter.static_prompts.") for key in names)
        levels = sum(key.startswith("clip_model.patch_token_layer.head.") for key in names) // 2
        weights = {
            "tuning.image_tokens": several("visual_prompter.static_prompts", depth, t, W),
            "tuning.image_dynamic.weight": dynamic("visual", "weight", W, D),
            "tuning.image_dynamic.bias": dynamic("visual", "bias", W),
            "tuning.text_tokens": several("text_prompter.static_prompts", depth, t, D)[1:],  # nothing reads the first
            "tuning.text_dynamic.weight": dynamic("text", "weight", D, D),
            "tuning.text_dynamic.bias": dynamic("text", "bias", D),
            **{
                f"interaction.layers.{i}.weight": take(f"patch_token_layer.head.{i}.weight", D, W)
                for i in range(levels)
            },
            **{f"interaction.layers.{i}.bias": take(f"patch_token_layer.head.{i}.bias", D) for i in range(levels)},
            "adapter.layer.weight": take("cls_token_layer.head.0.weight", D, D),
            "adapter.layer.bias": take("cls_token_layer.head.0.bias", D),
        }
        tokens = {"length": t, "depth": depth, "round_tokens": True}
        backbone = {"position": "bicubic_no_antialias", "levels_at": "block", "activation": "gelu"}
        options = {
            "backbone": {"class_path": "clip", "init_args": backbone},
            "tuning": {"class_path": "deep_tokens", "init_args": tokens},
        }
        return options, weights
