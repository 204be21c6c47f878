"""WinCLIP: windows of the image against hand-written prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.windows import encode_patches, encode_windows
from kanoclip.heads.memory import Memory, NoMemory, Vectors
from kanoclip.heads.prompts import EnsemblePrompts
from kanoclip.heads.scoring import GlobalScore, Score, check_temperature, dot, harmonic_mean, window_map
from kanoclip.models.remembering import WithMemory, average, enlarge
from kanoclip.types import ANOMALOUS, Batch, KanoclipError, Scores


class WinCLIP(WithMemory):
    """Compare windows of the image with hand-written prompts and, few-shot, with good images (WinCLIP); learns nothing.

    Every window of 2 x 2 and of 3 x 3 patches, and the image as the largest window, is encoded on its own. A patch
    gets the harmonic mean of the windows of a size that cover it, then that of the sizes. With a memory, patches and
    windows are compared with those of good images as well: the mean of the sizes is averaged with the map of the texts,
    and its highest patch with the score.

    Args:
        backbone: Frozen CLIP. null: ViT-B-16-plus-240 with the weights of LAION-400M at 240 pixels. Its levels play
            no part.
        prompts: Hand-written text features of the two states. null: in WinCLIP's words.
        score: How the image score is made of the image's own probability and the map.
        windows: Sides of the windows in patches, each smaller than the grid.
        temperature: Divisor of the cosine.
        memory: Good images, of which patches and windows are remembered. null: zero-shot.

    Raises:
        KanoclipError: If a window is not at least 1 patch and smaller than the grid.

    Reference:
        J. Jeong et al., *WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation*, CVPR 2023. It has no public
        code. As in anomalib the temperature is 0.07, and the map is enlarged bilinearly and not blurred. A picture that
        is not square is squeezed; ``--data.tile true`` cuts it into tiles instead. Where anomalib differs: it averages
        the texts of a state before they have unit length, ours after; it names a category as its folder, ours in words;
        one of its templates is there twice, ours are 22 different ones. Few-shot as there, given
        the same references; caoyunkang/WinClip, the other public code, remembers windows alone and joins the maps of
        texts and of references by their harmonic mean.
    """

    name = "winclip"

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        prompts: EnsemblePrompts | None = None,
        score: Score | None = None,
        windows: tuple[int, ...] = (2, 3),
        temperature: float = 0.07,
        memory: Memory | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.save_hyperparameters(logger=False, ignore=["backbone", "prompts", "score", "memory"])
        self.backbone = backbone or CLIPBackbone("ViT-B-16-plus-240", "laion400m_e31", 240)
        if self.backbone.rotary:
            raise KanoclipError(
                f"The windows of winclip keep their places in the image, but {self.backbone.description} has rotary "
                f"positions of the whole grid. Use another --model.backbone, such as clip with ViT-B-16."
            )
        self.prompts = prompts or EnsemblePrompts(wording="winclip")
        self.prompts.build(self.backbone)
        self.score = score or GlobalScore()
        self.memory = memory or NoMemory()
        self.image_size = self.backbone.image_size
        self.temperature = temperature
        self.side = self.image_size // self.backbone.patch_size
        if not windows or not all(1 <= size < self.side for size in windows):
            raise KanoclipError(
                f"windows are {list(windows)}, but the image has {self.side} x {self.side} patches: expected sides "
                f"from 1 to {self.side - 1}. Use --model.windows '[2, 3]', or a larger --model.backbone.image_size."
            )
        self.windows = tuple(windows)

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges."""
        sizes = (self.side, *self.windows)  # the image is the largest window
        states = self.prompts(batch.category, self.backbone)  # (B, 2, D)
        windows = encode_windows(self.backbone, batch.image, sizes)  # (B, W, D) of each size
        anomalous = [
            (dot(one[:, :, None], states[:, None]) / self.temperature).softmax(-1)[..., ANOMALOUS] for one in windows
        ]  # (B, W) of each size
        heat = harmonic_mean(self._maps(anomalous, sizes))  # (B, h, w)
        heat = enlarge(heat, self.image_size)  # (B, H, W)
        score = self.score(anomalous[0][:, 0], heat)
        if not isinstance(self.memory, NoMemory):
            vectors = [encode_patches(self.backbone, batch.image), *windows[1:]]
            distances = self.memory.distances(vectors, batch.category)
            assert distances is not None  # for the type checker: something is remembered
            distance = self._maps(distances, (1, *self.windows)).mean(0)  # (B, h, w)
            heat, score = average(heat, score, distance)
        return Scores(heat, score)

    def vectors(self, batch: Batch) -> Vectors:
        """Return what is remembered: patches ``(B, N, width)`` and the windows of each size ``(B, W, D)``."""
        return [encode_patches(self.backbone, batch.image), *encode_windows(self.backbone, batch.image, self.windows)]

    def _maps(self, values: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """Lay out values ``(B, W)`` of windows of several sizes: ``(L, B, h, w)``."""
        grid = (self.side, self.side)
        return torch.stack([window_map(one, grid, size) for one, size in zip(values, sizes, strict=True)])

    @classmethod
    def learns(cls, options: Mapping[str, Any]) -> bool | None:
        """It learns nothing."""
        return False

    def describe_components(self) -> dict[str, str]:
        """Name the class of each component."""
        kinds = ("prompts", "score") if isinstance(self.memory, NoMemory) else ("prompts", "score", "memory")
        return {"backbone": self.backbone.description} | {kind: type(getattr(self, kind)).__name__ for kind in kinds}
