"""A fit that is shared: a folder of this machine, or a repository of the Hugging Face Hub with the same files.

They are data alone: heads as safetensors, what a checkpoint tells beside them as JSON, thresholds as ``kanoclip
calibrate`` writes them, and a card. ``fetch`` makes a checkpoint of them, to which all rules of trust of checkpoints
apply, see ``kanoclip.models.contents``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kanoclip import __version__
from kanoclip.data.files import sha256, whole_files, write_bytes, write_text
from kanoclip.data.listing import cache_folder
from kanoclip.data.parsing import local_path, read_json
from kanoclip.models.checkpoint import read_checkpoint
from kanoclip.models.contents import CheckpointError, check_entry
from kanoclip.outputs.names import plain_name
from kanoclip.outputs.pushed import is_pushed, with_additions
from kanoclip.outputs.thresholds import Thresholds
from kanoclip.types import KanoclipError, MissingError

FORMAT = 1
"""Raised when what the files hold changes its meaning."""
HEADS, CONFIG, THRESHOLD, CARD = "heads.safetensors", "kanoclip.json", "threshold.json", "README.md"
LARGEST = {HEADS: 8 * 2**30, CONFIG: 10 * 2**20, THRESHOLD: 10 * 2**20}
"""Bytes of a file that is still read."""
IMAGES = "fitted_images"
"""Name of the digests of all fitted images beside the heads; no head has it, as it is an attribute of all models."""
HUB, FILE = "hub:", "file:"
REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?", re.ASCII)
UNREACHABLE: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
"""What its client raises without a network or a permission; the latter are of the HTTP client that it comes with."""


class Shared(NamedTuple):
    """What a shared fit is on this machine.

    Attributes:
        checkpoint: File to load, in the cache.
        threshold: File of its thresholds, for that checkpoint; None if it has none.
    """

    checkpoint: Path
    threshold: Path | None


class Place(NamedTuple):
    """Where a fit is shared.

    Attributes:
        name: As it was typed.
        folder: Of this machine; None: it is on the hub.
        repository: ``OWNER/NAME`` on the hub; "" for a folder.
        revision: Branch, tag or commit; None: the newest.
    """

    name: str
    folder: Path | None
    repository: str = ""
    revision: str | None = None


def is_shared(source: str) -> bool:
    """Whether it names a shared fit, ``hub:OWNER/NAME`` or ``file:FOLDER``, and no checkpoint."""
    return source.startswith((HUB, FILE))


def place_of(source: str) -> Place:
    """Read ``hub:OWNER/NAME``, ``hub:OWNER/NAME@REVISION`` or ``file:FOLDER``.

    Raises:
        KanoclipError: If it is none of them.
    """
    if source.startswith(FILE) and source != FILE:
        return Place(source, local_path(source.removeprefix(FILE), FILE))
    found = REPOSITORY.fullmatch(source.removeprefix(HUB))
    if not source.startswith(HUB) or not found or ".." in source:
        raise KanoclipError(
            f"{source[:200]}: expected hub:OWNER/NAME, hub:OWNER/NAME@REVISION, or file:FOLDER for a folder of this "
            f"machine."
        )
    return Place(source, None, found[1], found[2])


def fetch(source: str) -> Shared:
    """Make a checkpoint of a shared fit, in the cache.

    Args:
        source: As ``place_of`` reads it.

    Raises:
        MissingError: If it is not there.
        CheckpointError: If it is damaged, too large, or of a newer version.
        KanoclipError: If the name is none, or the hub cannot be reached; says what to do.
    """
    place = place_of(source)
    folder = place.folder or _download(place, [HEADS, CONFIG, THRESHOLD])
    for name in (HEADS, CONFIG):
        if not os.path.isfile(folder / name):  # of a name that is too long too
            raise MissingError(f"{source} is no fit of kanoclip: it has no {name}. Make one with kanoclip push.")
    for name, most in LARGEST.items():
        if (folder / name).is_file() and (size := (folder / name).stat().st_size) > most:
            raise CheckpointError(f"{source}: {name} has {size:,} bytes, and up to {most:,} are read. Do not use it.")
    content = _content(folder, source)
    check_entry(content, source)
    heads = sha256(folder / HEADS)
    name = f"{plain_name(place.repository or folder.absolute().name)[:80]}-{_digest(heads, sha256(folder / CONFIG))}"
    checkpoint = cache_folder() / "shared" / f"{name}.ckpt"
    buffer = BytesIO()
    torch.save(content, buffer)
    write_bytes(checkpoint, buffer.getvalue())
    if not (folder / THRESHOLD).is_file():
        return Shared(checkpoint, None)
    thresholds = Thresholds.load(folder / THRESHOLD, source)
    if (thresholds.scoring or {}).get("weights") != heads:
        raise CheckpointError(f"{source}: {THRESHOLD} is not of its {HEADS}. Ask who shared it to push it again.")
    _of_weights(thresholds, sha256(checkpoint)).save(threshold := checkpoint.with_suffix(".threshold.json"))
    return Shared(checkpoint, threshold)


def pack(checkpoint: Path, folder: Path, threshold: str | None = None) -> dict[str, Any]:
    """Write the files of a shared fit but its card; the optimiser's state stays behind.

    Args:
        checkpoint: Of a fit.
        folder: Where to; what an earlier push has written there is replaced.
        threshold: File of ``kanoclip calibrate`` for this checkpoint; None: none is shared.

    Returns:
        What is in ``kanoclip.json``.

    Raises:
        MissingError: If there is no such file.
        KanoclipError: If it is no checkpoint of a model that the command line has built, the threshold is of another
            one, or the folder has other files.
    """
    entry, model = read_checkpoint(checkpoint)
    if not model:
        raise KanoclipError(
            f"{checkpoint} is of a model that was built in Python, and does not tell of what parts, so nobody could "
            f"load it. Fit it with kanoclip fit --model."
        )
    thresholds = Thresholds.load(threshold) if threshold else None
    if thresholds and (thresholds.scoring or {}).get("weights") != sha256(checkpoint):
        raise KanoclipError(
            f"--threshold {threshold} is not of {checkpoint}. Give the file that kanoclip calibrate --ckpt_path "
            f"{checkpoint} writes."
        )
    if os.path.isdir(folder) and any(folder.iterdir()) and not is_pushed(folder / CONFIG):
        raise KanoclipError(f"file:{folder} has other files. Choose a folder that is new, empty or of a push.")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = {name: value.clone().contiguous() for name, value in content["state_dict"].items()}
    if entry.get("images") is not None:
        weights[IMAGES] = entry["images"]
    about = {name: value for name, value in entry.items() if not isinstance(value, Tensor)}
    config = {
        "format": FORMAT,
        "lightning": content["pytorch-lightning_version"],
        "kanoclip": about,
        "model": model,
    }
    written = json.dumps(config, indent=2, ensure_ascii=False, default=repr)
    if json.loads(written) != config:
        raise KanoclipError(f"{checkpoint} has options that are neither numbers nor texts, and cannot be shared.")
    with whole_files(folder / HEADS) as file:
        save_file(weights, file)
    write_text(folder / CONFIG, written + "\n")
    (folder / THRESHOLD).unlink(missing_ok=True)
    if thresholds:
        _of_weights(thresholds, sha256(folder / HEADS)).save(folder / THRESHOLD)
    return config


def upload(folder: Path, place: Place, private: bool) -> str:
    """Make a repository of the hub hold the files of a folder, the card with what was added there; returns its address.

    Raises:
        KanoclipError: If that is not allowed, it has files of others, or the hub cannot be reached; says what to do.
    """
    try:
        api = HfApi()
        made = api.create_repo(place.repository, private=private, exist_ok=True)
        there = set(api.list_repo_files(place.repository)) - {".gitattributes"}  # which the hub writes into a new one
        before = _download(place, [CONFIG, CARD]) if CONFIG in there else None
        if there and not (before and is_pushed(before / CONFIG)):
            raise KanoclipError(f"{place.name} has other files. Choose a repository that is new, empty or of a push.")
        if before and CARD in there:
            card, old = ((one / CARD).read_text(encoding="utf-8", errors="replace") for one in (folder, before))
            write_text(folder / CARD, with_additions(card, old))
        api.upload_folder(
            repo_id=place.repository,
            folder_path=folder,
            commit_message=f"kanoclip {__version__} push",
            delete_patterns=[THRESHOLD],  # of an earlier push, if this one has none
        )
    except HFValidationError as error:
        raise KanoclipError(f"{place.name}: {_line(error)}") from error
    except UNREACHABLE as error:
        raise KanoclipError(
            f"{place.name} cannot be written ({_line(error)}). Log in with a token that may write: hf auth login. "
            f"Without a network, push to file:FOLDER, and later: hf upload {place.repository} FOLDER."
        ) from error
    return str(made)


def _download(place: Place, wanted: list[str]) -> Path:
    """Fetch the files that are read, and no others."""
    try:
        return Path(snapshot_download(place.repository, revision=place.revision, allow_patterns=wanted))
    except HFValidationError as error:
        raise KanoclipError(f"{place.name}: {_line(error)}") from error
    except RevisionNotFoundError as error:
        raise MissingError(
            f"{place.name}: {place.repository} has no branch, tag or commit {place.revision}. Leave @{place.revision} "
            f"out for the newest."
        ) from error
    except GatedRepoError as error:
        raise KanoclipError(
            f"{place.name} is for those who accepted its terms. Accept them at https://huggingface.co/"
            f"{place.repository}, and log in: hf auth login."
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingError(
            f"{place.name}: there is no such repository, or it is private. Check the name at https://huggingface.co/"
            f"{place.repository}; for a private one log in: hf auth login."
        ) from error
    except UNREACHABLE as error:
        raise KanoclipError(
            f"{place.name} cannot be fetched ({_line(error)}). Check the network; or fetch it where there is one, hf "
            f"download {place.repository} --local-dir FOLDER, and give file:FOLDER."
        ) from error


def _content(folder: Path, source: str) -> dict[str, Any]:
    """Return what a checkpoint of these heads holds; ``check_entry`` checks it."""
    damaged = f"{source} is damaged: {{}}. Fetch it again, or ask who shared it."
    try:
        config = read_json((folder / CONFIG).read_bytes())
    except ValueError as error:  # no JSON, no UTF-8
        raise CheckpointError(damaged.format(f"{CONFIG} is not JSON ({_line(error)})")) from error
    number = config.get("format") if isinstance(config, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(
            f"{source} has format {number} of shared fits, and kanoclip {__version__} reads up to {FORMAT}. Install a "
            f"newer one: pip install --upgrade kanoclip."
        )
    config = config if number == FORMAT else {}
    model, entry = (one if isinstance(one := config.get(name), dict) else {} for name in ("model", "kanoclip"))
    path, options = model.get("class_path"), model.get("init_args")
    if not entry or not isinstance(options, dict) or not isinstance(path, str):
        raise CheckpointError(damaged.format(f"{CONFIG} lacks format, kanoclip or model"))
    try:
        weights: Mapping[str, Tensor] = load_file(folder / HEADS)
    except SafetensorError as error:
        raise CheckpointError(damaged.format(f"{HEADS} is no safetensors ({_line(error)})")) from error
    drawn = torch.Generator().manual_seed(0).get_state()  # that of the fit is for going on with it
    return {
        "state_dict": {name: value for name, value in weights.items() if name != IMAGES},
        "hyper_parameters": {**options, "_class_path": path},
        "kanoclip": {**entry, "images": weights.get(IMAGES), "random_state": drawn},
        "pytorch-lightning_version": config.get("lightning"),
        "epoch": 0,
        "global_step": 0,
    }


def _of_weights(thresholds: Thresholds, digest: str) -> Thresholds:
    return replace(thresholds, scoring={**(thresholds.scoring or {}), "weights": digest})


def _digest(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _line(error: BaseException) -> str:
    """Return the first line of what another library says."""
    return next(iter(f"{error}".strip().splitlines()), type(error).__name__)[:200]
