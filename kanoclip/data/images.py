"""Reads any published image to RGB and any published mask to 0/1.

Pillow decodes, because it raises on a truncated file where OpenCV fills the rest with grey. Two kinds go round it: TIFs
that Pillow refuses (CVC-ClinicDB: three channels tagged as grey) are read by tifffile, and colour files deeper than
8 bits, of which Pillow keeps only the high byte, by OpenCV. The EXIF orientation of a camera's JPEG is applied.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kanoclip.types import KanoclipError

Pixels = NDArray[Any]


class UnreadableImageError(KanoclipError):
    """An image or mask file that cannot be used: missing, truncated, not an image, or of another size than its partner.

    Args:
        path: The file.
        why: What is wrong with it, and what to do.
    """

    def __init__(self, path: str, why: str = "") -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"Cannot use {self.path}: {self.why}" if self.why else self.path


def read_image(path: str | Path, min_side: int | None = None) -> NDArray[np.uint8]:
    """Read an image of any published mode.

    Grey becomes three equal channels, a palette is looked up, and alpha is dropped: published RGBA files are opaque
    (HeadCT), and all other loaders drop it too, so that numbers stay comparable.

    More than 8 bits per channel are scaled by the smallest of 8, 10, 12, 14 and 16 bits that holds the image's maximum:
    a 12-bit camera stored in 16 bits is not read as black, and images of one camera keep their relative brightness as
    long as they use the same range. Floats in [0, 1] are scaled by 255, in [0, 255] kept. What is left (32-bit and
    negative values, as in CT) is stretched from minimum to maximum.

    Args:
        path: The file. Of a file with several pages, the first is read.
        min_side: A JPEG may be decoded at a half, a quarter or an eighth of its size as long as neither side becomes
            shorter than this, in pixels: several times faster for what is shrunk anyway. None: at its own size.

    Returns:
        ``(H, W, 3)`` RGB, 0-255.

    Raises:
        UnreadableImageError: With the file, the reason and the remedy.
    """
    pixels = _to_uint8(str(path), _decode(str(path), min_side=min_side))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def read_mask(
    paths: Sequence[str | Path], threshold: int | None = None, values: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Read the mask of one image: the union of one or more files.

    Besides images, ``.npy`` arrays (never unpickled) and ``.mat`` label maps are read; of a ``.mat`` file the field
    ``Segmentation``, or else its only two-dimensional array.

    Args:
        paths: At least one file; all of one size.
        threshold: Grey levels above this are anomalous, 0-254; of a colour mask the brightest channel counts. None: 127
            if an 8-bit mask has brighter pixels (so the noise of JPEG and anti-aliasing does not swell the region),
            else 0 (masks that hold 0/1 or class numbers). 0 is what AnomalyCLIP does for every file.
        values: Labels that are anomalous, instead of a threshold: ``[2]`` for CrackForest. Palette masks then give
            their indices, not their colours.

    Returns:
        ``(H, W)``, 1 = anomalous.

    Raises:
        UnreadableImageError: With the file, the reason and the remedy.
    """
    merged: NDArray[np.bool_] | None = None
    for path in map(str, paths):
        pixels = _load_mask(path, indices=values is not None)
        if values is None:
            grey = pixels.max(2) if pixels.ndim == 3 else pixels
            automatic = 127 if grey.dtype == np.uint8 and grey.max() > 127 else 0
            mask = grey > (automatic if threshold is None else threshold)
        else:
            mask = np.isin(_labels(path, pixels), values)
        if merged is not None and mask.shape != merged.shape:
            raise UnreadableImageError(
                path,
                f"it is {_size(mask)} pixels, but {paths[0]}, another mask of the same image, is {_size(merged)}. "
                f"Masks of one image must be of one size.",
            )
        merged = mask if merged is None else merged | mask
    if merged is None:
        raise KanoclipError("read_mask needs at least one file.")
    return merged.astype(np.uint8)


