"""What a fit leaves behind: its checkpoint, the record by which tests find it, and a word on where they are."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from kanoclip import __version__
from kanoclip.backbone.embedded import FOLDER as EMBEDDED
from kanoclip.data.digests import content_of
from kanoclip.data.files import CannotWriteError, read_json, say_damaged, write_bytes, write_json
from kanoclip.knowledge.base import FOLDER as KNOWLEDGE
from kanoclip.knowledge.base import SHIPPED
from kanoclip.models.checkpoint import CheckpointError, read_checkpoint, run_seed, zero_shot
from kanoclip.outputs.costs import peak_memory, start_memory, trained_parameters
from kanoclip.outputs.names import file_name
from kanoclip.outputs.progress import SAID, Pace, Timed, how_far
from kanoclip.ranks import gather
from kanoclip.registry import NAMES

LOCAL_DIR = "local-dir:"  # open_clip's prefix for a folder with a model


def run_folder(trainer: Trainer) -> Path:
    """Return where a run writes: its logger's folder, or the trainer's root without one; all processes ask together."""
    # A process that looks later would take the next version for its own.
    return Path(gather(str(getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir))[0])


def folder_name(identity: str) -> str:
    """Turn a data set's identity into a folder's name: ``folder /home/me/photos`` -> ``folder-photos``."""
    name, _, path = identity.encode("utf-8", "replace").decode().partition(" ")  # TensorBoard takes UTF-8 names alone
    return file_name(f"{name}-{Path(path).stem}" if path else name)


def claim_version(folder: Path) -> Path:
    """Make ``version_N`` in a folder, N one above those that are there, for this run alone.

    Making a folder either succeeds or finds it there, so runs that start at once get one each. Of the processes of one
    run the first one claims; the others are told where to write, see ``run_folder``.
    """
    if getattr(rank_zero_only, "rank", 0):
        return folder / "version_0"
    number = 1 + max((int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()), default=-1)
    while True:
        try:
            (folder / f"version_{number}").mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise CannotWriteError(folder, error) from error
        else:
            return folder / f"version_{number}"


def drop_if_empty(folder: Path) -> None:
    """Delete the folder of a run that failed, unless it has a checkpoint, results or rows of predictions."""
    lists = [path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("predictions*.csv")]
    done = (
        any(folder.rglob("*.ckpt"))
        or any((folder / name).exists() for name in ("results.json", "threshold.json"))
        or any(t.count("\n") > 1 for t in lists)
    )
    if not done and not getattr(rank_zero_only, "rank", 0):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others have runs there
            folder.parent.rmdir()


def newest_fit(
    folder: Path, model: str | None, auxiliary: str | None = None, tested: Collection[int] | None = None
) -> Path | None:
    """Return the checkpoint of the newest fit of a model.

    Args:
        folder: The run folder (``--trainer.default_root_dir``).
        model: Registered name or class path; None: of any.
        auxiliary: Only fits on this data set, finished or not; else only finished ones.
        tested: Digests of the images that are tested: not a fit that has seen one of them.

    Returns:
        None if there is none. One that a benchmark has made, below ``benchmark/``, is taken where no other serves.
    """
    if auxiliary is not None:
        begun = (folder / "fit" / f"{model}" / folder_name(auxiliary)).glob("*/checkpoints/last.ckpt")
        newest = sorted(begun, key=lambda path: path.stat().st_mtime, reverse=True)
        # sets of one name share a folder, wherever they are
        return next((path for path in newest if (read_about(path) or {}).get("auxiliary") == auxiliary), None)
    found: list[tuple[bool, float, Path]] = []
    for record in (
        *(folder / "fit").glob("**/run.json"),
        *folder.glob("run.json"),  # without a logger
        *(folder / "benchmark").glob("*/*/fit/**/run.json"),
    ):
        content = read_record(record)
        if content and model in (None, content["model"]) and (path := record.parent / content["ckpt"]).is_file():
            found.append((not record.is_relative_to(folder / "benchmark"), record.stat().st_mtime, path))
    for *_, path in sorted(found, reverse=True):
        about = read_about(path)
        if about and (tested is None or zero_shot(about.get("images"), tested) is not False):
            return path
    return None


def read_record(path: Path) -> dict[str, Any] | None:
    """Read run.json; None if there is none, or it is damaged."""
    return read_json(path, model=str, ckpt=str)


def read_about(path: Path) -> dict[str, Any] | None:
    """Read what a checkpoint says of itself; None, with a note, if it is damaged or of a newer version."""
    try:
        return read_checkpoint(path)[0]
    except CheckpointError:
        say_damaged(path)
        return None


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint so that the one before is there until the new one is whole, whatever happens.

    Lightning's own is written to the system's folder for temporary files first and moved, which on another disk is a
    copy over the one before, and a copy may be cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the file; addresses such as ``s3://`` are left to Lightning.

        Raises:
            CannotWriteError: If it cannot be written; names the file.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getvalue())


def files_of(options: Any) -> dict[str, str]:
    """Hash the files that a model's options name: weights, a knowledge base, what was said of single images.

    Args:
        options: A mapping or list of options, with those of components inside, or a single value.

    Returns:
        Path, ``local-dir:FOLDER``, ``knowledge:NAME`` or class path of the embedded backbone -> 12 hexadecimal digits
        of its content. ``files_of(list(returned))`` hashes the same files again.
    """
    if isinstance(options, Mapping):
        options = list(options.values())
    if isinstance(options, (list, tuple)):
        return {name: found for one in options for name, found in files_of(one).items()}
    if not isinstance(options, (str, Path)):
        return {}
    name = os.path.expanduser(options)
    if name == NAMES["backbone"]["embedded"]:
        files = [path for path in EMBEDDED.iterdir() if path.suffix != ".md"]
    elif name.startswith(LOCAL_DIR):
        files = list(Path(os.path.expanduser(name.removeprefix(LOCAL_DIR))).glob("*"))
    elif name.startswith(SHIPPED):
        files = [KNOWLEDGE / (name.removeprefix(SHIPPED) + ".yaml" * (not Path(name).suffix))]
    else:
        files = [Path(name)]
    found = content_of(files)
    return {str(options): found} if found else {}


class RunRecord(Callback):
    """Writes run.json beside the checkpoint of a fit that came to its end; an interrupted one has none."""

    def __init__(self) -> None:
        self._start = 0.0
        self._folder = Path()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        start_memory()
        self._start, self._folder = time.monotonic(), run_folder(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record, once the last checkpoint is on disk."""
        memory = peak_memory(pl_module.device)
        checkpoint: Any = trainer.checkpoint_callback
        path = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
        path = path or (trainer.ckpt_path if checkpoint else "")  # nothing was left to fit
        if not trainer.is_global_zero or trainer.interrupted or not path:
            return
        folder = self._folder
        data: Any = getattr(trainer, "datamodule", None)
        file, inside = Path(path).resolve(), Path(path).resolve().is_relative_to(folder.resolve())
        record = {
            "model": getattr(pl_module, "name", "") or type(pl_module).__name__,
            "auxiliary": getattr(pl_module, "auxiliary", None),
            "categories": list(getattr(data, "categories", [])),
            "ckpt": (file.relative_to(folder.resolve()) if inside else file).as_posix(),
            "seed": run_seed(),
            "images": len(data.part("fit")) if hasattr(data, "part") else None,
            "samples": data.samples_digest("fit") if hasattr(data, "samples_digest") else None,
            "files": files_of(pl_module.hparams) | getattr(pl_module, "read_files", {}),
            "epochs": trainer.current_epoch,
            "parameters": trained_parameters(pl_module),
            "memory": memory,
            "version": __version__,
            "seconds": round(time.monotonic() - self._start, 1),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        write_json(folder / "run.json", record)


class FitNote(Timed):
    """Says where the checkpoint of a fit is, finished or interrupted, and how far it is where no progress bar does."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far it is."""
        if trainer.is_global_zero and trainer.progress_bar_callback is None:
            say(", ".join(filter(None, [f"{how_far(trainer)} done", self.state(trainer)])))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the checkpoint."""
        if trainer.is_global_zero:
            path = _last_checkpoint(trainer)
            if path and not getattr(trainer.checkpoint_callback, "best_model_path", ""):
                say(f"nothing was left to fit: {path} has had all its epochs.")
                return
            none = "no epoch" if trainer.checkpoint_callback else "--trainer.enable_checkpointing false"
            say(f"fitted: {path or f'{none}, so there is no checkpoint'}.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the checkpoint of the epochs before, if there is one."""
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit, CannotWriteError))  # SIGTERM raises the latter
        if trainer.state.fn == TrainerFn.FITTING and stopped:
            path = _last_checkpoint(trainer)
            done = f"{path}; to go on: the same command with --ckpt_path last" if path else "none"
            say(f"interrupted. Finished epochs: {done}.")


