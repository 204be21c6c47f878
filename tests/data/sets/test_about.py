"""What is declared of a data set: counts, pieces of the same images, and the docstring that is completed with it."""

from __future__ import annotations

import pytest

from kanoclip.data.about import About, same_images
from kanoclip.data.sets.inspection import CrackForest, DeepPCB
from kanoclip.data.sets.mvtec import BTAD, MVTecAD
from kanoclip.data.sets.tree import Tree
from kanoclip.registry import NAMES, load_class, summary

PUBLISHED = [path for path in NAMES["data"].values() if issubclass(load_class(path), Tree)]


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_set_is_whole_only_if_it_has_the_published_numbers(confirmed):
    about = About("A", "-", "-", "-", counts=(451, 290), confirmed=confirmed)
    assert about.whole(451, 290)
    assert not about.whole(1, 1)
    assert not about.whole(290, 451)
    assert not About("A", "-", "-", "-", confirmed=confirmed).whole(0, 0)


def test_two_images_of_btad_are_not_the_whole_set():
    assert not BTAD.about.confirmed
    assert not BTAD.about.whole(1, 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ksdd", "ksdd", True),
        ("ksdd", "ksdd_adaclip", True),
        ("ksdd_anomalyclip", "ksdd_adaclip", True),
        ("ksdd", "ksdd2", False),
        ("mvtec", "visa", False),
        ("mvtec", "mvtec /data/mine", False),
        ("folder /a", "folder /a", True),
        ("folder /a", None, False),
        (None, None, False),
    ],
)
def test_pieces_of_the_same_images_are_known_by_name(one, other, same):
    assert same_images(one, other) == same
    assert same_images(other, one) == same


def test_images_are_pieces_of_a_registered_set():
    sources = {load_class(path).about.pieces_of for path in PUBLISHED} - {""}
    assert sources == {"ksdd"} <= set(NAMES["data"])


@pytest.mark.parametrize("path", PUBLISHED)
def test_the_docstring_holds_what_is_declared_and_begins_as_in_the_source(path):
    cls = load_class(path)
    said = " ".join(cls.__doc__.split())
    assert cls.__doc__.split("\n")[0] == summary(path)
    assert f"Reference: {cls.about.reference}." in said
    assert f"Licence: {cls.about.licence}." in said
    assert cls.about.homepage in said
    assert "Other arguments as in ``AnomalyDataModule``." in said
    assert all(len(line) <= 120 for line in cls.__doc__.splitlines())


def test_the_docstring_names_counts_and_the_rule_of_masks():
    assert "467 normal and 1258 anomalous test images, 3629 training images." in " ".join(MVTecAD.__doc__.split())
    assert "290 anomalous test images, 1799 training images (not confirmed by us)." in " ".join(BTAD.__doc__.split())
    assert "those above 127, or above 0 if none is brighter." in MVTecAD.__doc__
    assert "those of label 2." in CrackForest.__doc__
    assert "Anomalous pixels" not in DeepPCB.__doc__  # its masks are boxes


def test_what_is_declared_stands_before_the_arguments():
    class Mine(Tree):
        """Mine: my images.

        Args:
            root: Where they are.
        """

        about = About("Mine", "Me, 2026", "CC0", "https://example.org", masks=False, note="Beware.")

    assert Mine.__doc__ == (
        "Mine: my images.\n\nThere are no masks. Other arguments as in ``AnomalyDataModule``.\n\n"
        "Reference: Me, 2026. Licence: CC0. Beware. Homepage: https://example.org\n\n"
        "Args:\n    root: Where they are.\n"
    )


def test_a_class_that_declares_nothing_keeps_its_docstring():
    class Mine(MVTecAD):
        """Mine."""

    class Silent(MVTecAD):
        about = MVTecAD.about

    assert Mine.__doc__ == "Mine."
    assert Silent.__doc__ is None
