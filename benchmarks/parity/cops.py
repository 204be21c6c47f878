"""Reference outputs of CoPS's own code: github.com/cqylunlun/CoPS at a3a41fc (MIT), with small random weights.

    python benchmarks/parity/cops.py --repo CHECKOUT --output tests/golden/cops.safetensors

It needs torch, torchvision, scipy, ftfy, regex and what its ``utils.tools`` imports, of which cv2 is stubbed. Its fit
and its test stand in scripts that read data sets and send all to a GPU, so they are written out below, from those
scripts' calls; its own modules and functions are used for the rest. All noise is stored.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision  # noqa: F401  # before cv2 is stubbed
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

SIZE, PATCH, DIM, IMAGES, FITTED, SAMPLES = 48, 8, 48, 10, 4, 3
TOKENS = [0, 269, 343, 49406, 49407]  # padding, ".", "x", begin, end
DETAILS = {
    "prompt_length": 12,
    "learnable_text_embedding_depth": 2,
    "learnable_text_embedding_length": 4,
    "prt_length": 6,
    "vae_length": 1,
}


def randomise(module: Any) -> None:
    """Draw weights whose maps and scores differ from image to image, and round them to float16."""
    for name, weight in module.named_parameters():
        norm = "ln_" in name
        if name == "token_embedding.weight":
            weight.data = torch.zeros_like(weight)
            weight.data[TOKENS] = 0.3 * torch.randn(len(TOKENS), DIM)
        elif norm or weight.ndim < 2:
            weight.data = (1.0 if norm and name.endswith("weight") else 0.0) + 0.2 * torch.randn_like(weight)
        elif name.startswith(("ctx_", "compound", "t_")) or "embedding" in name:
            weight.data = 0.4 * torch.randn_like(weight)
        else:
            gain = 0.4 if "vae" in name else 1.5
            weight.data = gain * weight.shape[-1] ** -0.5 * torch.randn_like(weight)
        weight.data = weight.data.half().float()


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    sys.modules["cv2"] = ModuleType("cv2")
    sys.path.insert(0, str(given.repo))
    from lib.clip import CoPS
    from lib.cops import PromptLearner
    from utils.loss import BinaryDiceLoss, FocalLoss
    from utils.tools import average_neighbor, compute_similarity, get_fullsize_map, remove_keys_from_model

    torch.set_num_threads(1)
    torch.manual_seed(2)
    clip = CoPS(DIM, 32, 3, 64, PATCH, 77, 49408, DIM, 2, 3, design_details=DETAILS).float().eval()
    randomise(clip)
    learner = PromptLearner(clip, DETAILS, [3]).train()
    randomise(learner)
    clip.requires_grad_(False)
    skip = ("token_embedding.weight", "logit_scale")
    frozen = {name: weight.clone() for name, weight in clip.state_dict().items() if name not in skip}
    clip.visual.DPAM_replace(DPAM_layer=3)  # all blocks

    pixels = torch.randint(0, 256, (IMAGES, 3, 6, 6)).float()  # blocks, so that patches differ from each other
    pixels = F.interpolate(pixels, size=SIZE, mode="nearest") + 40 * torch.randn(IMAGES, 3, SIZE, SIZE)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    mask = torch.zeros(FITTED, SIZE, SIZE)
    mask[1, 8:20, 8:30] = mask[3, 30:44, 5:25] = 1
    label = mask.flatten(1).amax(1).long()
    with torch.no_grad():
        seen, (levels,), *_ = clip.encode_image(pixels / 255, [3], DPAM_layer=3)

    def look(part: slice, mode: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled patches, prototypes (B, 2, P, D) and distances (B, 2, N)."""
        patches = average_neighbor(levels[part], "btad", mode)
        prototypes = [learner.extractor(queries, patches) for queries in (learner.t_n, learner.t_a)]
        distances = [1.0 - F.cosine_similarity(patches.unsqueeze(2), one.unsqueeze(1), dim=-1) for one in prototypes]
        return patches, torch.stack(prototypes, 1), torch.stack([one.min(2).values for one in distances], 1)

    def compare(feature: Tensor, states: Tensor) -> Tensor:
        """Return logits of the two states (B, N, 2)."""
        return compute_similarity(feature / feature.norm(dim=-1, keepdim=True), states) / 0.07

    # A step of its fit on a set such as MVTec AD, but for the neighbourhood
    fitted = slice(0, FITTED)
    mean, log_var = learner.vae_encoder(seen[fitted])
    noise = torch.randn((1, *mean.shape))
    bias = learner.vae_decoder((torch.exp(0.5 * log_var) * noise + mean).reshape(-1, DIM)).unsqueeze(1).unsqueeze(1)
    patches, prototypes, distances = look(fitted, "train")
    small = F.max_pool2d(mask.unsqueeze(1), (PATCH, PATCH)).flatten(1)
    states = learner(clip, FITTED, prototypes.detach(), bias, None).mean(2)
    states = states / states.norm(dim=-1, keepdim=True)
    maps = get_fullsize_map(compare(patches, states).softmax(-1), SIZE, mode="train").permute(0, 3, 1, 2)
    focal, dice = FocalLoss(), BinaryDiceLoss()
    losses = {
        "global": F.cross_entropy(compare(seen[fitted].unsqueeze(1), states)[:, 0], label),
        "local": 4 * (focal(maps, mask) + dice(maps[:, 1], mask) + dice(maps[:, 0], 1 - mask)),
        "normal": distances[:, 0][small == 0].mean(),
        "anomalous": distances[:, 1][small != 0].mean(),
        "kl": -0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).sum(dim=1).mean(),
        "recon": (seen[fitted] - bias).pow(2).sum(1).mean(),
    }
    sum(losses.values()).backward()
    saved = {f"fit.{name}": value for name, value in losses.items()}
    saved |= {"fit.noise": noise[0], "fit.states": states, "fit.map": maps[:, 1]}
    saved |= {f"grad.{name}": one.grad for name, one in learner.named_parameters() if one.grad is not None}

    # Its test, in batches of one as there
    latents = torch.randn(SAMPLES, DIM)
    found: dict[str, list[Tensor]] = {"states": [], "map": [], "smooth": [], "score": [], "distances": []}
    with torch.no_grad():
        for i in range(IMAGES):
            own = slice(i, i + 1)
            patches, prototypes, distances = look(own, "test")
            states = learner(clip, 1, prototypes, learner.vae_decoder(latents).unsqueeze(1).unsqueeze(1), None).mean(2)
            states = states / states.norm(dim=-1, keepdim=True)
            near = [(one - one.min()) / (one.max() - one.min()) for one in distances.unbind(1)]
            weight = 0.26 * near[0] + (1 - 0.26) * (1 - near[1])
            similarity = compare(patches, states).softmax(-1) * weight.unsqueeze(-1)
            heat = get_fullsize_map(similarity, SIZE)[0, ..., 1]
            of_image = compare(seen[own].unsqueeze(1), states).softmax(-1)[:, 0, 1]
            found["score"].append(0.9 * of_image[0] + 0.1 * similarity[0, :, 1].amax())
            found["smooth"].append(torch.from_numpy(gaussian_filter(heat.numpy(), sigma=4 * SIZE / 518)))
            for name, value in (("states", states[0]), ("map", heat), ("distances", distances[0])):
                found[name].append(value)
    saved |= {f"test.{name}": torch.stack(values) for name, values in found.items()}
    heat, scores, states = saved["test.map"], saved["test.score"], saved["test.states"]
    spread = heat.flatten(1).amax(1) - heat.flatten(1).amin(1)
    assert spread.min() > 0.1, f"maps are flat: {spread}"
    assert (heat[0] - heat[1]).abs().max() > 0.1, "maps are alike"
    assert scores.std() > 0.02, f"scores are alike: {scores}"
    assert (states[0] - states[1]).abs().max() > 0.01, "states of images are alike"
    assert (states[:, 0] * states[:, 1]).sum(-1).max() < 0.99, "states are alike"
    saved |= {"pixels": pixels, "mask": mask.to(torch.uint8), "seen": seen, "levels": levels[:2], "latents": latents}
    saved |= {f"clip.{name}": weight.half() for name, weight in frozen.items()}
    saved |= {"tokens": torch.tensor(TOKENS), "table": clip.token_embedding.weight[TOKENS].half()}
    kept = remove_keys_from_model(learner.state_dict())
    saved |= {f"published.{name}": weight.half() for name, weight in kept.items()}  # as its epoch_N.pth has it
    saved |= {f"encoder.{name}": weight.half() for name, weight in learner.vae_encoder.state_dict().items()}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().clone().contiguous() for name, value in saved.items()}, given.output)
    print(f"{given.output}: {given.output.stat().st_size:,} bytes, spread {spread.min():.2f} to {spread.max():.2f}")
    print("scores", scores.tolist(), {name: round(float(value.detach()), 4) for name, value in losses.items()})


if __name__ == "__main__":
    main()