def read_pair(
    image: str, masks: Sequence[str], threshold: int | None, values: Sequence[int] | None, min_side: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, tuple[int, int]]:
    """Read an image and its mask; see ``read_image`` and ``read_mask``.

    Returns:
        Image ``(h, w, 3)``, mask ``(H, W)`` or None where no mask files are given, and the file's ``(H, W)``: the
        image's own too, unless ``min_side`` has shrunk it.

    Raises:
        UnreadableImageError: A file cannot be read, or image and mask differ in size.
    """
    pixels = read_image(image, min_side)
    height, width = size = pixels.shape[:2] if min_side is None else _file_shape(image, pixels)
    if not masks:
        return pixels, None, size
    mask = read_mask(masks, threshold, values)
    if mask.shape != size:
        raise UnreadableImageError(
            masks[0],
            f"this mask is {_size(mask)} pixels, but its image {image} is {width}x{height}. "
            f"Export the mask at the size of the image.",
        )
    return pixels, mask, size


def _file_shape(path: str, pixels: Pixels) -> tuple[int, int]:
    """Return (height, width) of a file that may have been shrunk while it was decoded."""
    if Path(path).suffix.lower() not in (".jpg", ".jpeg"):
        return pixels.shape[:2]
    with Image.open(path) as file:
        width, height = file.size
        turned = file.getexif().get(274, 1) in (5, 6, 7, 8)  # 274: the orientation that read_image applies
    return (width, height) if turned else (height, width)


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _labels(path: str, pixels: Pixels) -> Pixels:
    if pixels.ndim == 2:
        return pixels
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    raise UnreadableImageError(path, "it is a colour image, which holds no label numbers. Use a threshold, not values.")


def _load_mask(path: str, indices: bool) -> Pixels:
    suffix = Path(path).suffix.lower()
    if suffix not in (".mat", ".npy"):
        return _decode(path, indices)
    try:
        with open(path, "rb") as file:  # np.load would also open an archive of several arrays
            pixels = _mat_labels(path) if suffix == ".mat" else np.lib.format.read_array(file, allow_pickle=False)
    except UnreadableImageError:
        raise
    except Exception as error:  # scipy and numpy raise a dozen types for a broken file
        raise UnreadableImageError(path, f"{error}. Save the mask as a PNG instead.") from error
    if pixels.ndim != 2 or pixels.size == 0 or pixels.dtype.kind not in "buif":
        found = f"shape {pixels.shape} and type {pixels.dtype}"
        raise UnreadableImageError(path, f"it holds an array of {found}, expected one number per pixel, (H, W).")
    if Image.MAX_IMAGE_PIXELS and pixels.size > 2 * Image.MAX_IMAGE_PIXELS:  # a small .mat may unpack to gigabytes
        raise UnreadableImageError(path, f"{_too_large()} Cut it into tiles or shrink it.")
    return pixels


def _mat_labels(path: str) -> Pixels:
    from scipy.io import loadmat

    arrays = dict(_two_dimensional("", loadmat(path, simplify_cells=True)))  # MATLAB's structs as dictionaries
    chosen = [name for name in arrays if name.split(".")[-1] == "Segmentation"] or list(arrays)
    if len(chosen) != 1:
        held = ", ".join(arrays) or "none"
        raise UnreadableImageError(
            path,
            f"expected one label map (a field Segmentation, or a single 2-D array), found {held}. Save it as a PNG.",
        )
    return arrays[chosen[0]]


def _two_dimensional(name: str, value: Any) -> Iterator[tuple[str, Pixels]]:
    """Go through the label maps of nested dictionaries, with their names such as ``groundTruth.Segmentation``."""
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _two_dimensional(f"{name}.{key}".lstrip("."), held)
    elif isinstance(value, np.ndarray) and value.ndim == 2 and min(value.shape) > 1 and value.dtype.kind in "buif":
        yield name, value


