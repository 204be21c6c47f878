"""Write tests/golden/af_clip.safetensors: what AF-CLIP's own code computes with small random weights.

Needs a checkout of github.com/Faustinaqq/AF-CLIP (commit bb7edec, no licence), einops and torchvision:

    python benchmarks/parity/af_clip.py --repo CHECKOUT --output tests/golden/af_clip.safetensors

Stubbed: pkg_resources, and the packages ``dataset`` and ``util`` of its code, which its losses do not need. The width
of its adaptor is fixed at 512, so that of its gradients every 16th row is kept.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from common import start, stub, write
from torch import nn

SIZE, IMAGES, REFERENCES = 48, 10, 2


def randomize(module: nn.Module) -> None:
    """Draw all weights anew, rounded to what the file keeps, so that features of different images differ."""
    for name, weight in module.named_parameters():
        if "ln_" in name or "norm" in name:
            weight.data = (1.0 if name.endswith("weight") else 0.0) + 0.2 * torch.randn_like(weight)
        elif weight.ndim > 1:
            gain = 6.0 if "to_q" in name or "to_k" in name else 1.0  # a sharp attention: else all tokens become alike
            weight.data = gain * weight.shape[-1] ** -0.5 * torch.randn_like(weight)
        else:
            weight.data = 0.1 * torch.randn_like(weight)
        weight.data = weight.data.half().float()


def marks(tokens: list[torch.Tensor]) -> torch.Tensor:
    """Choose the eight patches of each image that are most like all others: else the alignment loss is at its floor."""
    patches = torch.stack([F.normalize(one[:, 1:], dim=-1) for one in tokens])  # (S, B, N, D)
    likeness = (patches * patches.mean(2, keepdim=True)).sum(-1).mean(0)  # (B, N)
    return torch.zeros_like(likeness).scatter(1, likeness.topk(8).indices, 1.0)


def main() -> None:
    """Make the file."""
    output = start(__doc__)
    stub("dataset", "util", "util.utils")
    sys.modules["util.utils"].eval_all_class = None
    import main as theirs
    from clip.clip import tokenize
    from clip.model import CLIP

    torch.manual_seed(1)  # not each draw passes the checks below
    clip = CLIP(32, 32, 2, 64, 8, 77, 49408, 32, 2, 2).eval()
    randomize(clip)
    used = sorted(set(tokenize(["without defect.", "with defect."]).flatten().tolist()))
    table = torch.zeros_like(clip.token_embedding.weight)
    table[used] = (0.3 * torch.randn(len(used), 32)).half().float()
    clip.token_embedding.weight.data = table
    frozen = {k: v.clone() for k, v in clip.state_dict().items() if k not in ("token_embedding.weight", "logit_scale")}
    clip.requires_grad_(False)

    args = SimpleNamespace(prompt_len=12, feature_layers=[1, 2], memory_layers=[1, 2], alpha=0.1)
    clip.insert(args, tokenize, "cpu")
    randomize(clip.adaptor)
    clip.state_prompt_embedding.data = (0.4 * torch.randn_like(clip.state_prompt_embedding)).half().float()
    learned = {"prompt": clip.state_prompt_embedding} | {f"adaptor.{k}": v for k, v in clip.adaptor.named_parameters()}

    pixels = torch.randint(0, 256, (IMAGES + REFERENCES, 3, 6, 6)).float()
    pixels = F.interpolate(pixels, size=SIZE, mode="nearest") + 40 * torch.randn(IMAGES + REFERENCES, 3, SIZE, SIZE)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    images, references = (pixels / 255).split([IMAGES, REFERENCES])

    with torch.no_grad():
        marked = marks(clip.detect_encode_image(images[:4], args))
        mask = torch.zeros(IMAGES, 1, SIZE, SIZE)
        for i in (1, 3):
            mask[i] = marked[i].view(1, 6, 6).repeat_interleave(8, 1).repeat_interleave(8, 2)
        half = int((marked[3] == 0).nonzero()[0])
        mask[3, 0, half // 6 * 8 :, half % 6 * 8 :][:8, :4] = 1  # half of a patch
        label = mask.flatten(1).amax(1).long()
        states = F.normalize(clip.encode_state_prompt(), dim=-1)
        sets = clip.aggerate_neighbors(clip.encode_image(images[:2], args.feature_layers))
        adapted = clip.detect_encode_image(images[:2], args)
        score, small, _ = clip.detect_forward_seg(images, args)
        clip.store_memory(references, args)
        few_score, few_small = clip.detect_forward(images, args)
        clip.memorybank = None
        heat = F.interpolate(small, size=SIZE, mode="bilinear")[:, 0]  # before the blur
        few_heat = F.interpolate(few_small, size=SIZE, mode="bilinear")[:, 0]

    gradients, terms, patches = {}, {}, torch.empty(0)
    for which in ("meant", "as_run"):
        predicted, maps, tokens = clip.detect_forward_seg(images[:4], args)
        gt = F.interpolate(mask[:4], size=maps.shape[-2:], mode="bilinear")
        gt[gt < 0.5] = 0
        gt[gt > 0.5] = 1
        patches = gt[:, 0].clone()
        terms = {
            "global": theirs.focal_loss(predicted, label[:4]),
            "local": theirs.focal_loss(maps, gt) + theirs.l1_loss(maps, gt),
            # This call overwrites the 0 of its masks by -1, in place and before the backward pass reads them.
            "alignment": theirs.patch_alignment_loss(tokens, label[:4], gt.clone() if which == "meant" else gt),
        }
        assert (gt.min() == -1) == (which == "as_run"), "its masks are not overwritten any more"
        for value in learned.values():
            value.grad = None
        sum(terms.values()).backward()
        for key, value in learned.items():
            kept_rows = value.grad[::16] if value.ndim == 2 else value.grad
            gradients |= {f"{which}.{key}": kept_rows.clone(), f"{which}.largest.{key}": value.grad.abs().max()}
    assert float(terms["alignment"].detach()) > 0.005, terms
    assert float((heat.flatten(1).amax(1) - heat.flatten(1).amin(1)).min()) > 0.1, "maps are all but flat"
    assert float((heat[0] - heat[1]).abs().max()) > 0.1, "maps are alike"
    assert float(score.std()) > 0.02, f"scores are alike: {score}"
    assert float(few_score.std()) > 0.005, f"few-shot scores are alike: {few_score}"
    kept = {
        **{f"clip.{key}": value.half() for key, value in frozen.items()},
        "tokens": torch.tensor(used),
        "table": table[used].half(),
        **{key: value.half() for key, value in learned.items()},  # as its two files have them
        "pixels": pixels,
        "mask": mask[:, 0].to(torch.uint8),
        "states": states,
        "set": sets[5],  # level 2 in windows of 5, with its class token
        "adapted": F.normalize(adapted[5], dim=-1),
        "map": heat,
        "score": score,
        "few.map": few_heat,
        "few.score": few_score,
        "patch_mask": patches,
        **{f"loss.{key}": value for key, value in terms.items()},
        **gradients,
    }
    write({key: value.detach().contiguous().clone() for key, value in kept.items()}, output)
    print({key: float(value.detach()) for key, value in terms.items()}, "scores", score, "few-shot", few_score)


if __name__ == "__main__":
    main()
