"""Frozen features on disk: each image of a data set goes through the backbone once, for all heads and epochs to come.

One safetensors file per image, named by what it depends on: ``<cache>/features/<settings>/<content>.safetensors``. So a
build that is killed goes on, processes can build side by side without locks, and nothing stale is ever read; see
docs/cache.md. A file holds four tensors, few because each costs time to open, and their checksum:

    patches ``(L, N, D)`` and cls ``(D,)``, float16; pixels ``(4, H, W)``, uint8: RGB 0-255 and the mask 0/1;
    numbers ``(5,)``, int64: height and width of the image file, h and w of the grid, has_mask; and, of a backbone that
    reads tokens of the tower, level_cls ``(L, W)``, float16.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader

from kanoclip.data.digests import READING_VERSION, code_of, digest, is_ours
from kanoclip.data.faults import tell
from kanoclip.data.files import write_bytes
from kanoclip.data.identity import content_hashes
from kanoclip.data.listing import cache_folder
from kanoclip.data.loading import AnomalyDataset, Item, collate, start_worker
from kanoclip.types import Features, KanoclipError, counted

SPARE = 1 << 30  # bytes that a build leaves free on the disk
FIELDS = ("patches", "cls", "pixels", "numbers")
MORE = "level_cls"

log = logging.getLogger(__name__)


class CacheError(KanoclipError, OSError):
    """Features that cannot be kept or read: no room on the disk, no right to write, or a damaged file."""


class CachedDataset(AnomalyDataset):
    """Reads images, masks and frozen features from a cache instead of reading, resizing and encoding them again.

    Args:
        plain: The data set without a cache; its transform must be the same every time.
        settings: What all files depend on besides the images: model, sizes, reading.
        contents: What each sample's file depends on, by its images' contents.
    """

    def __init__(self, plain: AnomalyDataset, settings: object, contents: Sequence[object]) -> None:
        super().__init__(plain.samples, plain.read, plain.transform, plain.seed, plain.unreadable, plain.crops)
        self.folder = cache_folder() / "features" / digest(settings)[:24]
        self.files = [self.folder / f"{digest(content)[:32]}.safetensors" for content in contents]

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """Read one sample.

        Raises:
            CacheError: Its file is gone or damaged.
            UnreadableImageError: The image cannot be read, so that nothing could be cached.
        """
        index = key[1] if isinstance(key, tuple) else key
        file = self.files[index]
        try:
            with safe_open(file, "pt") as content:  # mapped into memory
                found = {name: content.get_tensor(name) for name in (*FIELDS, *({MORE} & set(content.keys())))}
                if (content.metadata() or {}).get("checksum") != _checksum(found):
                    raise SafetensorError("its checksum is wrong")
        except (OSError, SafetensorError) as error:
            self.read(self.samples[index])  # tells if that is why
            if isinstance(error, SafetensorError):
                with suppress(OSError):
                    file.unlink()  # after a power cut; all else would end here each time
            raise CacheError(
                f"The cached features in {file} were damaged or are gone ({error}). Run the command again: what is "
                f"missing is made anew."
            ) from error
        pixels = found["pixels"]
        height, width, rows, columns, has_mask = found["numbers"].tolist()
        features = Features(found["patches"], found["cls"], (rows, columns), found.get(MORE))
        return Item(pixels[:3].float() / 255, pixels[3], bool(has_mask), (height, width), self.samples[index], features)

    def build(self, trainer: Any, batch_size: int, num_workers: int) -> None:
        """Encode what is not there yet. Collective: every rank encodes its share, then waits for the others.

        Args:
            trainer: Lightning's; its model has ``features(batch) -> Features`` and is on its device.
            batch_size: Images to encode together.
            num_workers: Processes that read them.

        Raises:
            CacheError: If the disk has no room for it.
            UnreadableImageError: As without a cache: in a fit. A test leaves the image out.
        """
        absent = {file: i for i, file in enumerate(self.files) if not _is_whole(file)}  # equal images count once
        missing = trainer.strategy.broadcast(list(absent.values()))  # another run may be writing, and all must agree
        with torch.random.fork_rng([]):  # the first fit draws the numbers that the next ones will
            self._encode(missing, trainer, batch_size, num_workers)
        trainer.strategy.barrier()

    def _encode(self, missing: Sequence[int], trainer: Any, batch_size: int, num_workers: int) -> None:
        mine = missing[trainer.global_rank :: trainer.world_size]
        plain = AnomalyDataset([self.samples[i] for i in mine], self.read, self.transform, self.seed)
        if not mine:
            return
        loader = DataLoader(plain, batch_size, collate_fn=list, num_workers=num_workers, worker_init_fn=start_worker)
        files, is_first = iter(self.files[i] for i in mine), True
        quiet = trainer.global_rank > 0 or trainer.progress_bar_callback is None
        for items in track(loader, "caching features", transient=True, disable=quiet):
            into = [file for item, file in zip(items, files, strict=False) if isinstance(item, Item)]
            if self.unreadable is not None:  # they are noted when they are read
                items = [item for item in items if isinstance(item, Item)]
            tell([one for item in items if isinstance(item, Item) for one in item.remarks], self.told)
            if not items:
                continue
            batch = trainer.strategy.batch_to_device(collate(items))
            features = trainer.lightning_module.features(batch)
            pixels = torch.cat([(batch.image * 255).round().byte(), batch.mask[:, None]], 1)  # (B, 4, H, W)
            for i, file in enumerate(into):
                numbers = torch.tensor([*batch.size[i].tolist(), *features.grid, bool(batch.has_mask[i])])
                held = (features.patches[:, i].half(), features.cls[i].half(), pixels[i], numbers)
                tensors = dict(zip(FIELDS, (one.contiguous().cpu() for one in held), strict=True))
                if features.level_cls is not None:
                    tensors[MORE] = features.level_cls[:, i].half().contiguous().cpu()
                content = save(tensors, {"checksum": _checksum(tensors)})
                if is_first:
                    self._check_room(len(missing), len(content), trainer.global_rank == 0)
                is_first = False
                try:
                    write_bytes(file, content, durable=False)  # its length and checksum tell
                except OSError as error:
                    raise _unwritable(self.folder, error) from error

    def _check_room(self, count: int, size: int, announce: bool) -> None:
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
        if announce:
            print(f"caching the features of {counted(count, 'image')}, {_bytes(need)}, in {self.folder}", flush=True)


def cached(data: Any, plain: AnomalyDataset) -> CachedDataset | None:
    """Return a data module's data set with a cache; None, with a warning, where no key can tell its features.

    Args:
        data: An ``AnomalyDataModule``; its trainer's model may have a ``features_key``.
        plain: Its data set of one stage, without a cache.
    """
    model = getattr(data.trainer, "lightning_module", None)
    key = getattr(model, "features_key", None)
    if key is not None and hasattr(data, "owned"):
        return _of_joined_sets(data, plain)
    if key is None:
        name = "a loader without a trainer" if model is None else type(model).__name__
        if getattr(tuning := getattr(model, "tuning", None), "in_image", False):
            name += f" with {type(tuning).__name__} in its image tower"
        log.warning("cache is true, but %s keeps no frozen features (docs/cache.md): it does without.", name)
        return None
    kind, version = type(data), data.drawing_version
    contents = content_hashes(plain.samples, version)
    if not is_ours(kind.read) and any(None in content for content in contents):
        log.warning("cache is true, but %s reads what is no file (docs/cache.md): it does without.", kind.__name__)
        return None
    reading = READING_VERSION, kind.read.__qualname__, version, code_of(kind), sorted(data.pixel_options().items())
    # The label says whether no mask means no anomaly. A file that is missing has no content: reading it tells.
    names = [(*content, s.label) for content, s in zip(contents, plain.samples, strict=True)]
    return CachedDataset(plain, (key, reading), names)


def _of_joined_sets(data: Any, plain: AnomalyDataset) -> CachedDataset | None:
    """Find the features of each set where they are kept for the set alone, so that neither is encoded twice."""
    whole = CachedDataset(plain, (), ())
    files: dict[int, Path] = {}
    for one, places, samples in data.owned(plain.samples):
        one.trainer, one._size = data.trainer, data._size
        part = cached(one, AnomalyDataset(samples, one.read, plain.transform, plain.seed))
        if part is None:
            return None
        files |= zip(places, part.files, strict=True)
        whole.folder = part.folder
    whole.files = [files[place] for place in range(len(files))]
    return whole


def _is_whole(path: Path) -> bool:
    """Whether a file is there with all its bytes: safetensors checks its header against its length."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Sum the 8-byte words of all tensors, and a CRC of their types and shapes, modulo 2**64.

    At the speed of memory, several times that of a CRC. Any changed word and any page of zeros is seen; two words that
    are exchanged are not.
    """
    total = crc32(repr([(tensor.dtype, tuple(tensor.shape)) for tensor in tensors.values()]).encode())
    for tensor in tensors.values():
        content = tensor.numpy().reshape(-1).view(np.uint8)
        whole = len(content) // 8 * 8
        total += int(content[:whole].view(np.uint64).sum()) + int.from_bytes(content[whole:].tobytes(), "little")
    return str(total % 2**64)


def _unwritable(folder: Path, error: OSError) -> CacheError:
    why = getattr(error.__cause__, "strerror", None) or error.strerror or error
    return CacheError(
        f"Cannot write features to {folder}: {why}. Set the environment variable KANOCLIP_CACHE to another folder, or "
        f"use --data.cache false."
    )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
