import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kanoclip.data.resizing import resize, shape_of


def test_a_picture_is_filtered_before_it_shrinks_as_clip_does(picture):
    fine = np.indices((256, 256)).sum(0)[..., None].repeat(3, 2) % 2 * 255  # a chessboard of single pixels
    assert abs(resize(fine.astype(np.uint8), (16, 16)).astype(int) - 127).max() <= 1
    shrunk = resize(picture, (12, 9))
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    expected = F.interpolate(tensor, (12, 9), mode="bicubic", antialias=True)[0].permute(1, 2, 0).clamp(0, 255)
    np.testing.assert_allclose(shrunk, expected.numpy(), atol=1)


def test_a_mask_stays_two_valued_and_a_box_is_a_part(picture):
    mask = (picture[..., 0] > 127).astype(np.uint8)
    assert set(np.unique(resize(mask, (7, 5), nearest=True))) <= {0, 1}
    np.testing.assert_array_equal(resize(picture, (24, 32)), picture)
    np.testing.assert_array_equal(resize(picture, (10, 20), (3, 2, 23, 12)), picture[2:12, 3:23])


@pytest.mark.parametrize(
    ("tile", "shape"), [(False, (64, 64)), (True, (64, 192)), ("native", (300, 900)), (150, (128, 384))]
)
def test_a_picture_is_seen_squeezed_in_its_shape_or_at_a_scale(tile, shape):
    assert shape_of(300, 900, 64, tile) == shape


@pytest.mark.parametrize("tile", ["native", 150])
def test_a_picture_below_a_square_is_enlarged_to_one(tile):
    assert shape_of(20, 40, 64, tile) == (64, 128)


def test_it_needs_no_torch():
    code = "import sys, kanoclip.data.resizing, kanoclip.data.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
