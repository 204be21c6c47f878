"""Make tests/golden/april_gan.safetensors: what APRIL-GAN's own code makes of ten images with small random weights.

    python benchmarks/parity/april_gan.py --repo CHECKOUT --output tests/golden/april_gan.safetensors

CHECKOUT is ByChelsea/VAND-APRIL-GAN at f13b8a6. Its own ``open_clip``, ``LinearLayer``, prompts and losses run; the
loops of its ``test.py`` and ``train.py`` around them are written out here. ``pkg_resources``, which it imports and
never uses, is a stub, and ``.to("cuda")`` of its attention sum stays on the CPU. All weights are rounded to float16
before use, so that the file holds what was used.
"""

from __future__ import annotations

import torch
from common import COLOURS, rounded, start, stub, write
from torch import Tensor
from torch.nn import functional as F

EMBED, LEVELS, SIZE = 16, [3, 6, 9, 12], 48  # it needs at least 12 blocks
VISION = {"image_size": 40, "patch_size": 8, "width": 32, "layers": 12, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3}


def main() -> None:
    """Run it."""
    output = start(__doc__)
    stub()
    move = Tensor.to
    Tensor.to = lambda self, *a, **k: self if a == ("cuda",) else move(self, *a, **k)  # type: ignore[method-assign]
    write(golden(), output)


def golden() -> dict[str, Tensor]:
    """Return weights, inputs and outputs."""
    from loss import BinaryDiceLoss, FocalLoss
    from model import LinearLayer
    from open_clip.model import CLIP, resize_pos_embed
    from open_clip.tokenizer import tokenize
    from prompt_ensemble import encode_text_with_prompt_ensemble

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
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in COLOURS)
    pixels = (image / 255 - mean) / std

    with torch.no_grad():
        states = encode_text_with_prompt_ensemble(model, ["bottle"], tokenizer, "cpu")["bottle"]  # (D, 2)
        cls, levels = model.encode_image(pixels, LEVELS)
        cls = F.normalize(cls, dim=-1)
        score = (100 * cls @ states).softmax(-1)[:, 1]
    raw = torch.stack(levels)  # (L, B, 1 + N, W); the linear layer overwrites the list
    maps = []
    for patches in linear(levels):
        logits = 100 * F.normalize(patches, dim=-1) @ states
        grid = logits.permute(0, 2, 1).view(len(image), 2, SIZE // 8, SIZE // 8)
        maps.append(F.interpolate(grid, size=SIZE, mode="bilinear", align_corners=True).softmax(1))
    focal = sum(FocalLoss()(one, mask.float()) for one in maps)
    dice = sum(BinaryDiceLoss()(one[:, 1], mask.float()) for one in maps)
    (focal + dice).backward()
    heat = torch.stack([one[:, 1] for one in maps]).sum(0).detach()

    assert (heat.amax((1, 2)) - heat.amin((1, 2)) > 0.4).all(), "maps are flat"  # of a sum of four
    assert score.max() - score.min() > 0.1, "scores are alike"
    assert (heat[1:] - heat[:-1]).abs().mean((1, 2)).min() > 0.02, "rows are alike"
    print(f"scores {score.min():.3f} to {score.max():.3f}; maps {heat.min():.3f} to {heat.max():.3f} of 4")

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
        "states": states.T.contiguous(),
        "cls": cls,
        "blocks": raw[:, :2].contiguous(),
        "map": heat,
        "score": score.contiguous(),
        "focal": focal.detach(),
        "dice": dice.detach(),
    }


if __name__ == "__main__":
    main()
