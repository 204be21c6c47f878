"""From samples to batches: reading, transforming, shuffling, and files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from kanoclip.data.faults import Remark, UnreadableImageError, hearing, tell
from kanoclip.data.processes import leave_signals_to_parent
from kanoclip.ranks import gather, rank_of
from kanoclip.types import NORMAL, UNKNOWN, Batch, Features, KanoclipError


@dataclass(frozen=True)
class Sample:
    """One image of a data set's index.

    Attributes:
        image: Path of the file, or ``name://...`` for a drawn one.
        masks: Files whose union is the mask; empty for a normal image, and where there is no ground truth.
        label: ``NORMAL``, ``ANOMALOUS`` or ``UNKNOWN`` (prediction only).
        category: What is shown: bottle, pcb1, brain.
        defect: Kind of defect, "good" for a normal image, "" when unknown.
        split: "train" (normal images, used by no zero-shot method) or "test".
    """

    image: str
    masks: tuple[str, ...] = ()
    label: int = UNKNOWN
    category: str = "object"
    defect: str = ""
    split: str = "test"


Mask = NDArray[np.uint8] | None
Read = Callable[[Sample], tuple[NDArray[np.uint8], Mask]]
Transform = Callable[[NDArray[np.uint8], NDArray[np.uint8] | None, int], tuple[Tensor, Tensor]]


class Item(NamedTuple):
    """One sample, read and transformed; see ``Batch`` for the fields.

    Attributes:
        image: ``(3, H, W)`` float32 in [0, 1].
        mask: ``(H, W)`` uint8, 0/1.
        has_mask: Whether the mask says anything.
        size: Height and width of the file, pixels.
        sample: Where it came from.
        features: Of this one image, patches ``(L, N, D)`` and cls ``(D,)``, if they come from a cache.
        remarks: How its files were understood.
    """

    image: Tensor
    mask: Tensor
    has_mask: bool
    size: tuple[int, int]
    sample: Sample
    features: Features | None = None
    remarks: tuple[Remark, ...] = ()


class AnomalyDataset(Dataset[Item]):
    """Reads and transforms samples.

    Args:
        samples: What to read.
        read: Sample -> image ``(H, W, 3)`` uint8 RGB and mask ``(H, W)`` uint8 0/1, or None where there is no mask.
        transform: Image, mask or None, seed -> tensors of the model's size; see ``transforms.Transform``.
        seed: Of the augmentation, together with epoch and index.
        crops: Whether the transform cuts pieces out: a piece of an anomalous image that shows nothing of the mask is
            given the label normal.
        unreadable: List to which ``AnomalyLoader`` adds path and reason of each file that cannot be read, and then
            goes on. None: such a file is an error.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        read: Read,
        transform: Transform,
        seed: int = 111,
        unreadable: list[tuple[str, str]] | None = None,
        crops: bool = False,
    ) -> None:
        self.samples = list(samples)
        self.read = read
        self.transform = transform
        self.seed = seed
        self.unreadable = unreadable
        self.crops = crops
        self.told: set[str] = set()  # remarks that were logged

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """Read one sample, by index or by (epoch, index): the epoch varies the augmentation."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.samples[index]
        with hearing() as remarks:
            image, mask = self.read(sample)
        height, width = image.shape[:2]
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        pixels, target = self.transform(image, mask, seed)
        has_mask = mask is not None or sample.label == NORMAL
        if self.crops and mask is not None and mask.any() and not target.any():
            sample = replace(sample, label=NORMAL, defect="good")
        return Item(pixels, target, has_mask, (height, width), sample, remarks=tuple(remarks))

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Item | UnreadableImageError]:
        """Read a batch; what torch's loader calls. Errors travel as values: raised in a worker they lose their type."""
        items: list[Item | UnreadableImageError] = []
        for key in keys:
            try:
                items.append(self[key])
            except UnreadableImageError as error:
                items.append(error)
        return items


def collate(items: Sequence[Item | UnreadableImageError]) -> Batch:
    """Stack items of one size to a batch.

    Raises:
        UnreadableImageError: The first one among the items.
    """
    for item in items:
        if isinstance(item, UnreadableImageError):
            raise item
    good = [item for item in items if isinstance(item, Item)]
    cached = [item.features for item in good if item.features is not None]
    return Batch(
        image=torch.stack([item.image for item in good]),
        mask=torch.stack([item.mask for item in good]),
        label=torch.tensor([item.sample.label for item in good]),
        has_mask=torch.tensor([item.has_mask for item in good]),
        size=torch.tensor([item.size for item in good]),
        category=[item.sample.category for item in good],
        defect=[item.sample.defect for item in good],
        path=[item.sample.image for item in good],
        features=_collate_features(cached) if cached else None,
    )


def _collate_features(items: Sequence[Features]) -> Features:
    """Stack ``(L, N, W)``, ``(D,)`` and perhaps ``(L, W)`` of single images."""
    level_cls = [one.level_cls for one in items if one.level_cls is not None]
    return Features(
        torch.stack([one.patches for one in items], 1),
        torch.stack([one.cls for one in items]),
        items[0].grid,
        torch.stack(level_cls, 1) if level_cls else None,
    )


