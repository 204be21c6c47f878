"""What a data set's publisher says about it: where it is, under which licence, how many images it should have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SAME_IMAGES = {"ksdd_anomalyclip": "ksdd", "ksdd_adaclip": "ksdd"}
"""Data sets that are pieces of another one's images."""


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
    """The published facts of a data set.

    Attributes:
        title: Its full name.
        reference: Paper that introduced it.
        licence: As its publisher states it.
        homepage: Where a person gets it.
        counts: Published number of test images, (normal, anomalous); None where unknown.
        train: Published number of training images; None where unknown.
        confirmed: Whether both were read where the publisher, or public code, states them.
        masks: Whether anomalous test images have masks.
        archives: What ``kanoclip data download`` fetches; empty where there is no direct public link.
        paper: Whether the KAnoCLIP paper's public pages name it among the data sets that it tests on.
        note: A trap, or what to unpack where, in one sentence.
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


def same_images(one: str | None, other: str | None) -> bool:
    """Whether two data sets, by their identity, show the same images, so that neither is zero-shot for the other."""
    return one is not None and SAME_IMAGES.get(one, one) == SAME_IMAGES.get(other or "", other)
