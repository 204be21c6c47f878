"""Write tests/golden/faprompt.safetensors: what FAPrompt's own code computes with small random weights.

Needs a checkout of github.com/mala-lab/FAPrompt (commit 7e9d9d2, MIT) and torchvision:

    python benchmarks/parity/faprompt.py --repo CHECKOUT --output tests/golden/faprompt.safetensors

Stubbed: thop, iopath and pkg_resources, of which its code needs nothing here. Its training step stands in a script that
reads a data set, so it is written out below, from that script's calls. ``first.*`` is its code as it is; for ``top.*``
the patches that its ranking names are handed to its prompt learner.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
import torch.nn.functional as F
from common import start, stub, write
from torch import Tensor, nn

SIZE, IMAGES = 48, 10
TOKENS = [0, 269, 320, 333, 13568, 14115, 49406, 49407]  # padding, ".", "a", "n", "damaged", "object", begin, end


def randomize(module: nn.Module, gain: float) -> None:
    """Draw all weights anew, rounded to what the file keeps, so that features of different images differ."""
    for name, weight in module.named_parameters():
        if "ln_" in name:
            weight.data = (1.0 if name.endswith("weight") else 0.0) + 0.2 * torch.randn_like(weight)
        elif weight.ndim > 1:
            weight.data = gain * weight.shape[-1] ** -0.5 * torch.randn_like(weight)
        else:
            weight.data = 0.1 * torch.randn_like(weight)
        weight.data = weight.data.half().float()


def main() -> None:
    """Make the file."""
    output = start(__doc__)
    stub("thop", "iopath", "iopath.common", "iopath.common.file_io")
    paths = sys.modules["iopath.common.file_io"]
    paths.g_pathmgr, paths.PathManagerFactory = None, types.SimpleNamespace(get=lambda key: None)
    import AnomalyCLIP_lib
    import loss as theirs
    from AnomalyCLIP_lib.AnomalyCLIP import AnomalyCLIP
    from FAPrompt import FAPrompt

    torch.manual_seed(0)
    details = {
        "Prompt_length": 12,
        "learnabel_text_embedding_depth": 3,
        "learnabel_text_embedding_length": 4,
    }
    clip = AnomalyCLIP(32, 32, 3, 64, 8, 77, 49408, 32, 2, 3, design_details=details).float().eval()
    randomize(clip, 1.0)
    clip.requires_grad_(False)
    table = torch.zeros_like(clip.token_embedding.weight)
    table[TOKENS] = (0.3 * torch.randn(len(TOKENS), 32)).half().float()
    clip.token_embedding.weight.data = table
    # The table is its used rows alone, and the scale is not used.
    frozen = {k: v.clone() for k, v in clip.state_dict().items() if k not in ("token_embedding.weight", "logit_scale")}
    clip.visual.DAPM_replace(DPAM_layer=3)  # the last two blocks

    learner = FAPrompt(clip, details)
    learner.patch_meta_net = nn.Sequential()
    learner.patch_meta_net.add_module("linear1", nn.Linear(320, 20))
    learner.patch_meta_net.add_module("relu", nn.ReLU())
    learner.patch_meta_net.add_module("linear2", nn.Linear(20, 32))
    for name, weight in learner.named_parameters():
        if "projections" not in name:
            weight.data = (
                ((0.4 if "prompts" in name or "ctx" in name else 0.3) * torch.randn_like(weight)).half().float()
            )

    pixels = torch.randint(0, 256, (IMAGES, 3, 6, 6)).float()  # blocks, so that patches differ from each other
    pixels = F.interpolate(pixels, size=SIZE, mode="nearest") + 40 * torch.randn(IMAGES, 3, SIZE, SIZE)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    mask = torch.zeros(IMAGES, SIZE, SIZE)
    mask[1, 8:20, 8:30], mask[3, 30:44, 5:25] = 1, 1
    label = mask.flatten(1).amax(1).long()

    step: Any = Step(clip, learner, AnomalyCLIP_lib, theirs)
    with torch.no_grad():
        patches = F.normalize(clip.encode_image(pixels / 255, [1, 2, 3], DPAM_layer=3)[1], dim=-1)[1:].transpose(0, 1)
    kept = {
        **{f"clip.{key}": value.half() for key, value in frozen.items()},
        "tokens": torch.tensor(TOKENS),
        "table": table[TOKENS].half(),
        # As its epoch_N.pth has it; what it holds of the vocabulary and of unused layers is not told again.
        **{f"learner.{k}": v.half() for k, v in learner.named_parameters() if "projections" not in k},
        "pixels": pixels,
        "mask": mask.to(torch.uint8),
        "patches": patches[:4],
    }
    for which in ("first", "top"):
        found = step(pixels / 255, mask, label, which)
        kept |= {f"{which}.{key}": value for key, value in found.items()}
        spread, scores = found["map"].flatten(1), found["score"]
        assert float((spread.amax(1) - spread.amin(1)).min()) > 0.1, "maps are all but flat"
        assert float((spread[0] - spread[1]).abs().max()) > 0.1, "maps are alike"
        assert float(scores.std()) > 0.02, f"scores are alike: {scores}"
        print(which, "scores", scores, {key: float(value.detach()) for key, value in found.items() if not value.ndim})
    assert float((kept["first.map"] - kept["top.map"]).abs().max()) > 0.01, "the choice of patches changes nothing"
    write({key: value.detach().contiguous() for key, value in kept.items()}, output)


class Step:
    """One forward of all images, and the loss and gradients of the first four, as its script has them."""

    def __init__(self, clip: Any, learner: Any, library: Any, losses: Any) -> None:
        self.clip, self.learner, self.library = clip, learner, library
        self.focal, self.dice, self.image = losses.FocalLoss(), losses.BinaryDiceLoss(), losses.BinaryFocalLoss()

    def encode(self, selected: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
        """Return features of the normal prompt, of the ten abnormal ones, and the prior."""
        positive, negative, ids, ids_negative, deep, bias = self.learner(selected_tokens=selected)
        normal = self.clip.encode_text_learn(positive, ids, deep).float()
        return normal, self.clip.encode_text_learn(negative, ids_negative, deep).float(), bias

    def __call__(self, image: Tensor, mask: Tensor, label: Tensor, which: str) -> dict[str, Tensor]:
        """Run all images for what a test gives, then the first four for what a fit gives."""
        with torch.no_grad():
            tested = self.forward(image, label, which)
        found = {key: tested[key] for key in ("map", "score", "maxima")}
        fitted = self.forward(image[:4], label[:4], which)
        found |= {key: fitted[key] for key in ("static", "informed", "bias")}
        gt, first, second = mask[:4], *fitted["maps"]
        terms = {
            "local": self.local(first, gt) + 0.5 * self.local(second, gt),
            "global": F.cross_entropy(fitted["logits"], label[:4]),
            "score": self.image(fitted["score"], label[:4].float()),
            "orthogonality": fitted["orthogonality"],
            "prior": fitted["prior"],
        }
        loss = sum(terms.values()) - 0.9 * terms["orthogonality"]
        self.learner.zero_grad()
        loss.backward()
        gradients = {f"gradient.{k}": v.grad for k, v in self.learner.named_parameters() if v.grad is not None}
        return found | {f"loss.{key}": value for key, value in terms.items()} | {"loss": loss} | gradients

    def local(self, maps: Tensor, gt: Tensor) -> Tensor:
        """Focal and two Dice."""
        return self.focal(maps, gt) + self.dice(maps[:, 1], gt) + self.dice(maps[:, 0], 1 - gt)

    def forward(self, image: Tensor, label: Tensor, which: str) -> dict[str, Any]:
        """The two passes."""
        with torch.no_grad():
            cls, patches = self.clip.encode_image(image, [1, 2, 3], DPAM_layer=3)
            cls = cls / cls.norm(dim=-1, keepdim=True)
        normal, abnormal, _ = self.encode()
        kinds = abnormal / abnormal.norm(dim=-1, keepdim=True)
        orthogonality = sum((kinds[k] @ kinds[m]).abs() for k in range(9) for m in range(k + 1, 10))
        static = torch.cat([normal, abnormal.mean(0, keepdim=True)])
        static = static / static.norm(dim=-1, keepdim=True)
        patches = patches / patches.norm(dim=-1, keepdim=True)  # (1 + N, B, D)
        similarity, _ = self.library.compute_similarity_ori(patches, static)
        first = self.library.get_similarity_map(similarity[1:], SIZE)
        maximum = similarity[1:, :, 1].max(dim=0).values
        place = similarity[1:, :, 1].topk(10, dim=0).indices  # (10, B)
        states, biases = [], []
        for i in range(len(image)):
            rows = place[:, i] if which == "top" else torch.arange(10)
            normal, abnormal, bias = self.encode(patches[1:][rows, i])
            states.append(torch.cat([normal, abnormal.mean(0, keepdim=True)]))
            biases.append(bias[0])
        informed = torch.stack(states)
        informed = informed / informed.norm(dim=-1, keepdim=True)
        similarity, _ = self.library.compute_similarity(patches, informed)
        second = self.library.get_similarity_map(similarity[1:], SIZE)
        maxima = torch.stack([maximum, similarity[1:, :, 1].max(dim=0).values])
        logits = (cls[:, None] @ informed.transpose(1, 2))[:, 0] / 0.07
        bias = torch.stack(biases)
        mse = nn.MSELoss()
        return {
            "static": static,
            "informed": informed,
            "bias": bias,
            "maps": (first, second),
            "map": (first[:, 1] + 1 - first[:, 0] + second[:, 1] + 1 - second[:, 0]) / 4,  # before the blur
            "maxima": maxima,
            "logits": logits,
            "score": 0.5 * (logits.softmax(-1)[:, 1] + (2 * maxima[0] + maxima[1]) / 3),
            "orthogonality": orthogonality,
            "prior": sum(mse(one, torch.zeros_like(one)) for one, is_ in zip(bias, label, strict=True) if is_ == 0),
        }


if __name__ == "__main__":
    main()
