"""torch.compile for the frozen backbone."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


class CompiledBackbone(Callback):
    """Compile the backbone when a run starts; the first batch of each size then takes a minute or more.

    A callback rather than an option of the backbone: a checkpoint fitted with it can be tested without it, and the
    other way round. On a CPU it needs a C++ compiler. Features change by rounding only; weights keep their names.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile the backbone's ``forward`` in place."""
        backbone = getattr(pl_module, "backbone", None)
        if isinstance(backbone, nn.Module):  # local_stats has none
            backbone.compile()
