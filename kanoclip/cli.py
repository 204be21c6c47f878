"""fit, validate, test and predict: LightningCLI with short names, run folders and errors for people."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_dumper, set_loader
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from kanoclip.__main__ import complain
from kanoclip.outputs import ExampleMaps, PredictionWriter, ResultsWriter, RunRecord
from kanoclip.registry import NAMES, expand, expand_argv, name_of
from kanoclip.runs import NoFitError, check_agreement, folder_name, newest_fit, read_checkpoint

DEFAULT_MODEL = NAMES["model"]["kanoclip"]
RUNS = "runs"


class UsageError(ValueError):
    """A command line or config that does not parse."""


class Parser(LightningArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing a usage dump."""
        raise UsageError(shorten(message)) from ex


class SaveFitConfig(SaveConfigCallback):
    """Writes config.yaml beside the checkpoint of a fit; other verbs write their config into their results."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write at the start of a fit only."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class KanoclipCLI(LightningCLI):
    """LightningCLI with this project's names, run folders and checkpoints.

    Args:
        argv: Verb and options as typed.
    """

    datamodule: Any
    model: Any

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv, self.checkpoint = _take_checkpoint(prepare(argv))
        super().__init__(
            LightningModule,
            None,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "default_root_dir": RUNS,
                "deterministic": "warn",
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "callbacks": [
                    ModelCheckpoint(filename="last", enable_version_counter=False),  # the last epoch counts
                    RunRecord(),
                    ExampleMaps(),
                    ResultsWriter(),
                    PredictionWriter(),
                ],
            },
            seed_everything_default=111,
            parser_kwargs={"parser_mode": "kanoclip"},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=self.argv,
            auto_configure_optimizers=False,
        )

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint, before the model is built, and take the model's options from it.

        Without options for the model a checkpoint alone says what to build; with them they must agree.
        """
        verb = str(self.subcommand)
        chosen = self.config[verb]
        if chosen.get("data") is None:
            raise UsageError(f"{verb} needs a data set: add --data NAME, one of {', '.join(NAMES['data'])}.")
        identity = _build(chosen.data).identity
        name = model_name(chosen.model.class_path)
        runs = Path(chosen.trainer.default_root_dir or RUNS)
        if verb == "fit" and self.checkpoint == "last":
            self.checkpoint = newest_fit(runs, name, auxiliary=identity)
            if self.checkpoint is None:
                raise NoFitError(f"No fit of {name} on {identity} in {runs}/fit to go on with. Leave out --ckpt_path.")
        elif verb != "fit" and self.checkpoint is None:
            self.checkpoint = newest_fit(runs, name, but_not=identity)
        if self.checkpoint is None:
            return
        about, stored = read_checkpoint(self.checkpoint)
        _note(f"checkpoint {self.checkpoint}: {about['model']}, fitted on {about['auxiliary']}.")
        if verb != "fit" and about["auxiliary"] == identity:
            _note(f"this is NOT zero-shot: {identity} was the auxiliary set of the fit.")
        if stored:
            asked = self.parser.parse_args(self.argv, defaults=False)[verb].get("model")
            check_agreement(asked.as_dict(), stored, about["components"], self.checkpoint, "model")
            chosen["model"] = None  # or settings that were not asked for would stay
            self.config = self.parser.parse_object({verb: {"model": stored}}, self.config)
        self.config[verb]["ckpt_path"] = str(self.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put the run into its own folder, ``<default_root_dir>/<verb>/<model>/<data>/version_N``."""
        trainer = self.config_init[self.subcommand].trainer
        if trainer.logger in (None, True):
            folder = Path(trainer.default_root_dir or RUNS, str(self.subcommand), self.model.name or "model")
            kwargs["logger"] = TensorBoardLogger(folder, folder_name(self.datamodule.identity))
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Refuse to test what was never fitted, and say what a reader of the numbers must know."""
        if self.subcommand != "fit" and self.checkpoint is None and self.model.needs_training:
            name, identity = self.model.name, self.datamodule.identity
            raise NoFitError(
                f"No finished fit of {name} on another data set than {identity} under "
                f"{self.config[self.subcommand].trainer.default_root_dir}/fit. Fit one first: kanoclip fit --config "
                f"configs/quickstart.yaml --model {name}, or give --ckpt_path."
            )
        backbone = getattr(self.model, "backbone", None)
        if getattr(backbone, "description", "") == "kanoclip embedded" and self.datamodule.domain != "drawn":
            _note(
                "the embedded backbone is for demonstration and knows drawings only; for real images use "
                "--model.backbone clip (ViT-L-14-336, openai)."
            )


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code (see ``kanoclip.__main__.main``)."""
    _quiet()
    try:
        cli = KanoclipCLI(argv)
    except SystemExit as end:  # --help, or Lightning's answer to Ctrl-C
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("KANOCLIP_TRACEBACK") or not is_mistake(error):
            raise
        return complain(str(error))
    unreadable = getattr(cli.datamodule, "unreadable", [])
    for path, why in unreadable:
        _note(f"skipped {path}: {why}")
    if unreadable:
        _note(f"{len(unreadable)} files could not be read; all others are done.")
    return 1 if unreadable else 0


def prepare(argv: Sequence[str]) -> list[str]:
    """Expand short names and put the default model first.

    The default model is a token on the command line, not a default of the parser: that would lend its settings to any
    other model. And a class chosen on the command line is cleared first, as it would inherit the settings of the class
    in the config that happen to have the same names.
    """
    verb, options = argv[0], expand_argv(argv[1:])
    loader = get_loader("yaml")
    set_loader("kanoclip", lambda text: expand(loader(text)))
    set_dumper("kanoclip", lambda data: yaml.safe_dump(data, sort_keys=False))
    configs = [_read_config(path) for path in _values(options, "--config", "-c")]
    named = [config["model"] for config in configs if config.get("model")]
    chosen = _values(options, "--model", "--model.class_path") or [
        model for model in named if isinstance(model, str) or "class_path" in model
    ]
    prepared = [verb] if chosen else [verb, f"--model={DEFAULT_MODEL}"]
    for option in options:
        key = option.partition("=")[0]
        if configs and key in ("--model", "--data"):
            prepared.append(f"{key}=null")
        prepared.append(option)
    return prepared


def model_name(path: str) -> str:
    """Return the name of a model by its import path: the registered one, or the class's ``name``, or the class."""
    name = name_of("model", path)
    return name if name != path else path.rpartition(".")[2]


def shorten(message: str) -> str:
    """Cut a parser's message down to the lines that say what is wrong, and name the options that exist."""
    lines = [line.rstrip() for line in message.splitlines()]
    lines = [line for line in lines if line and not re.search(r"Union|NestedArg|^\s*- Does not validate", line)]
    text = "\n".join(dict.fromkeys(lines)).replace("Parser key", "Option")
    unknown = re.search(r"Option '([\w.]+)' is not accepted|Unrecognized arguments: (\S+)|Group '\S+' does not", text)
    path = re.findall(r"class_path '?([\w.]+)'?", text)
    if unknown and path and "." in path[-1]:
        module, _, name = path[-1].rpartition(".")
        accepted = [
            key for key in inspect.signature(getattr(import_module(module), name)).parameters if key != "kwargs"
        ]
        text += f"\nAccepted by {name}: {', '.join(accepted)}."
    return text


def is_mistake(error: BaseException) -> bool:
    """Tell a mistake of the caller, which this package answers in words, from a fault of the program."""
    if isinstance(error, UsageError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
    return ours and isinstance(error, (ValueError, OSError, RuntimeError)) and not isinstance(error, RecursionError)


def _build(section: Namespace) -> Any:
    module, _, name = section.class_path.rpartition(".")
    return getattr(import_module(module), name)(**section.get("init_args", Namespace()).as_dict())


def _read_config(path: str) -> dict[str, Any]:
    """Read a config with names expanded, so that a wrong name is told with its file."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"No config at {path} ({error.strerror}). Configs that ship are in configs/.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return expand(content, f" in {path}") or {}


def _values(options: Sequence[str], *names: str) -> list[str]:
    """Return the values of an option, whether given as ``--x value`` or ``--x=value``."""
    pairs = [(option.partition("=")) for option in options]
    after = [*options[1:], ""]
    return [v if equals else after[i] for i, (name, equals, v) in enumerate(pairs) if name in names]


def _take_checkpoint(argv: list[str]) -> tuple[list[str], Any]:
    """Split ``--ckpt_path`` off: LightningCLI would let a checkpoint overrule the options without a word."""
    given = _values(argv, "--ckpt_path")
    left, skip = [], False
    for option in argv:
        if skip:
            skip = False
        elif option.partition("=")[0] == "--ckpt_path":
            skip = "=" not in option
        else:
            left.append(option)
    return left, given[-1] if given else None


def _note(text: str) -> None:
    print(f"kanoclip: {text}", file=sys.stderr)


def _quiet() -> None:
    """Keep Lightning's tips and counts to itself; its warnings of real trouble stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # true of 2 cores, and not to be helped
        ".*Checkpoint directory.*",
        ".*args parameter is intended to run from within Python.*",  # both are the same words
        ".*Total length of `list` across ranks is zero.*",  # nothing is held out for validation
        r".*Found \d+ module\(s\) in eval mode.*",  # the frozen backbone
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message)
