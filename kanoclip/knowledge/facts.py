"""Which texts the knowledge loss reads for an image, and their features."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.data.base import AnomalyDataModule
from kanoclip.data.digests import content_of
from kanoclip.knowledge.base import AUTO, NONE, SHUFFLED, STATES, KnowledgeBase
from kanoclip.knowledge.images import image_file, image_hashes, load_image_knowledge
from kanoclip.types import KanoclipError

AT_ONCE = 256  # texts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What is known of anomalies.

    Attributes:
        categories: Category -> texts; those of an image that has none of its own.
        images: Image, as ``Batch.path`` has it -> its texts, those of its category too.
        files: That were read, as ``outputs.record.files_of`` names and hashes them; None: it is not there.
    """

    categories: Mapping[str, list[str]]
    images: Mapping[str, list[str]]
    files: Mapping[str, str | None]

    @classmethod
    def of(cls, data: AnomalyDataModule | None, knowledge: str, image_knowledge: str | None) -> Known:
        """Read what is known of the categories and images of a fit; of joined sets, what is known of each.

        Args:
            data: What is fitted on; None: nothing is known of it.
            knowledge: "auto", "none", "shuffled", or a base by name or path, see ``KAnoCLIP``.
            image_knowledge: "auto", the name of one that ships, or a path; None for none. Without the file that "auto"
                stands for, nothing is known of images, unless nothing else is known either.

        Raises:
            MissingError: If there is no such file.
            KanoclipError: If a file does not have the expected shape, or nothing is known.
        """
        name = AUTO if knowledge == SHUFFLED else knowledge
        sets = _sets(data)
        bases = (
            {} if name == NONE else {one: KnowledgeBase.choose(name, one) for one in {one for one, _ in sets.values()}}
        )
        files: dict[str, Path | None] = {base.reference: base.path for base in bases.values()}
        said = {  # state -> category -> texts
            state: {here: bases[one].facts([own], state) if bases else [] for here, (one, own) in sets.items()}
            for state in STATES
        }
        seen: dict[str, dict[str, list[str]]] = {state: {} for state in STATES}  # state -> image -> texts of its own
        if image_knowledge is not None and data is not None:
            names = dict.fromkeys(one for one, _ in sets.values())
            found = [image_file(image_knowledge, one, needed=not bases) for one in names]
            files |= {reference: path for path, reference in found}
            if there := [path for path, _ in found if path]:
                seen = {state: _of_images(data, there, state) for state in STATES}
        anomalous, own = said["anomalous"], seen["anomalous"]
        if data is not None and own:
            of_category = {sample.image: sample.category for sample in data.part("fit") if sample.image in own}
            for category in anomalous:
                inside = (text for image, its in of_category.items() if its == category for text in own[image])
                anomalous[category] = anomalous[category] or list(dict.fromkeys(inside))
        everything = list(dict.fromkeys(text for texts in (*anomalous.values(), *own.values()) for text in texts))
        if not everything:
            raise KanoclipError(
                "The knowledge loss has nothing to read: knowledge is none, and image_knowledge null. Set "
                "--model.image_knowledge auto, --model.knowledge auto, or --model.kd_loss none."
            )
        deal = {text: text for text in everything}
        if knowledge == SHUFFLED:
            normal = [text for texts in (*said["normal"].values(), *seen["normal"].values()) for text in texts]
            deal = shuffled(everything, normal)
        general = {category: [deal[text] for text in texts] for category, texts in anomalous.items()}
        alone = not bases  # then an image with texts of its own has no others
        images = {
            image: ([] if alone else general[of_category[image]]) + [deal[text] for text in texts]
            for image, texts in own.items()
        }
        read = {reference: content_of([path]) if path else None for reference, path in files.items()}
        return cls({name: texts or list(deal.values()) for name, texts in general.items()}, images, read)


class Facts:
    """Features of what is known, each text encoded once.

    Args:
        backbone: Encodes the texts.
        known: The texts.
    """

    def __init__(self, backbone: CLIPBackbone, known: Known) -> None:
        texts = list(dict.fromkeys(t for one in (known.categories, known.images) for ts in one.values() for t in ts))
        starts = range(0, len(texts), AT_ONCE)
        self._all = torch.cat([backbone.encode_text(texts[start : start + AT_ONCE]) for start in starts])  # (T, D)
        place = {text: number for number, text in enumerate(texts)}
        self._category, self._image = (
            {name: [place[text] for text in dict.fromkeys(texts)] for name, texts in one.items()}
            for one in (known.categories, known.images)
        )

    @property
    def general(self) -> Tensor:
        """Features ``(K, D)`` of all categories together, each text once."""
        return self._all[list(dict.fromkeys(place for places in self._category.values() for place in places))]

    def __call__(self, category: str, path: str) -> Tensor:
        """Return the features ``(K, D)`` of an image, of unit length.

        Args:
            category: Of the image.
            path: Of the image, as ``Batch.path`` has it.
        """
        return self._all[self._image.get(path) or self._category[category]]


def shuffled(texts: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Deal the words of texts and others out anew: as many texts, as long as before, but what they say is lost.

    The control of the ablation of knowledge. Other ways to shuffle would change next to nothing: the learned prompts
    see the texts of all categories, so that to exchange categories gives the same mean; and text encoders hardly mind
    the order of words. So the words are also those of the descriptions of intact objects: a text is of anomalies no
    more than of what is normal.

    Args:
        texts: To be replaced.
        others: Whose words are dealt out too.

    Returns:
        Each text -> its replacement; the same in every run.
    """
    texts = list(texts)
    words = [word.strip(",.;") for text in (*texts, *others) for word in text.split()]
    order = iter(np.random.default_rng(0).permutation(len(words)))
    return {text: " ".join(words[next(order)] for _ in text.split()) for text in texts}


def _sets(data: Any) -> dict[str, tuple[str, str]]:
    """Return category -> registered name of its data set, and what it is called there."""
    if hasattr(data, "origins"):
        return {here: (one.name, own) for here, (one, own) in data.origins.items()}
    name = getattr(data, "name", "")
    return {category: (name, category) for category in getattr(data, "categories", None) or ["object"]}


def _of_images(data: AnomalyDataModule, paths: Iterable[Any], state: str) -> dict[str, list[str]]:
    """Look the images of a fit up by their content; returns those that are known, with their texts."""
    known: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        known |= load_image_knowledge(path, state)
    samples = list({sample.image: sample for sample in data.part("fit")}.values())
    found = {s.image: known[h] for s, h in zip(samples, image_hashes(samples, data), strict=True) if h in known}
    if state == "anomalous" and not found:
        where = ", ".join(map(str, dict.fromkeys(paths)))
        raise KanoclipError(
            f"{where} knows none of the {len(samples)} images of {data.name}. Build it for this data set."
        )
    if state == "anomalous":
        log.info("%s of %s images have knowledge of their own.", len(found), len(samples))
    return {image: texts for image, texts in found.items() if texts}
