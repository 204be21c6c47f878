"""From words to objects: the parser, and what a parsed ``class_path`` with ``init_args`` stands for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback, instantiate_class
from lightning.pytorch.loggers import TensorBoardLogger

from kanoclip.data.base import AnomalyDataModule
from kanoclip.data.files import write_text
from kanoclip.data.parsing import local_path, read_yaml
from kanoclip.models.base import AnomalyModule, learns_nothing
from kanoclip.models.contents import leaves
from kanoclip.outputs import (
    ExampleMaps,
    FitNote,
    PredictionWriter,
    ReportWriter,
    ResultsWriter,
    RunLog,
    RunRecord,
    ScoreNote,
)
from kanoclip.outputs.loggers import send_text
from kanoclip.outputs.record import claim_version, run_folder
from kanoclip.outputs.resuming import Shard
from kanoclip.registry import LISTS, NAMES, WHICH_DATA, available, load_class, name_of
from kanoclip.types import KanoclipError
from kanoclip.verbs.arguments import CommandLine, UsageError
from kanoclip.verbs.ending import EndWhenTold
from kanoclip.verbs.options import Chosen
from kanoclip.verbs.table import VERBS

EVENTS = ("fit", "validate")
"""Verbs that write TensorBoard's events as they go; a test is logged at its end, see ``outputs.log``."""


class Parser(LightningArgumentParser):
    """A parser that raises what is wrong, for the edge to put into one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing a usage dump."""
        raise UsageError(message) from ex


class SaveFitConfig(SaveConfigCallback):
    """Writes config.yaml into the folder of a fit, and logs it; others write their config into their results."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write at the start of a fit only."""
        if stage == "fit":
            self.folder = run_folder(trainer)  # Lightning's own choice is no folder of the run with each logger
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, and log it as a text; Lightning calls this in the first process."""
        text = self.parser.dump(self.config, skip_none=False)
        write_text(self.folder / self.config_filename, text)
        send_text(trainer.loggers, "config", text, 0)


def about(verb: str) -> str:
    """Describe a verb above its options."""
    return (
        f"{VERBS[verb].about}. Data sets (--data): {', '.join(available('data'))}. Models (--model): "
        f"{', '.join(available('model'))}; kanoclip without --model. Options of one of them: --data.help NAME, "
        f"--model.help NAME. Components: kanoclip list."
    )


def model_name(path: str) -> str:
    """Return the name of a model by its import path: the registered one, or the class's ``name``, or the class."""
    name = name_of("model", path)
    return name if name != path else getattr(load_class(path), "name", "") or path.rpartition(".")[2]


def build(section: Namespace) -> Any:
    """Build what a parsed ``class_path`` with ``init_args`` names."""
    options = section.get("init_args", Namespace())
    lists = {name: [build(one) for one in options[name]] for name in LISTS if isinstance(options.get(name), list)}
    return load_class(section.class_path)(**{**options.as_dict(), **lists})


def learns(model: Namespace) -> bool | None:
    """Tell by the classes of its heads, before it is built, whether a model learns; None if that will show then."""
    options = model.get("init_args") or Namespace()
    heads = {kind: load_class(options[kind].class_path) for kind in NAMES if options.get(kind)}
    tell = getattr(load_class(model.class_path), "learns", None)  # a model that is not ours cannot tell
    found: bool | None = tell(heads) if tell else None
    return found


def named(command: CommandLine) -> set[str]:
    """Return all texts that the user has given as a value, typed or in a config: a checkpoint may name those too."""
    values = [word.partition("=")[2] for word in command.options]
    given = [*command.configs.values(), *(read_yaml(one, one) if one[:1] == "{" else one for one in values)]
    return {one for _, one in leaves(given, "", "the command line") if isinstance(one, str)}


