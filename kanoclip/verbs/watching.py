"""``predict --watch true``: a prediction that goes on whenever a folder has new photos."""

from __future__ import annotations

import os
import time
from typing import Any, NoReturn

from lightning.pytorch import Trainer

from kanoclip.data.base import AnomalyDataModule
from kanoclip.data.sets.folder import Folder
from kanoclip.outputs import PredictionWriter
from kanoclip.types import KanoclipError, MissingError
from kanoclip.verbs.say import note

SECONDS = 2.0
"""Between two looks at the folder."""
State = tuple[int, int] | None


def check_watched(data: AnomalyDataModule) -> Folder:
    """Return the data set if it is a folder that can be watched.

    Raises:
        KanoclipError: If it is not.
    """
    if not isinstance(data, Folder) or not os.path.isdir(data.place):
        raise KanoclipError("--watch true watches a folder of photos: kanoclip predict FOLDER --watch true ...")
    return data


def wait_for_first(data: AnomalyDataModule) -> None:
    """Wait until a folder has a photo."""
    folder = check_watched(data)
    if not _photos(folder):
        note(f"there is no photo in {folder.place} yet; waiting for the first.")
    while not _photos(folder):
        time.sleep(SECONDS)


def watch(trainer: Trainer, datamodule: AnomalyDataModule, **predict: Any) -> NoReturn:
    """Score each photo of a folder once when it is complete, for ever; Ctrl-C ends it.

    A photo is complete when its size and time did not change between two looks, and it can be read. One that cannot is
    tried again when it has changed.

    Args:
        trainer: With a ``PredictionWriter`` that resumes.
        datamodule: The folder.
        **predict: What else ``Trainer.predict`` is given.

    Raises:
        KanoclipError: If the data are no folder, or there are several processes.
    """
    folder, callbacks = check_watched(datamodule), vars(trainer)["callbacks"]
    writer = next((one for one in callbacks if isinstance(one, PredictionWriter)), None)
    if writer is None or trainer.world_size > 1:
        raise KanoclipError("--watch true works in one process: add --trainer.devices 1.")
    note(f"watching {folder.place}: each new photo is scored once. Ctrl-C ends it.")
    before: dict[str, State] = {}
    finished: set[str] = set()
    failed: dict[str, State] = {}
    while True:
        start = time.monotonic()
        now = {path: _state(path) for path in _photos(folder) if path not in finished}
        ready = {path for path, state in now.items() if state and before.get(path) == state != failed.get(path)}
        if ready:
            writer.waiting = now.keys() - ready
            trainer.predict(datamodule=folder, **predict)
            failed = {path: state for path, state in failed.items() if path not in ready}
            for path, why in folder.unreadable:
                failed[path] = now[path]
                note(f"{path}: {why} It is tried again when it has changed.")
            finished |= ready - failed.keys()
        before = now
        time.sleep(max(SECONDS, time.monotonic() - start))  # half of the time at most is spent on looking


def _photos(folder: Folder) -> list[str]:
    try:
        return [sample.image for sample in folder.index_anew()]
    except MissingError:
        if not os.path.isdir(folder.place):
            raise
        return []  # none yet, or all were taken away


def _state(path: str) -> State:
    try:
        status = os.stat(path)
    except OSError:  # gone
        return None
    return status.st_size, status.st_mtime_ns
