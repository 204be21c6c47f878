"""Reads any published mask to 0/1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanoclip.data.decoding import Pixels, decode, too_large
from kanoclip.data.faults import UnreadableImageError, remark
from kanoclip.types import KanoclipError


def read_mask(
    paths: Sequence[str | Path], threshold: int | None = None, values: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Read the mask of one image: the union of one or more files.

    Besides images, ``.npy`` arrays (never unpickled) and ``.mat`` label maps are read; of a ``.mat`` file the field
    ``Segmentation``, or else its only two-dimensional array. Alpha is dropped.

    Args:
        paths: At least one file; all of one size.
        threshold: Grey levels above this are anomalous, 0-254; of a colour mask the brightest channel counts. None: 127
            if an 8-bit mask has brighter pixels (so the noise of JPEG and anti-aliasing does not swell the region),
            else 0 (masks that hold 0/1 or class numbers). 0 is what AnomalyCLIP does for every file. That 127 was
            chosen although darker levels occur is remarked (``faults.hearing``).
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
        mask = _above(path, pixels, threshold) if values is None else np.isin(_labels(path, pixels), values)
        if merged is not None and mask.shape != merged.shape:
            raise UnreadableImageError(
                path,
                f"it is {dimensions(mask)} pixels, but {paths[0]}, another mask of the same image, is "
                f"{dimensions(merged)}. Masks of one image must be of one size.",
            )
        merged = mask if merged is None else merged | mask
    if merged is None:
        raise KanoclipError("read_mask needs at least one file.")
    return merged.astype(np.uint8)


def dimensions(pixels: Pixels) -> str:
    """Write the size of an image as people do, such as 640x480: width, then height."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _above(path: str, pixels: Pixels, threshold: int | None) -> NDArray[np.bool_]:
    grey = pixels.max(2) if pixels.ndim == 3 else pixels
    if threshold is None:
        threshold = 127 if grey.dtype == np.uint8 and grey.max() > 127 else 0
        if threshold and ((grey > 0) & (grey <= threshold)).any():
            remark(
                path,
                f"its grey levels lie on both sides of {threshold}, the threshold of a mask with brighter pixels: 1 to "
                f"{threshold} count as normal. If they mean an anomaly: --data.mask_threshold 0.",
            )
    above: NDArray[np.bool_] = grey > threshold
    return above


def _labels(path: str, pixels: Pixels) -> Pixels:
    if pixels.ndim == 2:
        return pixels
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    raise UnreadableImageError(path, "it is a colour image, which holds no label numbers. Use a threshold, not values.")


def _load_mask(path: str, indices: bool) -> Pixels:
    suffix = Path(path).suffix.lower()
    if suffix not in (".mat", ".npy"):
        pixels = decode(path, indices)
        return pixels[..., :3] if pixels.ndim == 3 else pixels
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
        raise UnreadableImageError(path, f"{too_large()} Cut it into tiles or shrink it.")
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
