"""From the bytes of a file to pixels as they are stored.

Pillow decodes, because it raises on a truncated file where OpenCV fills the rest with grey. There are two exceptions:
TIFs that Pillow refuses (CVC-ClinicDB: three channels tagged as grey) are read by tifffile, and colour files deeper
than 8 bits, of which Pillow keeps only the high byte, by OpenCV. The first bytes of a file decide, not its name, and
only decoders of pictures may see them. The orientation that a camera has noted is applied.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kanoclip.data.faults import UnreadableImageError, remark
from kanoclip.data.formats import DECODERS, HAS_HEIF, HEIC, undecodable
from kanoclip.types import KanoclipError

Pixels = NDArray[Any]

MAX_BYTES = 1 << 30  # of a file; 179 million pixels, Pillow's limit, of 16-bit colour
MAX_CHUNKS = 10_000  # of a PNG, besides those of pixels; Pillow takes a second for 100,000
ROWS = 256  # that are converted at once: copies of a whole picture of 48 million pixels would take 200 MB each


def decode(path: str, indices: bool = False) -> Pixels:
    """Read the pixels of an image file.

    Args:
        path: The file. Of one with several pages or frames the first is read, which is remarked (``faults.hearing``).
        indices: Return the indices of a palette, not its colours.

    Returns:
        ``(H, W)``, ``(H, W, 3)`` RGB, or ``(H, W, 4)`` RGB and alpha if some of it is transparent; of any number type.

    Raises:
        UnreadableImageError: With the file, the reason and the remedy.
    """
    content = _read(path)
    try:
        _check_chunks(content)
        with Image.open(BytesIO(content), formats=_decoders()) as file:
            if file.format != "MPO" and getattr(file, "is_animated", False):  # MPO: a camera's small copies
                remark(path, "it has several pages or frames, of which the first is read.")
            deep = _is_deep(content, file)
            # Pillow below 13 expects a fourth channel and takes YCbCr for RGB.
            form = file.format, file.mode, file.info.get("compression")
            if ycbcr := form == ("TIFF", "RGB", "raw") and file.getexif().get(262) == 6:  # 262: what channels mean
                tiles: Any = file.tile  # Pillow 12 and 13 type them differently
                tiles[:] = [(*tile[:3], ("RGB", *tile[3][1:])) for tile in tiles]
            file.load()
            mode, orientation = file.mode, file.getexif().get(274, 1)
            if not deep:
                image = Image.frombytes("YCbCr", file.size, file.tobytes()) if ycbcr else file
                pixels = _array(image, _target(file, indices))
        if deep:
            pixels = _opencv(content, has_alpha=mode != "RGB")
        return _upright(pixels, orientation)
    except UnidentifiedImageError as error:
        if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tifffile(path, content)
        is_heic = content[4:12] in (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftypmif1")
        named = HEIC if is_heic and not HAS_HEIF else undecodable(path)
        why = named or "it is not an image. Replace the file or remove it"
        raise UnreadableImageError(path, f"{why}.") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(path, f"{too_large()} Cut it into tiles or shrink it.") from error
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise UnreadableImageError(path, f"{error}. Copy the file again from its source, or remove it.") from error


def from_pillow(image: Image.Image) -> Pixels:
    """Return the pixels of an image that Pillow has opened or made, as ``decode`` returns those of a file."""
    image.load()
    return _upright(_array(image, _target(image, indices=False)), image.getexif().get(274, 1))


def too_large() -> str:
    """Say that a picture has too many pixels."""
    return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels, Pillow's limit of safety."


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read() if os.fstat(file.fileno()).st_size <= MAX_BYTES else None
    except FileNotFoundError as error:
        raise UnreadableImageError(path, "there is no such file. Check the path.") from error
    except (OSError, ValueError) as error:  # a name that is too long or holds a zero byte, a folder, no right to read
        why = getattr(error, "strerror", None) or error
        raise UnreadableImageError(path, f"it cannot be opened: {why}. Check its name and your rights.") from error
    if content is None:
        raise UnreadableImageError(path, f"it has more than {MAX_BYTES >> 20} MB. Cut it into tiles or shrink it.")
    return content


@cache
def _decoders() -> tuple[str, ...]:
    if not HAS_HEIF:
        return DECODERS
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return (*DECODERS, "HEIF")


def _check_chunks(content: bytes) -> None:
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return
    at, others = 8, 0
    while at < len(content) and others <= MAX_CHUNKS:
        others += content[at + 4 : at + 8] not in (b"IDAT", b"fdAT")
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    if others > MAX_CHUNKS:
        raise KanoclipError(f"it has more than {MAX_CHUNKS} chunks of text and the like")


def _is_deep(content: bytes, file: Image.Image) -> bool:
    """Whether Pillow would read more than 8 bits per channel as 8."""
    if file.mode not in ("RGB", "RGBA", "LA"):
        return False
    if file.format == "PNG":
        return content[24] > 8  # bit depth, by the header
    return file.format == "TIFF" and max(file.getexif().get(258, (8,))) > 8  # 258: bits per sample


def _target(file: Image.Image, indices: bool) -> str:
    """Pillow's mode to which a loaded image is brought."""
    mode = file.mode
    if indices and mode in ("P", "1"):
        return mode
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or (mode in ("P", "L", "RGB", "1") and "transparency" in file.info):
        return "RGBA"
    return mode if mode.startswith(("I", "F", "L")) and mode != "LAB" else "RGB"


