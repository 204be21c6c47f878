from __future__ import annotations

import pytest
from PIL import Image

from kanoclip.data.formats import DECODERS, HAS_HEIF, IMAGE_SUFFIXES, undecodable


def test_every_suffix_of_an_allowed_decoder_is_one_that_pillow_gives_it():
    Image.init()
    for suffix in set(IMAGE_SUFFIXES) - {".heic", ".heif", ".hif"}:
        assert {".dib": "BMP", ".mpo": "JPEG"}.get(suffix, Image.registered_extensions()[suffix]) in DECODERS


def test_no_decoder_that_starts_a_program_or_takes_any_bytes_is_allowed():
    assert not {"EPS", "PDF", "WMF", "TGA", "FITS", "GRIB", "HDF5", "MPEG"} & set(DECODERS)


@pytest.mark.parametrize("name", ["a.png", "A.JFIF", "b.gif", "notes.txt", "mask.npy", "list.csv", "none"])
def test_what_is_read_or_no_picture_has_no_complaint(name):
    assert undecodable(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [("a.NEF", "raw data: convert"), ("b.svg", "lines"), ("c.jxl", "JPEG XL: convert it to PNG"), ("d.dcm", "scan")],
)
def test_a_picture_that_cannot_be_read_is_told_with_the_remedy(name, why):
    assert why in str(undecodable(name))


def test_heic_is_read_or_its_package_is_named():
    assert (".heic" in IMAGE_SUFFIXES) == HAS_HEIF
    assert HAS_HEIF or "pip install pillow-heif" in str(undecodable("photo.HEIC"))
