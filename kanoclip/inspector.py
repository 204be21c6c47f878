"""The method as a Python call: photos in; score, map, decision and regions out. torch is imported if it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL.Image import Image

from kanoclip.data.images import image_of, read_image
from kanoclip.data.parsing import local_path
from kanoclip.data.resizing import Tile, resize, shape_of
from kanoclip.metrics.calibration import Threshold
from kanoclip.outputs.exported import SUFFIXES, load_exported
from kanoclip.outputs.finding import Finding, finding
from kanoclip.registry import NAMES
from kanoclip.types import KanoclipError


class Inspector:
    """Find and mark anomalies in photos, with the numbers of ``kanoclip predict``.

    One inspector may be called by several threads at once.

    Args:
        source: A checkpoint, such as ``runs/fit/.../last.ckpt``; a model, which is moved to the device and stays in
            eval mode; or a file of ``kanoclip export`` (``.onnx``, ``.xml``).
        threshold: Where "good" ends: a file of ``kanoclip calibrate``, which must be of this model, its weights and
            ``tile``; a score from 0 to 1; a ``Threshold`` or ``Thresholds``. None: that of an exported model, if it
            has one; else nothing is decided.
        device: "auto" for a GPU if there is one, or as torch names it. An exported model runs on the CPU.
        category: What the photos show, for prompts that name it and for its threshold; "" if it is not known.
        tile: Keep the shape or scale of pictures, see ``AnomalyDataModule``. Not with an exported model.
        batch_size: Images, or with ``tile`` squares of one, that are scored together.

    Attributes:
        scoring: What its scores depend on; a threshold is good for equal scoring alone.

    Raises:
        KanoclipError: For a source, threshold, device or option that does not do, as on the command line.
        MissingError: If there is no such file.

    Example:
        >>> from kanoclip.models.baselines import LocalStats
        >>> inspector = Inspector(LocalStats(), threshold=0.5)
        >>> found = inspector(np.full((60, 80, 3), 200, np.uint8))
        >>> found.decision, found.anomaly_map.shape
        ('good', (60, 80))
    """

    def __init__(
        self,
        source: Any,
        *,
        threshold: Any = None,
        device: str = "auto",
        category: str = "",
        tile: Tile = False,
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise KanoclipError(f"batch_size is {batch_size}, expected 1 or more.")
        if not (isinstance(tile, bool) or tile == "native" or (isinstance(tile, int) and tile >= 16)):
            raise KanoclipError(f"tile is {tile!r}, expected True, False, 'native', or 16 pixels or more.")
        self.tile, self.batch_size = tile, batch_size
        self._model: Any
        self._exported = isinstance(source, (str, Path)) and Path(source).suffix.lower() in SUFFIXES.values()
        if self._exported:
            if tile or device not in ("auto", "cpu"):
                raise KanoclipError("An exported model takes squares on the CPU: leave out tile and device.")
            self._model = load_exported(source)
        elif isinstance(source, str) and source in NAMES["model"]:
            module, _, name = NAMES["model"][source].rpartition(".")
            raise KanoclipError(
                f"{source} is the name of a model: from {module} import {name}; Inspector({name}(...))."
            )
        else:
            from kanoclip.outputs.scorer import ModelScorer

            self._model = ModelScorer(source, device, tile, batch_size)
        self.scoring: dict[str, Any] = self._model.scoring
        self._threshold: Threshold | None = self._model.threshold if self._exported else None
        self._thresholds: Any = None
        if isinstance(threshold, Threshold):
            self._threshold = threshold
        elif threshold is not None:
            from kanoclip.outputs.thresholds import Thresholds

            given = isinstance(threshold, Thresholds)
            self._thresholds = threshold if given else Thresholds.load(threshold, "threshold")
            self._thresholds.check(self.scoring)
        self.category = self._known(category)
        self._limit(self.category)  # a mistake is told now

    @classmethod
    def from_hub(cls, name: str, **options: Any) -> Inspector:
        """Load a fit that was shared by ``kanoclip push``, with its threshold if it has one.

        Args:
            name: ``OWNER/NAME`` on the Hugging Face Hub, ``OWNER/NAME@REVISION``, or ``file:FOLDER``.
            options: As an ``Inspector`` takes them; a ``threshold`` among them counts instead.

        Raises:
            KanoclipError: If the name is none, the fit is damaged, or the hub cannot be reached; says what to do.
            MissingError: If there is no such repository, revision or folder.
        """
        from kanoclip.outputs.hub import fetch, is_shared

        shared = fetch(name if is_shared(name) else f"hub:{name}")
        return cls(shared.checkpoint, **{"threshold": shared.threshold, **options})

    @overload
    def __call__(self, images: str | Path | Image, category: str = "") -> Finding: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], category: str = "") -> list[Finding]: ...
    @overload
    def __call__(self, images: Any, category: str = "") -> Any: ...

    def __call__(self, images: Any, category: str = "") -> Any:
        """Inspect one photo, or several.

        What is in memory is taken as ``read_image`` takes a file: what is transparent is shown on white, more than 8
        bits are scaled by the bit depth that holds them, floats in [0, 1] by 255.

        Args:
            images: A path; a Pillow image of any mode, turned as its EXIF says; an array ``(H, W)``, ``(H, W, 3)`` or
                ``(H, W, 4)``; a tensor of such a shape or with its channels first, ``(C, H, W)``. Or several: a list
                or tuple of any of these, or an array or tensor of one dimension more.
            category: What they show; "": as the inspector was told.

        Returns:
            What was found on the photo; of several, a list in their order, empty for none.

        Raises:
            KanoclipError: If an image cannot be read or its scores are NaN or infinite. It names the path or index;
                of the others nothing is returned.
        """
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        named = [(one, f"images[{i}]") for i, one in enumerate(images)] if several else [(images, "this image")]
        shown = self._known(category) if category else self.category
        threshold, step = self._limit(shown), 1 if self.tile else self.batch_size  # pictures in tiles differ in shape
        starts = range(0, len(named), step)
        found = [one for start in starts for one in self._inspect(named[start : start + step], shown, threshold)]
        return found if several else found[0]

    def _inspect(self, named: list[tuple[Any, str]], category: str, threshold: Threshold | None) -> list[Finding]:
        """Inspect a batch; each image comes with what it is called in an error."""
        seen, about = [], []
        for given, name in named:
            path = f"{local_path(given, 'The image')}" if isinstance(given, (str, Path)) else ""
            photo = read_image(path) if path else image_of(_from_torch(given), name)
            height, width = photo.shape[:2]
            seen.append(resize(photo, shape_of(height, width, self._model.size, self.tile)))
            about.append(((height, width), path, None if path else photo))
        batch = np.stack(seen)
        maps, scores, *kinds = self._model.run(batch) if self._exported else self._model.run(batch, category)
        defects = kinds[0] if kinds else [None] * len(batch)  # an exported model names none
        return [
            finding(heat, float(score), size, path, category, threshold, photo, name, kind)
            for heat, score, kind, (size, path, photo), (_, name) in zip(
                maps, scores, defects, about, named, strict=True
            )
        ]

    def _known(self, category: str) -> str:
        """Return what photos show, "object" if that is not known; an exported model has been told."""
        own = self._model.category if self._exported else ""
        if own and category not in ("", own):
            raise KanoclipError(f"This model was exported for {own}. Export one for {category}.")
        return category or own or "object"

    def _limit(self, category: str) -> Threshold | None:
        return self._threshold if self._thresholds is None else self._thresholds.entry(category)


def _from_torch(image: Any) -> Any:
    """Return a tensor as an array with its channels last; anything else as it is."""
    torch = sys.modules.get("torch")  # where it is not imported, there is no tensor
    if torch is None or not isinstance(image, torch.Tensor):
        return image
    image = image.detach().cpu()
    array = (image.float() if image.is_floating_point() else image).numpy()
    return np.moveaxis(array, 0, 2) if array.ndim == 3 and len(array) in (1, 3, 4) else array
