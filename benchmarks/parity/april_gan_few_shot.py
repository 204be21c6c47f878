"""Write tests/golden/april_gan_few_shot.safetensors: what APRIL-GAN's code computes few-shot with small random weights.

Needs a checkout of github.com/ByChelsea/VAND-APRIL-GAN (commit f13b8a6, MIT), torchvision and scikit-learn:

    python benchmarks/parity/april_gan_few_shot.py --repo CHECKOUT --output tests/golden/april_gan_few_shot.safetensors

Its tower needs 12 blocks, and puts what it attends to onto a GPU: here the CPU. Its memory and its test read data sets,
so both are written out below, from their calls; the text features are random.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.metrics import pairwise
from torch import Tensor, nn
from torch.nn import functional as F

VISION = {"image_size": 32, "patch_size": 4, "width": 32, "layers": 12, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 520, "width": 24, "heads": 2, "layers": 1}
LEVELS, SIZE = [3, 6, 9, 12], 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def randomize(module: nn.Module, gain: float) -> None:
    """Draw weights, rounded to what the file keeps, so that features of images differ."""
    for name, weight in module.named_parameters():
        if "ln_" in name:
            weight.data += 0.2 * torch.randn_like(weight)
        else:
            fan = weight.shape[0] if name.endswith("proj") else weight[0].numel() if weight.ndim > 1 else 100
            weight.data = gain * fan**-0.5 * torch.randn_like(weight)
        weight.data = weight.data.half().float()


@torch.no_grad()
def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.repo))
    move = Tensor.to
    Tensor.to = lambda self, *args, **kwargs: move(self, *("cpu" if one == "cuda" else one for one in args), **kwargs)
    from model import LinearLayer
    from open_clip.model import CLIP

    torch.manual_seed(0)
    torch.set_num_threads(1)
    clip = CLIP(32, VISION, TEXT).eval()
    linear = LinearLayer(32, 32, len(LEVELS), "ViT")
    randomize(clip, 1.5)
    randomize(linear, 1.0)
    images = torch.rand(5, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    images[3, :, :16] = images[0, :, :16]  # an upper half nearly that of a reference
    images = (0.6 * images + 0.4 * torch.rand(5, 3, SIZE, SIZE)).half().float()
    given = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    text = F.normalize(torch.randn(32, 2), dim=0).half().float()  # one column for each state

    levels = [clip.encode_image(one[None], LEVELS)[1] for one in given[:2]]  # few_shot.memory
    memory = [torch.cat([tokens[i][0, 1:] for tokens in levels]) for i in range(len(LEVELS))]

    distances, maps, texts, probabilities = [], [], [], []
    for one in given[2:]:  # the loop of test.py
        whole, tokens = clip.encode_image(one[None], LEVELS)
        whole /= whole.norm(dim=-1, keepdim=True)
        probabilities.append((100.0 * whole @ text).softmax(-1)[0, 1])
        by_text = []
        for projected in linear(tokens):
            cosines = 100.0 * (projected / projected.norm(dim=-1, keepdim=True)) @ text
            grid = cosines.permute(0, 2, 1).view(1, 2, 8, 8)
            by_text.append(resize(grid).softmax(1)[:, 1])
        near = [tokens_[0, 1:] for tokens_ in clip.encode_image(one[None], LEVELS)[1]]
        found = [
            torch.from_numpy(np.min(1 - pairwise.cosine_similarity(m, p), 0)) for m, p in zip(memory, near, strict=True)
        ]
        few = sum(resize(d.view(1, 1, 8, 8))[0] for d in found)
        distances.append(torch.stack(found))
        texts.append(sum(by_text))
        maps.append(sum(by_text) + few)

    outputs = {"distances": torch.stack(distances, 1), "text_map": torch.cat(texts), "map": torch.cat(maps)}
    for name, one in outputs.items():
        rows = one.transpose(0, 1) if name == "distances" else one  # (B, ...)
        assert rows.flatten(1).std(0).max() > 0.05, f"{name}: rows are alike"
        assert float(rows.max() - rows.min()) > 0.1, f"{name}: varies too little"
    outputs |= {"probability": torch.stack(probabilities), "highest": outputs["map"].flatten(1).amax(1)}
    weights = {f"clip.{k}": v.half() for k, v in clip.state_dict().items() if k.startswith("visual.")}
    weights |= {k: v.half() for k, v in linear.state_dict().items()}
    inputs = {"images": images.half(), "text": text.half()}
    save_file({k: v.contiguous().clone() for k, v in (weights | inputs | outputs).items()}, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} kB")


def resize(maps: Tensor) -> Tensor:
    """Resize as its test does."""
    return F.interpolate(maps, size=SIZE, mode="bilinear", align_corners=True)


if __name__ == "__main__":
    main()
