import pytest
import torch
from torch.nn.functional import normalize

from kanoclip.backbone import windows
from kanoclip.backbone.attention import QKV
from kanoclip.backbone.clip import CLIPBackbone, embed_patches
from kanoclip.backbone.windows import encode_windows, window_patches


def test_the_windows_of_a_grid_are_a_patch_apart_and_row_by_row() -> None:
    assert window_patches(3, 2).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    assert window_patches(2, 1).tolist() == [[0], [1], [2], [3]]
    assert [len(window_patches(15, size)) for size in (2, 3, 15)] == [196, 169, 1]  # WinCLIP's 15 x 15 patches


def test_the_largest_window_is_the_image_and_its_feature_clips_global_one(backbone, images) -> None:
    (whole,) = encode_windows(backbone, images, [4])
    torch.testing.assert_close(whole[:, 0], backbone(images, QKV()).cls, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_a_window_is_what_open_clip_makes_of_its_tokens_alone(backbone, images, tiny, size) -> None:
    visual = tiny[0].visual
    pixels = (images - backbone.mean) / backbone.std
    tokens = embed_patches(visual, pixels, visual.positional_embedding)  # (B, 1 + 16, width)
    row, column = 1, 4 - size  # the last window of the second row
    patches = [4 * (row + i) + column + j for i in range(size) for j in range(size)]
    with torch.no_grad():
        alone = visual.transformer(tokens[:, [0, *(1 + patch for patch in patches)]])[:, 0]
        expected = normalize(visual.ln_post(alone) @ visual.proj, dim=-1)
    (found,) = encode_windows(backbone, images, [size])
    assert found.shape == (2, (5 - size) ** 2, 20)
    torch.testing.assert_close(found[:, row * (5 - size) + column], expected, rtol=0, atol=1e-5)


def test_a_window_does_not_see_what_lies_outside(backbone, images) -> None:
    changed = images.clone()
    changed[:, :, :8, :8] = 0  # the first patch
    before, after = (encode_windows(backbone, picture, [2])[0] for picture in (images, changed))
    differ = (before - after).abs().amax(-1) > 1e-4
    assert differ.tolist() == [[True] + 8 * [False]] * 2


def test_windows_depend_neither_on_the_levels_nor_on_how_many_are_encoded_at_once(
    backbone, images, tiny, monkeypatch
) -> None:
    expected = encode_windows(backbone, images, [2, 3])
    monkeypatch.setattr(windows, "WINDOWS_AT_ONCE", 5)
    found = encode_windows(CLIPBackbone(tiny[1], image_size=32, levels=[1]), images, [2, 3])
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_images_of_another_size_are_refused(backbone) -> None:
    with pytest.raises(ValueError, match="The images are 40 x 24 pixels"):
        encode_windows(backbone, torch.zeros(1, 3, 24, 40), [2])
