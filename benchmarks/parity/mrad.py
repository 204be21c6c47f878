"""Make tests/golden/mrad.safetensors: what MRAD's own code makes of six images with small random weights.

    python benchmarks/parity/mrad.py --repo CHECKOUT --output tests/golden/mrad.safetensors

CHECKOUT is CROVO1026/MRAD at 1cc1c6b. Its own tower, the functions that fill and read its memory, its projections and
losses run; the loops of its ``test.py`` (which stops at an import) and ``train.py`` around them are written out here.
Its code fixes 24 blocks and 37 x 37 patches, so the patches here are of 4 pixels, and all blocks share the weights of
one. ``thop`` and ``pkg_resources`` are stubs. Weights are rounded to float16 before use, so that the file holds
what was used. The learner of prompts of MRAD-CLIP fixes a width of 768: its source is read with another number there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from common import COLOURS, rounded, start, stub, write
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

DIM, SIZE, PATCH, LAYERS, WIDTH, TEXT, COARSE = 32, 148, 4, 24, 64, 64, 37
STATES = 32  # width of the text tower of MRAD-CLIP, that of the joint space
DESIGN = {"Prompt_length": 12, "learnabel_text_embedding_depth": 9, "learnabel_text_embedding_length": 4}


def main() -> None:
    """Run it."""
    output = start(__doc__)
    stub("thop")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write(golden(), output)


def golden() -> dict[str, Tensor]:
    """Return weights, inputs and outputs."""
    from AnomalyCLIP_lib.AnomalyCLIP import AnomalyCLIP
    from AnomalyCLIP_lib.model_load import get_similarity_map
    from models.mlp import MLP, Projector, average_neighbor
    from mrad import build_cache_model, build_patch_cache_model, compute_patch_socre, compute_socre
    from utils.loss import BinaryDiceLoss, FocalLoss

    torch.manual_seed(0)
    model = AnomalyCLIP(DIM, SIZE, LAYERS, WIDTH, PATCH, 77, 512, TEXT, 1, 2, design_details=DESIGN).float().eval()
    rounded(model, 0.03)
    blocks = model.visual.transformer.resblocks
    for block in blocks:
        block.load_state_dict(blocks[0].state_dict())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.visual.DAPM_replace(DPAM_layer=LAYERS)
    image_proj, patch_proj = MLP(DIM), Projector(WIDTH, DIM, 2)
    rounded(image_proj, 0.6)
    rounded(patch_proj, 0.6)

    drawn = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    coarse = drawn.repeat_interleave(5, 2).repeat_interleave(5, 3)[:, :, :COARSE, :COARSE].contiguous()
    small = torch.zeros(6, COARSE, COARSE, dtype=torch.uint8)
    for i in range(0, 6, 2):
        small[i, 4 * i : 4 * i + 10, 6:20] = 1
    coarse[:, 0] = torch.where(small.bool(), 255, coarse[:, 0])  # or regions would look alike
    image, mask = (one.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1) for one in (coarse, small))
    mask = mask.roll(2, -1)  # so that patches lie across the border
    label = mask.flatten(1).amax(1).long()
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in COLOURS)
    pixels = (image / 255 - mean) / std
    loader = [
        {"img": pixels[i : i + 2], "anomaly": label[i : i + 2], "img_mask": mask[i : i + 2, None].float()}
        for i in range(0, 6, 2)
    ]
    keys, values = build_cache_model(False, model, loader, "cpu", "cache_model_visa.pt")
    rows, kinds = build_patch_cache_model(False, model, loader, "cpu", "cache_patch_model_visa.pt")

    with torch.no_grad():
        cls, levels, _, joint = model.encode_image(pixels, [6, 12, 18, 24], DPAM_layer=LAYERS)
        cls = cls / cls.norm(dim=-1, keepdim=True)
        query = average_neighbor(levels[3])
        query = query / query.norm(dim=-1, keepdim=True)
    found: dict[str, Tensor] = {}
    for name, learned in (("tf", False), ("ft", True)):
        with torch.no_grad():
            patch, *_ = compute_patch_socre(
                query, rows, kinds, device="cpu", proj=patch_proj, is_mradft=True, use_proj=learned
            )
            image_p, _ = compute_socre(cls, keys, values, "cpu", proj=image_proj, use_proj=learned)
        rough = get_similarity_map(patch, SIZE)[..., 1]
        heat = torch.stack([torch.from_numpy(gaussian_filter(one, sigma=4 * SIZE / 518)) for one in rough])
        highest = heat.flatten(1).topk(int(SIZE * SIZE * 0.01)).values.mean(1)
        score = 0.3 * highest + 0.7 * image_p[:, 1]
        found |= {f"{name}.patch": patch[..., 1], f"{name}.image": image_p[:, 1], f"{name}.map": heat[:2]}
        found[f"{name}.score"] = score
        spread = (patch[..., 1].amax(1) - patch[..., 1].amin(1)).min()
        print(f"{name}: maps {patch[..., 1].min():.4f} to {patch[..., 1].max():.4f}, scores {score.tolist()}")
        assert spread > (0.1 if learned else 0.003), "maps are flat"  # a temperature of 1 leaves them nearly so
        assert (heat[1:] - heat[:-1]).abs().mean((1, 2)).min() > (0.01 if learned else 0.0005), "rows are alike"

    patch, *_ = compute_patch_socre(
        query, rows, kinds, device="cpu", proj=patch_proj, need_mask=True, is_mradft=True, use_proj=True
    )
    maps = get_similarity_map(patch, SIZE).permute(0, 3, 1, 2)
    image_p, _ = compute_socre(cls, keys, values, "cpu", proj=image_proj, need_mask=True)
    focal, dice = FocalLoss()(maps, mask.float()), BinaryDiceLoss()(maps[:, 1], mask.float())
    image_loss = F.cross_entropy(image_p / 0.07, label)
    (focal + dice + image_loss).backward()

    fewer = torch.tensor([one for one in range(len(rows)) if one not in (0, 3)])  # or all patches were anomalous
    found |= clip(query, joint[3], (rows[fewer], kinds[fewer], patch_proj), found["ft.image"], mask)
    found["mc.rows"] = fewer

    shared = {name for name in weights if name.startswith("visual.transformer.resblocks.")}
    kept = {name: weights[name] for name in weights if name.startswith("visual.") and name not in shared}
    kept |= {name: weights[name] for name in shared if name.startswith("visual.transformer.resblocks.0.")}
    parts = {"image_proj": image_proj, "patch_proj": patch_proj}
    learned = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.named_parameters()}
    return {
        **{f"clip.{name}": value.half().contiguous() for name, value in kept.items()},
        **{f"published.{name}": value.detach().half() for name, value in learned.items()},
        **{f"gradient.{name}": value.grad for name, value in learned.items()},
        **{name: value.contiguous() for name, value in found.items()},
        "coarse": coarse,
        "mask": mask.contiguous(),
        "image_keys": keys,
        "image_values": values,
        "patch_keys": rows,
        "patch_values": kinds,
        "cls": cls,
        "query": query[:1, ::8].contiguous(),
        "focal": focal.detach(),
        "dice": dice.detach(),
        "image_loss": image_loss.detach(),
    }


def clip(query: Tensor, last: Tensor, memory: tuple[Any, ...], image_p: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return what MRAD-CLIP makes of the images: with a text tower of its own, as wide as the joint space."""
    import models
    from AnomalyCLIP_lib.AnomalyCLIP import AnomalyCLIP
    from AnomalyCLIP_lib.model_load import compute_similarity, get_similarity_map
    from models.mlp import AnomalyMLP, average_neighbor
    from mrad import compute_patch_socre
    from utils.loss import BinaryDiceLoss, FocalLoss

    source = (Path(models.__file__).parent / "prompt_learner.py").read_text().replace("768", f"{STATES}")
    learner_of = ModuleType("prompt_learner")
    exec(source, vars(learner_of))
    torch.manual_seed(5)
    design = DESIGN | {"learnabel_text_embedding_depth": 3}
    text = AnomalyCLIP(DIM, SIZE, 1, WIDTH, PATCH, 77, 49408, STATES, 2, 3, design_details=design).float().eval()
    rounded(text, 0.1)
    text.requires_grad_(False)
    learner, proj = learner_of.AnomalyCLIP_PromptLearner(text, design), AnomalyMLP(DIM)
    for name, weight in [*learner.named_parameters(), *proj.named_parameters()]:
        if not name.startswith(("compound_prompt_projections", "mlp.")):
            weight.data = (0.5 * torch.randn_like(weight)).half().float()

    rows, kinds, patch_proj = memory
    patches = average_neighbor(last)
    patches = patches / patches.norm(dim=-1, keepdim=True)
    found: dict[str, Tensor] = {}
    for hidden in (False, True):  # as tested, and as fitted
        logits, means, *_ = compute_patch_socre(
            query, rows, kinds, device="cpu", proj=patch_proj, need_mask=hidden, patch_projection=patches
        )
        bias = proj(means.detach()[:, 0], means.detach()[:, 1])
        prompts, tokens, deep = learner(bias=bias)
        states = text.encode_text_learn(prompts, tokens, deep).float()
        states = states / states.norm(dim=-1, keepdim=True)
        maps = get_similarity_map(compute_similarity(patches, states), SIZE).permute(0, 3, 1, 2)
        if hidden:
            focal, dice, gt = FocalLoss(), BinaryDiceLoss(), mask.float()
            loss = focal(maps, gt) + dice(maps[:, 1], gt) + dice(maps[:, 0], 1 - gt)
            loss.backward()
            found["mc.loss"] = loss.detach()
            continue
        rough = ((maps[:, 1] + 1 - maps[:, 0]) / 2).detach()
        heat = torch.stack([torch.from_numpy(gaussian_filter(one, sigma=4 * SIZE / 518)) for one in rough])
        score = 0.3 * heat.flatten(1).topk(int(SIZE * SIZE * 0.01)).values.mean(1) + 0.7 * image_p
        found |= {"mc.means": means.detach(), "mc.states": states.detach(), "mc.score": score}
        found |= {"mc.rough": rough[:, ::4, ::4], "mc.map": heat[:, ::4, ::4]}
        area = (logits[..., 1] > 0.5).float().mean(1)
        print(f"clip: maps {rough.min():.4f} to {rough.max():.4f}, scores {score.tolist()}, anomalous {area.tolist()}")
        assert (rough.flatten(1).amax(1) - rough.flatten(1).amin(1)).min() > 0.1, "maps are flat"
        assert (heat[1:] - heat[:-1]).abs().mean((1, 2)).min() > 0.01, "rows are alike"
        assert (states[1:] - states[:-1]).abs().amax((1, 2)).min() > 0.01, "states of images are alike"
        assert ((area > 0) & (area < 1)).sum() > 2, "images are all of one region"

    ids = torch.cat([learner.tokenized_prompts_pos, learner.tokenized_prompts_neg]).unique()
    found |= {"tokens": ids, "token_rows": text.token_embedding.weight[ids].half()}
    for name, weight in text.state_dict().items():
        if not name.startswith(("visual.", "token_embedding", "logit_scale")):
            found[f"text.{name}"] = weight.half()
    for part, module in {"prompt_learner": learner, "prompt_proj": proj}.items():
        for name, weight in module.named_parameters():
            if weight.grad is not None:  # the others are never used
                found |= {f"mc.published.{part}.{name}": weight.detach().half()}
                found |= {f"mc.gradient.{part}.{name}": weight.grad}
    return {name: value.contiguous() for name, value in found.items()}


if __name__ == "__main__":
    main()
