"""``kanoclip export``: a model of one category as a file that runs without torch."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kanoclip.data.parsing import local_path
from kanoclip.outputs.exported import SUFFIXES, load_exported
from kanoclip.registry import did_you_mean
from kanoclip.types import KanoclipError
from kanoclip.verbs.arguments import UsageError, explain, prepare
from kanoclip.verbs.say import note, quiet, unless_quick
from kanoclip.verbs.table import VERBS

EXAMPLE = "kanoclip export --ckpt_path last.ckpt --category bottle --output bottle.onnx"
TRUTH = {"true": True, "false": False}


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip export``; returns the exit code.

    Raises:
        KanoclipError: A mistake of the caller.
    """
    chosen, rest = _parse(argv[1:])
    kind, half = _format(chosen), _truth("--half", chosen.half)
    output = local_path(chosen.output or f"runs/export/{chosen.category}{SUFFIXES[kind]}", "--output")
    if output.suffix != SUFFIXES[kind]:
        raise UsageError(f"--output {output}: a file of the format {kind} ends in {SUFFIXES[kind]}.")
    quiet()
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells which constants it leaves
    from kanoclip.outputs.export import Frozen, check_packages, describe, largest_difference, write_exported

    check_packages(kind)
    model, checkpoint = _model(rest)
    about = describe(model, checkpoint, chosen.category, half)
    if chosen.threshold is not None:
        from kanoclip.outputs.thresholds import Thresholds

        thresholds = Thresholds.load(chosen.threshold)
        thresholds.check(about["scoring"])
        about["threshold"] = thresholds.entry(chosen.category)._asdict()
        about["promise"] = (thresholds.categories.get(chosen.category) or thresholds.pooled).to_json()
    with unless_quick("exporting"):
        frozen = Frozen(model, chosen.category, half)
        write_exported(frozen, kind, output, about)
    side, threshold = about["size"], about["threshold"]
    files = [output, output.with_suffix(".bin") if kind == "openvino" else Path(f"{output}.data")]
    files = [file for file in files if file.exists()]
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{', '.join(map(str, files))}: {model.name} for {chosen.category}, {size:.1f} MB")
    print(f"image (B, {side}, {side}, 3) uint8 RGB -> anomaly_map (B, {side}, {side}), image_score (B,)")
    decides = f"defective above an image score of {threshold['image']:.6f}" if threshold else ""
    print(decides or "no threshold: --threshold adds one")
    if kind != "torch_export":
        away = largest_difference(frozen, load_exported(output))
        print(f"largest difference to torch on noise: {away:.1e}")
        print(f'In Python: kanoclip.Inspector("{output}")("photo.jpg")')
    return 0


def _parse(options: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split what was typed into the options of this verb, and those that say which model."""
    parser = argparse.ArgumentParser(
        prog="kanoclip export",
        description=f"Write {VERBS['export'].about}. The model is given as for test: --ckpt_path FILE, or --model NAME "
        f"with its options for one that learns nothing; --model.backbone.image_size is the size of the images that "
        f"the file takes. Needs: pip install 'kanoclip[export]'.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--category", default="object", help="what the photos show, for prompts that name it; object by default")
    add("--format", help=f"{', '.join(SUFFIXES)}; by default as the suffix of --output says, else onnx")
    add("--output", help="file to write; runs/export/CATEGORY with the suffix of the format by default")
    add(
        "--half", nargs="?", const="true", default="false", help="keep weights as float16: half the size; true or false"
    )
    add("--threshold", help="file of kanoclip calibrate or a score: the file then says what is good")
    try:
        return parser.parse_known_args(list(options))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}. Type: {EXAMPLE}") from error


def _format(chosen: argparse.Namespace) -> str:
    """Return the format: the one that is asked for, or that of the output's suffix."""
    suffix = Path(chosen.output or "model.onnx").suffix
    kind = chosen.format or next((name for name, known in SUFFIXES.items() if known == suffix), "")
    if kind not in SUFFIXES:
        option = f"--format {kind}" if kind else f"--output {chosen.output}"
        known = ", ".join(f"{name} ({ending})" for name, ending in SUFFIXES.items())
        raise UsageError(f"{option}: the formats are {known}.{did_you_mean(kind, SUFFIXES)}")
    return str(kind)


def _truth(option: str, value: str) -> bool:
    if value.lower() not in TRUTH:
        raise UsageError(f"{option} {value}: expected true or false.")
    return TRUTH[value.lower()]


def _model(rest: Sequence[str]) -> tuple[Any, Path | None]:
    """Build the model that was typed, with the heads of its checkpoint; returns both."""
    import torch
    from lightning.pytorch import LightningModule

    from kanoclip.models.base import AnomalyModule
    from kanoclip.models.checkpoint import check_name, read_checkpoint
    from kanoclip.models.contents import check_trust
    from kanoclip.models.remembering import WithMemory
    from kanoclip.verbs.build import Parser, model_name, named
    from kanoclip.verbs.push import given_checkpoint

    command = prepare(["export", "--data=folder", *rest])  # it asks for data, which an export needs none of
    fitted: dict[str, Any] = {}
    checkpoint = given_checkpoint(command.checkpoint, "export") if command.checkpoint else None
    if checkpoint:
        entry, fitted = read_checkpoint(checkpoint)
        check_trust(fitted, named(command), f"{checkpoint}")
    parser = Parser(parser_mode="kanoclip")
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    words = [word for word in command.words(fitted)[1:] if not word.startswith("--data")]
    try:
        config = parser.parse_args(words)
    except UsageError as error:
        raise UsageError(explain(str(error), command)) from error
    name = model_name(config.model.class_path)
    if checkpoint:
        check_name(entry, name)
    model = parser.instantiate_classes(config).model
    if not isinstance(model, AnomalyModule):
        raise KanoclipError(f"--model {name} is a {type(model).__name__}, expected an AnomalyModule.")
    if checkpoint:
        model.strict_options = True
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.on_load_checkpoint(content)
        model.load_state_dict(content["state_dict"])
        note(f"checkpoint {checkpoint}: {name}, fitted on {entry['auxiliary']}.")
    elif model.needs_training:
        raise KanoclipError(f"{name} has to be fitted: give the checkpoint of a fit with --ckpt_path. Type: {EXAMPLE}")
    if isinstance(model, WithMemory):
        model.remember()
    return model, checkpoint
