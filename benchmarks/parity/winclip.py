"""Write tests/golden/winclip.safetensors: what anomalib's WinCLIP computes with small random weights.

Needs a checkout of github.com/open-edge-platform/anomalib (commit b7233686, Apache-2.0), torchvision, and open_clip
2.23 to 2.26, which it pins: with a later one its windows attend to each other:

    python benchmarks/parity/winclip.py --repo CHECKOUT --output tests/golden/winclip.safetensors

Stubbed: the rest of anomalib, of which its model needs a result type and two mixins for buffers; and open_clip's maker
of models, which returns a small one. The two text embeddings lie on both sides of the mean window, along the direction
in which windows differ most: its words are not ours.
"""

from __future__ import annotations

import argparse
import sys
import types
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

VISION = {"image_size": 32, "patch_size": 4, "width": 64, "layers": 2}
TEXT = {"context_length": 16, "vocab_size": 512 + 8, "width": 24, "heads": 2, "layers": 1}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FOLDER = "src/anomalib/models/image/winclip"


def stub(clip: nn.Module) -> None:
    """Put small stand-ins in place of what the model imports."""

    class Buffers(nn.Module):
        def register_buffer_list(self, name: str, values: list[torch.Tensor], **_: Any) -> None:
            setattr(self, name, values)

    for name in ("anomalib", "anomalib.data", "anomalib.models", "anomalib.models.components", "anomalib.models.image",
                 "anomalib.models.image.winclip"):  # fmt: skip
        sys.modules[name] = types.ModuleType(name)
    sys.modules["anomalib.data"].InferenceBatch = types.SimpleNamespace
    sys.modules["anomalib.models.components"].BufferListMixin = Buffers
    sys.modules["anomalib.models.components"].DynamicBufferMixin = type("DynamicBufferMixin", (), {})
    open_clip.create_model_and_transforms = lambda *_, **__: (clip, None, None)


def load(repo: Path, name: str) -> Any:
    """Import a file of its model without the package around it."""
    spec = spec_from_file_location(f"anomalib.models.image.winclip.{name}", repo / FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_clip() -> nn.Module:
    """Return a random CLIP whose weights are rounded to what the file keeps, so that features of images differ."""
    clip = open_clip.CLIP(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT).eval().requires_grad_(False)
    for name, weight in clip.named_parameters():
        if ".ln_" in name or name.startswith("ln_"):
            weight.data += 0.2 * torch.randn_like(weight)
        else:
            fan = weight.shape[0] if name.endswith("proj") else weight[0].numel() if weight.ndim > 1 else 100
            weight.data = 2.0 * fan**-0.5 * torch.randn_like(weight)
        weight.data = weight.data.half().float()
    return clip


@torch.no_grad()
def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    clip = small_clip()
    stub(clip)
    load(arguments.repo, "utils")
    load(arguments.repo, "prompting")
    model = load(arguments.repo, "torch_model").WinClipModel().eval()

    images = torch.rand(6, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)  # patches of one colour,
    images[3, :, :16] = images[0, :, :16]  # an upper half nearly that of a reference: if it were the same, rounding
    images = (0.6 * images + 0.4 * torch.rand(6, 3, 32, 32)).half().float()  # would make distances below 0 in its code
    given = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    references, tested = given[:2], given[2:]
    whole, windows, patches = model.encode_image(tested)
    every = nn.functional.normalize(torch.cat([whole, *(one.flatten(0, 1) for one in windows)]), dim=-1)
    apart = torch.pca_lowrank(every, 2)[2][:, 0] * 0.1
    model._text_embeddings = torch.stack([every.mean(0) + apart, every.mean(0) - apart]).half().float()
    zero = model(tested)
    model.setup(reference_images=references)
    few = model(tested)
    distance = model._compute_few_shot_scores(patches, windows)

    for name, one in (("zero map", zero.anomaly_map), ("map", few.anomaly_map), ("distance", distance)):
        assert one.flatten(1).std(0).max() > 0.02, f"{name}: rows are alike"
        assert float(one.max() - one.min()) > 0.1, f"{name}: varies by {float(one.max() - one.min()):.3f}"
    kept = {f"clip.{k}": v.half() for k, v in clip.state_dict().items() if k.startswith("visual.")}
    outputs = {
        "image": whole, "windows_2": windows[0], "windows_3": windows[1], "patches": patches, "distance": distance,
        "zero_map": zero.anomaly_map, "zero_score": zero.pred_score, "map": few.anomaly_map, "score": few.pred_score,
    }  # fmt: skip
    outputs = {
        k: v[:2] if k in ("windows_2", "windows_3", "patches") else v for k, v in outputs.items()
    }  # a small file
    inputs = {"images": images.half(), "text": model.text_embeddings.half()}
    everything = {k: v.contiguous().clone() for k, v in (kept | inputs | outputs).items()}
    save_file(everything, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
