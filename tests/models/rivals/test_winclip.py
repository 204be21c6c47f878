"""WinCLIP, zero- and few-shot, against anomalib's: see benchmarks/parity/winclip.py."""

from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.windows import encode_patches, encode_windows
from kanoclip.heads.patch_memory import PatchMemory
from kanoclip.heads.prompts import Prompts
from kanoclip.models.inference import batch_of
from kanoclip.models.rivals.winclip import WinCLIP
from kanoclip.types import Batch

VISION = {"image_size": 32, "patch_size": 4, "width": 64, "layers": 2, "head_width": 64}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)  # what conftest writes beside a model


class Given(Prompts):
    """States that are given."""

    learns = False

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states  # (2, D)

    def forward(self, category, backbone, features=None, hooks=None):
        return self.states.expand(len(category), -1, -1)


@pytest.fixture(scope="module")
def golden():
    return load_file(Path(__file__).parents[2] / "golden" / "winclip.safetensors")


@pytest.fixture(scope="module")
def clip(golden, make_clip, write_clip, tmp_path_factory):
    config, random = make_clip(embed_dim=32, vision=VISION)
    given = {name[5:]: one.float() for name, one in golden.items() if name.startswith("clip.")}
    name = write_clip(tmp_path_factory.mktemp("winclip"), config, random.state_dict() | given)
    return CLIPBackbone(name, image_size=32)


def references(golden, batches: int = 1):
    """A stand-in for files: PNG would round them."""
    images = golden["images"][:2].float()
    return iter([batch_of(one, "bottle") for one in images.split(2 // batches)])


@pytest.fixture
def few(golden, clip, tmp_path):
    memory = PatchMemory(f"{tmp_path}")
    model = WinCLIP(clip, Given(F.normalize(golden["text"].float(), dim=-1)), memory=memory).eval()
    memory._banks = {"": [F.normalize(one, dim=-1) for one in model._encode(references(golden))]}
    return model


def scored(golden, images=slice(2, None)) -> Batch:
    return batch_of(golden["images"][images].float(), "bottle")


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_windows_and_patches_are_those_of_anomalib(golden, clip) -> None:
    image = scored(golden, slice(2, 4)).image
    whole, two, three = encode_windows(clip, image, (8, 2, 3))
    for found, name in ((whole[:, 0], "image"), (two, "windows_2"), (three, "windows_3")):
        close(found, F.normalize(golden[name][:2], dim=-1))
    close(encode_patches(clip, image), golden["patches"])


@torch.no_grad()
def test_maps_and_scores_are_those_of_anomalib_zero_shot(golden, clip) -> None:
    scores = WinCLIP(clip, Given(F.normalize(golden["text"].float(), dim=-1)))(scored(golden))
    close(scores.anomaly_map, golden["zero_map"])
    close(scores.image_score, golden["zero_score"])


@torch.no_grad()
def test_maps_and_scores_are_those_of_anomalib_with_two_references(golden, few) -> None:
    batch = scored(golden)
    scores = few(batch)
    close(scores.anomaly_map, golden["map"])
    close(scores.image_score, golden["score"])
    distances = few.memory.distances(few.vectors(batch), batch.category)
    close(few._maps(distances, (1, 2, 3)).mean(0), golden["distance"])


@torch.no_grad()
def test_a_batch_of_four_is_four_batches_of_one_and_references_may_come_in_any_batches(golden, few) -> None:
    together = few(scored(golden))
    few.memory._banks = {"": [F.normalize(one, dim=-1) for one in few._encode(references(golden, 2))]}
    for i in range(4):
        alone = few(scored(golden, slice(2 + i, 3 + i)))
        close(alone.anomaly_map, together.anomaly_map[i : i + 1])
        close(alone.image_score, together.image_score[i : i + 1])


@torch.no_grad()
def test_a_reference_itself_is_at_no_distance(golden, clip, tmp_path) -> None:
    pixels = (scored(golden, slice(0, 1)).image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    cv2.imwrite(f"{tmp_path}/0.png", pixels[..., ::-1])
    model = WinCLIP(clip, Given(F.normalize(golden["text"].float(), dim=-1)), memory=PatchMemory(f"{tmp_path}"))
    model.remember()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    plain = WinCLIP(clip, model.prompts)(batch_of(image, "bottle"))
    scores = model(batch_of(image, "bottle"))
    close(scores.anomaly_map, plain.anomaly_map / 2)
    close(scores.image_score, plain.image_score / 2)
