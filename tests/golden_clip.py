"""A backbone with the weights of a golden file of ``benchmarks/parity``, the images in it, and published weights."""

from pathlib import Path

import torch
from conftest import build, write_folder

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.types import Batch
from kanoclip.verbs.table import main

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's


def golden_backbone(
    folder: Path, golden: dict, heads: int, text_heads: int, quick_gelu: bool, **options
) -> CLIPBackbone:
    """A backbone of the weights ``clip.*`` and the token rows of a golden file, with OpenAI's vocabulary."""
    weights = {key[5:]: value.float() for key, value in golden.items() if key.startswith("clip.")}
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    side = int((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    context, text_width = weights["positional_embedding"].shape
    table = torch.zeros(49408, text_width)
    table[golden["tokens"]] = golden["token_rows"].float()
    vision = {"image_size": side * patch, "patch_size": patch, "width": width, "head_width": width // heads}
    text = {"context_length": context, "vocab_size": 49408, "width": text_width, "heads": text_heads}
    config = {
        "embed_dim": weights["text_projection"].shape[1],
        "quick_gelu": quick_gelu,
        "vision_cfg": vision | {"layers": blocks(weights, "visual.transformer.resblocks.")},
        "text_cfg": text | {"layers": blocks(weights, "transformer.resblocks.")},
    }
    weights = {"token_embedding.weight": table, **weights}
    name = write_folder(folder, config, weights, MEAN, STD)
    (folder / "bpe.txt.gz").unlink()
    return CLIPBackbone(name, image_size=golden["mask"].shape[-1], **options)


def small_backbone(folder: Path, golden: dict, **options) -> CLIPBackbone:
    """A backbone 64 and 32 wide of the weights ``clip.*`` and the rows ``table`` of the tokens, with OpenAI's words."""
    given = {key.removeprefix("clip."): value.float() for key, value in golden.items() if key.startswith("clip.")}
    layers = blocks(given, "transformer.resblocks.")
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": layers, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": layers}
    about, clip = build(32, vision, text, quick_gelu=True)
    table = torch.zeros(49408, 32)
    table[golden["tokens"]] = golden["table"].float()
    name = write_folder(
        folder, about, clip.state_dict() | given | {"token_embedding.weight": table}, (0, 0, 0), (1, 1, 1)
    )
    (folder / "bpe.txt.gz").unlink()  # the vocabulary is OpenAI's
    return CLIPBackbone(**options | {"name": name, "pretrained": None, "image_size": golden["mask"].shape[-1]})


def some_of(golden: dict, count: int, begin: int = 0) -> Batch:
    """Some of the images of a golden file that keeps all pixels, with their masks."""
    mask = golden["mask"][begin : begin + count]
    return Batch(
        image=golden["pixels"][begin : begin + len(mask)].float() / 255,
        mask=mask,
        label=mask.flatten(1).amax(1).long(),
        has_mask=torch.ones(len(mask), dtype=torch.bool),
        size=torch.full((len(mask), 2), mask.shape[-1]),
        category=["bottle"] * len(mask),
        defect=[""] * len(mask),
        path=[f"{i}.png" for i in range(len(mask))],
    )


def blocks(weights: dict, prefix: str) -> int:
    return len({key[len(prefix) :].partition(".")[0] for key in weights if key.startswith(prefix)})


def batch_of(golden: dict, category: str = "bottle") -> Batch:
    """The images of a golden file, each of whose coarse squares is several pixels wide, with their masks."""
    mask, coarse = golden["mask"], golden["coarse"]
    factor, count = mask.shape[-1] // coarse.shape[-1], len(mask)
    return Batch(
        image=coarse.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / 255,
        mask=mask,
        label=mask.flatten(1).amax(1).long(),
        has_mask=torch.ones(count, dtype=torch.bool),
        size=torch.full((count, 2), mask.shape[-1]),
        category=[category] * count,
        defect=[""] * count,
        path=[f"{i}.png" for i in range(count)],
    )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def import_published(kind: type, files: dict, backbone: CLIPBackbone, folder: Path, *options: str):
    """The model that ``kanoclip import`` makes of published files, for a backbone that has a folder of its own."""
    (folder / "published").mkdir()
    for name, content in files.items():
        torch.save(content, folder / "published" / name)
    output = f"{folder / 'heads.ckpt'}"
    command = ["import", "--from", kind.name, f"{folder / 'published'}", "--fitted_on", "mvtec", "--output", output]
    command += ["--model.backbone.name", backbone.description, "--model.backbone.levels", f"{backbone.levels}"]
    assert main([*command, "--model.backbone.image_size", f"{backbone.image_size}", *options]) == 0
    return kind.load_from_checkpoint(output, backbone=backbone).eval()
