from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from kanoclip.data.images import UnreadableImageError, read_image, read_mask, read_pair


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "PNG", "webp", "ppm"])
def test_colour_is_read_unchanged_from_every_lossless_format(picture, tmp_path, suffix):
    path = tmp_path / f"ä b.{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path), picture)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_becomes_three_equal_channels(picture, tmp_path, mode):
    grey = picture[..., 0]
    image = Image.fromarray(grey)
    if mode == "LA":
        image.putalpha(Image.fromarray(picture[..., 1]))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([grey] * 3, -1))


def test_alpha_is_dropped_and_does_not_darken(picture, tmp_path):
    image = Image.fromarray(picture)
    image.putalpha(Image.fromarray(picture[..., 0]))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)


@pytest.mark.filterwarnings("error")
def test_a_palette_is_looked_up_also_when_it_is_transparent(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80\xff")
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert read_image(tmp_path / "a.png").tolist() == [[list(red), list(green)], [list(blue), list(green)]]


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


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[274] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (48, 16, 3)
    assert read[:12].min() > 200  # left went up
    assert read[20:].max() < 50


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


def test_a_large_jpeg_is_decoded_small_but_never_below_what_is_asked(tmp_path):
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8), (800, 600))
    cv2.imwrite(str(tmp_path / "a.jpg"), smooth)
    assert read_image(tmp_path / "a.jpg", min_side=150).shape == (150, 200, 3)
    assert read_image(tmp_path / "a.jpg", min_side=151).shape == (300, 400, 3)
    assert read_image(tmp_path / "a.jpg", min_side=301).shape == (600, 800, 3)
    cv2.imwrite(str(tmp_path / "a.png"), smooth)
    assert read_image(tmp_path / "a.png", min_side=8).shape == (600, 800, 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_shrunk_jpeg_keeps_its_masks_and_its_own_size(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((600, 800, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    height, width = (800, 600) if orientation == 6 else (600, 800)
    mask = np.zeros((height, width), np.uint8)
    mask[:7] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    image, read, size = read_pair(str(tmp_path / "a.jpg"), [str(tmp_path / "m.png")], None, None, min_side=100)
    assert image.shape[:2] == (height // 4, width // 4)
    assert read.shape == size == (height, width)
    assert read.sum() == 7 * width
