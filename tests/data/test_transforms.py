from __future__ import annotations

import importlib
import pickle

import albumentations
import albumentations.check_version
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from kanoclip.data.resizing import shape_of
from kanoclip.data.transforms import Transform


def test_albumentations_does_not_ask_the_network(monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(albumentations.check_version, "fetch_version_info", lambda: asked.append(True) or "")
    importlib.reload(albumentations)
    assert asked == []
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE")
    importlib.reload(albumentations)
    assert asked == [True]  # it would have


def test_the_resize_is_clips_own(picture):
    image, mask = Transform(10)(picture)
    want = np.asarray(Image.fromarray(picture).resize((10, 10), Image.Resampling.BICUBIC))
    torch.testing.assert_close(image, torch.tensor(want).permute(2, 0, 1) / 255)
    assert (image.dtype, mask.dtype) == (torch.float32, torch.uint8)
    assert int(mask.sum()) == 0


def test_shrinking_fine_stripes_gives_their_mean():
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, ::2] = 200
    image, _ = Transform(16)(stripes)
    assert float((image - 100 / 255).abs().max()) < 0.02


def test_what_is_small_or_narrow_is_enlarged():
    image, mask = Transform(64)(np.full((1250, 55, 3), 51, np.uint8), np.ones((1250, 55), np.uint8))
    torch.testing.assert_close(image, torch.full((3, 64, 64), 0.2))
    assert int(mask.sum()) == 64 * 64


def test_without_augmentation_the_seed_changes_nothing(picture):
    transform = Transform(24)
    assert torch.equal(transform(picture, None, 1)[0], transform(picture, None, 2)[0])


def test_a_seed_gives_the_same_image_whatever_came_before(picture):
    transform, other = Transform(24, augment=True), Transform(24, augment=True)
    seen = [transform(picture, None, seed)[0] for seed in range(20)]
    for seed in reversed(range(20)):
        assert torch.equal(other(picture, None, seed)[0], seen[seed])
    assert len({image.numpy().tobytes() for image in seen}) > 10


def test_turn_colour_and_blur_are_drawn_apart():
    # Steps that are seeded alike repeat each other's draws, and then whatever is blurred is also recoloured.
    scene, corner = np.full((16, 16, 3), 60, np.uint8), np.zeros((16, 16), np.uint8)
    scene[:8, :5], corner[:8, :5] = 180, 1
    transform = Transform(16, augment=True)
    recoloured_of: dict[tuple[str, object], list[bool]] = {}
    for seed in range(400):
        image, mask = transform(scene, corner, seed)
        recoloured = not torch.isclose(image.max(), torch.tensor(180 / 255))
        blurred = len(image[0].unique()) > 2
        for group in ("turn", mask.numpy().tobytes()), ("blurred", blurred):
            recoloured_of.setdefault(group, []).append(recoloured)
    assert len(recoloured_of) == 8 + 2
    for group, recoloured in recoloured_of.items():
        assert 0.25 < np.mean(recoloured) < 0.75, group


