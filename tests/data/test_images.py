from __future__ import annotations

import pickle
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image, ImageOps

from kanoclip.data import decoding
from kanoclip.data.faults import Remark, UnreadableImageError, hearing
from kanoclip.data.formats import HAS_HEIF
from kanoclip.data.images import _to_uint8, image_of, read_image, read_pair
from kanoclip.data.masks import read_mask


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "PNG", "webp", "ppm", "jp2"])
def test_colour_is_read_unchanged_from_every_lossless_format(picture, tmp_path, suffix):
    path = tmp_path / f"ä b.{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path), picture)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_becomes_three_equal_channels(picture, tmp_path, mode):
    Image.fromarray(picture[..., 0]).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([picture[..., 0]] * 3, -1))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jp2"])
def test_an_opaque_alpha_channel_changes_no_pixel(picture, tmp_path, suffix):
    image = Image.fromarray(picture)
    image.putalpha(255)
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), picture)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("grey", [False, True])
def test_a_cut_out_is_read_on_white_whatever_colour_is_hidden(tmp_path, deep, grey):
    hidden = np.full((2, 3, 4), (40, 40, 40, 255) if grey else (40, 80, 120, 255), np.uint16)
    hidden[0, 0, 3], hidden[0, 1, 3], hidden[1, 2, :3] = 0, 51, 255
    stored = hidden * 257 if deep else hidden.astype(np.uint8)
    if grey and not deep:
        Image.fromarray(stored).convert("LA").save(tmp_path / "a.png")
    else:
        cv2.imwrite(str(tmp_path / "a.png"), stored[..., [2, 1, 0, 3]])
    read = read_image(tmp_path / "a.png")
    assert read[0, 0].tolist() == [255, 255, 255]
    assert read[0, 1].tolist() == ([212] * 3 if grey else [212, 220, 228])  # a fifth of it, and four fifths of white
    assert read[0, 2].tolist() == hidden[0, 2, :3].tolist()


def test_one_colour_that_is_declared_transparent_is_white(tmp_path):
    Image.fromarray(np.array([[0, 9, 200]], np.uint8)).save(tmp_path / "a.png", transparency=9)
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255, 200]


def test_the_alpha_of_a_mask_is_dropped(tmp_path):
    image = Image.fromarray(np.array([[255, 0, 255]], np.uint8)).convert("LA")
    image.putalpha(Image.fromarray(np.array([[255, 0, 9]], np.uint8)))
    image.save(tmp_path / "m.png")
    assert read_mask([tmp_path / "m.png"]).tolist() == [[1, 0, 1]]


@pytest.mark.filterwarnings("error")
def test_a_palette_is_looked_up_and_its_transparent_colours_are_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80\xff")
    white, green, blue = [255, 255, 255], [127, 255, 127], [0, 0, 255]
    assert read_image(tmp_path / "a.png").tolist() == [[white, green], [blue, green]]
    image.save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png")[0, 0].tolist() == [255, 0, 0]


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = np.array([[True, False], [False, True]])
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], bits * 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize(("bits", "top"), [(12, 4095), (16, 65535), (10, 1023)])
def test_deep_pixels_are_scaled_by_the_smallest_bit_depth_that_holds_them(picture, write, suffix, colour, bits, top):
    deep = (picture.astype(np.uint32) * top // 255).astype(np.uint16)
    deep[0, 0] = top
    read = read_image(write(f"{bits}.{suffix}", deep if colour else deep[..., 0]))
    want = np.rint(deep / top * 255).astype(np.uint8)
    np.testing.assert_array_equal(read if colour else read[..., 0], want if colour else want[..., 0])


@pytest.mark.parametrize(
    ("stored", "want"),
    [
        (np.array([[0.0, 0.5], [1.0, 0.2]], np.float32), [[0, 128], [255, 51]]),
        (np.array([[-0.01, 0.5], [1.001, 0.2]], np.float32), [[0, 128], [255, 51]]),  # as a bicubic resize leaves it
        (np.array([[0.0, 100.0], [255.0, 7.0]], np.float32), [[0, 100], [255, 7]]),
        (np.array([[-1000, 0], [1000, -1000]], np.int16), [[0, 128], [255, 0]]),
        (np.array([[7.0, 7.0], [7.0, -7.0]], np.float32), [[255, 255], [255, 0]]),
    ],
)
def test_floats_and_negative_values_are_brought_to_bytes(tmp_path, stored, want):
    tifffile.imwrite(tmp_path / "a.tif", stored)
    assert read_image(tmp_path / "a.tif")[..., 0].tolist() == want


@pytest.mark.parametrize("planes", [False, True])
def test_a_tif_that_pillow_refuses_keeps_its_three_channels(picture, tmp_path, planes):
    stored = picture.transpose(2, 0, 1) if planes else picture
    planar = "separate" if planes else "contig"
    tifffile.imwrite(tmp_path / "cvc.tif", stored, photometric="minisblack", planarconfig=planar)
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "cvc.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "cvc.tif"), picture)


def test_a_tif_of_five_channels_is_an_error(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnreadableImageError, match=r"a\.tif: it has 5 channels.*Save it as a PNG"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "deep.png"])
def test_the_orientation_of_a_camera_is_applied(picture, tmp_path, orientation, name):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(picture).save(tmp_path / "plain.png", exif=exif)
    with Image.open(tmp_path / "plain.png") as plain:
        right = np.asarray(ImageOps.exif_transpose(plain))
    if name == "deep.png":
        content = bytearray(cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)[1].tobytes())
        plain_content = (tmp_path / "plain.png").read_bytes()
        start = plain_content.index(b"eXIf") - 4
        content[33:33] = plain_content[start : start + 12 + int.from_bytes(plain_content[start : start + 4], "big")]
        (tmp_path / name).write_bytes(content)
    else:
        Image.fromarray(picture).save(tmp_path / name, exif=exif, **({"quality": 100} if name == "a.jpg" else {}))
    read = read_image(tmp_path / name)
    assert read.shape == right.shape
    if name != "a.jpg":
        np.testing.assert_array_equal(read, right)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
