"""Any file gives the right picture or one kind of error: every mode that formats hold, and every kind of damage."""

import warnings
from functools import partial
from io import BytesIO

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from kanoclip.data.faults import UnreadableImageError
from kanoclip.data.images import read_image, read_mask

MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B", "F"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "jpg": ("L", "RGB", "CMYK"),
    "gif": ("1", "L", "P", "RGB"),
    "webp": ("RGB", "RGBA"),
    "avif": ("RGB", "RGBA"),
    "jp2": ("L", "LA", "RGB", "RGBA"),
}
FORMATS = {"tif": "TIFF", "jpg": "JPEG", "jp2": "JPEG2000"}
LOSSLESS = {"webp": {"lossless": True, "exact": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
KINDS = [(suffix, mode) for suffix, modes in MODES.items() for mode in modes]
DEEP = [("png", np.uint16, 1), ("png", np.uint16, 3), ("png", np.uint16, 4), ("tif", np.uint16, 1)]
DEEP += [("tif", np.uint16, 3), ("tif", np.float32, 1), ("tif", np.float32, 3), ("tif", np.float64, 1)]
SIDES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", autouse=True)
def a_low_limit_of_safety():
    """A header that promises a million times the pixels is refused, not filled with memory."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 10**6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def drawn(mode: str, height: int, width: int, seed: int) -> Image.Image:
    numbers = np.random.default_rng(seed)
    if mode in ("I", "I;16", "I;16B"):
        top = int(2 ** numbers.integers(1, 17))
        pixels = numbers.integers(0, top, (height, width), np.uint16 if mode != "I" else np.int32)
        return Image.fromarray(pixels.astype(">u2") if mode == "I;16B" else pixels)
    if mode == "F":
        return Image.fromarray(numbers.random((height, width), np.float32) * np.float32(numbers.choice([1, 255, 900])))
    colour = Image.fromarray(numbers.integers(0, 256, (height, width, 4), np.uint8))
    return colour.convert("RGB").convert(mode) if mode in ("P", "LAB", "CMYK", "YCbCr", "1") else colour.convert(mode)


def expected(image: Image.Image) -> np.ndarray:
    """Grey or colour of 8 bits, by Pillow; what is transparent, on white."""
    colour = np.asarray(image.convert("RGBA")).astype(float)
    alpha = colour[..., 3:] / 255
    return np.rint(colour[..., :3] * alpha + 255 * (1 - alpha))


@given(kind=st.sampled_from(KINDS), height=SIDES, width=SIDES, seed=SEEDS)
@example(kind=("tif", "YCbCr"), height=9, width=13, seed=0)  # Pillow below 13 calls it truncated
def test_every_mode_is_read_as_pillow_shows_it(folder, kind, height, width, seed) -> None:
    suffix, mode = kind
    image = drawn(mode, height, width, seed)
    path = folder / f"mode.{suffix}"
    image.save(path, **LOSSLESS.get(suffix, {}))
    found = read_image(path)
    assert (found.shape, found.dtype) == ((height, width, 3), np.uint8)
    if mode in ("I", "I;16", "I;16B", "F"):
        pixels = np.asarray(image).astype(float)
        tops = [1, 255] if mode == "F" else [255, 1023, 4095, 16383, 65535]
        low, top = 0.0, next((top for top in tops if pixels.max() <= top), 0.0)
        if not top:
            low, top = pixels.min(), max(np.ptp(pixels), 1e-12)
        assert np.array_equal(found[..., 0], np.rint((pixels - low) * (255 / top)))
    elif mode != "CMYK" or suffix != "jpg":
        lossy = suffix in ("jpg", "gif", "avif") or (suffix, mode) == (
            "bmp",
            "RGBA",
        )  # whose alpha Pillow does not keep
        assert np.array_equal(found, expected(Image.open(path) if lossy else image))
    mask = read_mask([path], 0)
    assert mask.shape == (height, width)
    assert set(np.unique(mask)) <= {0, 1}


@given(kind=st.sampled_from(DEEP), height=SIDES, width=SIDES, seed=SEEDS)
def test_deep_colour_keeps_all_its_bits(folder, kind, height, width, seed) -> None:
    suffix, dtype, channels = kind
    numbers = np.random.default_rng(seed)
    shape = (height, width, channels) if channels > 1 else (height, width)
    pixels = numbers.integers(0, 65536, shape, np.uint16) if dtype is np.uint16 else numbers.random(shape).astype(dtype)
    path = folder / f"deep.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, pixels)
    else:
        cv2.imwrite(str(path), pixels[..., [2, 1, 0, 3][:channels]] if channels > 1 else pixels)
    colour = pixels[..., :3] if channels > 1 else pixels[..., None]
    alpha = pixels[..., 3:].astype(int) * 255 // 65535 / 255 if channels == 4 else 1
    top = next(top for top in (255, 1023, 4095, 16383, 65535) if colour.max() <= top) if dtype is np.uint16 else 1
    right = np.rint(np.rint(colour.astype(float) * (255 / top)) * alpha + 255 * (1 - np.asarray(alpha)))
    assert np.array_equal(read_image(path), np.broadcast_to(right, (height, width, 3)))


def encoded(suffix: str, mode: str, seed: int) -> bytes:
    buffer = BytesIO()
    drawn(mode, 9, 13, seed).save(buffer, FORMATS.get(suffix, suffix.upper()))
    return buffer.getvalue()


def reads_or_tells(path) -> None:
    reads = (
        read_image,
        lambda path: read_mask([path]),
        partial(read_labels, values=[1]),
    )
    for read in reads:
        found = told = None
        try:
            found = read(path)
        except UnreadableImageError as error:
            told = error
        assert (found is None) == (told is not None)
        assert told is None or (told.path == str(path) and told.why)
        assert found is None or (found.dtype == np.uint8 and found.shape[2:] in ((), (3,)))


def read_labels(path, values) -> np.ndarray:
    return read_mask([path], values=values)


@given(kind=st.sampled_from(KINDS), seed=SEEDS, share=st.floats(0, 1))
def test_a_file_that_ends_early_is_told(folder, kind, seed, share) -> None:
    suffix, mode = kind
    content = encoded(suffix, mode, seed)
    path = folder / f"cut.{suffix}"
    path.write_bytes(content[: int(share * len(content))])
    reads_or_tells(path)


@given(
    kind=st.sampled_from(KINDS),
    seed=SEEDS,
    damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
@example(kind=("tif", "RGB"), seed=0, damage=[(134, 0)])  # newer tifffile returns no pixels in two dimensions
def test_a_file_with_wrong_bytes_is_read_or_told(folder, kind, seed, damage) -> None:
    suffix, mode = kind
    content = bytearray(encoded(suffix, mode, seed))
    for place, value in damage:
        content[place % len(content)] = value
    path = folder / f"wrong.{suffix}"
    path.write_bytes(content)
    reads_or_tells(path)


@given(
    content=st.binary(max_size=300), suffix=st.sampled_from(["png", "tif", "bmp", "jpg", "npy", "mat", "gif", "webp"])
)
def test_bytes_that_are_no_image_are_told(folder, content, suffix) -> None:
    path = folder / f"bytes.{suffix}"
    path.write_bytes(content)
    reads_or_tells(path)
