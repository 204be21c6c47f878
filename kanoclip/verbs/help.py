"""The short help of fit, validate, test, predict, calibrate and benchmark: what people use, answered without torch.

``--help all`` prints what the parser knows. That each option here exists there with this default is tested.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from kanoclip.registry import available
from kanoclip.verbs.options import OPTIONS, about

WIDTH = 100  # of a line, in characters; a narrower terminal folds it
START = 39  # of what an option does
HELP_OPTIONS = {"-h", "--help"}
RUNS = ("fit", "validate", "test", "predict", "calibrate")
ON_CHECKPOINT = RUNS[1:]
SHORT = (*RUNS, "benchmark")
"""Verbs with a short help."""


class Line(NamedTuple):
    """An option of the short help.

    Attributes:
        option: Its name, without dashes.
        value: What its value is; "" for none.
        default: Its value if it is not typed; None is not shown.
        about: What it does.
        verbs: Which verbs show it.
    """

    option: str
    value: str
    default: Any
    about: str
    verbs: tuple[str, ...] = RUNS


def _component(kind: str, default: str, verbs: tuple[str, ...] = ("fit",)) -> Line:
    return Line(f"model.{kind}", "NAME", default, ", ".join(available(kind)), verbs)


_VALUES = {"output": "FOLDER", "threshold": "FILE|X", "shard": "I/N"}  # of options that are no yes or no
GROUPS = {
    "Data": (
        Line("data", "NAME|PATH", None, "which set: kanoclip list data; or photos of your own"),
        Line("data.root", "PATH", "data", "folder with the data sets; of folder: the photos"),
        Line("data.category", "NAME", None, "one category, or [a, b]; all by default"),
        Line("data.image_size", "N", None, "side of the model's squares, in pixels; its own by default"),
        Line("data.batch_size", "N", 8, "images at a time"),
        Line("data.num_workers", "N", 2, "processes that read images"),
        Line("data.limit", "N", None, "so many images of each category; all by default"),
        Line("data.cache", "true|false", False, "keep features on disk, for later epochs and runs"),
        Line("data.tile", "true|N", False, "score images far from square in squares", ON_CHECKPOINT),
    ),
    "Model": (
        Line("model", "NAME", "kanoclip", "which method: kanoclip list model"),
        _component("backbone", "clip", RUNS),
        Line("model.backbone.name", "NAME", "ViT-L-14-336", "tower of clip, as open_clip calls it", ("fit",)),
        Line("model.backbone.pretrained", "TAG|FILE", "openai", "its weights: open_clip's tag, or a file", RUNS),
        Line("model.backbone.image_size", "N", 518, "side of the squares it sees, in pixels", ("fit",)),
        _component("prompts", "learned"),
        _component("interaction", "bi_cmci"),
        _component("adapter", "conv"),
        _component("score", "mean", RUNS),
        _component("memory", "none", RUNS),
        Line("model.sigma", "X", 4.0, "blur of the map, in pixels of an image of 518", RUNS),
        Line("model.knowledge", "NAME|FILE", "auto", "knowledge base; auto: of the data set", ("fit",)),
        Line("model.lr", "X", 0.001, "learning rate of Adam", ("fit",)),
        Line("optimizer", "NAME", None, "instead of Adam: AdamW --optimizer.lr X", ("fit",)),
        Line("lr_scheduler", "NAME", None, "such as CosineAnnealingLR --lr_scheduler.T_max N", ("fit",)),
    ),
    "Trainer": (
        Line("trainer.max_epochs", "N", 15, "how often each image is seen", ("fit",)),
        Line("trainer.accelerator", "NAME", "auto", "cpu, gpu, mps, auto"),
        Line("trainer.devices", "N", "auto", "how many of them, or [0, 2]"),
        Line("trainer.precision", "NAME", None, "32-true by default, bf16-mixed, 16-mixed"),
        Line("trainer.default_root_dir", "PATH", "runs", "where all runs are written"),
    ),
    "Run": (
        Line("ckpt_path", "FILE|last", None, "go on with this checkpoint, or with the newest fit", ("fit",)),
        Line("ckpt_path", "FILE", None, "checkpoint; the newest fit's that suits by default", ON_CHECKPOINT),
        *(
            Line(name, _VALUES.get(name, "true|false"), one.default, about(name, verb), (verb,))
            for name, one in OPTIONS.items()
            for verb in one.verbs
        ),
        Line("max_fpr", "X", 0.01, "false-alarm rate that is asked for", ("calibrate",)),
        Line("min_area", "X", 0.0005, "smallest region that counts, share of the picture", ("calibrate",)),
        Line("holdout", "X", 0.0, "share of the good images that measures the rate", ("calibrate",)),
        Line("output", "FILE|FOLDER", None, "threshold.json; in the run's folder by default", ("calibrate",)),
        Line("config", "NAME|FILE", None, "YAML of options: kanoclip list configs; what is typed wins"),
        Line("print_config", "", None, "print all options as YAML, and stop"),
        Line("seed_everything", "N", 111, "seed of all that is random"),
    ),
    "Benchmark": tuple(
        Line(option, value, default, does, ("benchmark",))
        for option, value, default, does in (
            ("config", "NAME|FILE", None, "auxiliary, data and models in YAML: kanoclip list configs"),
            ("output", "FOLDER", None, "for runs and table; runs/benchmark/NAME by default"),
            ("root", "PATH", None, "folder with the data sets, for those that name none"),
            ("processes", "N", None, "runs at a time; one for each GPU, or 1, by default"),
            ("published", "NAME", None, "published numbers beside ours: mvtec_to_all, visa_to_all, none"),
            ("dry_run", "true|false", False, "print the plan, and stop"),
            ("preflight", "true|false", False, "check weights, towers and data in a minute, and stop"),
        )
    ),
}


def everything(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Tell whether a command line says ``--help all``, and return it with ``--help`` instead."""
    for at, word in enumerate(argv):
        if word in HELP_OPTIONS and list(argv[at + 1 : at + 2]) == ["all"]:
            return True, [*argv[: at + 1], *argv[at + 2 :]]
    return False, list(argv)


def short_help(verb: str, about: str, example: str) -> str:
    """Return the short help of a verb.

    Args:
        verb: One of ``SHORT``.
        about: What it does.
        example: A command that works as typed.
    """
    lines = [f"kanoclip {verb}: {about}", "", f"  {example}"]
    for group, options in GROUPS.items():
        own = "; of a checkpoint its own" if group == "Model" and verb in ON_CHECKPOINT else ""
        shown = [line for one in options if verb in one.verbs for line in _shown(one)]
        lines += ["", f"{group} [default{own}]", *shown] if shown else []
    if verb == "benchmark":
        return "\n".join(lines)
    lines += ["", f"All options: kanoclip {verb} --help all"]
    return "\n".join([*lines, "Those of a component: --data.help NAME, --model.help NAME, --model.prompts.help NAME"])


def _shown(line: Line) -> list[str]:
    start = f"  {'-c, ' * (line.option == 'config' and line.verbs == RUNS)}--{line.option} {line.value}".ljust(START)
    default = "" if line.default is None else f" [{yaml.safe_dump(line.default).splitlines()[0]}]"
    fold = textwrap.TextWrapper(WIDTH, subsequent_indent=" " * START, break_on_hyphens=False)
    return fold.wrap(f"{start}{line.about}{default}")
