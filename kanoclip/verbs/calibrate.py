"""calibrate: score parts known to be good as ``predict`` does, and write the thresholds of a decision."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from kanoclip.models.checkpoint import zero_shot
from kanoclip.outputs import PredictionWriter
from kanoclip.outputs.calibrator import Calibrator
from kanoclip.types import ANOMALOUS, NORMAL, KanoclipError
from kanoclip.verbs import run
from kanoclip.verbs.arguments import CALIBRATION, CommandLine
from kanoclip.verbs.say import note


class _Trainer(Trainer):
    """Predicts under another name, by which LightningCLI finds the options and the method of the verb."""

    calibrate = Trainer.predict


class CalibrateCLI(run.KanoclipCLI):
    """``predict`` with a ``Calibrator`` in place of the files of predictions."""

    trainer_kind = _Trainer

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of ``Calibrator``."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Calibrator)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """Build the parser of this verb."""
        return {"calibrate": LightningCLI.subcommands()["predict"]}

    def before_instantiate_classes(self) -> None:
        """Check what can be told before images are scored: options, the place of the output, good images."""
        chosen: Any = self.config["calibrate"]
        self.calibrator = Calibrator(**{name: chosen[name] for name in CALIBRATION})
        super().before_instantiate_classes()
        labels = {sample.label for sample in self.datamodule.part("predict")}
        if ANOMALOUS in labels and NORMAL not in labels:
            raise KanoclipError(
                f"{self.datamodule.identity} has anomalous images and no normal one, and a threshold is the score of a "
                f"good image. Add good ones, or give their folder with --data.root."
            )
        images = self.about.get("images") if self.checkpoint else None
        if images is not None and zero_shot(images, self.datamodule.image_digests("predict")) is False:
            note(
                "the model was fitted on some of these images, which it may score lower than new ones: the promises do "
                "not hold. Calibrate on images that no fit has seen."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """There is nothing to log."""
        trainer = self.config_init["calibrate"].trainer
        trainer.logger = False if trainer.logger is True else trainer.logger or False
        return super().instantiate_trainer(**kwargs)

    def usual_callbacks(self, trainer: Namespace) -> list[Callback]:
        """Put the calibrator where ``predict`` has its writer."""
        usual = super().usual_callbacks(trainer)
        return [self.calibrator if isinstance(one, PredictionWriter) else one for one in usual]


def main(command: CommandLine) -> int:
    """Run the verb; returns the exit code."""
    return run.main(command, CalibrateCLI)