@settings(max_examples=40, deadline=None)
@given(
    blocks=arrays(np.uint8, (4, 4), elements=st.integers(0, 1)),
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.sampled_from([4, 8, 20]), st.sampled_from([4, 8, 20])),
    size=st.sampled_from([32, 48]),
)
def test_image_and_mask_get_the_same_geometry(blocks, seed, shape, size):
    mask = np.kron(blocks, np.ones(shape, np.uint8))
    image = np.repeat((40 + 170 * mask)[..., None], 3, axis=2).astype(np.uint8)
    pixels, target = Transform(size, augment=True)(image, mask, seed)
    seen = pixels.mean(0) > 125 / 255
    side = size // 4  # compare the middle of each block: edges are smooth in the image
    middle = slice(side // 4, side - side // 4)
    for seen_row, target_row in zip(seen.split(side, 0), target.bool().split(side, 0), strict=True):
        for left, right in zip(seen_row.split(side, 1), target_row.split(side, 1), strict=True):
            assert torch.equal(left[middle, middle], right[middle, middle])


def test_values_stay_in_range(picture):
    transform = Transform(24, augment=True)
    extreme = np.where(picture > 127, 255, 0).astype(np.uint8)
    for seed in range(30):
        image, mask = transform(extreme, (extreme[..., 0] > 0).astype(np.uint8), seed)
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        assert set(mask.unique().tolist()) <= {0, 1}


@pytest.mark.filterwarnings("error")
def test_tensors_may_be_written_to(picture):
    image, mask = Transform(24)(picture, np.ones((24, 32), np.uint8))
    image += 1
    mask += 1
    assert int(mask.min()) == 2


def test_a_transform_travels_to_workers(picture):
    transform = Transform(24, augment=True)
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(copy(picture, None, 5)[0], transform(picture, None, 5)[0])


@pytest.mark.parametrize(
    ("picture_shape", "shape"),
    [((1250, 55), (2912, 128)), ((500, 1250), (128, 320)), ((90, 90), (128, 128)), ((1000, 1060), (128, 128))],
)
def test_a_whole_picture_keeps_its_shape_and_what_is_almost_square_becomes_square(picture_shape, shape):
    assert shape_of(*picture_shape, 128, True) == shape
    image, mask = Transform(128, tile=True)(np.full((*picture_shape, 3), 51, np.uint8))
    assert image.shape[1:] == mask.shape == shape


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), size=st.integers(8, 600))
def test_the_short_side_is_the_models_and_nothing_is_stretched_by_more_than_a_sixteenth(height, width, size):
    tall, wide = shape_of(height, width, size, True)
    assert min(tall, wide) == size
    assert shape_of(width, height, size, True) == (wide, tall)
    long = size * max(height, width) / min(height, width)
    assert abs(max(tall, wide) - long) <= size / 16 + 0.5


def test_a_square_picture_is_the_same_in_every_frame():
    square = np.random.default_rng(2).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    for augment in (False, True):
        ways = [(False, False), (True, False), (True, True), (30, False), (99, True)]  # tile, crop
        frames = [Transform(24, augment, *way)(square, square[..., 0] // 128, 4) for way in ways]
        for image, mask in frames[1:]:
            assert torch.equal(image, frames[0][0])
            assert torch.equal(mask, frames[0][1])


@pytest.mark.parametrize(
    ("picture", "tile", "shape"),
    [
        ((3024, 4032), "native", (3024, 4032)),
        ((3024, 4032), 1036, (1512, 2016)),
        ((400, 1000), "native", (518, 1295)),  # its short side is enlarged to one square
        ((400, 1000), 1036, (518, 1295)),
        ((518, 518), "native", (518, 518)),
    ],
)
def test_a_picture_keeps_its_scale_or_gets_the_one_asked_for(picture, tile, shape):
    assert shape_of(*picture, 518, tile) == shape
    assert Transform(518, tile=tile)(np.zeros((*picture, 3), np.uint8))[0].shape == (3, *shape)


@pytest.mark.parametrize("turned", [False, True])
def test_a_crop_is_a_piece_of_the_whole_picture_and_every_place_is_as_likely(turned):
    # Smooth, and different in every row, so that each crop has one place; the mask is the lower half.
    strip = np.repeat(np.linspace(0, 255, 400)[:, None, None], 20, 1).repeat(3, 2).astype(np.uint8)
    lower = np.repeat(np.arange(400)[:, None] >= 200, 20, 1).astype(np.uint8)
    pair = [np.ascontiguousarray(one.swapaxes(0, 1)) if turned else one for one in (strip, lower)]
    crop, whole = Transform(16, tile=True, crop=True), Transform(16, tile=True)(*pair)
    wide, marked = [(one.mT if turned else one) for one in whole]  # (3, 320, 16), (320, 16)
    starts = []
    for seed in range(300):
        image, mask = [(one.mT if turned else one) for one in crop(*pair, seed)]
        starts.append(int((wide[0, :, 0] - image[0, 0, 0]).abs().argmin()))
        nearby = [wide[:, start : start + 16] for start in range(max(0, starts[-1] - 1), min(305, starts[-1] + 2))]
        assert min(float((image - piece).abs().max()) for piece in nearby) < 1.5 / 255
        assert abs(int(mask.sum()) - int(marked[starts[-1] : starts[-1] + 16].sum())) <= 16
    assert (min(starts), max(starts)) == (pytest.approx(0, abs=8), pytest.approx(304, abs=8))
    assert np.histogram(starts, 4, (0, 305))[0].min() > 50  # 75 each
