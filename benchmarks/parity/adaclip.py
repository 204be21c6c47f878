"""Run AdaCLIP's own code with small random weights, and store what goes in and what comes out.

    python benchmarks/parity/adaclip.py --repo AdaCLIP --output tests/golden/adaclip.safetensors

``--repo`` is a checkout of github.com/caoyunkang/AdaCLIP at e27ee32 (MIT); it needs scikit-learn, ftfy and regex. Put
in its place: ``seaborn`` and ``pkg_resources``, which nothing here uses; the vocabulary, which the repository holds as
a pointer, by OpenAI's from open_clip; divisions in place, which break its backward pass at full precision; and, but for
the scores named ``half``, ``Tensor.half``, which rounds its learned tokens.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import torch
from jsonargparse import auto_cli
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

VISION = {"layers": 4, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"width": 24, "heads": 2, "layers": 5}
SIZE, GIVEN_SIZE, DIM, TOKENS, DEPTH, CLUSTERS = 48, 32, 24, 5, 3, 2
NAMES = ["bottle", "metal-nut"]  # of even and odd images
IMAGES, SHOWN = 10, 2  # of how many images the features are kept
FITTED = 1  # the image of the loss


def load_code(repo: Path, folder: Path) -> tuple[Any, Any]:
    """Import a copy of the code with its vocabulary; return its modules of the towers and of the trainer."""
    shutil.copytree(repo, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
    words = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(Path(open_clip.__file__).with_name(words), folder / "method" / words)
    for name in ("seaborn", "pkg_resources"):
        sys.modules[name] = ModuleType(name)
    importlib.import_module("packaging.version")
    sys.modules["pkg_resources"].packaging = sys.modules["packaging"]
    torch.Tensor.__itruediv__ = torch.Tensor.__truediv__
    sys.path.insert(0, str(folder))
    return importlib.import_module("method.clip_model"), importlib.import_module("method.trainer")


def rounded(weight: Tensor) -> Tensor:
    """Return what float16 can hold of it."""
    return weight.detach().to(torch.float16).float()


def build(towers: Any, training: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return their trainer, and the weights of the towers with positions for images of 32 pixels."""
    torch.manual_seed(0)
    first = towers.CLIP(DIM, {**VISION, "image_size": GIVEN_SIZE}, TEXT)
    first.token_embedding.weight.data *= 20
    for parameter in first.parameters():  # norms and biases start at constants
        parameter.data += 0.1 * torch.randn_like(parameter)
    given = {name: rounded(value) for name, value in first.state_dict().items()}
    resized, clip = dict(given), towers.CLIP(DIM, {**VISION, "image_size": SIZE}, TEXT).eval()
    towers.resize_pos_embed(resized, clip)
    clip.load_state_dict(resized)
    clip.requires_grad_(False)

    whole = training.AdaCLIP_Trainer.__new__(training.AdaCLIP_Trainer)  # its constructor downloads CLIP
    nn.Module.__init__(whole)
    levels = [1, 2, 3, 4]
    whole.clip_model = training.AdaCLIP(clip, DIM, 32, TOKENS, DEPTH, "VL", "SD", True, CLUSTERS, levels, "cpu", SIZE)
    whole.device = "cpu"
    whole.optimizer = SimpleNamespace(zero_grad=lambda: None, step=lambda: None)
    whole.loss_focal, whole.loss_dice = training.FocalLoss(), training.BinaryDiceLoss()
    whole.learnable_paramter_list = [  # their spelling
        "text_prompter", "visual_prompter", "patch_token_layer", "cls_token_layer", "dynamic_visual_prompt_generator",
        "dynamic_text_prompt_generator",
    ]  # fmt: skip
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            more = 0.1 if "static" in name else 0.3 if "cls_token" in name else 0.05
            parameter.data = rounded(parameter + more * torch.randn_like(parameter))
    return whole, given


def draw() -> tuple[Tensor, Tensor]:
    """Return images ``(10, 3, 48, 48)`` and masks ``(10, 48, 48)``, uint8: coarse noise, squares on the odd ones."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(IMAGES, 3, 6, 6, generator=generator)
    images = nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    mask = torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.uint8)
    for i in range(1, IMAGES, 2):
        mask[i, 4 * i : 4 * i + 11, 12:29] = 1
        images[i] = torch.where(mask[i] > 0, images[i].flip(0) * torch.rand((), generator=generator), images[i])
    return (images * 255).byte(), mask


def scores(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps ``(B, H, W)``, not blurred, and scores ``(B,)`` of images, one at a time."""
    found = []
    for i, image in enumerate(images):
        np.random.seed(i)  # noqa: NPY002  # what their k-means draws from
        found.append(model(image[None], [NAMES[i % 2]]))
    maps, image_scores = zip(*found, strict=True)
    return torch.cat(maps), torch.cat(image_scores)


