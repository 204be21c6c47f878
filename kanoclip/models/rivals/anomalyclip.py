"""AnomalyCLIP: learned prompts that name no object, over CLIP with v-v attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import NoAdapter
from kanoclip.heads.interaction import NoInteraction
from kanoclip.heads.losses import NoKD
from kanoclip.heads.prompts import ObjectAgnosticPrompts
from kanoclip.heads.scoring import GlobalScore
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.published import only_file, part_of, tensor_of


class AnomalyCLIP(KAnoCLIP):
    """Learn prompts that name no object, with learned tokens inside the text encoder, for CLIP with v-v attention.

    A component left null is the model's own; every one can be replaced by name, class path or object.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, level 24 alone.
        gamma: Weight of the local loss.
        dice: Whether the local loss takes Dice over the pixels of the batch, or of each image apart.

    Reference:
        Q. Zhou et al., *AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly Detection*, ICLR 2024, and
        its code, whose published results use level 24 alone, positions resized bilinearly and a global feature that
        skips CLIP's last norm. Where we differ: maps are averaged over levels where it sums them, which ranks alike;
        masks are resized to stay 0 or 1; its learned tokens inside the text encoder are rounded to half precision, ours
        have the trainer's.
    """

    name = "anomalyclip"
    own_prompts = ObjectAgnosticPrompts
    own_interaction = NoInteraction
    own_adapter = NoAdapter
    own_score = GlobalScore
    own_kd_loss = NoKD

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        gamma: float = 4.0,
        dice: Literal["batch", "image"] = "image",
        **options: Any,
    ) -> None:
        backbone = backbone or CLIPBackbone(levels=[24], position="bilinear", cls_norm=False)
        super().__init__(backbone, gamma=gamma, dice=dice, **options)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the prompts of ``epoch_15.pth``; what else it holds comes from the text encoder, or is never used.

        Returns:
            Options of the constructor, and the weights of our heads.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        name, content = only_file(files, "epoch_15.pth")
        prompts, weights = read_prompts(part_of(content, "prompt_learner", name), name)
        options = {
            "backbone": {
                "class_path": "clip",
                "init_args": {"levels": [24], "position": "bilinear", "cls_norm": False},
            },
            "prompts": {"class_path": "object_agnostic", "init_args": prompts},
        }
        return options, weights


def read_prompts(theirs: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read its learner of prompts: options of ``ObjectAgnosticPrompts``, and the weights.

    Args:
        theirs: Weights of the learner.
        name: The file, for the message.

    Raises:
        KanoclipError: Naming what is missing or has another shape.
    """
    normal = tensor_of(theirs, "ctx_pos", (1, 1, None, None), name)
    context, width = normal.shape[2:]
    anomalous = tensor_of(theirs, "ctx_neg", (1, 1, context, width), name)
    tokens = len(tensor_of(theirs, "compound_prompts_text.0", (None, width), name))
    depth = sum(key.startswith("compound_prompts_text.") for key in theirs)
    deep = [tensor_of(theirs, f"compound_prompts_text.{i}", (tokens, width), name) for i in range(depth)]
    vectors = torch.cat([normal[0], anomalous[0]])  # (2, M, W)
    options = {"context": context, "deep_tokens": tokens, "deep_depth": depth}
    return options, {"prompts.vectors": vectors, "prompts.deep": torch.stack(deep)}
