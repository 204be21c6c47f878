"""AnomalyCLIP: learned prompts that name no object, over CLIP with v-v attention."""

from __future__ import annotations

from typing import Any, Literal

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import NoAdapter
from kanoclip.heads.interaction import NoInteraction
from kanoclip.heads.losses import NoKD
from kanoclip.heads.prompts import ObjectAgnosticPrompts
from kanoclip.heads.scoring import GlobalScore
from kanoclip.models.kanoclip import KAnoCLIP


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
