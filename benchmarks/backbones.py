"""Compare the global feature of open_clip's models, by name and with random weights, with open_clip's own.

    python benchmarks/backbones.py ViT-B-16-SigLIP EVA02-B-16

One line a name: depth, width, D, class tokens, largest difference, and whether patches of the second path are finite at
a larger image size. A model of ViT-B takes 1 GB and half a minute.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from torch import Tensor

from kanoclip.backbone import clip
from kanoclip.backbone.attention import VV
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.loading import _check_supported


def no_tokenizer(texts: list[str], context_length: int) -> Tensor:
    """Stand in for a vocabulary that may have to be downloaded: no text is encoded here."""
    return torch.zeros(len(texts), context_length, dtype=torch.long)


def build(model: Any, name: str, image_size: int) -> CLIPBackbone:
    """Return the backbone of a model that is there already."""
    with patch.object(clip, "load", lambda *_: (model, no_tokenizer)):
        return CLIPBackbone(name, None, image_size)


@torch.no_grad()
def compare(name: str) -> str:
    """Return the line of a name."""
    config = open_clip.get_model_config(name)
    _check_supported(name, config)
    size = config["vision_cfg"].get("image_size", 224)
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    for weight in model.parameters():  # constants at the start would hide a norm or a bias that is left out
        weight += 0.02 * torch.randn_like(weight)
    backbone = build(model, name, size)
    image = torch.rand(1, 3, size, size)
    expected = model.encode_image((image - backbone.mean) / backbone.std, normalize=True)
    difference = float((backbone(image, VV()).cls - expected).abs().max())
    larger = size + 2 * backbone.patch_size
    finite = bool(build(model, name, larger)(torch.rand(1, 3, larger, larger), VV()).patches.isfinite().all())
    shape = f"{backbone.depth} blocks, W {backbone.width}, D {backbone.dim}, {backbone.prefix} class token"
    return f"{name}: {shape}, difference {difference:.1e}, second path at {larger} px finite: {finite}"


if __name__ == "__main__":
    for one in sys.argv[1:]:
        print(compare(one), flush=True)
