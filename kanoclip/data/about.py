"""What a data set's publisher says about it: where it is, under which licence, how many images it should have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kanoclip.registry import NAMES, load_class
from kanoclip.types import KanoclipError


class DamagedDataError(KanoclipError):
    """A data set that is there but wrong, so that it must not be taken for one that is not there (``MissingError``).

    Such as a mask without an image, a mask that fits two images, a list that names a file that is not there, or a list
    that cannot be read.
    """


class Archive(NamedTuple):
    """A file that can be downloaded by a direct public link.

    Attributes:
        url: http(s) address.
        sha256: Its checksum, lower-case hexadecimal; None where none is known.
    """

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class About:
    """The published facts of a data set; its class's docstring is completed with them.

    Attributes:
        title: Its full name.
        reference: What introduced it: authors, title, where and when.
        licence: As its publisher states it.
        homepage: Where a person gets it.
        counts: Published number of test images, (normal, anomalous); None where unknown.
        train: Published number of training images; None where unknown.
        confirmed: Whether both were read where the publisher, or public code, states them.
        masks: Whether anomalous test images have masks.
        archives: What ``kanoclip data download`` fetches; empty where there is no direct public link.
        paper: Whether the KAnoCLIP paper's public pages name it among the data sets that it tests on.
        note: A trap, or what to unpack where, in one sentence.
        pieces_of: Registered name of the data set whose images these are cut from; "" if they are its own.
    """

    title: str
    reference: str
    licence: str
    homepage: str
    counts: tuple[int, int] | None = None
    train: int | None = None
    confirmed: bool = False
    masks: bool = True
    archives: tuple[Archive, ...] = ()
    paper: bool = False
    note: str = ""
    pieces_of: str = ""

    def whole(self, normal: int, anomalous: int) -> bool:
        """Whether so many test images are the published number; False where none is known."""
        return self.counts == (normal, anomalous)

    def __str__(self) -> str:
        """The facts in sentences, for help."""
        told = [f"Reference: {self.reference}.", f"Licence: {self.licence}."]
        if self.counts:
            normal, anomalous = self.counts
            training = f", {self.train} training images" if self.train else ""
            doubt = "" if self.confirmed else " (not confirmed by us)"
            told.append(f"Published: {normal} normal and {anomalous} anomalous test images{training}{doubt}.")
        return " ".join(filter(None, [*told, self.note, f"Homepage: {self.homepage}"]))


JOINED, PLUS, BALANCED = "joined ", " + ", " (balanced)"
"""Of which the identity of joined sets is made."""


def same_images(one: str | None, other: str | None) -> bool:
    """Whether two data sets, by their identity, show the same images, so that neither is zero-shot for the other."""
    return one is not None and other is not None and not _sources(one).isdisjoint(_sources(other))


def _sources(identity: str) -> set[str]:
    """Return the data sets that the images are cut from, several of joined sets."""
    joined = identity.removeprefix(JOINED).removesuffix(BALANCED).split(PLUS)
    return {_source(part) for part in (joined if identity.startswith(JOINED) else [identity])}


def _source(identity: str) -> str:
    """Return the data set that the images are cut from, or the identity itself."""
    about = getattr(load_class(NAMES["data"][identity]), "about", None) if identity in NAMES["data"] else None
    return (about and about.pieces_of) or identity