def _array(image: Image.Image, mode: str) -> Pixels:
    """Convert to ``(H, W)`` or ``(H, W, 3 or 4)``, in little more than its memory."""
    width, height = image.size
    pixels: Pixels | None = None
    for top, rows in _strips(image, mode, width, height):
        if pixels is None:
            pixels = np.empty((height, *rows.shape[1:]), rows.dtype)
        pixels[top : top + len(rows)] = rows
    assert pixels is not None  # Pillow opens no image without rows
    return _without_opaque_alpha(pixels)


def _strips(image: Image.Image, mode: str, width: int, height: int) -> Iterator[tuple[int, Pixels]]:
    for top in range(0, height, ROWS):
        strip = image.crop((0, top, width, min(top + ROWS, height)))
        yield top, np.asarray(strip if strip.mode == mode else strip.convert(mode))


def _without_opaque_alpha(pixels: Pixels) -> Pixels:
    """Leave out a fourth channel that is at its type's largest value everywhere."""
    if pixels.ndim == 3 and pixels.shape[2] == 4 and pixels[..., 3].min() == np.iinfo(pixels.dtype).max:
        return pixels[..., :3]
    return pixels


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and flip as EXIF's orientation, 1 to 8, asks."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _opencv(content: bytes, has_alpha: bool) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise KanoclipError("neither Pillow nor OpenCV can decode it")
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 4 and has_alpha and pixels.dtype.kind == "u":
        return _without_opaque_alpha(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA))
    return pixels[..., 2::-1]  # (H, W, 3), BGR or BGRA -> RGB


def _tifffile(path: str, content: bytes) -> Pixels:
    import tifffile

    tifffile.logger().setLevel(logging.CRITICAL)  # the error below says what is wrong
    try:
        with tifffile.TiffFile(BytesIO(content)) as file:
            page = file.pages[0]
            shape = page.shape
            if Image.MAX_IMAGE_PIXELS and np.prod(shape, dtype=float) > 6 * Image.MAX_IMAGE_PIXELS:
                raise KanoclipError(too_large())
            pixels = page.asarray()
            if not pixels.size:
                raise KanoclipError("it holds no pixels")
            if file.pages.is_multipage:
                remark(path, "it has several pages or frames, of which the first is read.")
    except Exception as error:  # tifffile's own types, zlib.error, ValueError, ...
        raise UnreadableImageError(
            path, f"neither Pillow nor tifffile can open it ({error}). Save it as a PNG instead."
        ) from error
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] > 4:
        pixels = np.moveaxis(pixels, 0, 2)  # planes one after the other
    if pixels.ndim == 3 and pixels.shape[2] in (2, 3, 4):
        pixels = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0]  # what Pillow refuses declares no alpha
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3):
        return pixels
    raise UnreadableImageError(path, f"it has {pixels.shape[-1]} channels, expected grey or colour. Save it as a PNG.")
