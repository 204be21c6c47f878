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
from torch import Tensor

from kanoclip.data.resizing import Box, Tile, resize, shape_of


class AntialiasedResize(A.DualTransform):
    """Resize as CLIP does, see ``resizing.resize``, and not as Albumentations would, by OpenCV.

    Args:
        size: Side of the square that the model takes, pixels.
        tile: The shape of what comes out, see ``shape_of``.
        crop: Whether only a square comes out, from anywhere in that shape, all places being equally likely.
    """

    def __init__(self, size: int, tile: Tile = False, crop: bool = False) -> None:
        super().__init__(p=1)
        self.size = size
        self.tile = tile
        self.crop = crop

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Choose what to resize, and to which size; a square picture draws no random number for it."""
        height, width = params["shape"][:2]
        tall, wide = shape_of(height, width, self.size, self.tile)
        if not self.crop:
            return {"to": (wide, tall), "box": (0, 0, width, height)}
        top, left = (self.py_random.randint(0, side - self.size) if side > self.size else 0 for side in (tall, wide))
        right, bottom = (left + self.size) * width / wide, (top + self.size) * height / tall
        return {"to": (self.size, self.size), "box": (left * width / wide, top * height / tall, right, bottom)}

    def apply(self, img: NDArray[np.uint8], to: tuple[int, int], box: Box, **params: Any) -> NDArray[np.uint8]:
        """Resize an ``(H, W, 3)`` image."""
        return resize(img, to[::-1], box)

    def apply_to_mask(self, mask: NDArray[np.uint8], to: tuple[int, int], box: Box, **params: Any) -> NDArray[np.uint8]:
        """Resize an ``(H, W)`` mask."""
        return resize(mask, to[::-1], box, nearest=True)


class Transform:
    """Bring image and mask to the model's size, and vary them when training.

    Augmentation is one of the eight flips and quarter turns, then sometimes mild colour and blur. It depends on the
    seed of the call alone, so it is the same whatever the number of workers and the order of images.

    Args:
        size: Side of the square that the model takes, pixels.
        augment: Vary the image.
        tile: The shape of what comes out, see ``shape_of``.
        crop: Whether only a random square of it comes out.
    """

    def __init__(self, size: int, augment: bool = False, tile: Tile = False, crop: bool = False) -> None:
        self.size = size
        variation: list[A.BasicTransform] = [
            A.D4(p=1),
            A.ColorJitter(brightness=(0.9, 1.1), contrast=(0.9, 1.1), saturation=(0.9, 1.1), hue=(-0.02, 0.02), p=0.5),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.2, 0.8), p=0.2),
        ]
        self.pipeline = A.Compose([AntialiasedResize(size, tile, crop), *(variation if augment else [])])

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Transform one pair.

        Args:
            image: ``(H, W, 3)`` RGB, 0-255.
            mask: ``(H, W)``, 0/1. None: all normal.
            seed: Of this call's augmentation and crop.

        Returns:
            ``(3, size, size)`` float32 in [0, 1] and ``(size, size)`` uint8, 0/1; larger than ``size`` with ``tile``.
        """
        # One generator for the whole pipeline. `set_random_seed` would give each step its own copy of the same stream,
        # and then one number decides every step: all that is turned would be blurred too.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        mask = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
        varied = self.pipeline(image=image, mask=mask)
        pixels = torch.from_numpy(np.ascontiguousarray(varied["image"].transpose(2, 0, 1)))  # (3, H, W)
        return pixels.float() / 255, torch.from_numpy(np.ascontiguousarray(varied["mask"]))
