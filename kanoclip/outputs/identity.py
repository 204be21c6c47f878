"""What a result depends on: all of it, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kanoclip.models.checkpoint import FREE, HEADS

RESULTS_VERSION = 3
"""Raised when a change of the code moves numbers; a test with golden results fails until it is."""
OF_MASKS = ("mask_threshold", "mask_values")


def scoring(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the score of an image depends on beside the image.

    That is the model and its weights (the checkpoint's content, or without one the backbone's), its heads and score,
    the precision, how an image's pixels are read, and ``RESULTS_VERSION``; not paths, the batch size or the device. A
    threshold is good for equal scoring alone.

    Args:
        about: As ``results.about_run`` returns it.

    Returns:
        Plain values by name.
    """
    checkpoint, pixels = about["checkpoint"], about["pixels"] or {}
    names = (*HEADS, *FREE, *about.get("of_score", ()))
    return {
        "model": about["model"],
        "weights": checkpoint["sha256"] if checkpoint else about["backbone"],
        "components": about["components"],
        "settings": {k: v for k, v in about["settings"].items() if k.partition(".")[0] in names},
        "precision": about["precision"],
        "pixels": {name: value for name, value in pixels.items() if name not in OF_MASKS},
        "results_version": about["results_version"],
    }


def identity(report: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of all that the numbers of a test depend on, and of nothing else.

    That is what a score depends on (``scoring``), the content of the samples, how their masks are read, and how many
    were tested.
    """
    fields = [*scoring(report).values(), report["pixels"], report["images"], report["samples"]]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
