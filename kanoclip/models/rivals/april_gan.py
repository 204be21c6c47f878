"""APRIL-GAN: a linear layer per level between CLIP's patches and hand-written prompts."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from kanoclip.backbone.attention import QKV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import NoAdapter
from kanoclip.heads.interaction import LinearInteraction
from kanoclip.heads.losses import NoKD, dice_loss, focal_loss, with_mask
from kanoclip.heads.prompts import EnsemblePrompts, Prompts
from kanoclip.heads.scoring import GlobalScore, smooth
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.models.remembering import enlarge
from kanoclip.types import Batch, Scores


class AprilGAN(KAnoCLIP):
    """Project the patches of each level of plain CLIP to hand-written prompts (APRIL-GAN).

    A component left null is the model's own; every one can be replaced by name, class path or object.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, levels 6, 12, 18 and 24, with
            GELU, as in its code, though the weights were trained with QuickGELU.
        prompts: Text features of the two states. null: hand-written, in APRIL-GAN's words.
        temperature: Divisor of the cosine, of global and local similarities alike.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; the paper has none.
        dice: Whether the loss takes Dice over the pixels of the batch, or of each image apart as its code.

    Reference:
        X. Chen et al., *APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR 2023 VAND
        Workshop Challenge*, arXiv 2305.17382, 2023, and its code. Where we differ: its linear layers take the tokens
        of the tower, before CLIP's last norm and projection, and start at random with a bias; ours act behind them
        and start as the identity without one. Probabilities are enlarged, not cosines, with pixel centres aligned and
        not corners. Maps are averaged over levels where it sums them, which ranks alike. Its mosaics of four images of
        MVTec AD are left out. Few-shot (``memory: patches``): its sum of levels is divided by 12, which brings it into
        [0, 1] and ranks alike; the highest pixel of the joined map is averaged with the global probability as it is,
        where its code first stretches it to [0, 1] over the tested images of the category.
    """

    name = "april_gan"
    own_attention = QKV
    own_prompts = EnsemblePrompts
    own_interaction = LinearInteraction
    own_adapter = NoAdapter
    own_score = GlobalScore
    own_kd_loss = NoKD

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        prompts: Prompts | None = None,
        temperature: float = 0.01,
        sigma: float = 0.0,
        dice: Literal["batch", "image"] = "image",
        **options: Any,
    ) -> None:
        prompts = prompts or EnsemblePrompts(wording="april_gan")
        backbone = backbone or CLIPBackbone(activation="gelu")
        super().__init__(backbone, prompts=prompts, temperature=temperature, sigma=sigma, dice=dice, **options)

    def join(self, heat: Tensor, score: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Join texts with distances as its code, which adds 1 - cosine, twice the distance, to the map of the texts."""
        pixels = enlarge(distance, self.image_size, align_corners=True)  # (B, H, W)
        heat = (heat + 2 * smooth(pixels, self.sigma)) / 3
        return heat, (score + heat.flatten(1).amax(1)) / 2

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the term ``local``, focal + Dice(anomalous) summed over levels; the global feature learns nothing."""
        maps = scores.level_maps
        assert maps is not None  # for the type checker: forward returns them
        maps, mask = with_mask(maps, batch)
        return {"local": self.weights["local"] * (focal_loss(maps, mask) + dice_loss(maps, mask, self.dice))}
