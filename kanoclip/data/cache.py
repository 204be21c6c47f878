"""Frozen features on disk: each image of a data set goes through the backbone once, for all heads and epochs to come.

One safetensors file per image, named by what it depends on: ``<cache>/features/<settings>/<content>.safetensors``. So a
build that is killed goes on, processes can build side by side without locks, and nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import inspect
import marshal
import math
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kanoclip.data.images import UnreadableImageError
from kanoclip.data.listing import cache_folder, remembered
from kanoclip.data.loading import AnomalyDataset, Item, make_loader
from kanoclip.types import Features, KanoclipError

SPARE = 1 << 30  # bytes that a build leaves free on the disk
FIELDS = ("patches", "cls", "grid", "image", "mask", "has_mask", "size")


class CacheError(KanoclipError, OSError):
    """Features that cannot be kept: no room on the disk, or no right to write."""


class CachedDataset(AnomalyDataset):
    """Reads images, masks and frozen features from a cache instead of reading, resizing and encoding them again.

    Args:
        plain: The data set without a cache; its transform must be the same every time.
        settings: What the files depend on besides the images: model, sizes, reading.
    """

    def __init__(self, plain: AnomalyDataset, settings: str) -> None:
        super().__init__(plain.samples, plain.read, plain.transform, plain.seed, plain.unreadable, plain.crops)
        self.folder = cache_folder() / "features" / _hash(settings, _code())[:24]
        self.files = [self.folder / f"{key[:32]}.safetensors" for key in _contents(self)]

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """Read one sample."""
        index = key[1] if isinstance(key, tuple) else key
        with safe_open(self.files[index], "pt") as file:  # mapped into memory, not parsed
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        height, width = found["size"].tolist()
        rows, columns = found["grid"].tolist()
        features = Features(found["patches"], found["cls"], (rows, columns))
        image, has_mask = found["image"].float() / 255, bool(found["has_mask"])
        return Item(image, found["mask"], has_mask, (height, width), self.samples[index], features)

    def build(self, trainer: Any, batch_size: int, num_workers: int) -> None:
        """Encode what is not there yet; each process of a distributed run does its share, then waits for the others.

        Args:
            trainer: Lightning's; its model has ``features(batch) -> Features`` and is on its device.
            batch_size: Images to encode together.
            num_workers: Processes that read them.

        Raises:
            CacheError: If the disk has no room for it.
            UnreadableImageError: As without a cache.
        """
        absent = {file: i for i, file in enumerate(self.files) if not _whole(file)}  # copies of an image count once
        missing = trainer.strategy.broadcast(list(absent.values()))  # another run may be writing, and all must agree
        with torch.random.fork_rng([]):  # the first fit draws the numbers that the next ones will
            self._encode(missing, trainer, batch_size, num_workers)
        trainer.strategy.barrier()

    def _encode(self, missing: Sequence[int], trainer: Any, batch_size: int, num_workers: int) -> None:
        mine = missing[trainer.global_rank :: trainer.world_size]
        plain = AnomalyDataset([self.samples[i] for i in mine], self.read, self.transform, self.seed)
        if not mine:
            return
        batches = iter(make_loader(plain, batch_size, num_workers, share=False))
        files = iter(self.files[i] for i in mine)
        todo = range(-(-len(mine) // batch_size))
        quiet = trainer.global_rank > 0 or trainer.progress_bar_callback is None
        for number in track(todo, "caching features", transient=True, disable=quiet):
            batch = trainer.strategy.batch_to_device(next(batches))
            features = trainer.lightning_module.features(batch)
            images = (batch.image * 255).round().byte()
            for i in range(len(batch.label)):
                tensors = {
                    "patches": features.patches[:, i].half(),
                    "cls": features.cls[i].half(),
                    "grid": torch.tensor(features.grid),
                    "image": images[i],
                    "mask": batch.mask[i],
                    "has_mask": batch.has_mask[i],
                    "size": batch.size[i],
                }
                content = save({name: value.contiguous().cpu() for name, value in tensors.items()})
                if number == i == 0:
                    self._check_room(len(missing), len(content), trainer.global_rank == 0)
                _write(next(files), content)

    def _check_room(self, count: int, size: int, tell: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        need, free = count * size, shutil.disk_usage(self.folder).free
        if need + SPARE > free:
            raise CacheError(
                f"The features of {count} images need {_bytes(need)} and {_bytes(SPARE)} to spare, but only "
                f"{_bytes(free)} are free in {self.folder}. Set the environment variable KANOCLIP_CACHE to a folder "
                f"on a larger disk, use --data.limit, or --data.cache false."
            )
        if tell:
            print(f"caching the features of {count} images, {_bytes(need)}, in {self.folder}", flush=True)


def reading(data: Any) -> str:
    """Tell what decides how a data module reads a file, besides the file; for a class of a user, its code as well."""
    kind = type(data)
    told = [kind.__qualname__, data.mask_threshold, data.usual_threshold, data.mask_values]
    if not kind.__module__.startswith("kanoclip."):
        simple = {k: v for k, v in vars(data).items() if k[0] != "_" and isinstance(v, (bool, int, float, str, list))}
        told += [code_of(kind), sorted(simple.items())]
    return repr(told)


def code_of(kind: type) -> str:
    """Hash the source files of a class and its parents, so that what older code has made is not taken for its own."""
    found: list[object] = []
    for one in kind.__mro__:
        if one.__module__.partition(".")[0] not in ("abc", "builtins", "lightning", "torch"):
            try:
                found.append((one.__qualname__, Path(inspect.getfile(one)).read_bytes()))
            except (TypeError, OSError):  # a class of a notebook has no file
                found.append([marshal.dumps(part.__code__) for part in vars(one).values() if inspect.isfunction(part)])
    return _hash(found)


def _contents(data: AnomalyDataset) -> list[str]:
    """Hash what each sample shows: the content of its files, or the name of a drawn one."""
    drawn = {sample.image for sample in data.samples if "://" in sample.image}
    paths = {path for sample in data.samples for path in (sample.image, *sample.masks)} - drawn
    where = {path: str(Path(path).resolve()) for path in paths if Path(path).exists()}  # reading tells of the others
    root = Path(os.path.commonpath(where.values())) if where else Path()
    hashes = remembered("hashes", root, where.values(), _file_hash)
    known = {path: hashes[where[path]] if path in where else path for path in (*paths, *drawn)}
    # the label says whether no mask means no anomaly; the category changes nothing that is kept, so sets share files
    return [_hash(*(known[path] for path in (sample.image, *sample.masks)), sample.label) for sample in data.samples]


def _file_hash(path: str) -> str:
    digest = hashlib.blake2b(digest_size=20)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UnreadableImageError(path, f"{error.strerror}.") from error
    return digest.hexdigest()


@cache
def _code() -> str:
    """Hash the code that reads, draws and resizes: features of another version of it are others."""
    return _hash(*(file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))))


def _hash(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()


def _whole(path: Path) -> bool:
    """Whether a file is there and has all its bytes (safetensors checks its header against its length) and shapes."""
    try:
        with safe_open(path, "pt") as file:
            (_, count, dim), *others = (tuple(file.get_slice(name).get_shape()) for name in FIELDS)
            grid, side = file.get_tensor("grid").tolist(), others[2][-1]
    except (OSError, SafetensorError, ValueError):
        return False
    return others == [(dim,), (2,), (3, side, side), (side, side), (), (2,)] and math.prod(grid) == count


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")  # machines that share a disk may share process numbers
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    finally:
        part.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> CacheError:
    return CacheError(
        f"Cannot write features to {folder}: {error.strerror}. Set the environment variable KANOCLIP_CACHE to another "
        f"folder, or use --data.cache false."
    )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
