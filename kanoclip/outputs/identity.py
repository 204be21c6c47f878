"""What a result depends on: what is told of a run, and the identity made of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from kanoclip import __version__
from kanoclip.data.files import plain, sha256
from kanoclip.data.references import References
from kanoclip.models.checkpoint import FREE, HEADS, backbone_of, own_files, settings
from kanoclip.types import printable

RESULTS_VERSION = 3
"""Raised when a change of the code moves numbers; a test with golden results fails until it is."""
LIBRARIES = ("torch", "lightning", "open_clip_torch", "torchmetrics", "albumentations")
OF_MASKS = ("mask_threshold", "mask_values")


def about_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Say what a run's scores depend on: model, checkpoint, options, precision and versions."""
    data: Any = getattr(trainer, "datamodule", None)
    return about_model(pl_module, trainer.ckpt_path, str(trainer.precision)) | {
        "data": getattr(data, "identity", "unnamed data"),
        "data_seed": getattr(data, "seed", None),
        "pixels": plain(data.pixel_options()) if hasattr(data, "pixel_options") else None,
        "options": plain({"model": _options(pl_module), "data": _settings(data)}),
    }


def about_model(model: Any, checkpoint: str | os.PathLike[str] | None, precision: str) -> dict[str, Any]:
    """Say what a model's scores depend on beside images and how they are read.

    Args:
        model: An ``AnomalyModule``, or another LightningModule, of which less is known.
        checkpoint: File that its heads are from; None for heads without a fit, or not from a file.
        precision: As ``Trainer.precision`` says it.
    """
    path = os.fspath(checkpoint) if checkpoint else ""
    return {
        "model": getattr(model, "name", "") or type(model).__name__,
        "auxiliary": getattr(model, "auxiliary", None),
        "references": few.told if (few := references_of(model)) else None,
        "components": getattr(model, "describe_components", dict)(),
        "checkpoint": {"path": path, "sha256": sha256(path)} if os.path.isfile(path) else None,
        "backbone": backbone_of(model)["fingerprint"],
        "seed": getattr(model, "fit_seed", None),
        "precision": precision,
        "settings": settings(model, free=True) if hasattr(model, "describe_components") else {},
        "knowledge": own_files(model),
        "of_score": list(getattr(model, "of_score", ())),
        "results_version": RESULTS_VERSION,
        "versions": {"kanoclip": __version__, "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
    }


def done_without(about: Mapping[str, Any]) -> list[str]:
    """Return the files of knowledge of images that a fit looked for and did not find, from a report or checkpoint."""
    return [printable(name) for name, content in (about.get("knowledge") or {}).items() if content is None]


def references_of(model: Any) -> References | None:
    """Return the reference images of a model; None for one without a memory of them."""
    found: References | None = getattr(getattr(model, "memory", None), "chosen", None)
    return found


def scoring(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the score of an image depends on beside the image.

    That is the model and its weights (the checkpoint's content, or without one the backbone's), its heads and score,
    the precision, how an image's pixels are read, and ``RESULTS_VERSION``; not paths, the batch size or the device. A
    threshold is good for equal scoring alone.

    Args:
        about: As ``about_run`` returns it.

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


def _options(model: LightningModule) -> dict[str, Any]:
    return {name: value for name, value in model.hparams.items() if name != "_instantiator"}  # LightningCLI's own


def _settings(data: Any) -> dict[str, Any]:
    simple, given = (bool, int, float, str, list, tuple, type(None)), vars(data) if data else {}
    own = {"unreadable", "left_out", *vars(LightningDataModule())}  # what is no option
    found = {k: v for k, v in given.items() if not k.startswith("_") and k not in own and isinstance(v, simple)}
    return {"class_path": f"{type(data).__module__}.{type(data).__qualname__}", **found}
