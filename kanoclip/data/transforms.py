"""Albumentations pipelines: one geometry for image and mask. Import late: Albumentations takes seconds to import."""

from __future__ import annotations

import os
import random
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # read while it is imported; otherwise it asks the network for a newer one

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


class AntialiasedResize(A.DualTransform):
    """Resize to a square as CLIP does: bicubic with antialiasing for the image, nearest for the mask.

    OpenCV's bicubic, Albumentations' own way, does not low-pass before it shrinks, and its nearest is half a pixel off.

    Args:
        size: Side of the square, pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__(p=1)
        self.size = size

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Resize an ``(H, W, 3)`` image."""
        return self._resize(img, Image.Resampling.BICUBIC)

    def apply_to_mask(self, mask: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Resize an ``(H, W)`` mask."""
        return self._resize(mask, Image.Resampling.NEAREST)

    def _resize(self, pixels: NDArray[np.uint8], method: Image.Resampling) -> NDArray[np.uint8]:
        return np.array(Image.fromarray(pixels).resize((self.size, self.size), method))

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Names of the settings, for Albumentations' printing."""
        return ("size",)


class Transform:
    """Bring image and mask to the model's size, and vary them when training.

    Augmentation is one of the eight flips and quarter turns, then sometimes mild colour and blur. It depends on the
    seed of the call alone, so it is the same whatever the number of workers and the order of images.

    Args:
        size: Side of the square that comes out, pixels.
        augment: Vary the image.
    """

    def __init__(self, size: int, augment: bool = False) -> None:
        self.size = size
        variation: list[A.BasicTransform] = [
            A.D4(p=1),
            A.ColorJitter(brightness=(0.9, 1.1), contrast=(0.9, 1.1), saturation=(0.9, 1.1), hue=(-0.02, 0.02), p=0.5),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.2, 0.8), p=0.2),
        ]
        self.pipeline = A.Compose([AntialiasedResize(size), *(variation if augment else [])])

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Transform one pair.

        Args:
            image: ``(H, W, 3)`` RGB, 0-255.
            mask: ``(H, W)``, 0/1. None: all normal.
            seed: Of this call's augmentation.

        Returns:
            ``(3, size, size)`` float32 in [0, 1] and ``(size, size)`` uint8, 0/1.
        """
        # One generator for the whole pipeline. `set_random_seed` would give each step its own copy of the same stream,
        # and then one number decides every step: all that is turned would be blurred too.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        mask = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
        varied = self.pipeline(image=image, mask=mask)
        pixels = torch.from_numpy(np.ascontiguousarray(varied["image"].transpose(2, 0, 1)))  # (3, size, size)
        return pixels.float() / 255, torch.from_numpy(np.ascontiguousarray(varied["mask"]))
