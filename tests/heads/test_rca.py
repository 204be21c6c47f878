import pytest
import torch
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.rca import RCA

GENERATOR = torch.Generator().manual_seed(0)
PATCHES = torch.randn(2, 3, 12, 32, generator=GENERATOR)  # of the tower's width and any length
TEXTS = F.normalize(torch.randn(3, 4, 16, generator=GENERATOR), dim=-1)


@pytest.fixture
def blocks(tiny_name):
    return CLIPBackbone(tiny_name, image_size=32, levels=[3, 6], levels_at="block")


def built(part, backbone):
    torch.manual_seed(1)
    part.build(backbone)
    for parameter in part.parameters():
        parameter.data = torch.randn_like(parameter)
    return part


def test_rca_is_its_formula(blocks) -> None:
    rca = built(RCA(heads=2), blocks)
    patches, texts = rca(PATCHES, TEXTS)
    for level in range(2):
        projected = F.normalize(PATCHES[level] @ rca.weight[level], dim=-1)
        torch.testing.assert_close(patches[level], projected)
        query, heads = rca.query(TEXTS), []
        for d in (slice(0, 8), slice(8, 16)):
            weights = (query[..., d] @ projected[..., d].mT / 4).softmax(-1)  # the root of 16, not of 8
            heads.append(weights @ projected[..., d])
        torch.testing.assert_close(texts[level], F.normalize(TEXTS + torch.cat(heads, -1), dim=-1))


def test_no_text_of_rca_sees_another(blocks) -> None:
    rca = built(RCA(), blocks)
    torch.testing.assert_close(rca(PATCHES, TEXTS)[1][:, :, 1:3], rca(PATCHES, TEXTS[:, 1:3])[1])


def test_heads_that_do_not_divide_the_width_are_refused(blocks) -> None:
    with pytest.raises(ValueError, match=r"interaction.heads is 3, expected a divisor of the joint width 16"):
        RCA(heads=3).build(blocks)
