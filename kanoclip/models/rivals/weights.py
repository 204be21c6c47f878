"""Reading tensors out of the checkpoints that authors publish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kanoclip.types import KanoclipError


def published(content: Any, key: str, file: str, *shape: int | None) -> Tensor:
    """Return a tensor of a published checkpoint, float32 and without gradient.

    Args:
        content: What the file holds at that place: a state dict.
        key: Name of the tensor.
        file: Name of the file, for messages.
        *shape: Expected size of each dimension; None: any.

    Raises:
        KanoclipError: Naming the key that is missing or has another shape.
    """
    value = content.get(key) if isinstance(content, Mapping) else None
    wanted = ", ".join("*" if size is None else f"{size}" for size in shape)
    if not isinstance(value, Tensor):
        raise KanoclipError(f"{file} has no tensor {key!r}, expected one of shape ({wanted}). Give the authors' file.")
    fits = value.ndim == len(shape) and all(want in (None, has) for want, has in zip(shape, value.shape, strict=True))
    if not fits:
        raise KanoclipError(
            f"{file}: {key!r} has the shape {tuple(value.shape)}, expected ({wanted}). Give the authors' file."
        )
    return value.detach().float().cpu()
