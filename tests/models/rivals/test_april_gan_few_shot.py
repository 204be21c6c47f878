"""APRIL-GAN, few-shot, against its own code: see benchmarks/parity/april_gan_few_shot.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.patch_memory import PatchMemory
from kanoclip.models.inference import batch_of
from kanoclip.models.rivals.april_gan import AprilGAN

VISION = {"image_size": 32, "patch_size": 4, "width": 32, "layers": 12, "head_width": 32}


@pytest.fixture(scope="module")
def golden():
    return load_file(Path(__file__).parents[2] / "golden" / "april_gan_few_shot.safetensors")


@pytest.fixture(scope="module")
def model(golden, make_clip, write_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("april_gan")
    config, random = make_clip(embed_dim=32, vision=VISION)
    given = {name[5:]: one.float() for name, one in golden.items() if name.startswith("clip.")}
    name = write_clip(folder, config, random.state_dict() | given)
    backbone = CLIPBackbone(name, image_size=32, levels=[3, 6, 9, 12], levels_at="block")
    model = AprilGAN(backbone, memory=PatchMemory(f"{folder}")).eval()
    references = iter([batch_of(golden["images"][:2].float(), "bottle")])
    model.memory._banks = {"": [F.normalize(one, dim=-1) for one in model._encode(references)]}
    return model


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_distances_of_each_level_are_half_of_its(golden, model) -> None:
    batch = batch_of(golden["images"][2:].float(), "bottle")
    distances = model.memory.distances(model.vectors(batch), batch.category)
    close(torch.stack(distances), golden["distances"] / 2)


@torch.no_grad()
def test_map_and_score_are_its_brought_into_0_to_1(golden, model) -> None:
    batch = batch_of(golden["images"][2:].float(), "bottle")
    distance = model.memory(model.features(batch), batch.category)
    heat, score = model.join(golden["text_map"] / 4, golden["probability"], distance)
    close(heat, golden["map"] / 12)  # 4 levels of a probability, and of 1 - cosine up to 2
    close(score, (golden["probability"] + golden["highest"] / 12) / 2)
