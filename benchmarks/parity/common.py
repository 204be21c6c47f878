"""What the makers of golden files share: their command line, small random weights, and stubs for unused imports."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from packaging import version
from safetensors.torch import save_file
from torch import Tensor, nn

COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of OpenAI's weights."""


def start(about: str | None) -> Path:
    """Read the command line and put the checkout of the authors' code on the path; returns the file to write."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    chosen = parser.parse_args()
    sys.path.insert(0, f"{chosen.repo.resolve()}")
    torch.set_num_threads(1)
    return Path(chosen.output.resolve())


def stub(*names: str) -> None:
    """Put empty modules in place of what the code imports and does not use here; and ``pkg_resources.packaging``."""
    for name in (*names, "pkg_resources"):
        sys.modules[name] = ModuleType(name)
    sys.modules["pkg_resources"].packaging = SimpleNamespace(version=version)  # type: ignore[attr-defined]
    if "thop" in names:
        sys.modules["thop"].profile = None  # type: ignore[attr-defined]


def rounded(module: nn.Module, scale: float) -> None:
    """Add noise to all weights, and round them to float16."""
    for weight in module.parameters():
        weight.data = (weight.data + scale * torch.randn_like(weight)).half().float()


def write(tensors: dict[str, Tensor], output: Path) -> None:
    """Write the golden file, and say how large it is."""
    save_file(tensors, output)
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB")
