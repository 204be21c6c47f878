import math

import pytest
import torch
from torch.nn import functional as F

from kanoclip.heads.losses import (
    ContrastiveKD,
    MeanKD,
    MeanMarginKD,
    NoKD,
    dice_loss,
    focal_loss,
    global_loss,
    local_loss,
    with_mask,
)

MASK = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8)
ANOMALOUS = torch.tensor([[[0.8, 0.4], [0.0, 0.0]]])
MAPS = ANOMALOUS[None]  # one level of one image


def test_focal_loss_by_hand() -> None:
    expected = (0.2**2 * -math.log(0.8 + 1e-5) + 0.4**2 * -math.log(0.6 + 1e-5)) / 4
    assert float(focal_loss(MAPS, MASK)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wrong", [0.0, 1e-8, 1e-5])
def test_the_focal_loss_still_teaches_where_the_model_is_most_wrong(wrong) -> None:
    maps = torch.tensor([[[[wrong, 1 - wrong], [0.0, 1.0]]]], requires_grad=True)
    mask = torch.tensor([[[1, 0], [0, 1]]])
    focal_loss(maps, mask).backward()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad[0, 0, 0, 0] < -1  # a defect that is missed becomes more anomalous
    assert maps.grad[0, 0, 0, 1] > 1  # a false alarm less
    assert maps.grad[0, 0, 1].abs().max() < 1e-3  # what is right stays


def test_the_focal_loss_is_the_papers_away_from_0_and_1() -> None:
    maps = torch.linspace(0.003, 0.98, 1000, dtype=torch.float64)
    for p in maps:
        expected = (1 - p) ** 2 * -p.log()
        found = focal_loss(p.view(1, 1, 1, 1), torch.ones(1, 1, 1))
        assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_dice_loss_by_hand() -> None:
    assert float(dice_loss(MAPS, MASK)) == pytest.approx(1 - (2 * 0.8 + 1) / (1.2 + 1 + 1), rel=1e-5)
    assert float(dice_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), normal=True)) == 0


def test_dice_over_the_batch_counts_all_pixels_and_per_image_the_mean() -> None:
    empty = torch.tensor([[[0.1, 0.0], [0.0, 0.0]]])
    maps, masks = torch.cat([ANOMALOUS, empty])[None], torch.cat([MASK, torch.zeros_like(MASK)])
    batch = 1 - (2 * 0.8 + 1) / (1.3 + 1 + 1)
    image = (1 - (2 * 0.8 + 1) / (1.2 + 1 + 1) + 1 - 1 / (0.1 + 1)) / 2
    assert float(dice_loss(maps, masks)) == pytest.approx(batch, rel=1e-5)
    assert float(dice_loss(maps, masks, "image")) == pytest.approx(image, rel=1e-5)


@pytest.mark.parametrize("over", ["batch", "image"])
def test_the_local_loss_sums_its_terms_over_levels_and_states(over) -> None:
    levels = torch.cat([MAPS, MAPS.flip(2)])
    each = [focal_loss(m, MASK) + dice_loss(m, MASK, over) + dice_loss(1 - m, 1 - MASK, over) for m in levels[:, None]]
    torch.testing.assert_close(local_loss(levels, MASK, over), sum(each))


def test_a_perfect_map_costs_nothing_and_the_opposite_the_most() -> None:
    perfect = MASK[None].float()
    assert float(local_loss(perfect, MASK)) == pytest.approx(0, abs=1e-4)
    assert float(local_loss(1 - perfect, MASK)) > 5


def test_masks_that_are_unknown_leave_the_maps_too_and_all_known_copy_nothing(synthetic_batch) -> None:
    maps = torch.rand(2, 4, 32, 32)
    some, masks = with_mask(maps, synthetic_batch)  # the last image has no mask
    assert torch.equal(some, maps[:, :3])
    assert torch.equal(masks, synthetic_batch.mask[:3])
    known = synthetic_batch._replace(has_mask=torch.ones(4, dtype=torch.bool))
    assert with_mask(maps, known)[0] is maps


def test_the_global_loss_is_the_cross_entropy() -> None:
    assert float(global_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]))) == pytest.approx(math.log(4 / 3))


def unit(*angles: float) -> torch.Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def test_knowledge_losses_by_hand() -> None:
    states, knowledge = unit(math.pi, math.pi / 2), unit(0.0)  # the abnormal prompt is 90 degrees from the knowledge
    assert float(MeanKD()(states, knowledge)) == pytest.approx(2)
    assert float(MeanMarginKD(margin=0.1)(states, knowledge)) == pytest.approx(2)  # the normal one is farther: no more
    assert float(MeanMarginKD(margin=3)(states, knowledge)) == pytest.approx(2 + 3 + 2 - 4)
    swapped = states.flip(0)
    assert float(MeanMarginKD(margin=0.1)(swapped, knowledge)) == pytest.approx(4 + 0.1 + 4 - 2)
    assert float(ContrastiveKD(1.0)(states, knowledge)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(NoKD()(states, knowledge)) == 0


@pytest.mark.parametrize("loss", [MeanKD(), MeanMarginKD(), ContrastiveKD()])
def test_a_step_brings_the_abnormal_prompt_nearer_to_the_knowledge(loss) -> None:
    states = unit(0.3, 2.0).requires_grad_()
    knowledge = unit(0.0, 0.2)
    before = (states[1] @ knowledge.T).sum()
    loss(states, knowledge).backward()
    after = (F.normalize(states - 0.1 * states.grad, dim=-1)[1] @ knowledge.T).sum()
    assert after > before


def test_only_the_loss_without_knowledge_needs_none() -> None:
    assert [kind.needs_knowledge for kind in (NoKD, MeanKD, MeanMarginKD, ContrastiveKD)] == [False, True, True, True]
