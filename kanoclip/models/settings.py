"""What a model was made with, as plain values: a checkpoint that tells it loads without unpickling."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import nn

TRAINED_WITH = ("attention", "prompts", "interaction", "adapter")  # no head depends on score and kd_loss
SIMPLE = (bool, int, float, str, type(None))


def settings_of(component: nn.Module) -> dict[str, Any]:
    """Return the public attributes of a component that are neither weights nor modules."""
    return {name: value for name, value in vars(component).items() if name[0] != "_" and name != "training"}


def trained_with(model: nn.Module) -> dict[str, Any]:
    """Return what heads depend on besides weights and classes, as far as it is numbers and texts, or lists of them."""
    parts = {kind: settings_of(getattr(model, kind)) for kind in TRAINED_WITH if hasattr(model, kind)}
    parts["backbone"] = getattr(getattr(model, "backbone", None), "settings", {})
    found = {f"{kind}.{name}": plain(value) for kind, part in parts.items() for name, value in part.items()}
    found["temperature"] = plain(getattr(model, "temperature", None))
    return {k: v for k, v in found.items() if all(type(one) in SIMPLE for one in (v if isinstance(v, list) else [v]))}


def plain(value: Any) -> Any:
    """Turn NumPy's numbers, paths and tuples into Python's numbers, texts and lists; all else stays as it is."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
