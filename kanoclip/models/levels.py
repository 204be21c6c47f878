"""The loss of each level's map, for a log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kanoclip.heads.losses import local_loss, with_mask
from kanoclip.types import Batch, Scores


def is_logged(trainer: Any) -> bool:
    """Return whether the trainer, if there is one, logs the step that runs: one of every ``log_every_n_steps``."""
    every = trainer.log_every_n_steps if trainer is not None and trainer.loggers else 0
    return bool(every) and (trainer.global_step + 1) % every == 0


@torch.no_grad()
def level_losses(batch: Batch, scores: Scores, dice: str = "batch") -> dict[str, Tensor]:
    """Return ``train/local_level_1`` and so on, unweighted: KAnoCLIP's local loss of each level's map alone.

    Their sum is the local loss of a model that has this one; for others they are one yardstick. Collective.

    Args:
        batch: What was scored.
        scores: With level maps ``(L, B, H, W)``; nothing is returned without several of them.
        dice: ``over`` of ``dice_loss``.
    """
    if scores.level_maps is None or len(scores.level_maps) < 2:
        return {}
    maps, mask = with_mask(scores.level_maps.detach(), batch)
    return {f"train/local_level_{i}": local_loss(one[None], mask, dice) for i, one in enumerate(maps, 1)}
