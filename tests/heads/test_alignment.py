import torch
from torch.nn.functional import normalize

from kanoclip.heads.alignment import alignment_loss, patch_mask


def test_it_is_the_mean_cosine_of_unlike_pairs_less_that_of_like_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = normalize(torch.randn(3, 6, 4, generator=generator) + 0.5, dim=-1).requires_grad_()
    mask = torch.tensor([[0, 1, 0, 0.5, 0, 1], [0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]).view(3, 2, 3)
    flat, unlike, like = mask.flatten(1), [], []
    for b in range(3):
        for i in range(6):
            for j in range(6):
                if {float(flat[b, i]), float(flat[b, j])} <= {0.0, 1.0}:
                    (like if flat[b, i] == flat[b, j] else unlike).append(patches[b, i] @ patches[b, j])
    expected = torch.stack(unlike).mean() - torch.stack(like).mean()
    loss = alignment_loss([patches], mask)
    torch.testing.assert_close(loss, expected.clamp_min(0))
    apart = normalize(patches.detach() - 1.5 * mask.flatten(1)[..., None], dim=-1)
    assert float(alignment_loss([apart], mask)) == 0  # kinds apart already
    mixed = [patches, apart]
    torch.testing.assert_close(alignment_loss(mixed, mask), loss / 2)


def test_it_learns_from_unlike_pairs_that_are_alike_and_from_nothing_else() -> None:
    same = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, -1]]]).requires_grad_()  # the second is the anomaly
    mask = torch.tensor([[[0, 1], [0, 0]]])
    loss = alignment_loss([same], mask)
    loss.backward()
    assert float(loss.detach()) > 0
    assert float(same.grad.abs().sum()) > 0
    for nothing in (torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.full((1, 2, 2), 0.5)):
        assert float(alignment_loss([same.detach()], nothing)) == 0
    assert float(alignment_loss([same[:0].detach()], mask[:0])) == 0


def test_a_mask_is_read_at_the_centres_of_patches() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[0, :4, :4] = 1  # a whole patch
    mask[0, 4:, 4:6] = 1  # half of one
    mask[0, 0, 4:] = 1  # the border of one
    assert patch_mask(mask, (2, 2)).tolist() == [[[1, 0], [0, 0.5]]]