def check_options(verb: str, chosen: Namespace) -> None:
    """Raise for what can be seen in the options and cannot be run."""
    if chosen.get("data") is None:
        raise UsageError(f"{verb} needs a data set: add --data NAME. {WHICH_DATA}")
    local_path(str(chosen.trainer.default_root_dir or ""), "--trainer.default_root_dir")
    if chosen.trainer.get("barebones"):
        raise UsageError("--trainer.barebones switches off all that a run leaves behind. Leave it out.")
    precision = str(chosen.trainer.precision or "")
    if re.fullmatch(r"(bf)?16-true|transformer-engine.*", precision):
        raise UsageError(f"--trainer.precision {precision} would round the scores too. Use bf16-mixed or 16-mixed.")
    if precision.startswith("64"):
        raise UsageError(f"--trainer.precision {precision}: features and scores are float32. Use 32-true.")
    if "spawn" in str(chosen.trainer.strategy):
        known = "starts processes that do not know what was typed"
        raise UsageError(f"--trainer.strategy {chosen.trainer.strategy} {known}. Use ddp.")
    for kind, base in (("data", AnomalyDataModule), ("model", AnomalyModule)):
        if not issubclass(load_class(chosen[kind].class_path), base):
            expected = f"expected a subclass of {base.__module__}.{base.__name__}, or one of"
            raise UsageError(f"--{kind} {chosen[kind].class_path}: {expected} {', '.join(NAMES[kind])}.")
    if verb == "fit" and learns(chosen.model) is False:
        raise learns_nothing(model_name(chosen.model.class_path))


def place_of(
    trainer: Namespace, output: Path | None, root: Path, verb: str, model: str, data: str
) -> tuple[dict[str, Any], Path | None]:
    """Choose where a run writes: ``output``, or ``root/verb/model/data/version_N``, which is claimed for it.

    Returns:
        Options of the trainer by which all callbacks find it, and the folder if one was claimed.
    """
    logger, claimed = trainer.logger, root / verb / model / data
    if output:
        events = TensorBoardLogger(output, "", version="") if verb in EVENTS else False
        return {"default_root_dir": str(output), "logger": events if logger in (None, True) else logger}, None
    if logger in (None, True) and verb in EVENTS and not trainer.fast_dev_run:
        claimed = claim_version(claimed)
        return {"logger": TensorBoardLogger(root / verb / model, data, version=int(claimed.name[8:]))}, claimed
    if trainer.fast_dev_run or getattr(logger[0] if isinstance(logger, list) else logger, "log_dir", None) is None:
        claimed = claim_version(claimed)  # nothing to log, no logger, or one with no folder to share
        return {"default_root_dir": str(claimed), "logger": False if logger in (None, True) else logger}, claimed
    return {}, None


def usual_callbacks(options: Chosen, trainer: Namespace) -> list[Callback]:
    """Return the callbacks of every run, each of which minds its own stage, but for those that are given."""
    given = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    without = {type(one) for one in given} - {ModelCheckpoint}  # two would write the same files
    without |= {ModelCheckpoint} if trainer.enable_checkpointing is False else set()
    usual = [
        # the last epoch counts, whether it is validated or not
        ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True),
        RunRecord(),
        ExampleMaps(),
        ResultsWriter(**({} if options.overlays else {"overlays": 0}), thresholds=options.thresholds),
        PredictionWriter(
            overlays=options.overlays,
            maps=options.maps,
            thresholds=options.thresholds,
            resume=options.output is not None,
            shard=Shard(*options.shard),
            sort=not options.watch,
        ),
        *([ReportWriter(options.thresholds)] if options.report else []),
        RunLog(),  # of a test after its pictures
        FitNote(),
        ScoreNote(),
        EndWhenTold(),
    ]
    return [one for one in usual if type(one) not in without]


def set_optimizer(model: AnomalyModule, optimizer: Namespace | None, schedule: Namespace | None) -> tuple[Any, Any]:
    """Build the optimiser of a model's heads and its schedule, if one is given; without one, the model's own Adam.

    LightningCLI's own way would give it the frozen weights as well.

    Raises:
        KanoclipError: For a value that torch refuses.
    """
    adam = Namespace(class_path="torch.optim.Adam", init_args=Namespace(lr=model.lr, betas=model.betas))
    sections = {"optimizer": (optimizer or adam).as_dict()} | ({"lr_scheduler": schedule.as_dict()} if schedule else {})
    for kind, section in sections.items():
        settings = {f"{kind}.{name}": value for name, value in section.get("init_args", {}).items()}
        model.optimiser |= {kind: section["class_path"], **settings}
    heads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        built = instantiate_class(heads, sections["optimizer"])
        return built, instantiate_class(built, sections["lr_scheduler"]) if schedule else None
    except ValueError as error:
        raise KanoclipError(f"--optimizer, --lr_scheduler: {error}") from error
