"""Write a model as a graph that runs without kanoclip and torch: pixels in, anomaly map and image score out."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from kanoclip import __version__
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks, NoTuning
from kanoclip.data.files import plain, whole_files
from kanoclip.heads.prompts import Prompts
from kanoclip.models.base import AnomalyModule
from kanoclip.outputs.exported import ENTRY, FORMAT, Exported, import_openvino, require
from kanoclip.outputs.identity import about_model, scoring
from kanoclip.types import UNKNOWN, Batch, Features, KanoclipError

OPSET = 18  # of ONNX; runtimes of the last years read it
ONE_FILE = 1_900_000_000  # bytes: protobuf holds 2 GB
SMALL = 1024  # numbers: norms, biases and the mean of colours take no space worth an error
RESIZE = "squeeze to a square, bicubic with antialias, as Pillow's Image.resize"


class _States(Prompts):
    """The states of one category, for images of it alone."""

    learns = False

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states  # (1, 2, D)

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return them once for all images: what follows broadcasts over the batch."""
        return self.states


class Frozen(nn.Module):
    """A model for images of one category: what is exported. The model itself is put into eval mode.

    Its prompts are encoded once, and the text encoder is left out.

    Args:
        model: On the CPU.
        category: What the images show.
        half: Whether to keep large weights as float16; what is computed stays float32.

    Raises:
        KanoclipError: If its texts are encoded for each image anew, or are those of kinds of defect.

    Shapes:
        RGB ``(B, S, S, 3)`` uint8 -> anomaly maps ``(B, S, S)`` and image scores ``(B,)``, both float32.
    """

    def __init__(self, model: AnomalyModule, category: str, half: bool = False) -> None:
        super().__init__()
        if getattr(model, "defect_names", ()):
            raise KanoclipError(
                f"{model.name} cannot be exported: it tells kinds of defect apart by their texts, and an exported "
                f"model has those of two states. Use kanoclip predict."
            )
        twin = _with_own_modules(model.eval())
        backbone, prompts = getattr(model, "backbone", None), getattr(model, "prompts", None)
        if isinstance(backbone, CLIPBackbone) and isinstance(prompts, Prompts):
            tuning = getattr(model, "tuning", NoTuning())
            if tuning.in_text and tuning.needs_features:
                raise KanoclipError(
                    f"{model.name} cannot be exported: its {type(tuning).__name__} encodes the texts for each image "
                    f"anew, and the text encoder is left out of an export. Use kanoclip predict."
                )
            with torch.no_grad():
                twin.prompts = _States(prompts([category], backbone, hooks=tuning.text(None)).float())
            twin.backbone = _with_own_modules(backbone)
            twin.backbone.text = None
        self._twin = (twin,)  # not a part: what it computes with are the weights below
        self._category = category
        self._names = []
        tensors = [*twin.named_parameters(), *twin.named_buffers()]
        for number, (name, tensor) in enumerate(tensors):
            rounded = half and tensor.is_floating_point() and tensor.numel() > SMALL
            self.register_buffer(f"weight_{number}", tensor.detach().half() if rounded else tensor.detach())
            self._names.append(name)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score images."""
        kept = (getattr(self, f"weight_{number}") for number in range(len(self._names)))
        weights = {k: w.float() if w.is_floating_point() else w for k, w in zip(self._names, kept, strict=True)}
        none = image.new_zeros(0)
        batch = Batch(
            image=image.permute(0, 3, 1, 2).float() / 255,
            mask=none,
            label=none.long() + UNKNOWN,
            has_mask=none.bool(),
            size=none.long(),
            category=[self._category],
            defect=[""],
            path=[""],
        )
        scores = functional_call(self._twin[0], weights, (batch,))
        return scores.anomaly_map.float(), scores.image_score.float()


def describe(model: AnomalyModule, checkpoint: str | Path | None, category: str, half: bool) -> dict[str, Any]:
    """Return what stands in a file beside the graph, but for a threshold.

    Args:
        model: As exported.
        checkpoint: That its heads are from; None: none.
        category: What the images show.
        half: As in ``Frozen``.
    """
    precision = "32-true, weights 16" if half else "32-true"
    pixels = {"image_size": model.image_size, "tile": False}
    return {
        "format": FORMAT,
        "version": __version__,
        "model": model.name,
        "category": category,
        "size": model.image_size,
        "resize": RESIZE,
        "scoring": plain(scoring(about_model(model, checkpoint, precision) | {"pixels": pixels})),
        "threshold": None,
    }


def check_packages(kind: str) -> None:
    """Raise KanoclipError if a package that writes a format is not installed."""
    require(*{"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}.get(kind, ()))


def write_exported(frozen: Frozen, kind: str, output: Path, about: dict[str, Any]) -> None:
    """Export a model; the file, and those beside it that it needs, appear when they are whole.

    Args:
        frozen: What to export.
        kind: ``onnx``, ``openvino`` or ``torch_export``.
        output: File with the suffix of the format.
        about: Kept in it as JSON.

    Raises:
        CannotWriteError: If it cannot be written.
    """
    text, side = json.dumps(about, allow_nan=False), about["size"]
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with whole_files(output) as path, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own code
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(frozen, (example,), dynamic_shapes=({0: batch},), strict=False)
        if kind == "torch_export":
            torch.export.save(program, path, extra_files={ENTRY: text})
        elif kind == "onnx":
            _write_onnx(program, path, text)
        else:
            _write_openvino(program, path, text, half=any(one.dtype == torch.float16 for one in frozen.buffers()))


def _write_onnx(program: Any, path: Path, text: str) -> None:
    written = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["anomaly_map", "image_score"],
        verbose=False,
    )
    assert written is not None  # for the type checker: dynamo returns one
    written.model.metadata_props[ENTRY] = text
    size = sum(one.nbytes for one in program.state_dict.values())
    written.save(path, external_data=size > ONE_FILE)


def _write_openvino(program: Any, path: Path, text: str, half: bool) -> None:
    openvino = import_openvino()
    with TemporaryDirectory(dir=path.parent) as folder:
        between = Path(folder, "model.onnx")
        _write_onnx(program, between, text)
        model = openvino.Core().read_model(between)
        model.set_rt_info(text, [ENTRY])
        openvino.save_model(model, path, compress_to_fp16=half)


def _with_own_modules(module: Any) -> Any:
    """Return a module that shares the weights of another, whose parts can be replaced."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def largest_difference(frozen: Frozen, exported: Exported) -> float:
    """Return how far maps and scores of an exported model are at most from torch's, on three images of noise."""
    side = exported.size
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    with torch.no_grad():
        theirs = frozen(torch.from_numpy(images))
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(exported.run(images), theirs, strict=True))
