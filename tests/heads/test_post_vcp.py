"""Post-VCP: folded keys and values, and widths."""

import pytest
import torch
from torch.nn.functional import normalize

from kanoclip.heads.post_vcp import PostVCP


@pytest.mark.parametrize("levels_at", ["joint", "block"])
def test_states_are_what_they_find_in_the_patches_of_a_level(tiny_clip, levels_at) -> None:
    torch.manual_seed(0)
    backbone = tiny_clip.reading(levels_at)
    part = PostVCP(heads=4)
    part.build(backbone)
    width, texts = backbone.patch_dim, normalize(torch.randn(3, 2, backbone.dim), dim=-1)
    raw = torch.randn(2, 3, 16, width)
    patches, states = part(raw, texts)
    torch.testing.assert_close(patches, normalize(raw, dim=-1))
    query = part.query(texts).unflatten(-1, (4, -1))
    for level in range(2):  # as the formula has it, with keys and values of all patches
        key, value = (layer(patches[level]).unflatten(-1, (4, -1)) for layer in (part.key, part.value))
        weights = torch.einsum("bthd,bnhd->bhtn", query, key).softmax(-1)  # not divided by the root of d
        found = part.out(torch.einsum("bhtn,bnhd->bthd", weights, value).flatten(2))
        torch.testing.assert_close(states[level], normalize(found, dim=-1), rtol=0, atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused(tiny_clip) -> None:
    with pytest.raises(ValueError, match=r"interaction\.heads is 5, expected a divisor of the width 16 of the patches"):
        PostVCP(heads=5).build(tiny_clip)
