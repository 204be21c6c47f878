"""Scores without a trainer: images alone as a batch, and the model of a checkpoint."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from kanoclip.data.parsing import local_path
from kanoclip.models.checkpoint import read_checkpoint
from kanoclip.models.contents import SHOWN, CheckpointError, check_trust
from kanoclip.registry import load_class
from kanoclip.types import UNKNOWN, Batch, KanoclipError

BY_OPTIONS = "lightning.pytorch.cli.instantiate_module"
"""What builds a model from options as the command line keeps them."""


def batch_of(images: Tensor, category: str) -> Batch:
    """Return images of which no more is known than what they show as a batch.

    Args:
        images: ``(B, 3, H, W)`` float in [0, 1].
        category: What they show.

    Raises:
        KanoclipError: For a tensor of another shape or type.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise KanoclipError(
            f"The images are {tuple(images.shape)} of {images.dtype}, expected (B, 3, H, W) of floats in [0, 1]. For "
            f"photos of any kind use kanoclip.Inspector."
        )
    count, _, height, width = images.shape
    return Batch(
        image=images,
        mask=images.new_zeros((count, height, width), dtype=torch.uint8),
        label=torch.full((count,), UNKNOWN, device=images.device),
        has_mask=torch.zeros(count, dtype=torch.bool, device=images.device),
        size=torch.tensor([height, width], device=images.device).expand(count, 2),
        category=[category] * count,
        defect=[""] * count,
        path=[""] * count,
    )


def load_model(path: str | Path) -> Any:
    """Build the model that a checkpoint is of, with its heads, on the CPU.

    Raises:
        MissingError: If there is no such file.
        CheckpointError: If it is damaged, does not tell how its model was built, or names what is neither kanoclip's
            nor imported, see ``check_trust``.
    """
    file = local_path(path, "The checkpoint")
    _, options = read_checkpoint(file)
    if not options:
        raise CheckpointError(
            f"{path} is of a model that was built in Python, and does not tell of what parts. Load it by its class, "
            f"such as KAnoCLIP.load_from_checkpoint(path, backbone=...), and give that model."
        )
    check_trust(options, (), f"{path}")
    kind = load_class(options["class_path"])
    if not (isinstance(kind, type) and issubclass(kind, LightningModule)):
        raise CheckpointError(f"{path} is of {options['class_path'][:SHOWN]}, which is no model.")
    try:
        return kind.load_from_checkpoint(file, map_location="cpu", weights_only=True, _instantiator=BY_OPTIONS)
    except ArgumentError as error:
        why = " ".join(str(error).split())[:SHOWN]
        raise CheckpointError(f"{path} is damaged: its options are none that its model takes ({why}).") from error
