"""Rivals from the literature, each a choice of components; what they publish beside it is in ``configs/rivals``.

AdaCLIP (ECCV 2024) is not among them: it learns tokens inside the image tower, some of them made from the image at
hand, so gradients would have to pass a tower that is frozen here and whose features can be kept.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.adapter import NoAdapter
from kanoclip.backbone.attention import QKV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.windows import encode_windows
from kanoclip.interaction import LinearInteraction, NoInteraction
from kanoclip.losses import NoKD, dice_loss, focal_loss, with_mask
from kanoclip.models.base import AnomalyModule
from kanoclip.models.kanoclip import KAnoCLIP
from kanoclip.prompts import EnsemblePrompts, ObjectAgnosticPrompts, Prompts
from kanoclip.scoring import GlobalScore, Score, harmonic_mean, window_map
from kanoclip.types import ANOMALOUS, Batch, Scores


class WinCLIP(AnomalyModule):
    """Compare windows of the image with hand-written prompts (WinCLIP, zero-shot); learns nothing.

    Every window of 2 x 2 and of 3 x 3 patches, and the image as the largest window, is encoded on its own. A patch
    gets the harmonic mean of the windows of a size that cover it, then that of the sizes.

    Args:
        backbone: Frozen CLIP. null: ViT-B-16-plus-240 with the weights of LAION-400M at 240 pixels. Its levels play
            no part.
        prompts: Hand-written text features of the two states. null: in WinCLIP's words.
        score: How the image score is made of the image's own probability and the map.
        windows: Sides of the windows in patches, each smaller than the grid.
        temperature: Divisor of the cosine.

    Raises:
        ValueError: If a window is not at least 1 patch and smaller than the grid.

    Reference:
        J. Jeong et al., *WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation*, CVPR 2023. It has no public
        code. Where we differ: the temperature is 0.07 as in anomalib, the map is enlarged bilinearly and then scored
        without blur, and a picture that is not square is cut into tiles as for every model here. Zero-shot alone.
    """

    name = "winclip"

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        prompts: EnsemblePrompts | None = None,
        score: Score | None = None,
        windows: tuple[int, ...] = (2, 3),
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["backbone", "prompts", "score"])
        self.backbone = backbone or CLIPBackbone("ViT-B-16-plus-240", "laion400m_e31", 240)
        self.prompts = prompts or EnsemblePrompts(wording="winclip")
        self.prompts.build(self.backbone)
        self.score = score or GlobalScore()
        self.image_size = self.backbone.image_size
        self.temperature = temperature
        self.side = self.image_size // self.backbone.patch_size
        if not windows or not all(1 <= size < self.side for size in windows):
            raise ValueError(
                f"windows are {list(windows)}, but the image has {self.side} x {self.side} patches: expected sides "
                f"from 1 to {self.side - 1}. Use --model.windows '[2, 3]', or a larger --model.backbone.image_size."
            )
        self.windows = tuple(windows)

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges."""
        sizes = (self.side, *self.windows)  # the image is the largest window
        states = self.prompts(batch.category, self.backbone)  # (B, 2, D)
        windows = encode_windows(self.backbone, batch.image, sizes)  # (B, W, D) of each size
        with torch.autocast(states.device.type, enabled=False):  # it would round until images tie
            anomalous = [(one @ states.mT / self.temperature).softmax(-1)[..., ANOMALOUS] for one in windows]  # (B, W)
        grid = (self.side, self.side)
        maps = [window_map(one, grid, size) for one, size in zip(anomalous, sizes, strict=True)]  # (B, h, w)
        heat = harmonic_mean(torch.stack(maps))
        heat = F.interpolate(heat[:, None], size=(self.image_size,) * 2, mode="bilinear")[:, 0]  # (B, H, W)
        return Scores(heat, self.score(anomalous[0][:, 0], heat))

    def describe_components(self) -> dict[str, str]:
        """Name the class of each component."""
        kinds = ("prompts", "score")
        return {"backbone": self.backbone.description} | {kind: type(getattr(self, kind)).__name__ for kind in kinds}


class AprilGAN(KAnoCLIP):
    """Project the patches of each level of plain CLIP to hand-written prompts (APRIL-GAN, zero-shot).

    A component left null is the model's own; every one can be replaced by name, class path or object.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, levels 6, 12, 18 and 24.
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
        MVTec AD are left out. Zero-shot alone.
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
        super().__init__(backbone, prompts=prompts, temperature=temperature, sigma=sigma, dice=dice, **options)

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the term ``local``, focal + Dice(anomalous) summed over levels; the global feature learns nothing."""
        maps = scores.level_maps
        assert maps is not None  # for the type checker: forward returns them
        maps, mask = with_mask(maps, batch)
        return {"local": self.weights["local"] * (focal_loss(maps, mask) + dice_loss(maps, mask, self.dice))}


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
        masks are resized to stay 0 or 1; the text encoder runs at the precision of the trainer, not at half.
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
