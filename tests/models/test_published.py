"""Published files that are not as their authors wrote them: a line that names file and key, for every method."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from kanoclip.registry import IMPORTED, NAMES, load_class
from kanoclip.types import KanoclipError

GOLDEN = Path(__file__).parents[1] / "golden"
UNUSED = {  # beginnings of what no score depends on
    "anomalyclip": ("tokenized_prompts", "compound_prompt_projections", "token_prefix", "token_suffix"),
    "bayes_pfl": ("PFL_", "context_decoder", "state_decoder", "fuse.compress.bias", "context_encoder", "state_encoder"),
    "vcp_clip": ("k_proj_pre_1.bias", "prompt_text_projection"),
    "cops": ("vae_encoder",),
}


def part(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): one.float() for key, one in golden.items() if key.startswith(prefix)}


def published(name: str) -> dict[str, Any]:
    """The files of a method, with the weights of its golden file."""
    file = GOLDEN / f"{'mrad' if name.startswith('mrad') else name}.safetensors"
    golden = load_file(file)
    theirs = part(golden, "published.")
    if name in ("april_gan", "multiads"):
        return {"weights.pth": {"trainable_linearlayer": theirs}}
    if name in ("anomalyclip", "cops"):
        return {"weights.pth": {"prompt_learner": theirs}}
    if name == "faprompt":
        return {"weights.pth": {"prompt_learner": part(golden, "learner.")}}
    if name == "adaclip":
        return {"weights.pth": theirs}
    if name == "filo":
        return {"weights.pth": {"filo": theirs}}
    if name == "aa_clip":
        parts = {one: part(golden, f"{one}.") for one in ("text_adapter", "image_adapter")}
        return {f"{one}.pth": {"epoch": 5, one: weights} for one, weights in parts.items()}
    if name == "af_clip":
        return {"prompt.pt": golden["prompt"].float(), "adaptor.pt": part(golden, "adaptor.")}
    if name == "vcp_clip":
        parts = {one: part(theirs, f"{one}.") for one in ("New_Lan_Embed", "Zero_try", "trainable_linearlayer")}
        return {"weights.pth": parts | {key: one for key, one in theirs.items() if key.partition(".")[0] not in parts}}
    if name == "bayes_pfl":
        with safe_open(file, "pt") as opened:
            about = {key: json.loads(value) for key, value in opened.metadata().items()}
        state = part(golden, "model.") | {key: torch.zeros(shape) for key, shape in about["unused"].items()}
        return {"weights.pth": {"MyModel": state | {key: state[other] for key, other in about["aliases"].items()}}}
    banks = {
        f"cache_{stem}model_visa.pt": {key: golden[f"{kind}_{key}"].float() for key in ("keys", "values")}
        for kind, stem in (("image", ""), ("patch", "patch_"))
    }
    learned = {one: part(theirs, f"{one}.") for one in ("image_proj", "patch_proj")}
    if name == "mrad_clip":
        more = part(golden, "mc.published.")
        learned |= {one: part(more, f"{one}.") for one in ("prompt_learner", "prompt_proj")}
    return banks | ({} if name == "mrad_tf" else {f"{name}_final.pth": learned})


def places(content: Any, kind: type, *way: str) -> Iterator[tuple[str, ...]]:
    """The ways to all that is a tensor, or a mapping."""
    if isinstance(content, kind):
        yield way
    if isinstance(content, dict):
        for key, one in content.items():
            yield from places(one, kind, *way, key)


def changed(files: dict[str, Any], way: tuple[str, ...], change) -> dict[str, Any]:
    found = copy.copy(files)
    found[way[0]] = changed(files[way[0]], way[1:], change) if len(way) > 1 else change(files[way[0]])
    return found


def said(name: str, files: dict[str, Any]) -> str:
    """What is said of files; "" if they are read."""
    try:
        load_class(NAMES["model"][name]).from_published(files)
    except KanoclipError as error:
        return str(error)
    return ""


NO_WEIGHTS = {
    "text": lambda one: "x",
    "none": lambda one: None,
    "number": lambda one: 3,
    "list": lambda one: one.tolist(),
    "whole numbers": lambda one: one.int(),
    "NaN": lambda one: torch.full_like(one, torch.nan),
    "infinite": lambda one: torch.full_like(one, torch.inf),
    "an axis more": lambda one: one[None],
    "empty": lambda one: one.reshape(-1)[:0],
    "sparse": lambda one: one.to_sparse(),
    "few repeated": lambda one: torch.zeros(1).expand((*one.shape[:-1], 1 << 20)),
}


@pytest.mark.parametrize("change", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
@pytest.mark.parametrize("name", IMPORTED)
def test_what_is_no_weight_is_told_with_its_file_and_key(name, change) -> None:
    files = published(name)
    assert not said(name, files)
    for way in places(files, Tensor):
        told = said(name, changed(files, way, change))
        if told or not way[-1].startswith(UNUSED.get(name, "?")):
            assert way[0] in told, way
            assert way[-1] in told or name == "af_clip", (way, told)  # its prompt is a file of its own
            assert "\n" not in told


@pytest.mark.parametrize("name", IMPORTED)
def test_a_weight_of_another_shape_is_told_or_is_one_of_another_backbone(name) -> None:
    files = published(name)
    for way in places(files, Tensor):
        for axis in range(0, -2, -1):
            told = said(
                name,
                changed(files, way, lambda one, axis=axis: torch.cat([one[None] if not one.ndim else one] * 2, axis)),
            )
            assert not told or (any(file in told for file in files) and "'" in told and "\n" not in told), (way, told)


@pytest.mark.parametrize("name", IMPORTED)
def test_a_key_that_is_missing_or_no_text_is_told_with_the_file(name) -> None:
    files = published(name)
    for way in places(files, Tensor):
        if len(way) > 1:
            told = said(
                name, changed(files, way[:-1], lambda one, key=way[-1]: {k: v for k, v in one.items() if k != key})
            )
            assert not told or (way[0] in told and "\n" not in told), (way, told)
    for way in places(files, dict):
        if way:
            for key in (3, ("a\n", 1), None):
                told = said(name, changed(files, way, lambda one, key=key: {key: torch.zeros(2), **one}))
                assert "\n" not in told
                assert not told or (way[0] in told and "expected names of weights" in told), told
            for other in ("x", [1], {}, None):
                told = said(name, changed(files, way, lambda one, other=other: other))
                assert told
                assert "\n" not in told


def test_the_epoch_of_aa_clip_is_a_number() -> None:
    files = published("aa_clip")
    files["text_adapter.pth"]["epoch"] = "last"
    assert said("aa_clip", files).startswith("text_adapter.pth: 'epoch' is no whole number, but str.")
