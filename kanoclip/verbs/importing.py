"""``kanoclip import``: the weights that the authors of a rival publish, as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from kanoclip.data.parsing import local_path
from kanoclip.registry import IMPORTED, did_you_mean, load_class, name_of, resolve
from kanoclip.types import KanoclipError, counted, printable
from kanoclip.verbs.arguments import UsageError, explain, prepare
from kanoclip.verbs.help import WIDTH
from kanoclip.verbs.say import folded, quiet
from kanoclip.verbs.table import VERBS
from kanoclip.verbs.words import pairs_of

EXAMPLE = "kanoclip import --from anomalyclip epoch_15.pth --fitted_on mvtec --output heads.ckpt"
OPTIONS = {
    "--from": "the method whose weights they are",
    "--fitted_on": "the data set that its authors fitted them on, such as mvtec: no file says it",
    "--output": "the checkpoint to write; runs/import/METHOD-FITTED_ON.ckpt by default",
}


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip import``; returns the exit code.

    Raises:
        KanoclipError: A mistake of the caller.
    """
    if any(word in ("-h", "--help") for word in argv[1:]):
        print(_help())
        return 0
    chosen, files, rest = _parse(argv[1:])
    path = resolve("model", chosen["--from"], " for --from")
    name, fitted_on = chosen["--from"], chosen["--fitted_on"]
    output = local_path(chosen.get("--output") or f"runs/import/{name}-{fitted_on}.ckpt", "--output")
    unknown = UsageError(f"--from {name}: no weights of it are known. There are those of {', '.join(IMPORTED)}.")
    if path.startswith("kanoclip.") and name_of("model", path) not in IMPORTED:
        raise unknown  # before anything is imported
    quiet()
    import torch

    from kanoclip.data.files import sha256, write_bytes
    from kanoclip.models.published import read_published

    kind = load_class(path)
    if not hasattr(kind, "from_published"):
        raise unknown
    found = read_published(files)
    options, weights = kind.from_published(found)
    content = _checkpoint(path, options, weights, fitted_on, rest, files)
    place = local_path(files, "FILE_OR_FOLDER")
    hashes = {file: sha256(place / file if place.is_dir() else place) for file in found}
    content["kanoclip"]["imported"] = hashes
    buffer = BytesIO()
    torch.save(content, buffer)
    write_bytes(output, buffer.getvalue())
    _tell(output, content, hashes)
    return 0


def _parse(words: Sequence[str]) -> tuple[dict[str, str], str, list[str]]:
    """Split what was typed into the options of this verb, the file or folder, and the options of the model."""
    chosen: dict[str, str] = {}
    files: list[str] = []
    rest: list[str] = []
    for key, value in pairs_of(words):
        if not key.startswith("-"):
            files.append(key)
        elif value is None:
            raise UsageError(f"{key} needs a value: {key} VALUE.")
        elif key in OPTIONS:
            chosen[key] = value
        elif key.startswith("--model."):
            rest.append(f"{key}={value}")
        else:
            hint = did_you_mean(key, OPTIONS)
            raise UsageError(f"import has no option {key}.{hint} It has {', '.join(OPTIONS)} and those of --model.")
    for needed in ("--from", "--fitted_on"):
        if needed not in chosen:
            raise UsageError(f"import needs {needed}: {OPTIONS[needed]}. Type: {EXAMPLE}")
    if len(files) != 1:
        given = f"{counted(len(files), 'path')} given" if files else "no file given"
        raise UsageError(f"{given}: import takes one file or folder of weights. Type: {EXAMPLE}")
    return chosen, files[0], rest


def _checkpoint(
    path: str, options: dict[str, Any], weights: dict[str, Any], fitted_on: str, rest: Sequence[str], files: str
) -> dict[str, Any]:
    """Build the model with its backbone, whose fingerprint a checkpoint carries, and return what a fit would keep.

    Raises:
        KanoclipError: If the backbone's weights are not there, or those of the heads do not fit it.
    """
    import lightning
    from lightning.pytorch import LightningModule

    from kanoclip.backbone.loading import BackboneUnavailableError
    from kanoclip.models.checkpoint import about, plain
    from kanoclip.models.contents import UnfitError
    from kanoclip.verbs.build import Parser

    fitted = {"class_path": path, "init_args": options}
    command = prepare(["import", "--data=folder", f"--model={json.dumps(fitted)}", *rest])  # it asks for data
    parser = Parser(parser_mode="kanoclip")
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    try:
        config = parser.parse_args([word for word in command.options if not word.startswith("--data")])
    except UsageError as error:
        raise UsageError(explain(str(error), command)) from error
    try:
        model = parser.instantiate_classes(config).model
    except ValueError as error:  # the parser's own, around what was raised
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BackboneUnavailableError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise KanoclipError(
            f"A checkpoint carries the fingerprint of the backbone that its heads belong to, so an import needs the "
            f"backbone too. {cause}"
        ) from error
    own = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
    try:
        model.load_state_dict({**weights, **own})
    except UnfitError as error:
        raise KanoclipError(
            f"{printable(files)} {error.what}. Give the file as its authors publish it, and options of "
            f"--model.backbone as they had them; here it is {model.backbone.description}."
        ) from error
    model.auxiliary = fitted_on
    given = plain(config.model.init_args.as_dict())
    heads = {key: value for key, value in model.state_dict().items() if key not in own}
    instantiator = {"_class_path": path, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    return {
        "state_dict": heads,
        "hyper_parameters": given | instantiator,
        "kanoclip": about(model, None, None),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }


def _tell(output: Path, content: dict[str, Any], hashes: dict[str, str]) -> None:
    """Print what was written, what nobody has checked, and what to type next."""
    entry, numbers = content["kanoclip"], sum(value.numel() for value in content["state_dict"].values())
    sources = ", ".join(f"{printable(name)} (sha256 {value[:12]})" for name, value in hashes.items())
    backbone = entry["backbone"]
    other = "visa" if entry["auxiliary"] != "visa" else "mvtec"
    print(f"{output}: {entry['model']}, {numbers:,} weights imported from {sources}")
    print(f"fitted on {entry['auxiliary']} by its authors; which images, no file says: zero-shot is unknown")
    print(f"backbone: {backbone['description']} (fingerprint {backbone['fingerprint'][:12]})")
    print("Nobody has run the published rows with it yet: compare a whole row before you rely on it.")
    print(f"Next: kanoclip test --ckpt_path {output} --data {other} --data.root FOLDER_THAT_CONTAINS_IT")


def _help() -> str:
    backbone = "an option of the model, such as --model.backbone.pretrained /path/to/clip.safetensors"
    options = {**OPTIONS, "--model.X": backbone}
    about = f"usage: kanoclip import --from METHOD FILE_OR_FOLDER --fitted_on DATA [options]\n\n{VERBS['import'].about}"
    lines = [folded(f"  {name:<12} ", text, WIDTH) for name, text in options.items()]
    return "\n".join([about, *lines, "", folded("Methods: ", ", ".join(IMPORTED), WIDTH), f"Example: {EXAMPLE}"])