def test_a_truncated_file_is_an_error_and_not_half_an_image(picture, tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.tile(picture, (8, 8, 1))).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImageError, match=rf"cut\.{suffix}: .+\. .*(Copy|Save|Replace)") as caught:
        read_image(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_file_that_is_no_image_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UnreadableImageError, match=r"a\..*(not an image. Replace|neither Pillow nor tifffile)"):
        read_image(tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"a\.png: there is no such file\. Check the path\."):
        read_image(tmp_path / "a.png")


def test_a_name_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"it cannot be opened: File name too long\. Check its name"):
        read_image(tmp_path / ("a" * 300 + ".png"))
    with pytest.raises(UnreadableImageError, match=r"it cannot be opened: .*null"):
        read_image("a\0.png")
    with pytest.raises(UnreadableImageError, match=r"it cannot be opened: "):
        read_image(tmp_path)


def test_a_file_that_is_too_large_is_not_read_into_memory(write, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 100)
    with pytest.raises(UnreadableImageError, match=r"it has more than .* MB\. Cut it"):
        read_image(write("a.png", 1))


def test_a_decompression_bomb_is_an_error(write, tmp_path, monkeypatch):
    path = write("a.png", 1)
    tifffile.imwrite(
        tmp_path / "b.tif", np.zeros((24, 32, 3), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"a\.png: it has more than .* million pixels.*tiles"):
        read_image(path)
    with pytest.raises(UnreadableImageError, match=r"b\.tif: .*it has more than .* million pixels"):
        read_image(tmp_path / "b.tif")


def test_the_first_bytes_decide_and_only_decoders_of_pictures_see_them(picture, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UnreadableImageError, match=r"a\.png: it is not an image\. Replace"):
        read_image(tmp_path / "a.png")
    Image.fromarray(picture).save(tmp_path / "b.jpg", "PNG")
    tifffile.imwrite(tmp_path / "c.png", picture, photometric="minisblack", planarconfig="contig")
    for name in ("b.jpg", "c.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), picture)


def test_a_png_of_very_many_chunks_is_told_before_it_is_parsed(write, monkeypatch):
    path = Path(write("a.png", 1))
    content, chunk = path.read_bytes(), b"\0\0\0\3tEXtk\0v"
    chunk += zlib.crc32(chunk[4:]).to_bytes(4, "big")
    path.write_bytes(content[:33] + 9_000 * chunk + content[33:])
    read_image(path)
    path.write_bytes(content[:33] + 11_000 * chunk + content[33:])
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(UnreadableImageError, match=r"more than 10000 chunks of text and the like\. Copy"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_of_several_pages_the_first_is_read_and_that_is_said(picture, tmp_path, suffix):
    path, first = tmp_path / f"a.{suffix}", Image.fromarray(picture)
    kept = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=[Image.new("RGB", first.size)] * 2, **kept)
    with hearing() as said:
        read = read_image(path)
    if suffix != "gif":
        np.testing.assert_array_equal(read, picture)
    assert read.any()
    assert said == [Remark(str(path), "it has several pages or frames, of which the first is read.")]
    first.save(path, **kept)
    with hearing() as said:
        read_image(path)
    assert said == []


def test_pages_of_a_tif_that_pillow_refuses_are_said(picture, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in (picture, 255 - picture):
            file.write(page, photometric="minisblack", planarconfig="contig")
    with hearing() as said:
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), picture)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("pixels", "most"), [(np.full((3000, 3000), 9000, np.uint16), 3), (np.full((2000, 2000, 3), 900, np.uint16), 3)]
)
def test_deep_pixels_take_no_copies_of_floats(pixels, most):
    tracemalloc.start()
    _to_uint8("a.png", pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most * pixels.nbytes  # three copies in float64 would be 12 times as much


def test_eight_bits_are_read_in_little_more_than_their_own_memory(tmp_path):
    Image.new("RGB", (3000, 3000)).save(tmp_path / "a.jpg")
    tracemalloc.start()
    read = read_image(tmp_path / "a.jpg")
    peak = tracemalloc.get_traced_memory()[1]  # of numpy and bytes; Pillow's own picture is another 4 bytes a pixel
    tracemalloc.stop()
    assert peak < 1.3 * read.nbytes


@pytest.mark.skipif(HAS_HEIF, reason="pillow-heif is installed")
@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])
def test_a_heic_picture_names_the_package_that_reads_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    with pytest.raises(UnreadableImageError, match=r"HEIC picture.*pip install pillow-heif"):
        read_image(tmp_path / name)


@pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is not installed")
def test_a_heic_picture_is_read(tmp_path):
    decoding._decoders()
    Image.new("RGB", (64, 48), (200, 30, 90)).save(tmp_path / "a.heic")
    read = read_image(tmp_path / "a.heic")
    assert read.shape == (48, 64, 3)
    assert np.abs(read.mean((0, 1)) - (200, 30, 90)).max() < 5


def test_pixels_that_are_not_finite_are_an_error(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(UnreadableImageError, match=r"not finite numbers\. Replace them"):
        read_image(tmp_path / "a.tif")


def test_the_error_survives_pickling_and_a_single_argument():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "broken. Replace it.")))
    assert (error.path, error.why, str(error)) == (
        "a.png",
        "broken. Replace it.",
        "Cannot use a.png: broken. Replace it.",
    )
    assert str(UnreadableImageError("all in one")) == "all in one"  # how torch raises it again


@pytest.mark.parametrize(
    ("levels", "threshold", "want"),
    [
        ([0, 1, 3, 255], None, [0, 0, 0, 1]),  # JPEG noise, anti-aliasing
        ([0, 127, 128, 255], None, [0, 0, 1, 1]),
        ([0, 1, 4, 9], None, [0, 1, 1, 1]),  # class numbers
        ([0, 0, 1, 0], None, [0, 0, 1, 0]),
        ([0, 0, 0, 0], None, [0, 0, 0, 0]),
        ([0, 1, 3, 255], 0, [0, 1, 1, 1]),
        ([0, 1, 4, 9], 127, [0, 0, 0, 0]),
        ([0, 200, 201, 255], 200, [0, 0, 1, 1]),
    ],
)
def test_masks_are_binarised(write, levels, threshold, want):
    read = read_mask([write("m.png", np.array([levels], np.uint8))], threshold)
    assert read.dtype == np.uint8
    assert read.tolist() == [want]


@pytest.mark.parametrize(
    ("levels", "threshold", "said"),
    [([0, 1, 200], None, True), ([0, 1, 200], 0, False), ([0, 1, 4], None, False), ([0, 255, 128], None, False)],
)
def test_levels_on_both_sides_of_the_automatic_threshold_are_said(write, levels, threshold, said):
    path = write("m.png", np.array([levels], np.uint8))
    with hearing() as remarks:
        read_mask([path], threshold)
    assert [one.path for one in remarks] == [str(path)] * said
    assert all("--data.mask_threshold 0" in one.what for one in remarks)


