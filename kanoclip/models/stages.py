"""Fitting in stages: which heads learn in which epochs, at what rate."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from kanoclip.models.checkpoint import plain
from kanoclip.registry import did_you_mean
from kanoclip.types import KanoclipError

_log = logging.getLogger(__name__)

Schedule = Literal["constant", "cosine", "steps"]


@dataclass(frozen=True)
class Stage:
    """Some epochs in which some of the heads learn.

    Args:
        train: What learns: beginnings of parameter names, such as ``("tuning", "prompts.deep")``. All else is frozen.
        epochs: How many, 1 or more.
        lr: Learning rate of Adam.
        schedule: How the rate goes over the steps of this stage: "constant"; "cosine" down to 0; or "steps", times
            ``factor`` at each of ``milestones``.
        warmup: With "cosine": share of the steps in which the rate rises from 0 first.
        milestones: With "steps": optimiser steps, counted from the beginning of the stage.
        factor: With "steps": what the rate is multiplied by.
        accumulate: Batches to each optimiser step, for a stage that was published with larger batches than another.
        rates: Other learning rates, by the beginning of parameter names; the longest that fits counts.

    Raises:
        KanoclipError: For a value that is none of these.
    """

    train: Sequence[str]
    epochs: int
    lr: float
    schedule: Schedule = "constant"
    warmup: float = 0.0
    milestones: Sequence[int] = ()
    factor: float = 0.5
    accumulate: int = 1
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.train, str) or not self.train:
            raise _wrong("train", self.train, "a list of beginnings of parameter names, such as [tuning]")
        for name in ("epochs", "accumulate"):
            if not isinstance(getattr(self, name), int):
                raise _wrong(name, getattr(self, name), "a whole number, such as 5")
        numbers = {name: getattr(self, name) for name in ("lr", "warmup", "factor")}
        for name, value in {**numbers, **self.rates}.items():
            if not isinstance(value, (int, float)):
                raise _wrong(name, value, "a number, such as 1.0e-3")
        for name in ("epochs", "accumulate"):
            if getattr(self, name) < 1:
                raise _wrong(name, getattr(self, name), "1 or more")
        if self.schedule not in get_args(Schedule):
            raise _wrong("schedule", self.schedule, ", ".join(get_args(Schedule)))
        if min(self.lr, *self.rates.values(), 0) < 0:
            raise _wrong("lr", self.lr if self.lr < 0 else dict(self.rates), "0 or more")
        if not 0 <= self.warmup < 1:
            raise _wrong("warmup", self.warmup, "a share of the steps in [0, 1)")

    def rate(self, name: str, step: int, steps: int) -> float:
        """Return the learning rate of a parameter in a step of this stage, counted from 0, of so many."""
        longest = max((start for start in self.rates if name.startswith(start)), key=len, default=None)
        return (self.lr if longest is None else self.rates[longest]) * self._course(step, steps)

    def _course(self, step: int, steps: int) -> float:
        if self.schedule == "steps":
            return self.factor ** sum(step >= milestone for milestone in self.milestones)
        if self.schedule == "cosine":
            rising = int(self.warmup * steps)
            if step < rising:
                return step / rising
            return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2
        return 1.0


def read_stages(given: Sequence[Stage | Mapping[str, Any]]) -> list[Stage]:
    """Turn the mappings of a config into stages.

    Raises:
        KanoclipError: Naming the key that is unknown or missing.
    """
    known = [one.name for one in fields(Stage)]
    for number, stage in enumerate(given):
        if isinstance(stage, Stage):
            continue
        for key in stage:
            if key not in known:
                raise KanoclipError(
                    f"model.stages[{number}] has {key!r}.{did_you_mean(key, known)} A stage has {', '.join(known)}."
                )
        if missing := [key for key in known[:3] if key not in stage]:
            raise KanoclipError(
                f"model.stages[{number}] does not tell {' and '.join(missing)}. Write a stage as "
                f"{{train: [tuning], epochs: 5, lr: 1.0e-5}}."
            )
    return [stage if isinstance(stage, Stage) else Stage(**stage) for stage in given]


def share(stages: Sequence[Stage], epochs: int) -> list[int]:
    """Share a number of epochs among stages in proportion to theirs, at least one to each.

    Raises:
        KanoclipError: If there are fewer epochs than stages.
    """
    whole = sum(stage.epochs for stage in stages)
    if epochs < len(stages):
        raise KanoclipError(
            f"--trainer.max_epochs is {epochs}, but the fit has {len(stages)} stages of at least one epoch. Use "
            f"--trainer.max_epochs {whole} ({' + '.join(str(stage.epochs) for stage in stages)})."
        )
    ends = [0]
    for number, until in enumerate(accumulate(stage.epochs for stage in stages), start=1):
        most = epochs - len(stages) + number  # one is left to each that follows
        ends.append(min(max(round(until * epochs / whole), ends[-1] + 1), most))
    return [end - begin for begin, end in pairwise(ends)]


def staged_adam(model: Any) -> torch.optim.Adam:
    """Return an Adam over all heads, each parameter a group of its own, so that each can have its own rate."""
    heads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam([{"params": [parameter]} for parameter in heads], lr=model.lr, betas=model.betas)


class FitInStages(Callback):
    """Let the parts of each stage learn in its epochs; a model that has stages brings it along.

    It keeps no state: what learns, and how fast, follows from the epoch and the batch, so a fit that was stopped goes
    on as it would have gone. Outside a fit, all heads may learn again.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Share the epochs of the trainer among the stages, and check that it can fit in stages.

        Raises:
            KanoclipError: If the stages do not fit the model, its optimiser or the trainer.
        """
        if stage != "fit":
            return
        self.accumulate = trainer.accumulate_grad_batches
        self.heads = {name: one for name, one in pl_module.named_parameters() if one.requires_grad}
        self.stages: list[Stage] = pl_module.stages
        _check(trainer, pl_module, self.stages, list(self.heads))
        whole, most = sum(one.epochs for one in self.stages), trainer.max_epochs or 0
        self.epochs = [1] if trainer.fast_dev_run else share(self.stages, most)
        if most != whole and not trainer.fast_dev_run:
            _log.warning(
                "The stages of %s take %s epochs instead of %s, as --trainer.max_epochs is %s.",
                pl_module.name,
                " + ".join(map(str, self.epochs)),
                " + ".join(str(one.epochs) for one in self.stages),
                most,
            )
        # a fit that goes on must have the same
        pl_module.optimiser |= {"trainer.max_epochs": most, "model.stages": plain([asdict(one) for one in self.stages])}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin the stage of the epoch, if it does not run yet, and set the learning rates of the step."""
        ends = list(accumulate(self.epochs))
        number = next(n for n, end in enumerate(ends) if trainer.current_epoch < end)
        running = self.stages[number]
        if pl_module.running_stage != number:
            pl_module.running_stage = number
            trainer.accumulate_grad_batches = self.accumulate * running.accumulate
            for name, parameter in self.heads.items():
                parameter.requires_grad_(name.startswith(tuple(running.train)))
        per_epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        step = (trainer.current_epoch - ends[number] + self.epochs[number]) * per_epoch
        step += batch_idx // trainer.accumulate_grad_batches
        for name, group in zip(self.heads, trainer.optimizers[0].param_groups, strict=True):
            group["lr"] = running.rate(name, step, self.epochs[number] * per_epoch)
        now = {"stage": float(number + 1), "lr": running.lr * running._course(step, self.epochs[number] * per_epoch)}
        pl_module.log_dict({f"train/{key}": value for key, value in now.items()}, batch_size=1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let all heads learn again, as before the fit."""
        pl_module.running_stage, trainer.accumulate_grad_batches = None, self.accumulate
        for parameter in self.heads.values():
            parameter.requires_grad_()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Likewise after a fit that was stopped."""
        if hasattr(self, "heads"):
            self.on_train_end(trainer, pl_module)


def _check(trainer: Any, model: Any, stages: Sequence[Stage], heads: Sequence[str]) -> None:
    """Raise KanoclipError if stages do not fit a model, its optimiser or the trainer."""
    for kind in ("optimizer", "lr_scheduler"):
        if kind in model.optimiser:
            raise KanoclipError(
                f"{model.name} is fitted in stages, which have learning rates and schedules of their own. Leave out "
                f"--{kind}, or give the stages yourself: --model.stages."
            )
    parts = sorted({name.rpartition(".")[0] for name in heads})
    for number, stage in enumerate(stages):
        for start in (*stage.train, *stage.rates):
            if not any(name.startswith(start) for name in heads):
                raise KanoclipError(
                    f"model.stages[{number}] names {start!r}, but no parameter of {model.name} that learns begins so."
                    f"{did_you_mean(start, parts)} There are: {', '.join(parts)}."
                )
    if not trainer.max_epochs or trainer.max_epochs < 0:
        whole = sum(stage.epochs for stage in stages)
        raise KanoclipError(f"A fit in stages needs its epochs: --trainer.max_epochs {whole}.")
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
        raise KanoclipError(
            "In a fit in stages some heads have no gradient at times, which DDP must be told: use "
            "--trainer.strategy ddp_find_unused_parameters_true."
        )


def _wrong(name: str, value: Any, expected: str) -> KanoclipError:
    return KanoclipError(f"A stage of model.stages has {name} {value!r}, expected {expected}.")
