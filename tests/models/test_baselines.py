import pytest
import torch

from kanoclip.models.baselines import LocalStats
from kanoclip.types import Batch


def batch(image: torch.Tensor) -> Batch:
    count = len(image)
    mask = torch.zeros(count, *image.shape[2:], dtype=torch.uint8)
    label = torch.zeros(count, dtype=torch.int64)
    return Batch(image, mask, label, label == 0, label[:, None], ["x"] * count, [""] * count, [""] * count)


def test_what_differs_from_the_rest_scores_highest_and_an_even_image_scores_nothing() -> None:
    image = torch.full((2, 3, 64, 64), 0.5)
    image[1, :, 20:28, 36:44] = 0.9
    model = LocalStats(image_size=64).eval()
    scores = model(batch(image))
    assert float(scores.image_score[0]) == 0
    assert scores.anomaly_map.shape == (2, 64, 64)
    row, column = divmod(int(scores.anomaly_map[1].argmax()), 64)
    assert 18 <= row < 30
    assert 34 <= column < 46
    assert 0.5 < float(scores.image_score[1]) <= 1
    assert not model.needs_training


def test_a_batch_is_its_images_one_by_one() -> None:
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = LocalStats(image_size=32)
    together = model(batch(image)).anomaly_map
    torch.testing.assert_close(together, torch.cat([model(batch(image[i : i + 1])).anomaly_map for i in range(3)]))


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels"):
        LocalStats(image_size=8)
