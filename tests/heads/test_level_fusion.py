import torch
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.level_fusion import LevelFusion


def test_level_fusion_is_its_formula(tiny_name) -> None:
    generator = torch.Generator().manual_seed(0)
    patches, cls = torch.randn(2, 3, 12, 32, generator=generator), torch.randn(3, 16, generator=generator)
    fusion = LevelFusion()
    fusion.build(CLIPBackbone(tiny_name, image_size=32, levels=[3, 6], levels_at="block"))
    for parameter in fusion.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    found = fusion(cls, patches, (3, 4))
    for i in range(3):
        joined = fusion.join(torch.cat([patches[0, i], patches[1, i]], -1))  # (N, 16)
        weights = (joined @ fusion.weigh.weight[0]).softmax(0)
        expected = F.normalize(fusion.map(cls[i] + fusion.lift(weights @ joined)), dim=-1)
        torch.testing.assert_close(found[i], expected)
