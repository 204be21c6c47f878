"""Run AA-CLIP's own code on a tiny random CLIP, and keep weights, inputs and outputs for tests/models/rivals.

    python benchmarks/parity/aa_clip.py --repo AA-CLIP --output tests/golden/aa_clip.safetensors

AA-CLIP is a checkout of github.com/Mwxinnn/AA-CLIP, commit 53db195. Its training loops, its prediction loop and its
evaluation run as they are, for one batch each. It needs kornia 0.6.9 (without its dependencies), ftfy, regex, OpenCV
and scikit-learn; ipdb, pandas and pkg_resources are stubbed. Widths of 1024 and 768, which its code states, become 16.
"""

import argparse
import logging
import sys
import tempfile
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import packaging.version
import torch
from safetensors.torch import save_file
from torch import Tensor

SIZE, PATCH, WIDTH, LEVELS = 70, 14, 16, [6, 12, 18, 24]
CLASSES = ["pcb2", "candle", "pcb2"]  # of VisA, whose descriptions are in its code
IMAGES = 10


def load(repo: Path, name: str) -> ModuleType:
    """Load a script of the checkout, whatever else goes by its name."""
    spec = spec_from_file_location(f"aa_clip_{name}", repo / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stub() -> None:
    """Stand in for what its code imports and hardly uses."""
    for name in ("ipdb", "pandas", "pkg_resources"):
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)  # torch looks for it
        module.DataFrame = module.Series = object
        module.packaging = packaging
        sys.modules[name] = module


def randomise(module: torch.nn.Module, scale: float) -> None:
    """Draw all weights, such that maps vary, and round them to half precision."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            norm = "ln_" in name and name.endswith("weight")
            spread = 0.1 if norm or weight.ndim == 1 else scale
            weight.copy_((norm + spread * torch.randn_like(weight)).half().float())


class Recorder:
    """Keep what a function was called with and what it returned."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        self.calls.append((args, result := self.function(*args, **kwargs)))
        return result


def gradients(module: torch.nn.Module, name: str) -> dict[str, Tensor]:
    """Return the gradients of all weights, none of which may be zero."""
    found = {f"gradient.{name}.{key}": one.grad for key, one in module.named_parameters()}
    assert all(one is not None and one.abs().max() > 0 for one in found.values())
    return {key: one.clone() for key, one in found.items() if one is not None}


