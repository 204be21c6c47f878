"""Make tests/golden/multiads.safetensors: what MultiADS' own code makes of ten images with small random weights.

    python benchmarks/parity/multiads.py --repo CHECKOUT --output tests/golden/multiads.safetensors

CHECKOUT is boschresearch/MultiADS at 66900bb. Its own ``open_clip``, ``LinearLayer``, texts of MVTec AD (one phrase for
each kind of defect) and losses run; the loops of its ``train.py``, ``test.py`` and ``test_multi_defect.py`` around them
are written out here, since the first reads masks that it never assigns. ``pkg_resources`` and ``pdb``, which it imports
and never uses, are stubs. All weights are rounded to float16 before use, so that the file holds what was used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

EMBED, LEVELS, SIZE = 16, [3, 6, 9, 12], 48  # it needs at least 12 blocks
VISION = {"image_size": 40, "patch_size": 8, "width": 32, "layers": 12, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3}
COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OCCUR = [0, 2, 5]  # good, broken and contamination: what occurs on a bottle


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True)
    parser.add_argument("--output", required=True)
    chosen = parser.parse_args()
    sys.path.insert(0, chosen.repo)
    sys.modules["pkg_resources"] = stub = ModuleType("pkg_resources")
    stub.packaging = SimpleNamespace()  # type: ignore[attr-defined]
    sys.modules["pdb"] = ModuleType("pdb")
    torch.set_num_threads(1)
    save_file(golden(), chosen.output)
    print(f"{chosen.output}: {Path(chosen.output).stat().st_size / 1e3:.0f} kB")


def rounded(module: nn.Module, scale: float) -> None:
    """Add noise to all weights, and round them to float16."""
    for weight in module.parameters():
        weight.data = (weight.data + scale * torch.randn_like(weight)).half().float()


def golden() -> dict[str, Tensor]:
    """Return weights, inputs and outputs."""
    from loss import BinaryDiceLoss, FocalLoss
    from model import LinearLayer
    from open_clip.model import CLIP, resize_pos_embed
    from open_clip.tokenizer import tokenize
    from prompts.prompt_ensemble_mvtec_20cls_single import encode_text_with_prompt_ensemble

    torch.manual_seed(0)
    small = CLIP(EMBED, VISION, TEXT)
    rounded(small, 0.15)
    seen: list[Tensor] = []

    def tokenizer(texts: list[str]) -> Tensor:
        seen.append(tokenize(texts))
        return seen[-1]

    model = CLIP(EMBED, VISION | {"image_size": SIZE}, TEXT).eval()
    weights = small.state_dict()
    resized = dict(weights)
    resize_pos_embed(resized, model)
    model.load_state_dict(resized)
    linear = LinearLayer(VISION["width"], EMBED, len(LEVELS), "ViT-L-14-336")
    rounded(linear, 0.3)

    coarse = torch.randint(0, 256, (10, 3, 12, 12), generator=torch.Generator().manual_seed(1))
    image = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    mask = torch.zeros(10, SIZE, SIZE, dtype=torch.uint8)
    for i in range(0, 10, 2):
        mask[i, 4 * i : 4 * i + 10, 8:24] = 1
    kind = torch.tensor([1, 0, 6, 0, 11, 0, 15, 0, 20, 0])  # 0 = good
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in COLOURS)
    pixels = (image / 255 - mean) / std

    with torch.no_grad():
        states = encode_text_with_prompt_ensemble(model, ["bottle"], tokenizer, "cpu")["bottle"]  # (D, C)
        cls, levels = model.encode_image(pixels, LEVELS)
        good = (100 * F.normalize(cls, dim=-1) @ states).softmax(-1)[:, 0]

    toward_good = states[:, 0] - states[:, 1:].mean(1)  # else 20 kinds together outweigh one good state everywhere
    for layer in linear.fc:
        layer.bias.data = (layer.bias + 6 * F.normalize(toward_good, dim=0)).half().float().detach()

    def enlarged(patches: Tensor, columns: Tensor) -> Tensor:
        logits = 100 * F.normalize(patches, dim=-1) @ columns
        grid = logits.permute(0, 2, 1).unflatten(2, (SIZE // 8, SIZE // 8))
        return F.interpolate(grid, size=SIZE, mode="bilinear", align_corners=True).softmax(1)

    projected = linear(levels)
    maps = [enlarged(patches, states) for patches in projected]  # (B, C, H, W) each
    types = mask.long() * kind[:, None, None]
    focal = sum(FocalLoss()(one, types) for one in maps)
    dice = sum(BinaryDiceLoss()(one[:, 1:].sum(1), mask.float()) for one in maps)
    ((focal + dice) / 2 / len(maps)).backward()
    heat = torch.stack([one[:, 1:].sum(1) for one in maps]).sum(0).detach()
    highest = heat.flatten(1).topk(3, dim=1).values.mean(1)  # before it is stretched over the tested images
    few = sum(enlarged(patches, states[:, OCCUR]) for patches in projected).detach()  # (B, 3, H, W)

    assert (heat.amax((1, 2)) - heat.amin((1, 2)) > 0.4).all(), "maps are flat"  # of a sum of four
    assert (few.amax((2, 3)) - few.amin((2, 3)) > 0.4).all(), "maps of a kind are flat"
    assert highest.max() - highest.min() > 0.1, "scores are alike"
    assert good.max() > 5 * good.min(), "probabilities are alike"
    assert (heat[1:] - heat[:-1]).abs().mean((1, 2)).min() > 0.02, "rows are alike"
    print(f"scores {highest.min():.3f} to {highest.max():.3f}; maps {heat.min():.3f} to {heat.max():.3f} of 4")

    used = torch.cat(seen).unique()
    kept = {name: value.half() for name, value in weights.items() if name != "token_embedding.weight"}
    return {
        **{f"clip.{name}": value.contiguous() for name, value in kept.items()},
        "tokens": used,
        "token_rows": weights["token_embedding.weight"][used].half(),
        **{f"published.{name}": value.half() for name, value in linear.state_dict().items()},
        **{f"gradient.{name}": value.grad for name, value in linear.named_parameters()},
        "coarse": coarse.to(torch.uint8),
        "mask": mask,
        "kind": kind,
        "states": states.T.contiguous(),
        "map": heat,
        "highest": highest,
        "good": good.contiguous(),
        "kinds": maps[0][0].detach().contiguous(),
        "few": few[:2].contiguous(),
        "focal": focal.detach(),
        "dice": dice.detach(),
    }


if __name__ == "__main__":
    main()