def test_a_jpeg_mask_in_colour_is_clean(tmp_path, mask):
    Image.fromarray(mask).convert("RGB").save(tmp_path / "m.jpg", quality=40)
    swollen, clean = read_mask([tmp_path / "m.jpg"], 0), read_mask([tmp_path / "m.jpg"])
    np.testing.assert_array_equal(clean, mask // 255)
    assert swollen.sum() > clean.sum()


def test_a_coloured_region_counts_by_its_brightest_channel(write):
    red = np.zeros((2, 2, 3), np.uint8)
    red[0, 0, 0] = 255
    assert read_mask([write("m.png", red)]).tolist() == [[1, 0], [0, 0]]


def test_one_bit_and_sixteen_bit_masks_are_read(tmp_path, write):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_mask([tmp_path / "bits.png"]).tolist() == [[1, 0]]
    assert read_mask([tmp_path / "bits.png"], values=[1]).tolist() == [[1, 0]]
    assert read_mask([write("deep.png", np.array([[0, 1, 300, 65535]], np.uint16))]).tolist() == [[0, 1, 1, 1]]


def test_labels_of_a_palette_mask_are_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255, 255, 0, 0])
    image.save(tmp_path / "m.png")
    assert read_mask([tmp_path / "m.png"], values=[2]).tolist() == [[0, 0, 1]]
    assert read_mask([tmp_path / "m.png"]).tolist() == [[0, 1, 1]]


def test_labels_in_three_equal_channels_are_read_and_colours_are_an_error(write):
    labels = np.array([[0, 2], [3, 2]], np.uint8)
    assert read_mask([write("m.png", np.stack([labels] * 3, -1))], values=[2, 3]).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(UnreadableImageError, match=r"c\.png: it is a colour image.*Use a threshold"):
        read_mask([write("c.png", np.full((2, 2, 3), (1, 2, 3), np.uint8))], values=[2])


def test_several_masks_are_merged(write):
    first, second = np.array([[255, 0, 0]], np.uint8), np.array([[0, 0, 9]], np.uint8)
    assert read_mask([write("1.png", first), write("2.png", second)]).tolist() == [[1, 0, 1]]


def test_masks_of_different_sizes_are_an_error_with_both_names(write):
    paths = [write("1.png", 0), write("2.png", np.zeros((4, 5), np.uint8))]
    with pytest.raises(UnreadableImageError, match=r"2\.png: it is 5x4 pixels, but .*1\.png.* is 32x24"):
        read_mask(paths)


def test_no_mask_at_all_is_an_error():
    with pytest.raises(ValueError, match="at least one file"):
        read_mask([])


def test_the_label_map_of_crackforest_is_found(tmp_path):
    labels = np.array([[1, 2, 3], [4, 2, 1]], np.uint8)
    truth = {"Segmentation": labels, "Boundaries": (labels == 2).astype(np.uint8)}
    scipy.io.savemat(tmp_path / "001.mat", {"groundTruth": truth})
    assert read_mask([tmp_path / "001.mat"], values=[2]).tolist() == [[0, 1, 0], [0, 1, 0]]


def test_the_only_array_of_a_mat_file_is_its_label_map(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"whatever": np.array([[0, 5], [5, 0]]), "name": "text", "number": 3})
    assert read_mask([tmp_path / "a.mat"]).tolist() == [[0, 1], [1, 0]]


def test_a_mat_file_that_unpacks_to_too_many_pixels_is_an_error(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "a.mat", {"label": np.zeros((20, 20), np.uint8)}, do_compression=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"a\.mat: it has more than .* million pixels.*tiles"):
        read_mask([tmp_path / "a.mat"])


def test_a_mat_file_of_two_arrays_is_an_error_that_names_them(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"one": np.zeros((2, 2)), "two": np.zeros((2, 2))})
    with pytest.raises(
        UnreadableImageError, match=r"a\.mat: expected one label map.*found one, two\. Save it as a PNG"
    ):
        read_mask([tmp_path / "a.mat"])


def test_a_broken_mat_file_is_an_error(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 or not")
    with pytest.raises(UnreadableImageError, match=r"a\.mat: .*Save the mask as a PNG instead"):
        read_mask([tmp_path / "a.mat"])


def test_a_numpy_mask_is_read_but_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[True, False]]))
    assert read_mask([tmp_path / "a.npy"]).tolist() == [[1, 0]]
    np.save(tmp_path / "b.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableImageError, match=r"b\.npy: .*allow_pickle=False.*Save the mask as a PNG"):
        read_mask([tmp_path / "b.npy"])


def test_a_numpy_mask_of_another_shape_is_an_error(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 4, 5), np.uint8))
    with pytest.raises(UnreadableImageError, match=r"shape \(1, 4, 5\) and type uint8, expected one number per pixel"):
        read_mask([tmp_path / "a.npy"])


