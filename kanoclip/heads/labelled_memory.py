"""A memory with labels: what normal and anomalous images and regions of the auxiliary set look like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.memory import Memory
from kanoclip.heads.scoring import check_temperature
from kanoclip.ranks import gather
from kanoclip.types import ANOMALOUS, NORMAL, UNKNOWN, Batch, Features, KanoclipError

WINDOWS = (1, 3, 5)
"""Sides in patches of the neighbourhoods over which a patch is averaged."""


class LabelledMemory(Memory):
    """Remember images and regions of the auxiliary set with their labels; what is alike is labelled alike.

    ``p(anomalous) = sum over anomalous rows of softmax(q k / temperature)``, q the feature of an image or a patch, k
    the rows that are remembered: of images their global feature, of regions the mean patch of the anomalous part of an
    image and that of its normal part. The memory is filled when a fit starts, in a pass of its own over the images in
    their order, never augmented, and is part of the checkpoint.

    Args:
        size: Most rows of images and most rows of regions, drawn by seed. null: all.
        temperature: Divisor of the cosine, dimensionless. With 1 all rows count nearly alike, and p stays near their
            share of anomalous ones: it ranks, but a threshold of one memory means nothing for another.

    Raises:
        KanoclipError: If ``size`` is below 1, or ``temperature`` not above 0.

    Reference:
        C. Xu et al., *MRAD: Zero-Shot Anomaly Detection with Memory-Driven Retrieval*, ICLR 2026, arXiv 2602.00522,
        and its code. Only the last level is read.
    """

    fitted = True
    image_keys: Tensor
    image_labels: Tensor
    patch_keys: Tensor
    patch_labels: Tensor

    def __init__(self, size: int | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise KanoclipError(f"memory.size is {size}, expected 1 row or more, or null. Set --model.memory.size.")
        check_temperature(temperature)
        self.size = size
        self.temperature = temperature

    def build(self, backbone: CLIPBackbone) -> None:
        """Make an empty memory of the backbone's widths."""
        for name, width in (("image", backbone.dim), ("patch", backbone.patch_dim)):
            self.register_buffer(f"{name}_keys", torch.zeros(0, width))  # (R, D) and (R, W), unit length
            self.register_buffer(f"{name}_labels", torch.zeros(0))  # (R,), 1 = anomalous

    def make_room(self, weights: dict[str, Tensor]) -> None:
        """Take as many rows as a checkpoint has."""
        for name in ("image_keys", "image_labels", "patch_keys", "patch_labels"):
            own, given = getattr(self, name), weights.get(name)
            if given is not None and given.ndim == own.ndim and given.is_contiguous():
                setattr(self, name, own.new_zeros(len(given), *own.shape[1:]))

    @torch.no_grad()
    def collect(self, batches: Iterable[Batch], encode: Callable[[Batch], Features], seed: int) -> None:
        """Fill the memory anew. Collective: every rank gives its share of the images.

        Args:
            batches: Images with labels and masks; one without a mask gives its global feature alone.
            encode: What makes features of them.
            seed: By which rows are drawn if there are more than ``size``.

        Raises:
            KanoclipError: If there are no normal or no anomalous rows.
        """
        images: list[tuple[Tensor, Tensor]] = []
        regions: list[tuple[Tensor, Tensor]] = []
        for batch in batches:
            features = encode(batch)
            known = batch.label != UNKNOWN
            images.append((features.cls[known].cpu(), batch.label[known].float().cpu()))
            patches = neighbourhoods(features)  # (B, N, W)
            of_states = []
            small = F.interpolate(batch.mask[:, None].float(), features.grid, mode="bilinear").flatten(1)  # (B, N)
            for label, inside in ((NORMAL, small == 0), (ANOMALOUS, small == 1)):  # patches on the border are left out
                count = (inside & batch.has_mask[:, None]).sum(1)
                mean = (patches * inside[..., None]).sum(1) / count.clamp_min(1)[:, None]  # (B, W)
                rows = F.normalize(mean[count > 0], dim=-1).cpu()
                of_states.append((rows, torch.full((len(rows),), float(label))))
            regions.append(joined(of_states))
        for name, what, found in (("image", "images", images), ("patch", "regions with a mask", regions)):
            turns = zip_longest(*gather(found))  # batches go to the ranks in turn
            keys, labels = joined(batch for turn in turns for batch in turn if batch)
            for label, state in ((NORMAL, "normal"), (ANOMALOUS, "anomalous")):
                if not (labels == label).any():
                    raise KanoclipError(
                        f"A labelled memory needs normal and anomalous {what}, and there are no {state} ones among "
                        f"those of the fit. Fit on a data set that has them, such as --data mvtec."
                    )
            if self.size is not None and len(keys) > self.size:
                drawn = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))[: self.size].sort()[0]
                keys, labels = keys[drawn], labels[drawn]
            setattr(self, f"{name}_keys", keys.to(self.image_keys))
            setattr(self, f"{name}_labels", labels.to(self.image_labels))

    def read(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return p(anomalous) of each image ``(B,)`` and of each patch ``(B, N)``.

        Raises:
            KanoclipError: If nothing is remembered yet.
        """
        if not len(self.image_keys):
            raise KanoclipError("The memory is empty: fit the model first, and test its checkpoint.")
        with torch.autocast(self.image_keys.device.type, enabled=False):  # 10 bits would tie what is nearly alike
            image = self.look_up("image", features.cls.float())
            return image, self.look_up("patch", F.normalize(neighbourhoods(features), dim=-1))

    def look_up(self, name: str, query: Tensor) -> Tensor:
        """Return p(anomalous) ``(...)`` of queries ``(..., W)`` by the rows called ``name``."""
        keys, labels = getattr(self, f"{name}_keys"), getattr(self, f"{name}_labels")
        return (query @ keys.mT / self.temperature).softmax(-1) @ labels

    def forward(self, features: Features, category: Sequence[str]) -> Tensor | None:
        """Return p(anomalous) of each patch, ``(B, h, w)``; None as long as the memory is empty."""
        return self.read(features)[1].unflatten(-1, features.grid) if len(self.image_keys) else None


class ProjectedMemory(LabelledMemory):
    """A labelled memory whose queries and rows pass linear layers that learn.

    While it trains, the rows that are most alike to a query are hidden: its own image is among them.

    Args:
        size: As in ``LabelledMemory``.
        temperature: As in ``LabelledMemory``.
        hide_images: Rows of images above this quantile of the cosine are hidden in training, in (0, 1].
        hide_patches: Likewise rows of regions, for each patch.

    Raises:
        KanoclipError: Also if a quantile is not in (0, 1].

    Reference:
        MRAD-FT, as ``LabelledMemory``. Its code says 0.8 for regions, and in a comment 0.85 for the fit that is tested
        on VisA.
    """

    learns = True

    def __init__(
        self,
        size: int | None = None,
        temperature: float = 1.0,
        hide_images: float = 0.95,
        hide_patches: float = 0.8,
    ) -> None:
        super().__init__(size, temperature)
        for name, value in (("hide_images", hide_images), ("hide_patches", hide_patches)):
            if not 0 < value <= 1:
                raise KanoclipError(
                    f"memory.{name} is {value}, expected a quantile in (0, 1]. Set --model.memory.{name}."
                )
        self.hide_images = hide_images
        self.hide_patches = hide_patches

    def build(self, backbone: CLIPBackbone) -> None:
        """Make an empty memory, and the layers of its queries and its rows."""
        super().build(backbone)
        for name, width in (("image", backbone.dim), ("patch", backbone.patch_dim)):
            setattr(self, f"{name}_query", nn.Linear(width, backbone.dim))
            setattr(self, f"{name}_key", nn.Linear(width, backbone.dim))

    def look_up(self, name: str, query: Tensor) -> Tensor:
        """Return p(anomalous) ``(...)`` of queries ``(..., W)`` by the rows called ``name``."""
        keys, labels = getattr(self, f"{name}_keys"), getattr(self, f"{name}_labels")
        alike = getattr(self, f"{name}_query")(query) @ getattr(self, f"{name}_key")(keys).mT  # not of unit length
        if self.training:
            cosine, share = query @ keys.mT, self.hide_images if name == "image" else self.hide_patches
            alike = alike.masked_fill(cosine > cosine.quantile(share, -1, keepdim=True), -torch.inf)
        return (alike / self.temperature).softmax(-1) @ labels


def joined(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate the first of each pair, and the second of each."""
    keys, labels = zip(*pairs, strict=True)
    return torch.cat(keys), torch.cat(labels)


def neighbourhoods(features: Features) -> Tensor:
    """Average each patch of the last level with its 1, 3 x 3 and 5 x 5 neighbours, zeros beyond the border.

    Returns:
        ``(B, N, W)`` of any length.
    """
    grid = features.patches[-1].float().mT.unflatten(-1, features.grid)  # (B, W, h, w)
    means = [F.avg_pool2d(grid, side, stride=1, padding=side // 2) for side in WINDOWS]
    return torch.stack(means).mean(0).flatten(2).mT
