"""APRIL-GAN: a linear layer per level between CLIP's patches and hand-written prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from kanoclip.backbone.attention import QKV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import NoAdapter
from kanoclip.heads.interaction import Interaction, LevelProjection, LinearInteraction
from kanoclip.heads.losses import NoKD, dice_loss, focal_loss, with_mask
from kanoclip.heads.prompts import EnsemblePrompts, Prompts
from kanoclip.heads.scoring import GlobalScore, Score, dot, level_maps, smooth
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.published import only_file, part_of, tensor_of
from kanoclip.models.remembering import enlarge as enlarged
from kanoclip.types import Batch, Features, KanoclipError, Scores


class AprilGAN(KAnoCLIP):
    """Project the patches of each level of plain CLIP to hand-written prompts (APRIL-GAN).

    A component left null is the model's own; every one can be replaced by name, class path or object.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, levels 6, 12, 18 and 24, with
            GELU, as in its code, though the weights were trained with QuickGELU. With ``levels_at: block`` the linear
            layers take what the blocks return, as in its code.
        prompts: Text features of the two states. null: hand-written, in APRIL-GAN's words.
        interaction: What projects the patches of each level. null: a matrix in the joint space that starts as the
            identity; with ``levels_at: block`` a linear layer that starts at random, as in its code.
        temperature: Divisor of the cosine, of global and local similarities alike.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; the paper has none.
        dice: Whether the loss takes Dice over the pixels of the batch, or of each image apart as its code.
        enlarge: What is resized to pixels: probabilities, patch centres in place; or logits, with corners on corners,
            as its code.

    Raises:
        KanoclipError: If ``enlarge`` is neither.

    Reference:
        X. Chen et al., *APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND
        Workshop Challenge*, arXiv 2305.17382, 2023, and its code, which ``configs/rivals/april_gan.yaml`` follows and
        published weights need: ``levels_at: block`` and ``enlarge: logits``. Without them the linear layers act behind
        CLIP's projection and start as the identity. Where we differ in both: maps are averaged over levels where it
        sums them, which ranks alike; a category's name is written in words, "metal nut" where its code says
        "metal_nut"; its mosaics of four images of MVTec AD are left out. Few-shot (``memory: patches``): its sum of
        levels is divided by 12, which brings it into [0, 1] and ranks alike; the highest pixel of the joined map is
        averaged with the global probability as it is, where its code first stretches it to [0, 1] over the tested
        images of the category.
    """

    name = "april_gan"
    own_attention = QKV
    own_prompts: type[Prompts] = EnsemblePrompts
    own_interaction: type[Interaction] = LinearInteraction
    own_adapter = NoAdapter
    own_score: type[Score] = GlobalScore
    own_kd_loss = NoKD

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        prompts: Prompts | None = None,
        interaction: Interaction | None = None,
        temperature: float = 0.01,
        sigma: float = 0.0,
        dice: Literal["batch", "image"] = "image",
        enlarge: Literal["probability", "logits"] = "probability",
        **options: Any,
    ) -> None:
        if enlarge not in ("probability", "logits"):
            raise KanoclipError(f"enlarge is {enlarge!r}, expected probability or logits. Use --model.enlarge logits.")
        prompts = prompts or self.own("prompts", EnsemblePrompts, wording="april_gan")
        backbone = backbone or CLIPBackbone(activation="gelu")
        if interaction is None and self.own_interaction is LinearInteraction and backbone.levels_at != "joint":
            interaction = LevelProjection()
        options = {"prompts": prompts, "interaction": interaction, **options}
        super().__init__(backbone, temperature=temperature, sigma=sigma, dice=dice, **options)
        self.enlarge: Literal["probability", "logits"] = enlarge
        self.of_score = ("enlarge",) if enlarge == "logits" else ()  # what is usual has the identity that it always had

    def compare(self, features: Features, states: Tensor) -> tuple[Tensor, Tensor]:
        """Compare an image with the states ``(B, 2, D)``: logits ``(B, 2)`` and maps ``(L, B, H, W)``."""
        cls = self.adapter(features.cls, features.patches, features.grid)  # (B, D)
        logits = dot(cls[:, None], states) / self.temperature
        patches, level_states = self.interaction(features.patches, states)  # (L, B, N, D), (L, B, 2, D)
        size, align = self.image_size, self.enlarge == "logits"
        maps = level_maps(patches, level_states, features.grid, size, self.temperature, self.enlarge, align)
        return logits, maps

    def join(self, heat: Tensor, score: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Join texts with distances as its code, which adds 1 - cosine, twice the distance, to the map of the texts."""
        pixels = enlarged(distance, self.image_size, align_corners=True)  # (B, H, W)
        heat = (heat + 2 * smooth(pixels, self.sigma)) / 3
        return heat, (score + heat.flatten(1).amax(1)) / 2

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return ``local``, focal + Dice(anomalous) summed over levels, and the terms of the heads, all weighted.

        The global feature learns nothing.
        """
        maps = scores.level_maps
        assert maps is not None  # for the type checker: forward returns them
        maps, mask = with_mask(maps, batch)
        return self.weighted({"local": focal_loss(maps, mask) + dice_loss(maps, mask, self.dice)}, scores)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the linear layers of ``mvtec_pretrained.pth`` or ``visa_pretrained.pth``.

        Returns:
            Options of the constructor, and the weights of our heads.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        name, content = only_file(files, "mvtec_pretrained.pth")
        theirs, weights = part_of(content, "trainable_linearlayer", name), {}
        dim, width = tensor_of(theirs, "fc.0.weight", (None, None), name).shape
        for level in range(max(4, len(theirs) // 2)):
            for key, shape in (("weight", (dim, width)), ("bias", (dim,))):
                weights[f"interaction.layers.{level}.{key}"] = tensor_of(theirs, f"fc.{level}.{key}", shape, name)
        backbone = {"class_path": "clip", "init_args": {"activation": "gelu", "levels_at": "block"}}
        return {"backbone": backbone, "enlarge": "logits"}, weights
