"""Run what ``kanoclip export`` has written. torch is not imported, and nothing in a file is unpickled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kanoclip import __version__
from kanoclip.data.parsing import local_path, read_json
from kanoclip.metrics.calibration import Threshold
from kanoclip.types import KanoclipError, MissingError

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2"}
"""Name of a format -> suffix of its file."""
FORMAT = 1
"""Raised when what stands in a file beside the graph changes its meaning."""
ENTRY = "kanoclip"  # under which it stands there, as JSON
KINDS: dict[str, Any] = {"format": int, "category": str, "size": int, "scoring": dict, "threshold": (dict, type(None))}

Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Exported:
    """A model of one category as a graph; several threads may run it at once.

    Attributes:
        path: Its file.
        size: Height and width of the images that it takes, pixels.
        category: What it was exported for.
        scoring: What its scores depend on, see ``outputs.identity.scoring``.
        threshold: What was exported with it; None: nothing was.
        about: All that stands in the file beside the graph.
    """

    path: Path
    size: int
    category: str
    scoring: dict[str, Any] = field(repr=False)
    threshold: Threshold | None
    about: dict[str, Any] = field(repr=False)
    _run: Run = field(repr=False)

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score images.

        Args:
            images: ``(B, size, size, 3)`` uint8, RGB; resized as ``data.resizing`` does.

        Returns:
            Maps ``(B, size, size)`` and image scores ``(B,)``, both float32 in [0, 1].

        Raises:
            KanoclipError: For images of another shape or type.
        """
        expected = (self.size, self.size, 3)
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8:
            raise KanoclipError(
                f"{self.path} takes images (B, {self.size}, {self.size}, 3) of uint8, got {images.shape} of "
                f"{images.dtype}. kanoclip.Inspector takes photos of any kind."
            )
        return self._run(images)


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Open an exported model, to run on the CPU.

    Args:
        path: ``.onnx``, or ``.xml`` with its ``.bin`` beside it.

    Raises:
        MissingError: If there is no such file.
        KanoclipError: If it was not written by ``kanoclip export``, is damaged or of a newer version; if it is a
            ``.pt2``, which torch would unpickle; or if a package is missing.
    """
    file = local_path(os.fspath(path), "The exported model")
    if not file.is_file():
        raise MissingError(f"No exported model at {file}. Make one: kanoclip export --ckpt_path ... --output {file}")
    if file.suffix == SUFFIXES["torch_export"]:
        raise KanoclipError(
            f"{file}: torch.export.load unpickles what is in a file, so kanoclip opens none. Export to .onnx or .xml; "
            f"or call torch.export.load yourself if you trust the file."
        )
    readers = {SUFFIXES["onnx"]: (_onnx, "onnxruntime"), SUFFIXES["openvino"]: (_openvino, "openvino")}
    if file.suffix not in readers:
        raise KanoclipError(f"{file} is no exported model: expected a name that ends in {' or '.join(readers)}.")
    read, package = readers[file.suffix]
    require(package)
    try:
        text, size, run = read(file)
    except Exception as error:  # the runtimes raise many kinds, of what is in the file
        said = " ".join(str(error).split())[:200]
        raise KanoclipError(f"{file} is damaged, or no model that {package} runs ({said}). Export it anew.") from error
    about = _about(file, text, size)
    given = about["threshold"]
    threshold = None if given is None else Threshold(given["image"], given["pixel"], given["min_area"])
    return Exported(file, about["size"], about["category"], about["scoring"], threshold, about, run)


def require(*packages: str) -> None:
    """Raise KanoclipError for the first package that is not installed, with what to type."""
    for name in packages:
        if find_spec(name) is None:
            raise KanoclipError(f"{name} is not installed. Type: pip install 'kanoclip[export]'")


def import_openvino() -> Any:
    """Import OpenVINO without what reports each import to a server, which it can do without.

    Raises:
        KanoclipError: If it is not installed.
    """
    require("openvino")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    import openvino

    return openvino


def _about(file: Path, text: str | None, size: int) -> dict[str, Any]:
    """Read what stands beside the graph, which takes images of a size."""
    try:
        about = read_json(text) if text else None
    except ValueError:
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise KanoclipError(f"{file} was not written by kanoclip export. Make one: kanoclip export --ckpt_path ...")
    if about["format"] > FORMAT:
        raise KanoclipError(
            f"{file} has format {about['format']} of exported models, and kanoclip {__version__} reads up to {FORMAT}. "
            f"Install a newer one: pip install --upgrade kanoclip."
        )
    given = about.get("threshold")
    decides = given is None or (
        isinstance(given, dict)
        and set(given) == set(Threshold._fields)
        and all(_is_share(given[name]) or (name, given[name]) == ("pixel", None) for name in given)
    )
    whole = all(isinstance(about.get(key), kind) for key, kind in KINDS.items())
    if not (whole and decides and about["size"] == size):
        raise KanoclipError(f"{file} is damaged: what kanoclip export writes beside the graph is not whole.")
    return about


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1  # NaN is not


def _onnx(file: Path) -> tuple[str | None, int, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone: it warns of each constant that it folds
    session = onnxruntime.InferenceSession(f"{file}", options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        maps, scores = session.run(["anomaly_map", "image_score"], {"image": images})
        return maps, scores

    return session.get_modelmeta().custom_metadata_map.get(ENTRY), session.get_inputs()[0].shape[1], run


def _openvino(file: Path) -> tuple[str | None, int, Run]:
    core = import_openvino().Core()
    model = core.read_model(file)
    text = model.get_rt_info([ENTRY]).astype(str) if model.has_rt_info([ENTRY]) else None
    # on some processors it would choose bfloat16 by itself
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = compiled.create_infer_request().infer({"image": images})  # a request is for one thread
        return np.array(found["anomaly_map"]), np.array(found["image_score"])

    return text, model.input("image").get_partial_shape()[1].get_length(), run