def check(tensor: Tensor, least: float) -> Tensor:
    """Refuse what would pass any test: values that hardly vary, or rows that are alike."""
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]
    assert tensor.max() - tensor.min() > least, f"varies by {tensor.max() - tensor.min()} only"
    least = 1e-3 if tensor.ndim > 1 else 1e-5
    assert min((a - b).abs().max() for n, a in enumerate(rows) for b in rows[:n]) > least, "rows are alike"
    return tensor.detach().clone().contiguous()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    stub()
    sys.path.insert(0, str(asked.repo))
    import forward_utils
    import model.adapter as adapter
    from model.model import CLIP

    train, test = load(asked.repo, "train"), load(asked.repo, "test")
    del sys.modules["pandas"]  # scikit-learn would ask it for its version
    for name in ("SimpleAdapter", "SimpleProj"):
        kind = getattr(adapter, name)
        setattr(
            adapter, name, lambda _, __, relu=None, kind=kind: kind(WIDTH, WIDTH, *([] if relu is None else [relu]))
        )

    vision = {"layers": 24, "width": WIDTH, "head_width": 8, "patch_size": PATCH, "image_size": SIZE}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 12}
    torch.manual_seed(22)  # the first with which all maps vary, and none is saturated
    clip, surgery = CLIP(WIDTH, vision, text).eval(), CLIP(WIDTH, vision, text).eval()
    for part, scale in ((clip, 0.25), (clip.visual, 0.4), (clip.transformer, 0.4), (clip.token_embedding, 0.5)):
        randomise(part, scale)
    forward_utils.tokenize = tokenize = Recorder(forward_utils.tokenize)
    surgery.load_state_dict(clip.state_dict())
    surgery.visual.DAPM_replace(DPAM_layer=20)
    model = adapter.AdaptedCLIP(clip, relu=False).eval()
    for part in (model.text_adapter, model.image_adapter):
        randomise(part, 0.3)

    pixels = torch.randint(0, 256, (IMAGES, 3, 10, 10), dtype=torch.uint8)  # each a square of 7 x 7
    image = (pixels / 255).repeat_interleave(7, 2).repeat_interleave(7, 3)
    mask = torch.zeros(3, 1, SIZE, SIZE)
    mask[0, :, 14:42, 20:50] = mask[2, :, 50:, :30] = 1
    label = torch.tensor([1, 0, 1])
    kept: dict[str, Tensor] = {"pixels": pixels, "mask": mask[:, 0].to(torch.uint8), "label": label}
    said: list[str] = []
    logger = SimpleNamespace(info=said.append)
    common = {"device": "cpu", "start_epoch": 0, "img_size": SIZE, "logger": logger}

    with tempfile.TemporaryDirectory() as folder:
        common["save_path"] = folder
        for count in (1, 3):  # stage 1; its attention goes over the batch
            train.calculate_similarity_map = seen = Recorder(forward_utils.calculate_similarity_map)
            batch = {"image": image[:count], "mask": mask[:count], "class_name": CLASSES[:count]}
            optimiser = torch.optim.SGD(model.text_adapter.parameters(), lr=0.0)
            train.train_text_adapter(
                adapted_model=model, clip_surgery=surgery, text_norm_weight=0.1, train_loader=[batch],
                optimizer=optimiser, text_epoch=1, dataset_name="VisA", **common,
            )  # fmt: skip
            (patches, states, _), maps = seen.calls[-1]  # of the last level, the only one that counts
            found = {"patches": patches, "states": states, "maps": sparse(maps[:, 1]), "loss": loss_of(said)}
            kept |= {f"stage1.{count}.{name}": value.detach().clone() for name, value in found.items()}
            kept |= {f"stage1.{count}.{k}": v for k, v in gradients(model.text_adapter, "text_adapter").items()}
            if count > 1:
                check(patches, 0.5)
                unsaturated(check(maps[:, 1], 0.1))

        with torch.no_grad():
            known = {name: forward_utils.get_adapted_single_class_text_embedding(model, "VisA", name, "cpu")
                     for name in set(CLASSES)}  # fmt: skip
        train.calculate_similarity_map = seen = Recorder(forward_utils.calculate_similarity_map)
        batch = {"image": image[:3], "mask": mask, "label": label, "class_name": CLASSES}
        optimiser = torch.optim.SGD(model.image_adapter.parameters(), lr=0.0)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [16000, 32000])
        train.train_image_adapter(
            model=model, text_embeddings=known, train_loader=[batch], optimizer=optimiser, scheduler=schedule,
            image_epoch=1, **common,
        )  # fmt: skip
    patches = torch.stack([args[0] for args, _ in seen.calls])
    maps = torch.stack([result[:, 1] for _, result in seen.calls])
    unsaturated(maps)
    kept |= {"stage2.patches": check(patches.transpose(0, 1), 0.5).transpose(0, 1).contiguous()}
    kept |= {"stage2.maps": sparse(check(maps.transpose(0, 1), 0.1)).transpose(0, 1), "stage2.loss": loss_of(said)}
    kept |= {f"stage2.{key}": value for key, value in gradients(model.image_adapter, "image_adapter").items()}

    with torch.no_grad():
        kept["stage2.global"] = check(model(image[:3])[1], 0.1)
        for domain, dataset in (("industrial", "VisA"), ("medical", "Brain")):
            loader = [{"image": image, "mask": torch.zeros(IMAGES, 1, SIZE, SIZE), "class_name": ["pcb2"] * IMAGES,
                       "label": torch.arange(IMAGES) % 2, "file_name": [""] * IMAGES}]  # fmt: skip
            masks, labels, preds, texts, _ = test.get_predictions(model, known["pcb2"], loader, "cpu", SIZE, dataset)
            masks[::2, :, :9] = 1  # any will do: what is evaluated is not kept
            forward_utils.roc_auc_score = ranked = Recorder(forward_utils.roc_auc_score)
            forward_utils.metrics_eval(masks, labels, preds, texts, "pcb2", test.DOMAINS[dataset])
            heat = check(torch.tensor(preds), 1.0)
            kept[f"test.{domain}.map"] = sparse(heat)
            kept[f"test.{domain}.highest"] = heat.flatten(1).amax(1)
            kept[f"test.{domain}.text"] = check(torch.tensor(texts), 0.01)
            kept[f"test.{domain}.score"] = check(torch.tensor(ranked.calls[-1][0][1]), 0.1)
            forward_utils.roc_auc_score = ranked.function

    weights = {f"clip.{name}": value for name, value in clip.state_dict().items() if name != "token_embedding.weight"}
    rows = torch.cat([ids.flatten() for _, ids in tokenize.calls]).unique()
    kept |= {"tokens": rows, "token_rows": clip.token_embedding.weight.detach()[rows].half()}
    for name in ("text_adapter", "image_adapter"):
        weights |= {f"{name}.{key}": value for key, value in getattr(model, name).state_dict().items()}
    kept |= {name: value.half() for name, value in weights.items()}
    save_file({name: value.contiguous() for name, value in kept.items()}, asked.output)
    logging.getLogger(__name__).warning("%s: %d bytes", asked.output, asked.output.stat().st_size)


def unsaturated(maps: Tensor) -> None:
    """Refuse probabilities so near 0 or 1 that rounding would decide the gradients."""
    assert maps.min() > 3e-5, f"a probability of {maps.min()}"
    assert maps.max() < 1 - 3e-5, f"a probability of {maps.max()}"


def sparse(maps: Tensor) -> Tensor:
    """Keep every fifth pixel of each row and column, to spare space."""
    return maps[..., ::5, ::5]


def loss_of(said: list[str]) -> Tensor:
    """Read the loss that a training loop has logged, to the last digit."""
    return torch.tensor(float(said[-1].removeprefix("loss: ")))


if __name__ == "__main__":
    main()
