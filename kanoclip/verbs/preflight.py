"""What can go wrong before hours of work, in a minute: the weights, what the towers make of known inputs, the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from kanoclip.models.checkpoint import read_checkpoint
from kanoclip.models.contents import check_trust, leaves
from kanoclip.outputs.tables import print_table, word_table
from kanoclip.registry import NAMES, load_class
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError, counted
from kanoclip.verbs.build import build
from kanoclip.verbs.jobs import Data, Job
from kanoclip.verbs.plan import Plan
from kanoclip.verbs.specs import parse_spec, text

OK, BAD, UNKNOWN = "ok", "WRONG", "not known"
COLOURS = {"red": (1, 0, 0), "green": (0, 0.6, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "black": (0, 0, 0),
           "white": (1, 1, 1)}  # fmt: skip
"""What any trained CLIP tells apart: a picture of one colour, and a text that names it."""
NEAR = 2e-3
"""Most that a cosine may be off: half precision and other machines round by less."""
STATES = {("769c08370fb8", 128): (0.6740, 0.2282, 0.3964)}
"""Fingerprint of weights and side of the image -> their ``towers``, where somebody has measured them."""


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: What it is.
        found: What was found.
        verdict: "ok", "WRONG" or "not known".
    """

    what: str
    found: str
    verdict: str


def preflight(plan: Plan, file: str) -> list[Check]:
    """Check the weights and checkpoints of all rows, and the counts of all sets.

    Args:
        plan: What is to be done.
        file: Its config, for messages.
    """
    checks, backbones = list[Check](), dict[str, Any]()
    for job in {(job.label, str(job.given)): job for job in plan.jobs}.values():
        options, fitted_with = dict[str, Any](), ""
        if job.given:
            check, options, fitted_with = _checkpoint(job, job.given)
            checks.append(check)
            if check.verdict == BAD:
                continue
        section = parse_spec("model", {**job.model, "init_args": {**options, **job.model["init_args"]}}, file)
        if backbone := (section.get("init_args") or {}).get("backbone"):
            rows = backbones.setdefault(text(backbone.as_dict()), (backbone, dict[str, str]()))[1]
            rows[job.label] = fitted_with
    for section, rows in backbones.values():
        label = ", ".join(rows)
        try:
            built = build(section)
            checks += weights(built)
            for row, digest in rows.items():
                if digest:
                    same = OK if digest == built.fingerprint else BAD
                    checks.append(Check(f"weights that {row} was fitted with", f"digest {digest[:12]}", same))
        except KanoclipError as error:
            checks.append(Check(f"backbone of {label}", str(error), BAD))
    sets = {one.label: one for job in plan.jobs for one in job.data}
    return [*checks, *map(_counts, sets.values())]


def show(checks: Sequence[Check]) -> bool:
    """Print what was found; returns whether nothing is wrong."""
    print_table(word_table(Check._fields, checks))
    wrong = sum(one.verdict == BAD for one in checks)
    print(f"{counted(wrong, 'check')} of {len(checks)} went wrong." if wrong else f"Nothing wrong in {len(checks)}.")
    return not wrong


def weights(backbone: Any) -> list[Check]:
    """Check a CLIP: that its towers are trained and belong together, and, of known weights, what they return."""
    at = f"{backbone.description}, {backbone.image_size} px"
    kinds = {repr(one) for name, one in backbone.named_modules() if name.endswith(".gelu")}  # open_clip's name for any
    activation = ", ".join(sorted(kinds)) or "not known"
    right, found = towers(backbone)
    known = STATES.get((backbone.fingerprint[:12], backbone.image_size))
    if known is None:
        state = UNKNOWN
    else:
        state = OK if all(abs(a - b) <= NEAR for a, b in zip(found, known, strict=True)) else BAD
    cosines = "image {:.4f}, text {:.4f}, both {:.4f}".format(*found)
    expected = " expected image {:.4f}, text {:.4f}, both {:.4f}".format(*known) if known and state == BAD else ""
    return [
        Check(f"weights of {at}", f"digest {backbone.fingerprint[:12]}, activation {activation}", OK),
        Check("its towers name plain colours", f"{right} of {len(COLOURS)}", OK if right == len(COLOURS) else BAD),
        Check("its mean cosines of these", cosines + expected, state),
    ]


@torch.no_grad()
def towers(backbone: Any) -> tuple[int, tuple[float, float, float]]:
    """Show a CLIP pictures of one colour and texts that name it.

    Returns:
        How many pictures are nearest to their own text; and the mean cosines of two pictures, of two texts, and of a
        picture and its text.
    """
    side = backbone.image_size
    image = torch.stack([torch.tensor(one, dtype=torch.float32).view(3, 1, 1).expand(3, side, side)
                         for one in COLOURS.values()])  # fmt: skip
    attention: nn.Module = load_class(NAMES["attention"]["qkv"])()
    images = backbone(image, attention).cls.float()  # (6, D)
    texts = backbone.encode_text([f"a photo of a {name} square" for name in COLOURS]).float()
    right = (images @ texts.T).argmax(1) == torch.arange(len(COLOURS))
    other = ~torch.eye(len(COLOURS), dtype=torch.bool)
    cosines = [(one @ one.T)[other].mean() for one in (images, texts)] + [(images * texts).sum(1).mean()]
    first, second, both = (float(one) for one in cosines)
    return int(right.sum()), (first, second, both)


def _checkpoint(job: Job, path: Path) -> tuple[Check, dict[str, Any], str]:
    """Check the checkpoint of a row; returns its model's options, too, and the digest of the backbone behind it."""
    what = f"checkpoint of {job.label}"
    try:
        entry, fitted = read_checkpoint(path)
        check_trust(fitted, {one for _, one in leaves(job.model, "", "") if isinstance(one, str)}, f"{path}")
    except KanoclipError as error:
        return Check(what, str(error), BAD), {}, ""
    expected = NAMES["model"].get(entry["model"])
    found = f"{job.folder.name.rpartition('-')[2]}: {entry['model']}, fitted on {entry['auxiliary'] or 'nothing told'}"
    right = expected in (None, job.model["class_path"])
    options = fitted.get("init_args", {}) if right else {}
    return Check(what, found, OK if right else BAD), options, entry["backbone"]["fingerprint"]


def _counts(data: Data) -> Check:
    """Compare the images of a set with what its publisher counts."""
    about = getattr(data.module, "about", None)
    if data.problem:
        return Check(f"images of {data.label}", data.problem, BAD if data.damaged else UNKNOWN)
    labels = [sample.label for sample in data.module.part("test")]
    normal, anomalous = labels.count(NORMAL), labels.count(ANOMALOUS)
    found = f"{normal} normal, {anomalous} anomalous"
    if not about or not about.counts:
        return Check(f"images of {data.label}", found, UNKNOWN)
    same = about.whole(normal, anomalous)
    published = "" if same else f"; published are {about.counts[0]} and {about.counts[1]}"
    return Check(f"images of {data.label}", found + published, OK if same else BAD)
