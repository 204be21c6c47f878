"""Make tests/golden/filo.safetensors: what FiLo's own code makes of ten images with small random weights.

    python benchmarks/parity/filo.py --repo CHECKOUT --output tests/golden/filo.safetensors

CHECKOUT is CASIA-IVA-Lab/FiLo at 36ff29c. Its own model and losses run; what ``train.py`` and ``test.py`` do around
them, without the detector, is written out here. Its model fixes widths of 1024 and 768: its source is read with the
small ones in their place. ``cv2`` is a stub if it is not installed. Weights are rounded to float16 before use.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from common import COLOURS, start, stub, write
from torch import Tensor

DIM, SIZE, WIDTH, LEVELS, IMAGES, FITTED = 32, 84, 32, [6, 7, 8, 9], 10, 2
OBJECTS = ["bottle", "metal nut"]
DESCRIBED = {"bottle": ["a cracked rim", "a dark stain"], "metal nut": ["scratches"]}  # ours, instead of its own


def randomize(module: torch.nn.Module, gain: float) -> None:
    """Draw all weights anew, rounded to what the file keeps."""
    for name, weight in module.named_parameters():
        if "ln_" in name:
            weight.data = (1.0 if name.endswith("weight") else 0.0) + 0.2 * torch.randn_like(weight)
        elif weight.ndim > 1:
            weight.data = gain * (weight[0].numel() ** -0.5) * torch.randn_like(weight)
        else:
            weight.data = 0.1 * torch.randn_like(weight)
        weight.data = weight.data.half().float()


def model_of(repo: Path) -> tuple[Any, ModuleType]:
    """Return its model with small towers, and its module."""
    factory = importlib.import_module("models.vv_open_clip.factory")
    vision = {"image_size": SIZE, "layers": 9, "width": WIDTH, "patch_size": 14, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": DIM, "heads": 2, "layers": 3}
    factory._MODEL_CONFIGS["tiny"] = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": text}
    source = (repo / "models" / "FiLo.py").read_text().replace("1024", f"{WIDTH}").replace("768", f"{DIM}")
    module = ModuleType("models.FiLo")
    module.__package__ = "models"
    exec(compile(source, "FiLo.py", "exec"), vars(module))
    for name, found in DESCRIBED.items():
        described = [f"abnormal {{}} with {one}" for one in found]
        vars(module)["status_abnormal"][name] = described + vars(module)["status_abnormal_winclip"]
    args = SimpleNamespace(
        clip_model="tiny", clip_pretrained=None, image_size=SIZE, features_list=LEVELS, n_ctx=12, device="cpu"
    )
    return (lambda: module.FiLo(OBJECTS, args, "cpu")), module


def main() -> None:
    """Make the file."""
    output = start(__doc__)
    repo = Path(sys.path[0])
    stub(*(["cv2"] if importlib.util.find_spec("cv2") is None else []))
    make, module = model_of(repo)
    from torchvision.transforms import GaussianBlur
    from utils.loss import BinaryDiceLoss, FocalLoss

    torch.manual_seed(0)
    state = torch.get_rng_state()
    model = make()  # to know its words
    randomize(model.clip_model, 1.0)
    frozen = {name: weight.clone() for name, weight in model.clip_model.state_dict().items()}
    torch.set_rng_state(state)
    # its learners keep the embeddings of the words when they are made, so the table must be there first
    create = module.open_clip.create_model_and_transforms

    def ready(*given: Any, **named: Any) -> Any:
        found = create(*given, **named)
        found[0].load_state_dict(frozen)
        return found

    module.open_clip.create_model_and_transforms = ready
    model = make().eval()
    model.clip_model.requires_grad_(False)
    heads = {
        name: getattr(model, name)
        for name in ("decoder_cov", "decoder_linear", "normal_prompt_learner", "abnormal_prompt_learner", "adapter")
    }
    for head in heads.values():
        randomize(head, 1.0)
    for learner in ("normal_prompt_learner", "abnormal_prompt_learner"):
        heads[learner].ctx.data = (0.5 * torch.randn(12, DIM)).half().float()
        heads[learner].meta_net.linear1.bias.data.fill_(0.5)  # or its two units may be silent

    coarse = torch.randint(0, 256, (IMAGES, 3, 14, 14), dtype=torch.uint8)
    image = coarse.repeat_interleave(6, 2).repeat_interleave(6, 3).float() / 255
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in COLOURS)
    pixels = (image - mean) / std
    mask = torch.zeros(IMAGES, SIZE, SIZE)
    mask[1, 20:40, 30:60] = mask[3, 5:15, 5:70] = 1
    label = mask.flatten(1).amax(1).long()

    def run(i: int, **how: Any) -> tuple[Tensor, Any]:
        return model({"img": pixels[i : i + 1], "cls_name": [OBJECTS[i % 2]]}, **how)

    saved: dict[str, Tensor] = {"coarse": coarse, "mask": mask.to(torch.uint8)}
    soften, scores, rough, maps = GaussianBlur(3, 4.0), [], [], []
    with torch.no_grad():
        for i in range(IMAGES):
            cosine, levels = run(i, with_adapter=True)
            rough.append(torch.stack([one[:, 1] for one in levels])[:, 0])
            maps.append(torch.stack([soften((one[:, 1] - one[:, 0] + 1) / 2) for one in levels]).mean(0)[0])
            scores.append((cosine.flatten()[1] + maps[-1].max()) / 2)
    heat, score = torch.stack(maps), torch.stack(scores)
    saved |= {"test.levels": torch.stack(rough)[:2, :, ::4, ::4], "test.map": heat[:, ::4, ::4], "test.score": score}
    print(f"maps {heat.amin((1, 2)).tolist()} to {heat.amax((1, 2)).tolist()}, scores {score.tolist()}")
    assert (heat.amax((1, 2)) - heat.amin((1, 2))).min() > 0.1, "maps are flat"
    assert (heat[1:] - heat[:-1]).abs().mean((1, 2)).min() > 0.01, "rows are alike"
    assert score.std() > 0.005, "scores are alike"

    focal, dice, total = FocalLoss(), BinaryDiceLoss(), 0
    for i in range(FITTED):  # batches of one, as it is fitted
        _, levels = run(i)
        gt = mask[i : i + 1]
        for one in levels:
            total = total + (focal(one, gt) + dice(one[:, 1], gt) + dice(one[:, 0], 1 - gt)) / FITTED
    total.backward()
    saved["fit.local"] = total.detach()
    learned = {f"{part}.{name}": weight for part, head in heads.items() for name, weight in head.named_parameters()}
    for name, weight in learned.items():
        whole = not name.startswith("decoder_cov") or name.split(".")[2] == "1"  # convolutions of one level
        if weight.grad is not None and whole:
            assert float(weight.grad.abs().max()) > 1e-6, f"{name} learns nothing"
            saved[f"gradient.{name}"] = weight.grad.clone()
    loss = sum(
        F.cross_entropy(run(i, with_adapter=True, only_train_adapter=True)[0][:, 0] / 0.07, label[i : i + 1])
        for i in range(FITTED)
    )
    (loss / FITTED).backward()
    saved["fit.global"] = (loss / FITTED).detach()
    saved |= {f"gradient.adapter.{name}": one.grad for name, one in model.adapter.named_parameters()}

    learners = [heads[f"{one}_prompt_learner"] for one in ("normal", "abnormal")]
    ids = torch.cat([one.flatten() for learner in learners for one in learner.tokenized_prompts.values()]).unique()
    saved |= {"tokens": ids.long(), "token_rows": frozen["token_embedding.weight"][ids.long()].half()}
    for name, weight in frozen.items():
        if name not in ("token_embedding.weight", "attn_mask"):
            saved[f"clip.{name}"] = weight.half()
    saved |= {f"published.{name}": weight.detach().half() for name, weight in learned.items()}
    write({name: value.detach().clone().contiguous() for name, value in saved.items()}, output)
    print("loss", float(total.detach()), float(loss.detach()))


if __name__ == "__main__":
    main()
