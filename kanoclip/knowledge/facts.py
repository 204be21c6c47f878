"""Text features of what is known of each image, for the knowledge loss."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.data.base import AnomalyDataModule
from kanoclip.data.faults import UnreadableImageError
from kanoclip.knowledge.base import KnowledgeBase
from kanoclip.knowledge.images import image_hash, load_image_knowledge
from kanoclip.types import KanoclipError

log = logging.getLogger(__name__)


class ImageFacts:
    """Texts about the anomalies of an image: those of its category and its own, encoded once.

    Args:
        backbone: Encodes the texts.
        base: Texts of the categories.
        data: Its ``fit`` images are looked up by the hash of their content.
        path: JSONL of image knowledge.

    Raises:
        MissingError: If there is no such file.
        KanoclipError: If the file does not have the expected shape, or describes none of the images.
    """

    def __init__(self, backbone: CLIPBackbone, base: KnowledgeBase, data: AnomalyDataModule, path: str) -> None:
        known = load_image_knowledge(path)
        self._category = {name: backbone.encode_text(base.facts([name])) for name in data.categories}  # (K, D) each
        self._image: dict[str, Tensor] = {}  # path of the image -> (K, D)
        samples = data.part("fit")
        for sample in samples:
            try:
                texts = known.get(image_hash(sample, data.read))
            except (OSError, UnreadableImageError):
                continue  # the data loader reports it
            if texts:
                self._image[sample.image] = backbone.encode_text(texts)
        if not self._image:
            raise KanoclipError(
                f"{path} knows none of the {len(samples)} images of {data.name}. Build it for this data set."
            )
        log.info("%s of %s images have knowledge of their own.", len(self._image), len(samples))

    def __call__(self, category: str, path: str) -> Tensor:
        """Return the features ``(K, D)`` of an image, of unit length.

        Args:
            category: Of the image.
            path: Of the image, as ``Batch.path`` has it.
        """
        own = self._image.get(path)
        return self._category[category] if own is None else torch.cat([self._category[category], own])
