"""Reference outputs of VCP-CLIP's own code: github.com/xiaozhen228/VCP-CLIP at 4dd96ec, with small random weights.

    python benchmarks/parity/vcp_clip.py --repo CHECKOUT --output tests/golden/vcp_clip.safetensors

It needs torch, torchvision, scipy, ftfy and regex. ``pkg_resources`` is stubbed, and what is sent to a GPU stays on the
CPU. Its image tower needs 12 blocks or more: here two, by turns, so that the file is small. Its training and test step
stand in scripts that read data sets, so they are written out below, from those scripts' calls; the dropout of the
training step is 0, and there is no autocast.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE, IMAGES, FITTED, TOP_K, LEVELS = 84, 10, 4, 200, [3, 6, 9, 12]


def prepare(repo: Path) -> None:
    """Let the code be imported and run without a GPU."""
    os.chdir(repo)
    sys.path.insert(0, str(repo))
    sys.modules["pkg_resources"] = module = ModuleType("pkg_resources")
    module.packaging = SimpleNamespace(  # type: ignore[attr-defined]
        version=SimpleNamespace(parse=lambda text: int(text[0]))
    )
    to = torch.Tensor.to
    here = lambda value: "cpu" if value == "cuda" else value
    torch.Tensor.to = lambda self, *a, **k: to(self, *map(here, a), **k)  # type: ignore[method-assign]


def randomise(clip: Any, *heads: nn.Module) -> None:
    """Draw weights whose maps and scores differ from image to image, and round them to float16."""
    torch.manual_seed(3)
    for name, weight in clip.named_parameters():
        if weight.ndim < 2:
            weight.data += 0.1 * torch.randn_like(weight)
        elif "embedding" in name and "prompt" not in name:
            weight.data = 0.3 * torch.randn_like(weight)
    blocks = clip.visual.transformer.resblocks
    for number, block in enumerate(blocks):
        block.load_state_dict(blocks[number % 2].state_dict())
    for head in heads:
        for name, weight in head.named_parameters():
            if "temp" in name:
                weight.data += 0.8 + 0.2 * torch.randn_like(weight)
            elif "query" not in name:
                gain = 12 if name.startswith(("q_proj", "k_proj")) else 1.5  # or attention is the same everywhere
                weight.data = (gain / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.1) * torch.randn_like(weight)
    for module in (clip, *heads):
        for weight in module.parameters():
            weight.data = weight.data.half().float()


class Projected(nn.Module):
    """The linear layers, which its scripts define."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(64, 32) for _ in LEVELS)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    output = given.output.resolve()
    prepare(given.repo.resolve())
    from models.model_CLIP import CLIP, tokenize
    from models.post_vcp import Zero_Parameter
    from models.pre_vcp import Context_Prompting
    from models.prompt_ensemble import Prompt_Ensemble
    from utils.loss import BinaryDiceLoss, FocalLoss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = CLIP(32, SIZE, 12, 64, 14, 77, 49409, 32, 2, 3, 1, 2).eval()
    pre = Context_Prompting({"text_cfg": {"width": 32}, "embed_dim": 32}, 2)
    post, linear, texts = Zero_Parameter(64, 32, 64), Projected(), Prompt_Ensemble(2, tokenize)
    randomise(clip, pre, post, linear)
    for name, weight in clip.named_parameters():
        weight.requires_grad_("prompt" in name)

    coarse = torch.randint(0, 256, (IMAGES, 3, 14, 14), dtype=torch.uint8)
    image = coarse.repeat_interleave(6, 2).repeat_interleave(6, 3).float() / 255
    pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    mask = torch.zeros(FITTED, SIZE, SIZE)
    mask[1, 20:40, 30:60] = mask[3, 5:15, 5:70] = 1
    with torch.no_grad():
        seen, levels = clip.encode_image(pixels, LEVELS)

    def run(part: slice) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return text states, and the maps (B, 2, H, W) of each level by projected and by raw patches."""
        states = texts.forward_ensemble(clip, pre.before_extract_feat(None, seen[part]), "cpu")  # (B, 2, D)
        enlarge = lambda logits: F.interpolate(
            logits.mT.unflatten(2, (SIZE // 14, -1)), size=SIZE, mode="bilinear", align_corners=True
        ).softmax(1)
        raw, new = [], []
        for layer, level in zip(linear.fc, levels, strict=True):
            patches = level[part, 1:]
            patches = patches / patches.norm(dim=-1, keepdim=True)
            _, found = post(states, patches)
            new.append(enlarge(post.prompt_temp_l1.exp() * patches @ found.mT))
            projected = layer(level[part, 1:])
            projected = projected / projected.norm(dim=-1, keepdim=True)
            raw.append(enlarge(pre.prompt_temp.exp() * projected @ states.mT))
        return states, raw, new

    fitted = slice(0, FITTED)
    states, raw, new = run(fitted)
    focal, dice = FocalLoss(), BinaryDiceLoss()
    loss = sum(focal(one, mask) + dice(one[:, 1], mask) for one in (*raw, *new))
    loss.backward()
    saved: dict[str, Tensor] = {
        "image": coarse,
        "mask": mask.to(torch.uint8),
        "seen": seen,
        "levels": torch.stack(levels)[:, :1, 1:].clone(),  # (L, B, N, W), of one image
        "fit.loss": loss.detach(),
    }
    modules = {"": clip, "New_Lan_Embed.": pre, "Zero_try.": post, "trainable_linearlayer.": linear}
    for start, module in modules.items():
        for name, weight in module.named_parameters():
            if weight.grad is not None and "k_proj_pre_1.bias" not in name:  # which is 0
                saved[f"grad.{start}{name}"] = weight.grad

    with torch.no_grad():
        states, raw, new = run(slice(None))
    by_texts, by_patches = (torch.stack(maps)[:, :, 1].mean(0) for maps in (raw, new))
    top = lambda maps: maps.flatten(1).topk(TOP_K).values.mean(1)
    blended = 0.2 * by_texts + 0.8 * by_patches
    smooth = torch.from_numpy(gaussian_filter(blended.numpy(), sigma=8 * SIZE / 518, axes=(1, 2)))
    score = top(by_texts) + top(by_patches)
    saved |= {"test.states": states, "test.score": score}
    for name, maps in {"by_texts": by_texts, "by_patches": by_patches, "map": blended, "smooth": smooth}.items():
        saved[f"test.{name}"] = maps[:, ::4, ::4].clone()
    spreads = {}
    for name, maps in {"by_texts": by_texts, "by_patches": by_patches, "blended": blended}.items():
        spreads[name] = spread = maps.flatten(1).amax(1) - maps.flatten(1).amin(1)
        assert spread.min() > 0.1, f"maps are flat: {name} {spread}"
        assert (maps[0] - maps[1]).abs().max() > 0.1, f"maps are alike: {name}"
    assert (score.sort().values.diff() > 1e-4).all(), f"scores are alike: {score}"
    assert (states[0] - states[1]).abs().max() > 0.01, "states of images are alike"
    assert (states[:, 0] * states[:, 1]).sum(-1).max() < 0.99, "states are alike"

    # float16, as they were used; of two blocks, and the rows of the tokens that occur
    prompts = ["a photo of a damaged", "a photo of a good"]
    ids = torch.unique(torch.cat([tokenize(one)[0] for one in prompts])).long()
    saved |= {"token_ids": ids, "token_rows": clip.token_embedding.weight[ids].detach().half()}
    for name, weight in clip.state_dict().items():
        block = name.removeprefix("visual.transformer.resblocks.")
        unused = "token_embedding" in name or name in ("logit_scale", "prompt_text_projection")
        if not (unused or (block != name and int(block.split(".")[0]) > 1)):
            saved[f"{'published.' if 'prompt' in name else 'clip.'}{name}"] = weight.half()
    for start, module in modules.items():
        if start:
            saved |= {f"published.{start}{name}": weight.half() for name, weight in module.state_dict().items()}
    about = {"about": json.dumps({"top_k": TOP_K, "size": SIZE, "levels": LEVELS})}
    save_file({key: value.detach().clone().contiguous() for key, value in saved.items()}, output, about)
    print(f"{output}: {output.stat().st_size:,} bytes, loss {float(loss.detach()):.4f}")
    print({name: (round(float(one.min()), 3), round(float(one.max()), 3)) for name, one in spreads.items()})
    print("scores", score.tolist())


if __name__ == "__main__":
    main()
