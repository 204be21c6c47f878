"""Knowledge of single images: found by the hash of their content; and the picture that a vision model is shown."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanoclip.data.base import AnomalyDataModule
from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.files import sha256
from kanoclip.data.loading import Read, Sample
from kanoclip.knowledge.base import AUTO, FOLDER, SHIPPED
from kanoclip.types import KanoclipError, MissingError

log = logging.getLogger(__name__)

BUILT = Path("runs/knowledge")
"""Where ``kanoclip knowledge build`` writes."""
SIDE = 512  # pixels; vision models see little more, and charge for it


def image_hash(sample: Sample, read: Read) -> str:
    """Return the SHA-256 of an image's file, or of the pixels of one that has no file and no name for good.

    Raises:
        OSError: If the file cannot be read.
        UnreadableImageError: If there is no file and the image cannot be drawn.
    """
    if os.path.isfile(sample.image):  # unlike pathlib, it does not raise on a name that is too long
        return sha256(sample.image)
    return hashlib.sha256(np.ascontiguousarray(read(sample)[0]).tobytes()).hexdigest()


def image_hashes(samples: Sequence[Sample], data: AnomalyDataModule) -> list[str | None]:
    """Return by what each image is known: SHA-256 of its file, name and version of a drawn one, else ``image_hash``.

    Returns:
        None for an image that cannot be read.
    """
    if (found := data.hashes_of(samples)) is not None:
        return [image for image, *_ in found]
    hashes: list[str | None] = []
    for sample in samples:
        try:
            hashes.append(image_hash(sample, data.read))
        except (OSError, UnreadableImageError):
            hashes.append(None)  # the data loader reports it
    return hashes


def image_file(given: str, data: str, needed: bool = True) -> tuple[Path | None, str]:
    """Find the JSONL of image knowledge of a data set.

    Args:
        given: "auto": the one that ships for the data set, or the one that ``kanoclip knowledge build`` makes of it
            where nothing else is said. Or the name of one that ships, or a path.
        data: Registered name of the data set.
        needed: Whether a fit cannot do without the one that "auto" stands for.

    Returns:
        The file, and what it is called on every machine: ``knowledge:NAME.jsonl`` if it ships, else its path. None for
        the file of "auto" if it is not there and not needed, which is told.

    Raises:
        MissingError: If it is not there; says how to make it.
    """
    name = data if given == AUTO else given
    if name.isidentifier() and (FOLDER / f"{name}.jsonl").is_file():
        return FOLDER / f"{name}.jsonl", f"{SHIPPED}{name}.jsonl"
    file = BUILT / f"{name}.jsonl" if given == AUTO else Path(os.path.expanduser(given))
    if file.is_file():
        return file, str(file)
    make = f"kanoclip knowledge build --data {data} --data.root FOLDER --vqa_model MODEL"
    if given == AUTO and not needed:
        log.warning("Fitted without knowledge of images, which the paper uses: no %s. Make it: %s", file, make)
        return None, str(file)
    raise MissingError(f"No image knowledge {file}. Make it: {make}. Or fit without it: --model.image_knowledge null.")


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
