"""What every model shares: steps, optimiser and metrics. What makes a score is in its ``forward``."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from kanoclip.backbone.clip import uncopied
from kanoclip.models.checkpoint import run_seed
from kanoclip.models.epoch import Counted, EpochMetrics
from kanoclip.models.inference import batch_of
from kanoclip.models.levels import is_logged, level_losses
from kanoclip.models.saving import SavedModule
from kanoclip.models.stages import FitInStages, Stage, read_stages, staged_adam
from kanoclip.models.tiling import tiled
from kanoclip.types import Batch, KanoclipError, Scores


class NonFiniteLossError(KanoclipError, RuntimeError):
    """A loss that became NaN or infinite."""


class AnomalyModule(SavedModule):
    """Base of all models: a subclass gives ``forward(batch) -> Scores``, and ``losses`` if it learns.

    Args:
        lr: Learning rate of Adam.
        betas: Its two decay rates.
        stages: Which heads learn in which epochs, each as ``Stage`` or its arguments; null: the model's own, if any.

    Attributes:
        results: After a validation or test epoch: category -> name of the metric -> value, with ``mean`` over the
            categories where a metric is defined. None = undefined (one class only, no mask).
        overlap: Likewise: category -> false positive rates and the mean overlap of regions at each.
        counted: Likewise: category -> what its other curves are drawn from.
        auxiliary: The data set it was fitted on; None before.
        fitted_images: Digests of the images it was fitted on, see ``AnomalyDataModule.image_digests``; None: not known.
        fit_seed: Seed of its fit; None: not known, or not seeded.
        strict_options: Whether a checkpoint must agree in the options that decide a fit alone, such as lr, too. The
            command line sets it: there every difference was typed.
        read_files: Files that a fit has read beside those that its options name -> 12 hexadecimal digits of content;
            None: it was looked for and not there. A checkpoint keeps those that do not ship, see ``own_files``.
        optimiser: Options of another optimiser than Adam and of a schedule, such as ``optimizer.lr``, if there are any;
            a fit that goes on must have the same. The command line sets it.
        loaded_from: The checkpoint that ``load_from_checkpoint`` has read; None after a fit, or without one.
        tiles_at_once: Tiles of a picture larger than the model's square to score together; 0: no picture is cut. A
            trainer sets the data's batch size, or 0 without ``--data.tile``.
    """

    name = ""
    """Registered name; a class that gives none goes by its own."""
    image_size: int
    """Height and width of the images it takes, in pixels."""
    own_stages: ClassVar[tuple[Stage, ...]] = ()
    of_score: Sequence[str] = ()
    """Options of this model, beside ``HEADS`` and ``FREE`` of ``models.checkpoint``, that its scores depend on."""

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.5, 0.999), stages: Any = None) -> None:
        super().__init__()
        if lr is None or not 0 <= lr < math.inf:
            raise KanoclipError(f"lr is {lr}, expected 0 or more. Use --model.lr 0.001.")
        if betas is None or not all(0 <= float(beta) < 1 for beta in betas):
            raise KanoclipError(f"betas are {betas}, expected two numbers in [0, 1). Use --model.betas [0.5,0.999].")
        self.lr = float(lr)  # NumPy's numbers would stand in the optimiser's state
        self.betas = float(betas[0]), float(betas[1])
        self.stages = list(self.own_stages) if stages is None else read_stages(stages)
        self.running_stage: int | None = None
        self.results: dict[str, dict[str, float | None]] = {}
        self.overlap: dict[str, tuple[list[float], list[float]]] = {}
        self.counted: dict[str, Counted] = {}
        self.auxiliary: str | None = None
        self.fitted_images: list[int] | None = None
        self.fit_seed: int | None = None
        self.strict_options = False
        self.optimiser: dict[str, Any] = {}
        self.read_files: dict[str, str | None] = {}
        self.loaded_from: str | None = None
        self.tiles_at_once = 8
        self._metrics: EpochMetrics | None = None  # of the epoch that runs
        self._random_state: Tensor | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):  # or a user's subclass would pass for its parent in run folders
            cls.name = cls.__name__

    def __getstate__(self) -> dict[str, Any]:
        # its thread can be neither copied nor pickled; an epoch that was stopped leaves it behind
        return {**super().__getstate__(), "_metrics": None}

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """Keep the arguments as Lightning does, but no second copy of a backbone."""
        kwargs.setdefault("frame", sys._getframe(1))  # whose arguments they are
        with uncopied(), warnings.catch_warnings():  # it would have objects ignored, and lose the choice made by name
            warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`.*")
            super().save_hyperparameters(*args, **kwargs)

    def __call__(self, images: Any, *more: Any, category: str = "object", **options: Any) -> Any:
        """Score a batch, or images alone: ``model(images)``.

        Args:
            images: A ``Batch``, or ``(B, 3, image_size, image_size)`` float in [0, 1].
            *more: For a ``forward`` of your own that takes more.
            category: What images alone show.
            **options: As ``more``.

        Raises:
            KanoclipError: For a tensor of another shape or type.
        """
        batch = batch_of(images, category) if isinstance(images, Tensor) else images
        return super().__call__(batch, *more, **options)

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the terms of the training loss by name, weighted; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} learns nothing: it has no losses.")

    def describe_components(self) -> dict[str, str]:
        """Name the class of each component, for reports."""
        return {}

    @property
    def needs_training(self) -> bool:
        """Whether anything is learned; a model that learns nothing can be tested without a fit."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @classmethod
    def learns(cls, options: Mapping[str, Any]) -> bool | None:
        """Tell from the options of its constructor whether a model has anything to train; None: building it will tell.

        Args:
            options: Name -> value, a component as its class or null.
        """
        return None

    @property
    def has_adam(self) -> bool:
        """Whether its optimiser is the one below."""
        return type(self).configure_optimizers is AnomalyModule.configure_optimizers

    @property
    def stage(self) -> int:
        """Number of the stage that is being fitted, from 0; outside a fit that of the last one."""
        return max(len(self.stages) - 1, 0) if self.running_stage is None else self.running_stage

    def configure_callbacks(self) -> list[Callback]:
        """Bring along what fits in stages, if there are any."""
        return [FitInStages()] if self.stages else []

    def configure_optimizers(self) -> Any:
        """Adam over the heads.

        Raises:
            KanoclipError: If nothing is learned.
        """
        heads = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not heads:
            raise learns_nothing(self.name)
        return staged_adam(self) if self.stages else torch.optim.Adam(heads, lr=self.lr, betas=self.betas)

    def setup(self, stage: str) -> None:
        """Score as many tiles at once as a batch has images; tell DDP what is the same in every process for good."""
        if hasattr(self._data, "tile"):
            self.tiles_at_once = self._data.batch_size if self._data.tile else 0
        # DDP would send buffers before every batch, and hang where a rank has fewer batches to validate. Its public
        # switch (broadcast_buffers) is an option of the strategy, which `--trainer.strategy ddp` cannot set.
        same = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        same += [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, same)

    def on_fit_start(self) -> None:
        """Remember the auxiliary set and the contents of its images."""
        data, self.loaded_from = self._data, None
        self.auxiliary, self.fit_seed = getattr(data, "identity", None) or "unnamed data", run_seed()
        self.fitted_images = data.image_digests("fit") if hasattr(data, "image_digests") else None

    def on_train_start(self) -> None:
        """Go on with the random numbers of the run that is resumed."""
        if self._random_state is not None and self.trainer.ckpt_path:  # not what an earlier test has loaded
            torch.set_rng_state(self._random_state.cpu())
        self._random_state = None

    def training_step(self, batch: Batch) -> Tensor:  # type: ignore[override]  # Lightning hands over one batch
        """Return the sum of the losses of a batch.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite; the last checkpoint is from before.
        """
        scores = self(batch)
        losses = self.losses(batch, scores)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {float(loss.detach()):g}" for name, loss in losses.items())
            raise NonFiniteLossError(
                f"The loss is not finite in epoch {self.current_epoch}, step {self.global_step}: {values}. Nothing was "
                f"changed by this step. Lower --model.lr ({self.lr:g}), or use --trainer.precision 32-true."
            )
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch.image))
        for name, loss in losses.items():
            self.log(f"train/{name}", loss.detach(), batch_size=len(batch.image))
        if is_logged(self._trainer):
            self.log_dict(level_losses(batch, scores, getattr(self, "dice", "batch")), rank_zero_only=True)
        return total

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._start_metrics()

    def on_test_epoch_start(self) -> None:
        """Start counting anew."""
        self._start_metrics()

    def validation_step(self, batch: Batch) -> Scores:  # type: ignore[override]  # Lightning hands over one batch
        """Score a batch and count it."""
        return self._scored(batch)

    def test_step(self, batch: Batch) -> Scores:  # type: ignore[override]  # Lightning hands over one batch
        """Score a batch and count it."""
        return self._scored(batch)

    def predict_step(self, batch: Batch) -> Scores:  # type: ignore[override]  # Lightning hands over one batch
        """Score a batch; without what only the losses need, since Lightning may keep all predictions in memory."""
        scores = tiled(self, batch, self.image_size, self.tiles_at_once)
        return Scores(scores.anomaly_map, scores.image_score, defects=scores.defects)

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics."""
        self._finish_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Compute the metrics."""
        self._finish_metrics("test")

    def _start_metrics(self) -> None:
        self._metrics = EpochMetrics(self.device, getattr(self._data, "categories", []))

    def _scored(self, batch: Batch) -> Scores:
        assert self._metrics is not None  # for the type checker: an epoch has started
        scores = tiled(self, batch, self.image_size, self.tiles_at_once)
        self._metrics.update(batch, scores)
        return scores

    def _finish_metrics(self, stage: str) -> None:
        assert self._metrics is not None  # for the type checker: an epoch has started
        self.results, self.overlap, self.counted = self._metrics.compute(), self._metrics.overlap, self._metrics.counted
        self._metrics = None
        mean = self.results.get("mean", {})
        defined = {f"{stage}/{name}": value for name, value in mean.items() if value is not None}
        self.log_dict(defined, rank_zero_only=True)


def learns_nothing(name: str) -> KanoclipError:
    """Return the error of a fit of a model that has nothing to train."""
    return KanoclipError(f"{name} learns nothing, so it cannot be fitted. Run: kanoclip test --model {name}")