def _collate_readable(
    items: Sequence[Item | UnreadableImageError],
) -> tuple[Batch | None, list[UnreadableImageError], list[Remark]]:
    errors = [item for item in items if isinstance(item, UnreadableImageError)]
    readable = [item for item in items if isinstance(item, Item)]
    return collate(readable) if readable else None, errors, [one for item in readable for one in item.remarks]


class RankSampler(DistributedSampler[Any]):
    """Gives each rank (process of a run) its share of the images; no image goes to two ranks.

    Not shuffled: ranks take whole batches in turn. These are the batches of a single process, so scores are equal to
    the last digit.
    Shuffled: the order depends on seed and epoch, so a resumed run goes on as if it had never stopped. In one step,
    all W ranks together take the images that a single process would take with a batch W times as large. The last,
    smaller step is divided as evenly as possible; with fewer images than ranks it is left out for this epoch.

    Lightning keeps a ``DistributedSampler`` and calls its ``set_epoch``; a training loop of your own must call it too.

    Args:
        dataset: What to sample from.
        batch_size: Images per batch of one rank.
        seed: Of the order; None for no shuffling.

    Raises:
        KanoclipError: If it shuffles, and there are fewer images than ranks.
    """

    def __init__(self, dataset: Sized, batch_size: int, seed: int | None = None) -> None:
        rank, world = rank_of()
        super().__init__(dataset, world, rank, seed is not None, seed or 0)  # type: ignore[arg-type]  # only its length
        size, step = len(dataset), batch_size * world
        self._mine: Sequence[int]  # positions in the order
        if seed is None:
            starts = range(rank * batch_size, size, step)
            self._mine = [i for start in starts for i in range(start, min(start + batch_size, size))]
        else:
            used = size if size % step >= world else size // step * step
            self._mine = range(rank, used, world)
            if not used:
                raise KanoclipError(
                    f"{size} images cannot be divided among {world} processes. "
                    f"Set --trainer.devices {max(1, size)} or fewer."
                )

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[Any]:
        if not self.shuffle:
            return iter(self._mine)
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.dataset))  # type: ignore[arg-type]
        return iter([(self.epoch, int(order[i])) for i in self._mine])


class AnomalyLoader(DataLoader):
    """A DataLoader of ``Batch`` that deals with unreadable files in the main process.

    They are raised, or noted in the data set's ``unreadable`` and left out; a batch with no readable file is skipped.
    Its length is at least 1 even if it yields nothing: Lightning skips an empty loader altogether, and the run would
    hang, because the other ranks wait for this one in collective operations.

    Raises:
        UnreadableImageError: While iterating, when the data set has no list of unreadable files.
    """

    def __len__(self) -> int:
        return max(1, super().__len__())

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises its own iterator class
        noted: list[tuple[str, str]] | None = getattr(self.dataset, "unreadable", None)
        batches: Iterator[Any] = super().__iter__()
        try:
            for batch, errors, remarks in batches:
                tell(remarks, getattr(self.dataset, "told", set()))
                for error in errors:
                    if noted is None:
                        raise error
                    noted.append((error.path, error.why))
                if batch is not None:
                    yield batch
        finally:
            del batches  # stops the workers now; the error's traceback would keep them alive as long as itself


def gather_unreadable(noted: list[tuple[str, str]], paths: Iterable[str]) -> list[tuple[str, str]]:
    """Bring together what several processes could not read, in the order of the data; collective.

    Args:
        noted: Path and reason of each file of this process. It is changed: the first process keeps the files of all,
            the others none, so that one of them tells.
        paths: The images, in order.

    Returns:
        The files of all processes, in each of them.
    """
    places = {path: place for place, path in enumerate(paths)}
    everything = sorted((pair for pairs in gather(noted) for pair in pairs), key=lambda pair: places.get(pair[0], 0))
    noted[:] = everything if rank_of()[0] == 0 else []
    return everything


def make_loader(
    dataset: AnomalyDataset,
    batch_size: int,
    num_workers: int,
    shuffle: bool = False,
    persistent: bool = False,
) -> AnomalyLoader:
    """Build the loader of a data set.

    Args:
        dataset: What to load.
        batch_size: Images per batch; the last batch may be smaller.
        num_workers: Processes that read; 0 reads in this one.
        shuffle: By seed and epoch.
        persistent: Keep the workers between epochs.
    """
    return AnomalyLoader(
        dataset,
        batch_size=batch_size,
        sampler=RankSampler(dataset, batch_size, dataset.seed if shuffle else None),
        num_workers=num_workers,
        collate_fn=_collate_readable,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=start_worker,
    )


def start_worker(worker: int) -> None:
    """Prepare a process that reads; ``worker_init_fn`` of a loader."""
    leave_signals_to_parent()
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork, and the workers are the parallelism
