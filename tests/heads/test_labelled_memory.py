"""The labelled memory: what it remembers, and what it reads."""

import pytest
import torch
from torch.nn import functional as F

from kanoclip.backbone.attention import VV
from kanoclip.heads.labelled_memory import LabelledMemory, ProjectedMemory, neighbourhoods
from kanoclip.types import Features, KanoclipError


@pytest.fixture
def encode(tiny_clip):
    return lambda batch: tiny_clip(batch.image, VV())


def filled(tiny_clip, batch, encode, kind=LabelledMemory, **options):
    memory = kind(**options)
    memory.build(tiny_clip)
    memory.collect([batch], encode, seed=3)
    return memory


def test_it_remembers_images_and_the_mean_patch_of_each_region(tiny_clip, synthetic_batch, encode) -> None:
    memory = filled(tiny_clip, synthetic_batch, encode)
    features = encode(synthetic_batch)
    torch.testing.assert_close(memory.image_keys, features.cls)
    assert memory.image_labels.tolist() == [0, 1, 0, 1]
    assert memory.patch_labels.tolist() == [0, 0, 0, 1]  # the fourth image has no mask, the second two regions
    patches = neighbourhoods(features)[1].unflatten(0, (4, 4))
    expected = F.normalize(patches[1, 1], dim=-1)  # a square of one patch: 8 to 16
    torch.testing.assert_close(memory.patch_keys[3], expected)


def test_it_reads_the_share_of_anomalous_rows_that_are_alike(tiny_clip, synthetic_batch, encode) -> None:
    memory = filled(tiny_clip, synthetic_batch, encode, temperature=0.1)
    image, patch = memory.read(encode(synthetic_batch))
    weights = (encode(synthetic_batch).cls @ memory.image_keys.T / 0.1).exp()
    torch.testing.assert_close(image, weights[:, [1, 3]].sum(1) / weights.sum(1))
    assert patch.shape == (4, 16)
    assert 0 <= float(patch.min()) <= float(patch.max()) <= 1
    torch.testing.assert_close(memory(encode(synthetic_batch), []), patch.unflatten(1, (4, 4)))


def test_a_size_draws_rows_by_seed(tiny_clip, synthetic_batch, encode) -> None:
    memory, again = (filled(tiny_clip, synthetic_batch, encode, size=2) for _ in range(2))
    assert (len(memory.image_keys), len(memory.patch_keys)) == (2, 2)
    torch.testing.assert_close(memory.patch_keys, again.patch_keys, rtol=0, atol=0)


def test_autocast_does_not_round_what_is_nearly_alike(tiny_clip, synthetic_batch, encode) -> None:
    memory, features = filled(tiny_clip, synthetic_batch, encode), encode(synthetic_batch)
    expected = memory.read(features)[1]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(memory.read(features)[1], expected, rtol=0, atol=0)


def test_training_hides_the_rows_most_alike(tiny_clip, synthetic_batch, encode) -> None:
    torch.manual_seed(0)
    memory = filled(tiny_clip, synthetic_batch, encode, ProjectedMemory, hide_images=0.7)
    features = encode(synthetic_batch)
    cosine = features.cls @ memory.image_keys.T
    alike = memory.image_query(features.cls) @ memory.image_key(memory.image_keys).T
    alike[cosine.argsort(-1).argsort(-1) == 3] = -torch.inf  # of four rows the 0.7 quantile leaves out one
    expected = alike.softmax(-1) @ memory.image_labels
    torch.testing.assert_close(memory.train().look_up("image", features.cls), expected)
    assert not torch.allclose(memory.eval().look_up("image", features.cls), expected)


def test_a_fit_without_defects_cannot_fill_it(tiny_clip, synthetic_batch, encode) -> None:
    without = synthetic_batch._replace(has_mask=torch.tensor([True, False, True, False]))
    with pytest.raises(KanoclipError, match="needs normal and anomalous regions with a mask, and there are no"):
        filled(tiny_clip, without, encode)
    with pytest.raises(KanoclipError, match="needs normal and anomalous images, and there are no anomalous"):
        filled(tiny_clip, synthetic_batch._replace(label=torch.zeros(4)), encode)


@pytest.mark.parametrize("name", ["hide_images", "hide_patches"])
def test_a_quantile_that_is_none_is_refused(name) -> None:
    with pytest.raises(KanoclipError, match=rf"memory\.{name} is 0, expected a quantile in \(0, 1\]"):
        ProjectedMemory(**{name: 0})


def test_neighbourhoods_are_means_over_three_windows_with_zeros_beyond_the_border() -> None:
    patches = torch.rand(1, 2, 9, 3)
    found = neighbourhoods(Features(patches, torch.zeros(2, 3), (3, 3)))
    centre = (patches[0, :, 4] + patches[0].mean(1) + patches[0].sum(1) / 25) / 3
    torch.testing.assert_close(found[:, 4], centre)
