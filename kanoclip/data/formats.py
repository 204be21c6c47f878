"""Which files are pictures, which of them the installed decoders read, and what to do about the others."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import features

_RASTER = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
}
_HEIF = (".heic", ".heif", ".hif")
HEIC = "it is a HEIC picture, which takes another package: pip install pillow-heif"
_RAW = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
_OTHERS = {
    "a camera's raw data": _RAW,
    "a drawing of lines, not of pixels": (".svg", ".svgz", ".eps", ".ai", ".wmf", ".emf"),
    "a project of a paint program": (".psd", ".psb", ".xcf", ".kra"),
    "JPEG XL": (".jxl",),
    "JPEG XR": (".jxr", ".wdp", ".hdp"),
    "a picture of light beyond white": (".exr", ".hdr", ".pfm"),
    "a medical scan": (".dcm", ".dicom", ".nii", ".nrrd", ".mha", ".mhd"),
    "in a format that is not read": (".tga", ".pcx", ".sgi", ".ras", ".qoi", ".dds", ".xbm", ".xpm", ".ico"),
}


def _can_read(decoder: str) -> bool:
    name = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(decoder)  # Pillow may be built without these
    return name is None or (name in features.get_supported())


HAS_HEIF = find_spec("pillow_heif") is not None
DECODERS = tuple(name for name in _RASTER if _can_read(name))
"""Decoders of Pillow that a file may reach. Others take a program's help (PostScript), or are of no photo."""
IMAGE_SUFFIXES: tuple[str, ...] = (
    *(suffix for name in DECODERS for suffix in _RASTER[name]),
    *(_HEIF if HAS_HEIF else ()),
)
"""Suffixes of the pictures that can be read here, in lower case."""


def undecodable(path: str | Path) -> str | None:
    """Say why a file that is a picture by its name cannot be read here, and what to do.

    Args:
        path: The file; it is not opened.

    Returns:
        Such as "it is a HEIC picture, which takes another package: pip install pillow-heif". None for what can be
        read, and for what is no picture.
    """
    suffix = Path(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in _HEIF:
        return HEIC
    if name := next((name for name, suffixes in _RASTER.items() if suffix in suffixes), None):
        return f"it is a picture in {name}, which the installed Pillow cannot read: pip install --upgrade pillow"
    if kind := next((kind for kind, suffixes in _OTHERS.items() if suffix in suffixes), None):
        return f"it is {kind}: convert it to PNG"
    return None