def run(whole: Any) -> dict[str, Tensor]:
    """Return inputs and outputs of their model."""
    model, (images, masks) = whole.clip_model, draw()
    pixels, clustering, half = images.float() / 255, model.HSF.cluster_performer, torch.Tensor.half
    found, seen = clustering.fit_predict, []

    def fit_predict(points: np.ndarray) -> np.ndarray:
        labels = found(points)
        seen.append((torch.from_numpy(points), torch.from_numpy(labels)))
        return labels

    clustering.fit_predict = fit_predict
    with torch.no_grad():
        half_maps, half_scores = scores(model, pixels)
        torch.Tensor.half = lambda self: self
        half_clusters, seen[:] = list(seen), []
        maps, image_scores = scores(model, pixels)
        clusters, seen[:] = list(seen), []
        shown = [model.extract_feat(pixels[i : i + 1], [NAMES[i % 2]]) for i in range(SHOWN)]
    kept = {
        "images": images, "masks": masks, "maps": maps, "scores": image_scores, "half.scores": half_scores,
        "half.maps": half_maps[:SHOWN], "cls": torch.cat([one[0] for one in shown]),
        "patches": torch.cat([torch.stack(one[1]) for one in shown], 1),
        "states": torch.cat([one[2] for one in shown]).mT,
        "blurred": torch.stack([torch.from_numpy(gaussian_filter(one.numpy(), sigma=4)) for one in maps[:SHOWN]]),
    }  # fmt: skip
    points, labels = (torch.stack(one) for one in zip(*clusters, strict=True))
    half_points, half_labels = (torch.stack(one) for one in zip(*half_clusters, strict=True))
    assert (half_points - points).abs().max() < 1e-3, "rounding changes the order of patches"
    kept |= {"points": points.to(torch.float16), "labels": labels.long(), "half.labels": half_labels.long()}

    focal, terms = whole.loss_focal.forward, []
    whole.loss_focal.forward = lambda *given: terms.append(focal(*given)) or terms[-1]
    np.random.seed(FITTED)  # noqa: NPY002
    items = {"img": pixels[FITTED : FITTED + 1], "cls_name": [NAMES[FITTED % 2]], "anomaly": torch.tensor([1])}
    total = whole.train_one_batch(items | {"img_mask": masks[FITTED][None, None].float()})
    kept |= {"loss.global": terms[0].detach(), "loss.local": (total - terms[0]).detach()}
    learned = {name: one for name, one in whole.named_parameters() if one.grad is not None}
    kept |= {f"gradient.{name}": one.grad.clone() for name, one in learned.items()}
    torch.Tensor.half = half
    return kept


def check(kept: dict[str, Tensor]) -> None:
    """Refuse what any model would match."""
    maps, image_scores = kept["maps"], kept["scores"]
    assert (maps.flatten(1).amax(1) - maps.flatten(1).amin(1)).min() > 0.1, "a map is flat"
    assert maps.min() > 0.001, "maps are saturated"
    assert maps.max() < 0.999, "maps are saturated"
    assert image_scores.sort().values.diff().min() > 1e-4, "two images score alike"
    assert image_scores.max() - image_scores.min() > 0.05, "all images score alike"
    assert (kept["states"][0] - kept["states"][1]).abs().max() > 0.05, "the texts of two images are alike"
    assert all(one.abs().max() > 1e-4 for name, one in kept.items() if name.startswith("gradient.")), "no gradient"


def main(repo: Path, output: Path = Path("tests/golden/adaclip.safetensors")) -> None:
    """Write the file.

    Args:
        repo: Checkout of the authors' code.
        output: File to write.
    """
    with TemporaryDirectory() as folder:
        whole, given = build(*load_code(repo, Path(folder)))
        whole.save(Path(folder, "published.pth"))
        published = torch.load(Path(folder, "published.pth"), weights_only=True)
        kept = run(whole)
    layer, phrases = whole.clip_model.text_embedding_layer, []
    for name in NAMES:
        states = [state.format(name.replace("-", " ")) for state in layer.prompt_normal + layer.prompt_abnormal]
        phrases += [template.format(state) for state in states for template in layer.prompt_templates]
    used = layer.tokenize(phrases).unique().long()
    given["token_embedding.weight"] = given["token_embedding.weight"][used]
    kept |= {"tokens": used} | {f"clip.{name}": value.to(torch.float16) for name, value in given.items()}
    kept |= {f"published.{name}": value.to(torch.float16) for name, value in published.items()}
    check(kept)
    save_file({name: value.contiguous() for name, value in kept.items()}, output)
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
