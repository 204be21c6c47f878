"""A model in memory or of a checkpoint as ``Inspector`` calls it: arrays in, arrays out, as an exported one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kanoclip.data.resizing import Tile
from kanoclip.models.base import AnomalyModule
from kanoclip.models.inference import batch_of, load_model
from kanoclip.models.remembering import WithMemory
from kanoclip.outputs.finding import defects_of
from kanoclip.outputs.identity import about_model, scoring
from kanoclip.types import KanoclipError


class ModelScorer:
    """Score arrays with a model, as ``kanoclip predict`` does.

    Args:
        source: A checkpoint or a model; a model is moved to the device and stays in eval mode.
        device: As torch names it; "auto" is a GPU if there is one.
        tile: As in ``AnomalyDataModule``.
        tiles_at_once: Most tiles of a picture to score together.

    Attributes:
        size: Side of the square that the model takes, pixels.
        scoring: What its scores depend on, see ``identity.scoring``.

    Raises:
        KanoclipError: If it is no model, or was never fitted, or there is no such device; as ``load_model`` does.
    """

    def __init__(self, source: str | Path | Any, device: str, tile: Tile, tiles_at_once: int) -> None:
        model = load_model(source) if isinstance(source, (str, Path)) else source
        if not isinstance(model, AnomalyModule):
            expected = "a checkpoint, an exported model or an AnomalyModule"
            raise KanoclipError(f"An Inspector cannot use a {type(model).__name__}: give it {expected}.")
        if model.needs_training and model.auxiliary is None:
            raise KanoclipError(
                f"This {model.name} was never fitted: fit it first, or give the checkpoint of a fit. If it has weights "
                f"of its own, say what it was fitted on: model.auxiliary = 'mvtec'."
            )
        self.device = _find(device, model)
        self._model = model.to(self.device)
        if tile:
            model.tiles_at_once = tiles_at_once
        if isinstance(model, WithMemory):
            model.remember(tile)
        self.size = model.image_size
        pixels = {"image_size": self.size, "tile": tile}
        self.scoring = scoring(about_model(model, model.loaded_from, "32-true") | {"pixels": pixels})

    @torch.inference_mode()
    def run(
        self, images: NDArray[np.uint8], category: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[dict[str, float]]]:
        """Score images ``(B, H, W, 3)``, 0-255, of a category.

        Returns:
            Maps ``(B, H, W)``, image scores ``(B,)``, and of each image the probability of each kind of defect, empty
            for a model that names none.
        """
        if self._model.training:
            self._model.eval()
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255  # as transforms.Transform does
        scores = self._model.predict_step(batch_of(pixels.to(self.device), category))
        names = getattr(self._model, "defect_names", [])
        defects = [defects_of(names, scores, i) for i in range(len(images))]
        return scores.anomaly_map.float().cpu().numpy(), scores.image_score.float().cpu().numpy(), defects


def _find(device: str, model: AnomalyModule) -> torch.device:
    """Return the device that is meant; with "auto" a model on a GPU stays there."""
    if device == "auto":
        on_gpu = model.device.type != "cpu"
        return model.device if on_gpu else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no such name; none here; not in this torch
        why = f"{error}".splitlines()[0]
        raise KanoclipError(f"device {device!r} cannot be used ({why}). Give auto, cpu or cuda.") from error
    return found
