"""fit, validate, test and predict: LightningCLI with short names, run folders and errors for people."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kanoclip.data.about import same_images
from kanoclip.data.base import AnomalyDataModule
from kanoclip.models.base import AnomalyModule
from kanoclip.models.checkpoint import (
    ContradictionError,
    NoFitError,
    check_agreement,
    folder_name,
    newest_fit,
    next_version,
    read_checkpoint,
)
from kanoclip.outputs import ExampleMaps, FitNote, PredictionWriter, ResultsWriter, RunRecord, WholeCheckpoints
from kanoclip.registry import NAMES, available, expand_argv, load_class, name_of
from kanoclip.verbs.arguments import UsageError, mistake, names_model, prepare, take_checkpoint
from kanoclip.verbs.say import complain, note, quiet
from kanoclip.verbs.table import VERBS

RUNS = "runs"
LOST = r"DistBackendError|Connection (closed|reset) by peer"  # what NCCL and gloo raise when a process is gone
FREE = {"prompts": "ensemble", "interaction": "none", "adapter": "none"}  # heads that learn nothing


class Parser(LightningArgumentParser):
    """A parser that raises what is wrong, for the edge to put into one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing a usage dump."""
        raise UsageError(message) from ex


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
        self.argv, given = take_checkpoint(prepare(argv))
        self.names_model = names_model(argv)
        self.checkpoint: str | Path | None = given
        self.about: dict[str, Any] = {}
        super().__init__(
            LightningModule,
            None,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "default_root_dir": RUNS,
                "max_epochs": 15,  # AnomalyCLIP's; Lightning's own is 1000
                "deterministic": "warn",
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "callbacks": [
                    # the last epoch counts, whether it is validated or not
                    ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True),
                    RunRecord(),
                    ExampleMaps(),
                    ResultsWriter(),
                    PredictionWriter(),
                    FitNote(),
                ],
            },
            seed_everything_default=111,
            parser_kwargs={"parser_mode": "kanoclip", self.argv[0]: {"description": _about(self.argv[0])}},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=self.argv,
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """Build the parser of the verb at hand alone: each of the others would take a tenth of a second."""
        verb = self.argv[0]
        return {verb: LightningCLI.subcommands()[verb]}

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint, before the model is built, and take the model's options from it.

        Without options for the model a checkpoint alone says what to build; with them they must agree.
        """
        verb = str(self.subcommand)
        chosen = self.config[verb]
        if "verbose" in chosen:
            chosen["verbose"] = False  # ResultsWriter prints a table
        if "return_predictions" in chosen:
            chosen["return_predictions"] = False  # PredictionWriter has them on disk; in memory they would add up
        precision = str(chosen.trainer.precision or "")
        if re.fullmatch(r"(bf)?16-true|transformer-engine.*", precision):
            raise UsageError(f"--trainer.precision {precision} would round the scores too. Use bf16-mixed or 16-mixed.")
        if chosen.get("data") is None:
            raise UsageError(f"{verb} needs a data set: add --data NAME, one of {', '.join(NAMES['data'])}.")
        for kind, base in (("data", AnomalyDataModule), ("model", AnomalyModule)):
            if not issubclass(load_class(chosen[kind].class_path), base):
                expected = f"expected a subclass of {base.__module__}.{base.__name__}, or one of"
                raise UsageError(f"--{kind} {chosen[kind].class_path}: {expected} {', '.join(NAMES[kind])}.")
        self._early = build(chosen.data)
        self._early.index()  # a wrong path or category is told before gigabytes of backbone are loaded
        identity = self._early.identity
        name = model_name(chosen.model.class_path)
        runs = Path(chosen.trainer.default_root_dir or RUNS)
        if verb == "fit" and self.checkpoint == "last":
            self.checkpoint = newest_fit(runs, name, auxiliary=identity)
            if self.checkpoint is None:
                raise NoFitError(f"No fit of {name} on {identity} in {runs}/fit to go on with. Leave out --ckpt_path.")
        elif verb != "fit" and self.checkpoint in (None, "last"):
            does = learns(chosen.model)
            but_not = None if verb == "validate" else identity
            self.checkpoint = None if does is False else newest_fit(runs, name, but_not=but_not)
            if self.checkpoint is None and does:  # told before gigabytes of backbone are loaded
                raise self._no_fit()
        if self.checkpoint is None:
            return
        about, stored = read_checkpoint(self.checkpoint)
        note(f"checkpoint {self.checkpoint}: {about['model']}, fitted on {about['auxiliary']}.")
        if verb != "fit" and same_images(about["auxiliary"], identity):
            note(f"this is NOT zero-shot: {about['auxiliary']} was the auxiliary set of the fit.")
        if verb == "fit" and about["auxiliary"] != identity:
            raise ContradictionError(
                f"The checkpoint {self.checkpoint} was fitted on {about['auxiliary']}; a fit on {identity} cannot go "
                f"on with it: it would pass for one on {identity} alone. Leave out --ckpt_path to fit anew."
            )
        if stored:
            asked = self.parser.parse_args(self.argv, defaults=False)[verb].get("model").as_dict()
            if not self.names_model:  # the default is nobody's wish
                asked = {**stored, "init_args": asked.get("init_args")}
            check_agreement(asked, stored, about["components"], Path(self.checkpoint), "model")
            chosen["model"] = None  # or settings that were not asked for would stay
            self.config = self.parser.parse_object({verb: {"model": stored}}, self.config)
        self.about = about
        self.config[verb]["ckpt_path"] = str(Path(self.checkpoint).expanduser())

    def _no_fit(self) -> NoFitError:
        chosen, identity = self.config[self.subcommand], self._early.identity
        path, name = chosen.model.class_path, model_name(chosen.model.class_path)
        other = "" if self.subcommand == "validate" else f" on another data set than {identity}"
        data = "surfaces" if identity == "surfaces_auxiliary" else "surfaces_auxiliary"
        command = f"kanoclip fit --data {data} --model {name_of('model', path)} --model.backbone embedded"
        return NoFitError(
            f"No finished fit of {name}{other} under {chosen.trainer.default_root_dir}/fit. Fit one first, such as: "
            f"{command}, or give --ckpt_path."
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put the run into its own folder, ``<default_root_dir>/<verb>/<model>/<data>/version_N``."""
        trainer = self.config_init[self.subcommand].trainer
        folder = Path(trainer.default_root_dir or RUNS, str(self.subcommand), self.model.name or "model")
        data, logger = folder_name(self.datamodule.identity), trainer.logger
        if logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(folder, data)
        elif getattr(logger[0] if isinstance(logger, list) else logger, "log_dir", None) is None:
            kwargs["default_root_dir"] = str(next_version(folder / data))  # no logger, or one with no folder to share
        callbacks = trainer.callbacks or []
        own = {type(one) for one in (callbacks if isinstance(callbacks, list) else [callbacks])} - {ModelCheckpoint}
        self.trainer_defaults["callbacks"] = [
            one
            for one in self.trainer_defaults["callbacks"]
            if type(one) not in own  # two would write the same files
        ]
        built = super().instantiate_trainer(**kwargs)
        if type(built.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that was asked for
            built.strategy.checkpoint_io = WholeCheckpoints()
        return built

    def after_instantiate_classes(self) -> None:
        """Refuse to test what was never fitted, and say what a reader of the numbers must know."""
        self.datamodule.adopt(self._early)
        if self.subcommand != "fit" and self.checkpoint is None and self.model.needs_training:
            raise self._no_fit()
        for kind, built in self.model.describe_components().items():
            fitted = self.about.get("components", {}).get(kind, built)
            if kind != "backbone" and built != fitted:  # a model built in Python: its checkpoint has no options
                raise ContradictionError(
                    f"The checkpoint {self.checkpoint} was fitted with the {kind} {fitted}, but {built} would be "
                    f"tested. Give --model.{kind} as it was fitted."
                )
        backbone = getattr(self.model, "backbone", None)
        if getattr(backbone, "description", "") == "kanoclip embedded" and self.datamodule.domain != "drawn":
            note(
                "the embedded backbone is for demonstration and knows drawings only; for real images use "
                "--model.backbone clip (ViT-L-14-336, openai)."
            )


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code (see ``kanoclip.__main__.main``)."""
    quiet()
    try:
        cli = KanoclipCLI(argv)
    except SystemExit as end:  # --help, or Lightning's answer to Ctrl-C
        if isinstance(end, SIGTERMException):
            return 143
        if isinstance(end.__context__, KeyboardInterrupt):
            return 130
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        said, rank = mistake(error, expand_argv(argv)), getattr(rank_zero_only, "rank", 0)
        if re.search(LOST, f"{type(error).__name__}: {error}"):
            said = "lost the connection to the other processes; one of them says why, or was killed."
        if said is None or os.environ.get("KANOCLIP_TRACEBACK"):
            raise
        return complain(f"process {rank}: {said}" if rank else said)
    unreadable = getattr(cli.datamodule, "unreadable", [])
    for path, why in unreadable:
        note(f"skipped {path}: {why}")
    if unreadable:
        note(f"{len(unreadable)} files could not be read; all others are done.")
    return 1 if unreadable else 0


def model_name(path: str) -> str:
    """Return the name of a model by its import path: the registered one, or the class's ``name``, or the class."""
    name = name_of("model", path)
    return name if name != path else getattr(load_class(path), "name", "") or path.rpartition(".")[2]


def _about(verb: str) -> str:
    """Describe a verb above its options."""
    return (
        f"{VERBS[verb].about}. Data sets (--data): {', '.join(available('data'))}. Models (--model): "
        f"{', '.join(available('model'))}; kanoclip without --model. Options of one of them: --data.help NAME, "
        f"--model.help NAME. Components: kanoclip list."
    )


def build(section: Namespace) -> Any:
    """Build what a parsed ``class_path`` with ``init_args`` names."""
    return load_class(section.class_path)(**section.get("init_args", Namespace()).as_dict())


def learns(model: Namespace) -> bool | None:
    """Say by the names of its heads, before it is built, whether a model learns; None if one is not ours."""
    settings, cls = model.get("init_args") or Namespace(), load_class(model.class_path)
    ours = model_name(model.class_path) in available("model")
    for kind, free in FREE.items():
        given, own = settings.get(kind), getattr(cls, f"own_{kind}", None)
        path = given.class_path if given else f"{own.__module__}.{own.__name__}" if own else NAMES[kind][free]
        if name_of(kind, path) in set(available(kind)) - {free}:
            return True
        ours = ours and name_of(kind, path) == free
    return False if ours else None
