"""fit, validate, test and predict: LightningCLI with short names, run folders and errors for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerTypeTuple,
    SaveConfigCallback,
)
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch.optim import Optimizer

from kanoclip.data.base import AnomalyDataModule
from kanoclip.models.checkpoint import check_name, read_checkpoint, zero_shot
from kanoclip.models.contents import check_trust
from kanoclip.outputs import WholeCheckpoints
from kanoclip.outputs.loggers import send_text
from kanoclip.outputs.progress import Bar, is_watched
from kanoclip.outputs.record import drop_if_empty, folder_name, newest_fit
from kanoclip.ranks import rank_of
from kanoclip.registry import name_of
from kanoclip.types import KanoclipError, MissingError, counted
from kanoclip.verbs.arguments import CommandLine, UsageError, explain
from kanoclip.verbs.build import (
    Parser,
    about,
    build,
    check_options,
    learns,
    model_name,
    named,
    place_of,
    set_optimizer,
    usual_callbacks,
)
from kanoclip.verbs.ending import reason
from kanoclip.verbs.options import add_options, read_options
from kanoclip.verbs.push import given_checkpoint
from kanoclip.verbs.say import complain, note, quiet, stopped, unless_quick
from kanoclip.verbs.watching import wait_for_first, watch

RUNS = "runs"


class NoFitError(MissingError):
    """No finished fit that could be tested."""


class SaveFitConfig(SaveConfigCallback):
    """Writes config.yaml beside the checkpoint of a fit, and logs it; others write their config into their results."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write at the start of a fit only."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log it as a text; Lightning calls this in the first process."""
        send_text(trainer.loggers, "config", self.parser.dump(self.config, skip_none=False), 0)


class KanoclipCLI(LightningCLI):
    """LightningCLI with this project's names, run folders and checkpoints.

    What is typed is parsed, the data set is built and indexed, the checkpoint is found, and its model's options stand
    in for those that were not typed; then the model is built. Whether the checkpoint agrees with it is checked once,
    when Lightning loads it (``AnomalyModule.on_load_checkpoint``).

    Args:
        command: What was typed, as ``prepare`` returns it.
    """

    datamodule: Any
    model: Any
    trainer_kind: type[Trainer] = Trainer

    def __init__(self, command: CommandLine) -> None:
        self.command = command
        self.checkpoint: Path | None = None
        self.folder: Path | None = None  # claimed for this run
        try:
            self._run()
        except BaseException:
            if self.folder:
                drop_if_empty(self.folder)
            raise
        if self.folder and self.trainer.fast_dev_run:
            drop_if_empty(self.folder)

    def _run(self) -> None:
        verb = self.command.verb
        super().__init__(
            LightningModule,
            None,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            trainer_class=self.trainer_kind,
            trainer_defaults={
                "default_root_dir": RUNS,
                "max_epochs": 15,  # AnomalyCLIP's; Lightning's own is 1000
                "deterministic": "warn",
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            seed_everything_default=111,
            parser_kwargs={"prog": "kanoclip", "parser_mode": "kanoclip", verb: {"description": about(verb)}},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--optimizer`` and ``--lr_scheduler``, see ``instantiate_classes``, and our own options."""
        parser.add_optimizer_args((Optimizer,))
        parser.add_lr_scheduler_args(LRSchedulerTypeTuple)
        add_options(parser.add_argument, self.command.verb)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """Build the parser of the verb at hand alone: each of the others would take a tenth of a second."""
        verb = self.command.verb
        return {verb: LightningCLI.subcommands()[verb]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was typed over the model of the checkpoint that was typed, if there is one."""
        self.fitted: dict[str, Any] = {}
        if self.command.checkpoint not in (None, "last"):
            self._take(given_checkpoint(str(self.command.checkpoint), self.command.verb))
        self._parse()
        if self.checkpoint or (self.command.verb == "fit" and self.command.checkpoint is None):
            self._print_config()  # nothing has to be looked for

    def _take(self, checkpoint: Path, own: bool = False) -> None:
        self.checkpoint = checkpoint
        self.about, self.fitted = read_checkpoint(checkpoint)
        check_trust(self.fitted, named(self.command), f"{checkpoint}", own)

    def _parse(self, *more: str) -> None:
        try:
            self.config = self.parser.parse_args([*self.command.words(self.fitted), *more])
        except UsageError as error:
            raise UsageError(explain(str(error), self.command)) from error

    def before_instantiate_classes(self) -> None:
        """Build the data set and find the checkpoint: mistakes are told before gigabytes of backbone are loaded."""
        verb = self.command.verb
        chosen, seed = self.config[verb], self.config[verb].seed_everything
        if seed is False:
            os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier run in this process
        check_options(verb, chosen)
        self.options = read_options(verb, chosen)
        section = chosen.data.clone()
        if "seed" in section.get("init_args", {}) and section.init_args.seed is None and seed is not False:
            section.init_args.seed = seed  # one seed rules all that is drawn
        self.datamodule = build(section)
        if self.options.watch:
            wait_for_first(self.datamodule)
        with unless_quick("listing the images"):
            self.datamodule.index()
        with unless_quick("reading the images, to tell whether a fit has seen them"):
            found = None if self.checkpoint else self._find_fit(chosen)
        if found:
            self._take(found, own=True)
            self._parse()
            chosen = self.config[verb]
            chosen.seed_everything = seed
        self._print_config()
        for option in ("verbose", "return_predictions"):  # our callbacks print, and write predictions to disk
            if option in chosen:
                chosen[option] = False
        if self.checkpoint:
            check_name(self.about, model_name(chosen.model.class_path))
            chosen["ckpt_path"] = str(self.checkpoint)
            imported = " by its authors and imported" if self.about.get("imported") else ""
            note(f"checkpoint {self.checkpoint}: {self.about['model']}, fitted on {self.about['auxiliary']}{imported}.")
            if verb == "test" and zero_shot(self.about.get("images"), self.datamodule.image_digests("test")) is False:
                seen = self.about["auxiliary"]
                note(f"this is NOT zero-shot: it was fitted on images that are tested, those of {seen}.")

    def _print_config(self) -> None:
        """Print what would be run and exit, if that was asked for: with the checkpoint and its model's options."""
        if self.command.print_config:
            self._parse(*([f"--ckpt_path={self.checkpoint}"] if self.checkpoint else []), self.command.print_config)

    def _find_fit(self, chosen: Namespace) -> Path | None:
        """Return the checkpoint of the newest fit of the model: to go on with, or to test; None if none is needed."""
        verb, identity = self.command.verb, self.datamodule.identity
        name, runs = model_name(chosen.model.class_path), Path(chosen.trainer.default_root_dir or RUNS)
        if verb == "fit":
            if self.command.checkpoint is None:
                return None
            found = newest_fit(runs, name, auxiliary=identity)
            if found is None:
                raise NoFitError(f"No fit of {name} on {identity} in {runs}/fit to go on with. Leave out --ckpt_path.")
            return found
        does = learns(chosen.model)
        if does is False:
            return None
        found = newest_fit(runs, name, tested=self.datamodule.image_digests("test") if verb == "test" else None)
        if found is None and does:
            raise self._no_fit(chosen)
        return found

    def _no_fit(self, chosen: Namespace) -> NoFitError:
        identity, path = self.datamodule.identity, chosen.model.class_path
        other = f" that has seen none of the images of {identity}" if self.command.verb == "test" else ""
        data = "surfaces" if identity == "surfaces_auxiliary" else "surfaces_auxiliary"
        command = f"kanoclip fit --data {data} --model {name_of('model', path)} --model.backbone embedded"
        return NoFitError(
            f"No finished fit of {model_name(path)}{other} under {chosen.trainer.default_root_dir}/fit. Fit one first, "
            f"such as: {command}, or give --ckpt_path."
        )

    def instantiate_classes(self) -> None:
        """Build the model and the trainer; the data set is built and indexed already."""
        built = self.datamodule
        self.parser.add_instantiator(lambda *_, **__: built, AnomalyDataModule, prepend=True)
        super().instantiate_classes()
        self.model.strict_options = True
        chosen = self.config_init[self.command.verb]
        if self.command.verb == "fit" and (chosen.optimizer or chosen.lr_scheduler):
            built = set_optimizer(self.model, chosen.optimizer, chosen.lr_scheduler)
            self.model.configure_optimizers = lambda: self.configure_optimizers(self.model, *built)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put the run into ``--output``, or a folder of its own, and add the callbacks of every run."""
        trainer = self.config_init[self.command.verb].trainer
        names = self.command.verb, self.model.name or "model", folder_name(self.datamodule.identity)
        place, self.folder = place_of(trainer, self.options.output, Path(trainer.default_root_dir or RUNS), *names)
        kwargs |= place
        self.trainer_defaults["callbacks"] = self.usual_callbacks(trainer)
        try:
            built = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:  # about its options
            raise KanoclipError(f"--trainer: {' '.join(str(error).split())}") from error
        if type(bar := built.progress_bar_callback) is RichProgressBar:  # not one that was asked for
            at = built.callbacks.index(bar)  # type: ignore[attr-defined]
            built.callbacks[at : at + 1] = [Bar()] if is_watched() else []  # type: ignore[attr-defined]
        if type(built.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that was asked for
            built.strategy.checkpoint_io = WholeCheckpoints()
        return built

    def usual_callbacks(self, trainer: Namespace) -> list[Callback]:
        """Return the callbacks of every run but for those that are given."""
        return usual_callbacks(self.options, trainer)

    def predict(self, **kwargs: Any) -> None:
        """Score all images once, or go on for ever."""
        if self.options.watch:
            watch(self.trainer, **kwargs)
        self.trainer.predict(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Refuse to test what was never fitted, and say what a reader of the numbers must know."""
        if self.command.verb != "fit" and self.checkpoint is None and self.model.needs_training:
            raise self._no_fit(self.config[self.command.verb])
        backbone = getattr(self.model, "backbone", None)
        if getattr(backbone, "description", "") == "kanoclip embedded" and self.datamodule.domain != "drawn":
            note(
                "the embedded backbone is for demonstration and knows drawings only; for real images use "
                "--model.backbone clip (ViT-L-14-336, openai)."
            )


def main(command: CommandLine, kind: type[KanoclipCLI] = KanoclipCLI) -> int:
    """Run one verb; returns the exit code (see ``kanoclip.verbs.table.main``)."""
    quiet()
    try:
        cli = kind(command)
    except SystemExit as end:  # --help, or Lightning's answer to Ctrl-C
        if isinstance(end, SIGTERMException) or end.code == 143:
            stopped(joined=rank_of()[1] > 1)
            return 143
        if isinstance(end.__context__, KeyboardInterrupt):
            return 130
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        said = reason(error, any(word.startswith("--output=") for word in command.options))
        rank = getattr(rank_zero_only, "rank", 0)
        if said is None or os.environ.get("KANOCLIP_TRACEBACK"):
            raise
        return complain(f"process {rank}: {said}" if rank else said)
    callbacks: Any = vars(cli.trainer)["callbacks"]
    unreadable = getattr(cli.datamodule, "unreadable", [])
    for path, why in unreadable:
        note(f"skipped {path}: {why}")
    if unreadable:
        note(f"{counted(len(unreadable), 'file')} could not be read; all others are done.")
    return 1 if unreadable or any(getattr(one, "unwritten", []) for one in callbacks) else 0
