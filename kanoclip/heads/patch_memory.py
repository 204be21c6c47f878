"""Few-shot: the patches of a few good images, kept whole or as a coreset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.data.digests import digest
from kanoclip.data.parsing import local_path
from kanoclip.data.references import ANY, TRAIN, find_references
from kanoclip.data.resizing import Tile
from kanoclip.heads.memory import Encode, Memory, Vectors
from kanoclip.heads.scoring import dot
from kanoclip.types import KanoclipError, MissingError

LARGEST = 1 << 30  # numbers in the memory: 4 GiB
AT_ONCE = 1 << 24  # similarities computed at a time: 64 MiB


class PatchMemory(Memory):
    """Remember the patches of good images; what is far from all of them is anomalous (few-shot).

    The distance of a patch is half of 1 - cosine to the nearest remembered one of its level and category.

    Args:
        reference: Folder of good photos, for all categories together or with a sub-folder for each; or "train": the
            normal training images of the data set that is scored.
        shots: Images to draw of each category. null: all.
        seed: Of the draw and of a random subset. null: that of the run; 111 where there is none.
        with_replacement: Whether an image may be drawn twice, as in APRIL-GAN's code.
        subset: Which vectors are kept: "none" leaves out none; "random" keeps ``size`` of them; "greedy" as many that
            lie far apart, so that none left out is far from all that are kept.
        size: Vectors kept of each category and level by a subset.

    Attributes:
        references: Digest of what is remembered: the contents of the images and the subset; "" before a run.

    Raises:
        KanoclipError: For a setting out of its range, or a memory of more than 4 GiB.
        MissingError: If the folder is not there.

    Reference:
        K. Roth et al., *Towards Total Recall in Industrial Anomaly Detection*, CVPR 2022 (PatchCore), for memory and
        greedy coreset; J. Jeong et al., *WinCLIP*, CVPR 2023, section 4.3, for CLIP's patches and the halved distance.
        PatchCore projects vectors at random before it chooses greedily; ours are compared whole.
    """

    def __init__(
        self,
        reference: str = TRAIN,
        shots: int | None = None,
        seed: int | None = None,
        with_replacement: bool = False,
        subset: Literal["none", "random", "greedy"] = "none",
        size: int | None = None,
    ) -> None:
        super().__init__()
        if shots is not None and shots < 1:
            raise KanoclipError(f"memory.shots is {shots}, expected 1 or more, or null. Use --model.memory.shots 4.")
        if with_replacement and shots is None:
            raise KanoclipError("memory.with_replacement draws images, but all are used. Add --model.memory.shots 4.")
        if subset not in ("none", "random", "greedy"):
            raise KanoclipError(
                f"memory.subset is {subset!r}, expected none, random or greedy. Use --model.memory.subset none."
            )
        if (subset == "none") != (size is None) or (size is not None and size < 1):
            raise KanoclipError(
                f"memory.subset is {subset} and memory.size {size}: a subset keeps 1 vector or more, none keeps all. "
                f"Use --model.memory.subset greedy --model.memory.size 1000, or leave both out."
            )
        if reference != TRAIN and not (folder := local_path(reference, "--model.memory.reference")).is_dir():
            raise MissingError(
                f"No folder {folder}. Set --model.memory.reference to a folder of good photos, or to train."
            )
        self.references = ""
        self._reference, self._shots, self._seed, self._with_replacement = reference, shots, seed, with_replacement
        self._subset, self._size = subset, size
        self._draw = 111
        self._banks: dict[str, Vectors] = {}  # category -> (M, W) of each set, unit length

    def choose(self, data: Any, seed: int | None) -> None:
        """Find and draw the reference images.

        Raises:
            KanoclipError: As ``find_references``; or if there are none of a category that is scored.
        """
        self._draw = next(one for one in (self._seed, seed, 111) if one is not None)
        self.chosen = find_references(self._reference, data, self._shots, self._draw, self._with_replacement)
        for category in getattr(data, "categories", ()):
            if ANY not in self.chosen.samples and category not in self.chosen.samples:
                raise self._unknown(category)
        drawn = self._draw if self._subset == "random" else None
        self.references = digest(sorted(self.chosen.hashes.items()), self._subset, self._size, drawn)[:16]

    def fill(self, encode: Encode, size: int, tile: Tile = False) -> None:
        """Encode the reference images, a category at a time."""
        assert self.chosen is not None  # for the type checker: a run has chosen them
        self._banks, numbers = {}, 0
        for category in self.chosen.samples:
            vectors = encode(self.chosen.batches(category, size, tile))
            self._banks[category] = [self._keep(F.normalize(one.float(), dim=-1)) for one in vectors]
            numbers += sum(one.numel() for one in self._banks[category])
            if numbers > LARGEST:
                raise KanoclipError(
                    f"The memory of {self.chosen.told} takes more than {LARGEST * 4 / 2**30:.0f} GiB. Use fewer with "
                    f"--model.memory.shots 4, or keep a part: --model.memory.subset random --model.memory.size 10000."
                )

    @torch.no_grad()
    def distances(self, vectors: Vectors, category: Sequence[str]) -> Vectors:
        """Return ``(B, M)`` in [0, 1] of each set.

        Raises:
            KanoclipError: If nothing is remembered, or nothing of a category.
        """
        names = [ANY if ANY in self._banks else name for name in category]
        for name in set(names):
            if name not in self._banks:
                raise self._unknown(name)
        if len(set(names)) == 1:
            return [nearest(one, bank) for one, bank in zip(vectors, self._bank(names[0], vectors), strict=True)]
        found = [one.new_empty(one.shape[:2], dtype=torch.float32) for one in vectors]
        for name in sorted(set(names)):
            mine = [i for i, other in enumerate(names) if other == name]
            parts = self.distances([one[mine] for one in vectors], [name])
            for whole, part in zip(found, parts, strict=True):
                whole[mine] = part
        return found

    def _bank(self, name: str, vectors: Vectors) -> Vectors:
        bank = self._banks[name]
        if bank[0].device != vectors[0].device:
            bank = self._banks[name] = [one.to(vectors[0].device) for one in bank]
        return bank

    def _unknown(self, category: str) -> KanoclipError:
        if self.chosen is None:
            return KanoclipError("The memory is empty: call model.remember() before the model scores images.")
        return KanoclipError(
            f"There are no reference images of {category!r}, only of {', '.join(sorted(self.chosen.samples))}. Add a "
            f"folder {category} of good photos to --model.memory.reference, or give photos without sub-folders for all."
        )

    def _keep(self, rows: Tensor) -> Tensor:
        """Return the subset of ``(M, W)`` that is kept."""
        if self._size is None or self._size >= len(rows):
            return rows
        if self._subset == "greedy":
            return rows[greedy(rows, self._size)]
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self._draw))[: self._size]]


def nearest(vectors: Tensor, bank: Tensor) -> Tensor:
    """Return half of 1 - cosine between vectors ``(B, M, W)`` and the nearest of a bank: ``(B, M)`` in [0, 1].

    Args:
        vectors: Of any length.
        bank: ``(R, W)``, unit length.
    """
    rows = F.normalize(vectors.float(), dim=-1)
    # an exported graph is the same for any batch: it has no loop
    step = len(bank) if torch.compiler.is_compiling() else max(1, AT_ONCE // (rows.shape[0] * rows.shape[1]))
    best = rows.new_full(rows.shape[:2], -2.0)
    place = torch.zeros_like(best, dtype=torch.long)
    for first in range(0, len(bank), step):
        highest, where = (rows @ bank[first : first + step].T).float().max(-1)  # (B, M)
        place = torch.where(highest > best, where + first, place)
        best = torch.maximum(best, highest)
    return ((1 - dot(rows, bank[place])) / 2).clamp(0, 1)  # anew: autocast and TF32 round a product of matrices


def greedy(rows: Tensor, size: int) -> Tensor:
    """Choose rows that lie far apart: each is the one farthest from those before it.

    Args:
        rows: ``(R, W)``, unit length.
        size: How many.

    Returns:
        Their numbers ``(size,)``. The first is the one nearest to the mean, so that nothing is drawn.
    """
    chosen = [(rows @ rows.mean(0)).argmax()]
    similarity = rows @ rows[chosen[0]]  # (R,), to the nearest chosen one
    while len(chosen) < size:
        chosen.append(similarity.argmin())
        similarity = torch.maximum(similarity, rows @ rows[chosen[-1]])
    return torch.stack(chosen)