class ScoreNote(Callback):
    """Says every half a minute how far a test or a prediction is, where no progress bar does."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        stage = "predict" if trainer.predicting else "test" if trainer.testing else "val"
        batches, loaders = getattr(trainer, f"num_{stage}_batches"), getattr(trainer, f"{stage}_dataloaders")
        limits = zip(loaders if isinstance(loaders, list) else [loaders], batches, strict=True)
        most = [(len(one.dataset), n * one.batch_sampler.batch_size * trainer.world_size) for one, n in limits]
        self._images = sum(map(min, most))
        self._pace, self._done, self._told = Pace(sum(batches)), 0, time.monotonic()

    on_predict_start = on_validation_start = on_test_start

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Say it, if it is time."""
        images = len(batch.label) * trainer.world_size
        self._pace.step(images)
        self._done = min(self._done + images, self._images)
        quiet = trainer.progress_bar_callback is not None or trainer.state.fn == TrainerFn.FITTING
        if trainer.is_global_zero and not quiet and time.monotonic() - self._told >= SAID:
            self._told = time.monotonic()
            say(", ".join(filter(None, [f"{self._done:,} of {self._images:,} images", str(self._pace)])))

    on_predict_batch_end = on_validation_batch_end = on_test_batch_end


def _last_checkpoint(trainer: Trainer) -> str:
    """Return the last one that this fit has written, else the one it goes on with."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    path = path or str((trainer.checkpoint_callback and trainer.ckpt_path) or "")
    if "://" not in path and not os.path.isfile(path):  # the first one could not be written
        return ""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) and path else path


def say(text: str) -> None:
    """Tell a reader something beside the results."""
    print(f"kanoclip: {text}", file=sys.stderr)