def test_a_numpy_archive_by_the_name_of_an_array_is_an_error(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez_compressed(file, mask=np.zeros((4, 5), np.uint8))
    with pytest.raises(UnreadableImageError, match=r"a\.npy: .*magic string.*Save the mask as a PNG"):
        read_mask([tmp_path / "a.npy"])


def test_a_numpy_mask_without_pixels_is_an_error(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 5), np.uint8))
    with pytest.raises(UnreadableImageError, match=r"shape \(0, 5\) and type uint8, expected one number per pixel"):
        read_mask([tmp_path / "a.npy"])


def test_opencv_agrees_on_an_ordinary_photo(picture, tmp_path):
    path: Path = tmp_path / "a.jpg"
    Image.fromarray(cv2.GaussianBlur(picture, (0, 0), 2)).save(path, quality=95)
    theirs = cv2.imread(str(path))[..., ::-1]
    assert np.abs(read_image(path).astype(int) - theirs).max() <= 4  # two JPEG decoders round differently


def test_a_large_photo_is_read_at_its_own_size_and_so_is_its_mask(tmp_path):
    Image.new("RGB", (3000, 2600)).save(tmp_path / "a.jpg")
    Image.new("L", (3000, 2600), 255).save(tmp_path / "m.png")
    image, mask = read_pair(str(tmp_path / "a.jpg"), [str(tmp_path / "m.png")], None, None)
    assert image.shape[:2] == mask.shape == (2600, 3000)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_in_memory_is_read_like_its_file(picture, tmp_path, mode, orientation):
    grey = Image.fromarray(picture[..., 0])
    image = Image.fromarray(picture[..., 0].astype(np.uint16) * 16) if mode == "I;16" else grey.convert(mode)
    if mode in ("RGB", "RGBA", "CMYK"):
        image = Image.fromarray(picture).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(picture[..., 1]))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{ {'CMYK': 'jpg', 'F': 'tif'}.get(mode, 'png') }"
    image.save(path, exif=exif)
    with Image.open(path) as opened:
        read = image_of(opened, "a")
    np.testing.assert_array_equal(read, read_image(path))
    if mode == "RGB":
        np.testing.assert_array_equal(read, picture if orientation == 1 else np.rot90(picture, -1))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
def test_an_array_is_scaled_as_a_file_is(picture, kind):
    top = {np.uint8: 255, np.uint16: 4095}.get(kind, 1)
    given = (picture / 255 * top).round(0 if top > 1 else 9).astype(kind)
    given[0, 0] = top  # as the largest value tells the bit depth
    expected = picture.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(image_of(given, "a"), expected)
    np.testing.assert_array_equal(image_of(given[..., 0], "a"), expected[..., :1].repeat(3, 2))
    np.testing.assert_array_equal(image_of(given[..., :1], "a"), expected[..., :1].repeat(3, 2))
    clear, opaque = np.zeros_like(given[..., :1]), np.full_like(given[..., :1], 1 if top == 1 else np.iinfo(kind).max)
    np.testing.assert_array_equal(image_of(np.concatenate([given, opaque], 2), "a"), expected)
    assert image_of(np.concatenate([given, clear], 2), "a").min() == 255


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 3, 5)), r"Cannot use images\[4\]: its shape is \(2, 3, 5\), expected \(H, W\), \(H, W, 3\) or"),
        (np.zeros((3, 20, 30)), r"Its channels come first: give image\.transpose\(1, 2, 0\)\."),
        (np.zeros((0, 5, 3), np.uint8), r"images\[4\]: its shape is \(0, 5, 3\): it holds no pixels\. Leave it out\."),
        (Image.new("RGB", (0, 5)), r"it holds no pixels"),
        (np.zeros((5, 5), bool), r"it is an array of bool, expected uint8, uint16 or floats\."),
        (np.array([["a"]]), r"it is an array of <U1, expected"),
        (np.full((5, 5), np.nan), r"images\[4\]: some pixels are not finite numbers"),
        (None, r"images\[4\]: it is of type NoneType, expected a path, a Pillow image, an array, a tensor, or a list"),
        ([1, 2], r"it is of type list, expected"),
    ],
)
def test_what_is_no_picture_is_told_by_its_name(given, message):
    with pytest.raises(UnreadableImageError, match=message):
        image_of(given, "images[4]")


def test_a_truncated_file_that_pillow_has_opened_is_told_by_its_name(picture, tmp_path):
    Image.fromarray(np.tile(picture, (8, 8, 1))).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "a.jpg") as opened, pytest.raises(UnreadableImageError, match=r"images\[0\]: .*truncat"):
        image_of(opened, "images[0]")
