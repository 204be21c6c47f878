"""torch.compile for the frozen backbone: how a run computes, like its precision, not what its model is."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


class CompiledBackbone(Callback):
    """Compile the backbone when a run starts; the first batch of each size then takes a minute or more.

    A callback and not an option of the backbone, so that a checkpoint that was fitted with or without it can be tested
    either way. Needs a C++ compiler on a CPU. Features change by rounding alone; weights keep their names.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile in place, what runs when the backbone is called with images."""
        backbone = getattr(pl_module, "backbone", None)
        if isinstance(backbone, nn.Module):  # local_stats has none
            backbone.compile()
