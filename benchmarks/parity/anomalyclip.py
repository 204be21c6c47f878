"""Make tests/golden/anomalyclip.safetensors: what AnomalyCLIP's own code makes of ten images with small random weights.

    python benchmarks/parity/anomalyclip.py --repo CHECKOUT --output tests/golden/anomalyclip.safetensors

CHECKOUT is zqhang/AnomalyCLIP at 45ed4dd (2025-05-08). Its own towers, prompt learner and losses
run; the loops of its ``test.py`` and ``train.py`` around them are written out here. ``thop`` and ``pkg_resources``,
which it imports for a version number, are stubs. All weights are rounded to float16 before use, so that the file holds
what was used. Its code passes its learned tokens inside the text encoder, and so their gradients, through half
precision; that is left out here (the tokens are the same in it, the gradients would be off by 3e-4 of the largest).
"""

from __future__ import annotations

import torch
from common import COLOURS, rounded, start, stub, write
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

DIM, SIZE, PATCH, LAYERS, WIDTH, TEXT = 32, 48, 8, 4, 64, 64  # a head is 64 wide in both towers
DESIGN = {"Prompt_length": 12, "learnabel_text_embedding_depth": 3, "learnabel_text_embedding_length": 4}
DPAM = 4  # the last 3 of 4 blocks have a second path


def main() -> None:
    """Run it."""
    output = start(__doc__)
    stub("thop")
    write(golden(), output)


def halved(value: Tensor) -> Tensor:
    """Return a weight, which was rounded before, in half the bytes; numbers of tokens as they are."""
    return value.half() if value.is_floating_point() else value


def golden() -> dict[str, Tensor]:
    """Return weights, inputs and outputs."""
    import AnomalyCLIP_lib
    from AnomalyCLIP_lib.AnomalyCLIP import AnomalyCLIP
    from loss import BinaryDiceLoss, FocalLoss
    from prompt_ensemble import AnomalyCLIP_PromptLearner

    torch.manual_seed(0)
    model = AnomalyCLIP(DIM, 40, LAYERS, WIDTH, PATCH, 77, 49408, TEXT, 1, 3, design_details=DESIGN).float().eval()
    rounded(model, 0.1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}  # it resizes positions in place
    learner = AnomalyCLIP_PromptLearner(model, DESIGN)
    rounded(learner, 0.3)
    model.visual.DAPM_replace(DPAM_layer=DPAM)

    coarse = torch.randint(0, 256, (10, 3, 12, 12), generator=torch.Generator().manual_seed(1))
    image = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    mask = torch.zeros(10, SIZE, SIZE, dtype=torch.uint8)
    for i in range(0, 10, 2):
        mask[i, 4 * i : 4 * i + 10, 8:24] = 1
    label = mask.flatten(1).amax(1).long()
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in COLOURS)
    pixels = (image / 255 - mean) / std

    with torch.no_grad():
        cls, levels = model.encode_image(pixels, [LAYERS], DPAM_layer=DPAM)
        cls = cls / cls.norm(dim=-1, keepdim=True)
        patches = levels[0] / levels[0].norm(dim=-1, keepdim=True)
    prompts, tokenized, deep = learner(cls_id=None)
    half, Tensor.half = Tensor.half, lambda self: self  # type: ignore[method-assign]  # see above
    states = model.encode_text_learn(prompts, tokenized, deep).float()
    Tensor.half = half  # type: ignore[method-assign]
    states = torch.stack(torch.chunk(states, dim=0, chunks=2), dim=1)
    states = states / states.norm(dim=-1, keepdim=True)  # (1, 2, D)
    logits = (cls[:, None] @ states.permute(0, 2, 1))[:, 0] / 0.07
    similarity, _ = AnomalyCLIP_lib.compute_similarity(patches, states[0])
    maps = AnomalyCLIP_lib.get_similarity_map(similarity[:, 1:], SIZE)  # (B, H, W, 2)
    planes = maps.permute(0, 3, 1, 2)
    target = mask.float()
    focal = FocalLoss()(planes, target)
    dice = BinaryDiceLoss()(planes[:, 1], target) + BinaryDiceLoss()(planes[:, 0], 1 - target)
    image_loss = F.cross_entropy(logits, label)
    (4 * (focal + dice) + image_loss).backward()
    rough = ((maps[..., 1] + 1 - maps[..., 0]) / 2).detach()
    heat = torch.stack([torch.from_numpy(gaussian_filter(one, sigma=4 * SIZE / 518)) for one in rough])
    score = logits.softmax(-1)[:, 1].detach()

    assert (rough.amax((1, 2)) - rough.amin((1, 2)) > 0.1).all(), "maps are flat"
    assert score.max() - score.min() > 0.1, "scores are alike"
    assert (rough[1:] - rough[:-1]).abs().mean((1, 2)).min() > 0.02, "rows are alike"
    print(f"scores {score.min():.3f} to {score.max():.3f}; maps {rough.min():.3f} to {rough.max():.3f}")

    used = torch.cat([learner.tokenized_prompts_pos, learner.tokenized_prompts_neg]).unique()
    kept = {name: value.half() for name, value in weights.items() if name != "token_embedding.weight"}
    gradients = {name: value.grad for name, value in learner.named_parameters() if value.grad is not None}
    return {
        **{f"clip.{name}": value.contiguous() for name, value in kept.items()},
        "tokens": used.long(),
        "token_rows": weights["token_embedding.weight"][used].half(),
        **{f"published.{name}": halved(value).contiguous() for name, value in learner.state_dict().items()},
        **{f"gradient.{name}": value for name, value in gradients.items()},
        "coarse": coarse.to(torch.uint8),
        "mask": mask,
        "states": states[0].detach(),
        "cls": cls,
        "patches": patches[:, 1:].contiguous(),
        "rough": rough.contiguous(),
        "map": heat,
        "score": score.contiguous(),
        "focal": focal.detach(),
        "dice": dice.detach(),
        "image_loss": image_loss.detach(),
    }


if __name__ == "__main__":
    main()
