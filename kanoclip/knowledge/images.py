"""Knowledge of single images: found by the hash of their content; and the picture that a vision model is shown."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanoclip.data.files import sha256
from kanoclip.data.loading import Read, Sample
from kanoclip.types import KanoclipError, MissingError

SIDE = 512  # pixels; vision models see little more, and charge for it


def image_hash(sample: Sample, read: Read) -> str:
    """Return the SHA-256 of an image's file, or of the pixels of a drawn one, which has no file.

    Raises:
        OSError: If the file cannot be read.
        UnreadableImageError: If there is no file and the image cannot be drawn.
    """
    if os.path.isfile(sample.image):  # unlike pathlib, it does not raise on a name that is too long
        return sha256(sample.image)
    return hashlib.sha256(np.ascontiguousarray(read(sample)[0]).tobytes()).hexdigest()


def data_url(image: NDArray[np.uint8]) -> str:
    """Return an image ``(H, W, 3)`` as a JPEG of at most 512 pixels a side, in a ``data:`` address."""
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # never enlarges
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def load_image_entries(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines of a JSONL that ``kanoclip knowledge build`` wrote: one for each image.

    Raises:
        MissingError: If there is no such file.
        KanoclipError: If a line does not have the expected shape; names file and line.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise MissingError(f"No image knowledge {file}. Make it: kanoclip knowledge build --vqa_model MODEL")
    entries = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not _is_entry(entry):
            raise KanoclipError(
                f"{file}, line {number}: expected an object with image, state and a list of answers. Build it anew."
            )
        entries.append(entry)
    return entries


def load_image_knowledge(path: str | Path, state: str = "anomalous") -> dict[str, list[str]]:
    """Read what is known of the images of a state, as hash of the image -> texts; raises as ``load_image_entries``."""
    found: dict[str, list[str]] = {}
    for entry in load_image_entries(path):
        if entry["state"] == state:
            found.setdefault(entry["image"], []).extend(entry["answers"])
    return found


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "state")):
        return False
    answers = entry.get("answers")
    return isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
