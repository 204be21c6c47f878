import pytest
import torch
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads import hybrid
from kanoclip.heads.hybrid import ClassProjection, cluster, hybrid_semantic_fusion

GENERATOR = torch.Generator().manual_seed(8)
PATCHES = F.normalize(torch.randn(3, 4, 30, 8, generator=GENERATOR), dim=-1)
CLS = F.normalize(torch.randn(4, 8, generator=GENERATOR), dim=-1)
PROBABILITY = torch.rand(4, 30, generator=GENERATOR)


def test_fusion_adds_the_mean_of_the_centres_of_the_most_anomalous_patches(monkeypatch) -> None:
    asked = []

    def grouped(points, clusters):
        asked.append(points)
        return torch.arange(len(points)).remainder(7).clamp_max(3)  # of 15 patches: 3, 2, 2 and 8

    monkeypatch.setattr(hybrid, "cluster", grouped)
    found = hybrid_semantic_fusion(CLS, PATCHES, PROBABILITY, clusters=3, share=0.3)
    for i in range(4):
        place = [n for n in range(30) if (PROBABILITY[i] > PROBABILITY[i, n]).sum() < 15]
        assert torch.equal(asked[i], PATCHES[:, i, place].transpose(0, 1).reshape(15, 24))
        members = [[place[m] for m in range(15) if min(m % 7, 3) == g] for g in range(4)]
        centres = torch.stack([PATCHES[:, i, one].reshape(-1, 8).mean(0) for one in members])
        expected = F.normalize(0.3 * F.normalize(centres.mean(0), dim=-1) + 0.7 * CLS[i], dim=-1)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-6)


def test_a_fused_feature_depends_on_its_own_image_alone_and_is_the_same_each_time() -> None:
    torch.manual_seed(1)
    whole = hybrid_semantic_fusion(CLS, PATCHES, PROBABILITY, clusters=4)
    torch.manual_seed(2)
    order = torch.tensor([2, 0, 3, 1])
    again = hybrid_semantic_fusion(CLS[order], PATCHES[:, order], PROBABILITY[order], clusters=4)
    alone = [hybrid_semantic_fusion(CLS[i : i + 1], PATCHES[:, i : i + 1], PROBABILITY[i : i + 1], 4) for i in range(4)]
    assert torch.equal(whole[order], again)
    assert torch.equal(whole, torch.cat(alone))


def test_patches_that_swap_their_ranks_change_nothing() -> None:
    swapped = PROBABILITY.clone()
    first, second = PROBABILITY[0].topk(2).indices
    swapped[0, first], swapped[0, second] = PROBABILITY[0, second], PROBABILITY[0, first]
    one, two = (hybrid_semantic_fusion(CLS, PATCHES, rank, clusters=4) for rank in (PROBABILITY, swapped))
    assert torch.equal(one, two)


def test_gradients_reach_the_global_feature_and_the_chosen_patches() -> None:
    cls, patches = CLS.clone().requires_grad_(), PATCHES.clone().requires_grad_()
    hybrid_semantic_fusion(cls, patches, PROBABILITY, clusters=3)[:, 0].sum().backward()
    assert cls.grad.abs().sum(1).gt(0).all()
    assert patches.grad.abs().sum(-1).gt(0).sum((0, 2)).tolist() == [45] * 4  # 15 of 30 patches in 3 levels


@pytest.mark.parametrize("clusters", [1, 3, 50])
def test_few_patches_and_patches_all_alike_are_clustered_too(clusters) -> None:
    same = F.normalize(torch.ones(3, 4, 30, 8), dim=-1)
    for patches in (same, PATCHES[:, :, :2], PATCHES):
        rank = PROBABILITY[:, : patches.shape[2]]
        found = hybrid_semantic_fusion(CLS, patches, rank, clusters)
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))
    assert hybrid_semantic_fusion(CLS, same * torch.nan, PROBABILITY, clusters).isnan().all()  # told by the loss


def test_k_means_finds_groups_that_lie_apart_and_leaves_torchs_random_numbers_alone() -> None:
    truth = torch.arange(20).remainder(4)
    points = 10 * F.one_hot(truth, 6).float() + 0.1 * torch.randn(20, 6, generator=GENERATOR)
    before = torch.get_rng_state()
    found = cluster(points, 4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found[:, None] == found, truth[:, None] == truth)


def test_the_global_projection_is_a_linear_layer_and_of_unit_length(tiny) -> None:
    backbone = CLIPBackbone(tiny[1], image_size=32, levels_at="block")
    torch.manual_seed(0)
    whole = ClassProjection()
    whole.build(backbone)
    cls = torch.randn(2, 20)
    expected = F.normalize(cls @ whole.layer.weight.T + whole.layer.bias, dim=-1)
    torch.testing.assert_close(whole(cls, torch.randn(4, 2, 16, 20), (4, 4)), expected)