def _decode(path: str, indices: bool = False, min_side: int | None = None) -> Pixels:
    """Pixels as stored: ``(H, W)`` or ``(H, W, 3)`` RGB of any number type."""
    try:
        with Image.open(path) as file:
            deep = _deep_colour(path, file)
            if min_side and Path(path).suffix.lower() in (".jpg", ".jpeg"):
                file.draft(None, (min_side, min_side))  # does nothing to what is not a JPEG
            form = file.format, file.mode, file.info.get("compression")
            if ycbcr := form == ("TIFF", "RGB", "raw") and file.getexif().get(262) == 6:  # 262: the meaning of channels
                # Pillow below 13 expects a fourth one and takes YCbCr for RGB.
                file.tile = [(*tile[:3], ("RGB", *tile[3][1:])) for tile in file.tile]
            image = ImageOps.exif_transpose(file)
            if deep:
                return _opencv(path)
            if ycbcr:
                image = Image.frombytes("YCbCr", image.size, image.tobytes())
            if image.mode.startswith(("I", "F", "L")) and image.mode not in ("LA", "La", "LAB"):
                return np.asarray(image)
            if image.mode in ("P", "1") and indices:
                return np.asarray(image)
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")  # straight to RGB, Pillow warns about transparent palettes
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        if Path(path).suffix.lower() in (".tif", ".tiff"):
            return _tifffile(path)
        raise UnreadableImageError(path, "it is not an image. Replace the file or remove it.") from error
    except FileNotFoundError as error:
        raise UnreadableImageError(path, "there is no such file. Check the path.") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(path, f"{_too_large()} Cut it into tiles or shrink it.") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise UnreadableImageError(path, f"{error}. Copy the file again from its source, or remove it.") from error


def _too_large() -> str:
    return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels, Pillow's limit of safety."


def _deep_colour(path: str, file: Image.Image) -> bool:
    if file.mode not in ("RGB", "RGBA", "LA"):
        return False
    if file.format == "PNG":
        with open(path, "rb") as raw:
            return raw.read(25)[24] > 8  # bit depth, by the PNG header
    return file.format == "TIFF" and max(file.getexif().get(258, (8,))) > 8  # 258: bits per sample


def _opencv(path: str) -> Pixels:
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)  # imread fails on Unicode paths on Windows
    if pixels is None:
        raise KanoclipError("neither Pillow nor OpenCV can decode it")
    return pixels[..., 2::-1] if pixels.ndim == 3 else pixels  # (H, W, 3), BGR or BGRA -> RGB


def _tifffile(path: str) -> Pixels:
    import tifffile

    tifffile.logger().setLevel(logging.CRITICAL)  # what is wrong is told below
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            shape = page.shape
            if Image.MAX_IMAGE_PIXELS and np.prod(shape, dtype=float) > 6 * Image.MAX_IMAGE_PIXELS:
                raise KanoclipError(_too_large())
            pixels = page.asarray()
            if not pixels.size:
                raise KanoclipError("it holds no pixels")
    except Exception as error:  # tifffile's own types, zlib.error, ValueError, ...
        raise UnreadableImageError(
            path, f"neither Pillow nor tifffile can open it ({error}). Save it as a PNG instead."
        ) from error
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] > 4:
        pixels = np.moveaxis(pixels, 0, 2)  # planes one after the other
    if pixels.ndim == 3 and pixels.shape[2] in (2, 3, 4):
        pixels = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0]  # without alpha
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3):
        return pixels
    raise UnreadableImageError(path, f"it has {pixels.shape[-1]} channels, expected grey or colour. Save it as a PNG.")


def _to_uint8(path: str, pixels: Pixels) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    if not np.isfinite(pixels).all():
        raise UnreadableImageError(path, "some pixels are not finite numbers. Replace them and save it as a PNG.")
    values = pixels.astype(np.float64)
    low, high = values.min(), values.max()
    tops = [1, 255] if pixels.dtype.kind == "f" else [255, 1023, 4095, 16383, 65535]
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        values, top = values - low, max(high - low, 1e-12)
    return np.rint(values * (255 / top)).astype(np.uint8)
