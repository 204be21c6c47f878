"""Reference outputs of Bayes-PFL's own code: github.com/xiaozhen228/Bayes-PFL at 8f155a0, with small random weights.

    python benchmarks/parity/bayes_pfl.py --repo CHECKOUT --output tests/golden/bayes_pfl.safetensors

It needs torch, torchvision, scipy, scikit-learn, ftfy and regex. ``tabulate`` and ``pkg_resources`` are stubbed, and
what is sent to a GPU stays on the CPU. Its image tower needs 12 blocks or more: here two, by turns, so that the file is
small. The training step is that of its ``train.py``, which cannot be imported in parts; the random choice of one
prompt in it is fixed. All noise is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torchvision  # noqa: F401  # before ``tabulate`` is stubbed: torch looks for it
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CATEGORIES = ["metal_nut", "pcb1", "bottle", "chewinggum", "macaroni2", "screw", "wood", "pipe_fryum", "cable", "tile"]
SIZE, FITTED, CHOSEN, TOP_K = 84, 4, 1, 200
OPTIONS = {"vision_width": 64, "text_width": 32, "embed_dim": 32, "prompt_num": 3, "prompt_context_len": 5,
           "prompt_state_len": 5, "num_flows": 4, "sample_num": 2, "features_list": [3, 6, 9, 12],
           "image_size": SIZE}  # fmt: skip


def prepare(repo: Path) -> None:
    """Let the code be imported and run without a GPU."""
    os.chdir(repo)  # it reads its vocabulary by a relative path
    sys.path.insert(0, str(repo))
    for name, content in {
        "tabulate": {"tabulate": None},
        "pkg_resources": {"packaging": SimpleNamespace(version=SimpleNamespace(parse=lambda text: int(text[0])))},
    }.items():
        sys.modules[name] = module = ModuleType(name)
        vars(module).update(content)
    to = torch.Tensor.to
    here = lambda value: "cpu" if value == "cuda" else value
    torch.Tensor.to = lambda self, *a, **k: to(self, *map(here, a), **k)  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[method-assign]


def randomise(clip: Any, model: Any) -> None:
    """Draw weights whose maps and scores differ from image to image, and round them to float16."""
    torch.manual_seed(5)
    for name, weight in clip.named_parameters():
        if weight.ndim < 2:
            weight.data += 0.1 * torch.randn_like(weight)
        elif "embedding" in name:
            weight.data = 0.3 * torch.randn_like(weight)
    blocks = clip.visual.transformer.resblocks
    for number, block in enumerate(blocks):
        block.load_state_dict(blocks[number % 2].state_dict())
    for name, weight in model.named_parameters():
        if "prompt" in name:
            weight.data += 1.5 * torch.randn_like(weight)
        elif "temperature" not in name:
            weight.data = (0.3 if "amor" in name else 1.5 / weight.shape[-1] ** 0.5) * torch.randn_like(weight)
    for weight in (*clip.parameters(), *model.parameters()):
        weight.data = weight.data.half().float()


class Noise:
    """Records what ``torch.randn_like`` draws."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []
        self._draw = torch.randn_like

    def __enter__(self) -> Noise:
        def draw(like: Tensor) -> Tensor:
            self.drawn.append(self._draw(like))
            return self.drawn[-1]

        torch.randn_like = draw  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        torch.randn_like = self._draw


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    output = given.output.resolve()
    prepare(given.repo.resolve())
    from loss import DiceLoss, FocalLoss, Orthogonal_Loss
    from models.model_CLIP import CLIP, tokenize
    from models.VPB import Context_Prompting, TextEncoder

    del sys.modules["tabulate"]
    args = Namespace(**OPTIONS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = CLIP(32, SIZE, 12, 64, 14, 77, 49409, 32, 2, 2, 1, 0).eval()
    model = Context_Prompting(args)
    for flows in (model.PFL_context, model.PFL_normal, model.PFL_abnormal):
        flows.is_cuda = False
    randomise(clip, model)
    text = TextEncoder(clip, args)

    coarse = torch.randint(0, 256, (len(CATEGORIES), 3, 14, 14), dtype=torch.uint8)
    image = coarse.repeat_interleave(6, 2).repeat_interleave(6, 3).float() / 255
    pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    mask = torch.zeros(FITTED, SIZE, SIZE)
    mask[1, 20:40, 30:60] = mask[3, 5:15, 5:70] = 1
    label = mask.flatten(1).amax(1).long()
    with torch.no_grad():
        seen, _, levels = clip.encode_image(pixels, args.features_list)
    saved: dict[str, Tensor] = {"image": coarse, "mask": mask.to(torch.uint8), "label": label, "seen": seen}
    saved["levels"] = torch.stack(levels)[:, :2].clone()  # (L, B, N, W), of two images

    model.train()
    part = [level[:FITTED] for level in levels]
    for stage in (1, 2):
        model.zero_grad()
        with Noise() as noise:
            states, regular = model.forward_ensemble(
                text, seen[:FITTED], part, CATEGORIES[:FITTED], "cpu", tokenize, mode="train"
            )
            logits, maps = model(states, seen[:FITTED], part, stage=stage, mode="train")
        pair = [CHOSEN, CHOSEN + args.prompt_num]
        cross = F.cross_entropy(logits.squeeze(2)[:, pair], label)
        chosen = [one[:, pair].softmax(1) for one in maps]
        focal, dice = (sum(loss(one, mask) for one in chosen) for loss in (FocalLoss(), DiceLoss()))
        orthogonal = Orthogonal_Loss()(states, args)
        losses = {"global": cross, "local": focal + dice, "kl": sum(regular[1:]) / 0.01, "ort": orthogonal}
        losses["total"] = cross + focal + dice + sum(regular[1:]) + orthogonal if stage == 1 else cross
        losses["total"].backward()
        saved |= {f"fit{stage}.{name}": value.detach() for name, value in losses.items()}
        saved |= {f"fit{stage}.noise.{i}": one for i, one in enumerate(noise.drawn)}
        gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        second = ("class_mapping", "image_mapping", "fuse")  # what the second stage fits
        saved |= {f"fit{stage}.grad.{k}": one for k, one in gradients.items() if stage == 1 or k.startswith(second)}
        if stage == 1:
            saved |= {"fit.states": states.detach(), "fit.maps": torch.stack(chosen)[:, :2, 1, ::3, ::3].detach()}

    model.eval()
    found: dict[str, list[Tensor]] = {"states": [], "probability": [], "map": [], "noise": [], "first": []}
    with torch.no_grad():
        for i, category in enumerate(CATEGORIES):
            own = [level[i : i + 1] for level in levels]
            with Noise() as noise:
                states, _ = model.forward_ensemble(text, seen[i : i + 1], own, [category], "cpu", tokenize, mode="test")
            pairs = states.shape[1] // 2
            for stage, key in ((2, "probability"), (1, "first")):
                logits, maps = model(states, seen[i : i + 1], own, stage=stage, mode="test")
                found[key].append(logits[0, :, 0].view(2, pairs).softmax(0)[1].mean())
            heat = torch.stack([one[0].unflatten(0, (2, pairs)).softmax(0)[1] for one in maps]).mean((0, 1))
            found["states"].append(states[0])
            found["map"].append(heat)
            found["noise"].append(torch.stack(noise.drawn[: args.sample_num])[:, 0])
            if i == 0:  # its states' latents are kept for all images
                draws = torch.stack(noise.drawn[args.sample_num :])[:, 0]
                saved["test.state_noise"] = draws.unflatten(0, (2, -1))  # (2, S, W)
    test = {key: torch.stack(values) for key, values in found.items()}
    top = test["map"].flatten(1).topk(TOP_K).values.mean(1)
    sigma = 8 * SIZE / 518
    smooth = gaussian_filter(test["map"].numpy(), sigma=sigma, axes=(1, 2))
    saved |= {
        "test.noise": test["noise"],
        "test.states": test["states"][:3].clone(),
        "test.map": test["map"][:3].clone(),
        "test.smooth": torch.from_numpy(smooth)[:3].clone(),
        "test.score": (test["probability"] + top) / 2,
        "test.score_of_first_stage": (test["first"] + top) / 2,
    }
    spread = test["map"].flatten(1).amax(1) - test["map"].flatten(1).amin(1)
    assert spread.min() > 0.1, f"maps are flat: {spread}"
    assert (saved["test.score"].sort().values.diff() > 1e-4).all(), f"scores are alike: {saved['test.score']}"
    cosine = test["states"] @ test["states"].mT
    assert (cosine - 2 * torch.eye(cosine.shape[-1])).max() < 0.999, "states are alike"

    # float16, as they were used; of two blocks, and the rows of the tokens that occur
    ids = torch.unique(torch.cat([tokenize(model.prompt_names([one]))[0] for one in CATEGORIES])).long()
    saved |= {"token_ids": ids, "token_rows": clip.token_embedding.weight[ids].detach().half()}
    for name, weight in clip.state_dict().items():
        block = name.removeprefix("visual.transformer.resblocks.")
        unused = "token_embedding" in name or "prompt_text" in name
        if not (unused or (block != name and int(block.split(".")[0]) > 1)):
            saved[f"clip.{name}"] = weight.half()
    first: dict[int, str] = {}
    aliases, unused = {}, {}
    for name, weight in model.state_dict().items():
        if "decoder" in name or ".p_mu." in name:
            unused[name] = list(weight.shape)
        elif first.setdefault(weight.data_ptr(), name) != name:
            aliases[name] = first[weight.data_ptr()]
        else:
            saved[f"model.{name}"] = weight.half()
    about = {"categories": CATEGORIES, "aliases": aliases, "unused": unused, "chosen": CHOSEN, "top_k": TOP_K}
    save_file(
        {k: v.clone().contiguous() for k, v in saved.items()}, output, {k: json.dumps(v) for k, v in about.items()}
    )
    print(f"{output}: {output.stat().st_size:,} bytes, spread of maps {spread.min():.2f} to {spread.max():.2f}")
    print("scores", saved["test.score"].tolist())
    print({name: round(float(value), 4) for name, value in saved.items() if value.ndim == 0})


if __name__ == "__main__":
    main()
