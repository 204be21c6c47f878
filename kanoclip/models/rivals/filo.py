"""FiLo: fine-grained descriptions of what may be wrong, and convolutions of several shapes over the patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import QKV, VV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.towers import tower_of
from kanoclip.heads.adapter import Adapter
from kanoclip.heads.fg_des import FGDes
from kanoclip.heads.interaction import Interaction, LevelProjection
from kanoclip.heads.losses import global_loss, local_loss, with_mask
from kanoclip.heads.mmci import MMCI, SHAPES
from kanoclip.heads.prompts import Prompts
from kanoclip.heads.scoring import dot, level_maps
from kanoclip.heads.silu_adapter import SiLUAdapter
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import only_file, part_of, tensor_of
from kanoclip.models.stages import Stage
from kanoclip.types import ANOMALOUS, Batch, Features, KanoclipError, Scores

BLUR = 4.0  # sigma of a window of 3 x 3 pixels


class FiLo(CLIPModule):
    """Compare patches of two towers with fine-grained descriptions, projected by linear layers and by convolutions.

    A component left null is the model's own.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, levels 6, 12, 18 and 24 as the
            blocks return them, with GELU, as in its code, though the weights were trained with QuickGELU.
        attention: What the second path of the tower attends to whose patches the linear layers read. null: there is
            none (qkv).
        local_first: Block, from 1, at which v-v attention begins in the second tower, whose patches the convolutions
            read; at most the last one.
        prompts: Text features of the two states. null: FG-Des.
        interaction: What the patches of the second tower pass. null: MMCI over the last three levels.
        adapter: What the second stage fits to the global feature.
        joint_text_norm: Whether both text features are divided by the length of the two together, a slip of its code:
            cosines shrink to 0.707 of theirs. Its published weights need it.
        overwritten_levels: Whether levels are read as in its code, where later blocks change what was put aside, a
            slip: those of the second tower, and the one before it begins, are all its last; to the others the next
            block's attention is added. Its published weights need it. The last level must be the last block.
        temperature: Divisor of the cosine of patches and texts.
        loss_temperature: Divisor of the cosine of the global feature and texts, in the loss.
        lr: Learning rate of a fit without stages.
        betas: The two decay rates of Adam.
        stages: Which heads learn in which epochs at what rate; null: the two of its code. The first of several fits the
            maps, the others the adapter.

    Reference:
        Z. Gu et al., *FiLo: Zero-Shot Anomaly Detection by Fine-Grained Description and High-Quality Localization*, ACM
        MM 2024, and its code, github.com/CASIA-IVA-Lab/FiLo. Where we differ: its detector, Grounding DINO, is left
        out; with it texts keep the position where it found something, and maps are multiplied by 0.7 elsewhere.
        Descriptions are the user's; a category without any has the common phrases, where its code stops. Adam has no
        weight decay. Prompts see the adapted feature at a test and the plain one where they are fitted, as in its code.
    """

    name = "filo"
    own_prompts: type[Prompts] = FGDes
    own_interaction: type[Interaction] = MMCI
    own_adapter: type[Adapter] = SiLUAdapter
    own_stages = (
        Stage(
            train=("prompts", "interaction", "projection"),
            epochs=15,
            lr=1e-3,
            rates={"interaction": 1e-4, "projection": 1e-4},
        ),
        Stage(train=("adapter",), epochs=5, lr=1e-5),
    )
    heads = ("prompts", "interaction", "adapter")
    prompts: Prompts
    interaction: Interaction
    adapter: Adapter

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        local_first: int = 7,
        prompts: Prompts | None = None,
        interaction: Interaction | None = None,
        adapter: Adapter | None = None,
        joint_text_norm: bool = False,
        overwritten_levels: bool = False,
        temperature: float = 0.01,
        loss_temperature: float = 0.07,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        stages: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(lr, betas, stages)
        self.save_hyperparameters(logger=False)
        backbone = backbone or CLIPBackbone(activation="gelu", levels_at="block")
        self.assemble(
            backbone,
            attention or QKV(),
            prompts=prompts or self.own_prompts(),
            interaction=interaction or self.own("interaction", MMCI, levels=max(1, len(backbone.levels) - 1)),
            adapter=adapter or self.own_adapter(),
        )
        self.first_local = min(local_first, backbone.depth)
        self.local_attention = VV(first=self.first_local)
        self.local_attention.start(backbone.depth)  # says so if there is no such block
        self.projection = LevelProjection()
        self.projection.build(backbone)
        self.joint_text_norm = joint_text_norm
        self.overwritten_levels = overwritten_levels
        self.temperature = temperature
        self.loss_temperature = loss_temperature

    @property
    def adapts(self) -> bool:
        """Whether the global feature passes the adapter: everywhere but in the stage that fits the maps."""
        return self.stage > 0 or len(self.stages) < 2

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores``. ``level_maps`` has those of the linear layers, then of the convolutions."""
        features = self.features(batch)  # patches (L, B, N, W)
        cls = self.backbone.unscaled(features)  # (B, D), of any length
        cls = self.adapter(cls, features.patches, features.grid) if self.adapts else F.normalize(cls, dim=-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.training and self.stage > 0)):
            states = self.prompts(batch.category, self.backbone, features._replace(cls=cls))  # (B, 2, D)
        if self.joint_text_norm:
            states = states / states.flatten(1).norm(dim=-1)[:, None, None]
        local = self.backbone(batch.image, self.local_attention).patches
        patches = features.patches
        if self.overwritten_levels:
            patches, local = self.overwritten(features, local)
        seen = [self.projection(patches, states), self.interaction(local, states)]
        grid, size, at = features.grid, self.image_size, self.temperature
        maps = torch.cat([level_maps(patches, texts, grid, size, at, "logits", True) for patches, texts in seen])
        heat = maps.mean(0) if self.training else softened(maps.mean(0))
        cosine = dot(cls[:, None], states)  # (B, 2)
        score = (cosine[:, ANOMALOUS] + heat.flatten(1).amax(1)) / 2
        return self.with_terms(Scores(heat, score, maps, cosine / self.loss_temperature, states))

    @torch.no_grad()
    def overwritten(self, features: Features, local: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels ``(L, B, N, W)`` of both towers as its code reads them, see ``overwritten_levels``.

        Raises:
            KanoclipError: If levels are not those of blocks.
        """
        tower, plain = tower_of(self.backbone.visual), []
        if self.backbone.levels_at != "block" or features.level_cls is None:
            raise KanoclipError(
                "overwritten_levels goes on from what blocks return. Use --model.backbone.levels_at block, or "
                "--model.overwritten_levels false."
            )
        for level, patches, cls in zip(self.backbone.levels, features.patches, features.level_cls, strict=True):
            if level == self.first_local - 1:
                patches = local[-1]
            elif self.first_local <= level < self.backbone.depth:
                block = tower.blocks[level]  # the next one
                attended = F.scaled_dot_product_attention(*tower.split(block, torch.cat([cls[:, None], patches], 1)))
                patches = patches + tower.merge(block, attended)[:, 1:]
            plain.append(patches)
        return torch.stack(plain), local[-1:].expand_as(local)

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return ``local``, focal + both Dice summed over all maps, or ``global`` where the adapter is fitted."""
        assert scores.level_maps is not None  # for the type checker: forward returns both
        assert scores.logits is not None
        if len(self.stages) > 1 and self.stage > 0:
            return self.weighted({"global": global_loss(scores.logits, batch.label)}, scores)
        local = local_loss(*with_mask(scores.level_maps, batch), "image", 1e-5)
        return self.weighted({"local": local}, scores)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the heads of ``filo_train_on_visa.pth`` or ``filo_train_on_mvtec.pth``; CLIP, in it too, is left out.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        name, content = only_file(files, "filo_train_on_visa.pth")
        theirs = part_of(content, "filo", name)
        context, width = tensor_of(theirs, "normal_prompt_learner.ctx", (None, None), name).shape
        hidden, dim = tensor_of(theirs, "normal_prompt_learner.meta_net.linear1.weight", (None, None), name).shape
        patch = tensor_of(theirs, "decoder_linear.fc.0.weight", (dim, None), name).shape[1]
        learners = ("normal_prompt_learner", "abnormal_prompt_learner")
        vectors = [tensor_of(theirs, f"{one}.ctx", (context, width), name) for one in learners]
        ours = {"prompts.vectors": torch.stack(vectors)}
        layers: dict[str, tuple[str, tuple[int, ...]]] = {}  # ours -> theirs, and the shape of its weight
        for state, learner in enumerate(learners):
            layers[f"prompts.shift.{state}.0"] = f"{learner}.meta_net.linear1", (hidden, dim)
            layers[f"prompts.shift.{state}.2"] = f"{learner}.meta_net.linear2", (width, hidden)
        for level in range(4):
            layers[f"projection.layers.{level}"] = f"decoder_linear.fc.{level}", (dim, patch)
        for level in range(3):
            for i, (h, w) in enumerate(SHAPES):
                layers[f"interaction.convolutions.{level}.{i}"] = f"decoder_cov.fc_{h}{w}.{level}", (dim, patch, h, w)
        for mine, (its, shape) in layers.items():
            ours[f"{mine}.weight"] = tensor_of(theirs, f"{its}.weight", shape, name)
            ours[f"{mine}.bias"] = tensor_of(theirs, f"{its}.bias", shape[:1], name)
        down = tensor_of(theirs, "adapter.fc.0.weight", (None, dim), name)
        ours |= {"adapter.down.weight": down}
        ours |= {"adapter.up.weight": tensor_of(theirs, "adapter.fc.2.weight", (dim, len(down)), name)}
        options = {
            "backbone": {"class_path": "clip", "init_args": {"activation": "gelu", "levels_at": "block"}},
            "prompts": {"class_path": "fg_des", "init_args": {"context": context}},
            "adapter": {"class_path": "silu", "init_args": {"reduction": dim // len(down)}},
            "joint_text_norm": True,
            "overwritten_levels": True,
        }
        return options, ours


def softened(maps: Tensor) -> Tensor:
    """Blur maps ``(B, H, W)`` over 3 x 3 pixels, nearly their mean, with mirrored borders, as its code does."""
    shift = torch.arange(-1, 2, device=maps.device)
    line = torch.exp(-(shift**2) / (2 * BLUR**2))
    window = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad(maps[:, None].float(), (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, window[None, None])[:, 0]
