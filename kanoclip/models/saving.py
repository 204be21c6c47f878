"""What a model keeps in a checkpoint and takes from one: its heads, and nothing that would have to be unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from kanoclip.backbone.head import Head
from kanoclip.models.checkpoint import about, check_agreement, plain, run_seed, up_to_date
from kanoclip.models.contents import check_entry, check_progress, check_weights

FROZEN = "backbone."


class SavedModule(LightningModule):
    """A model whose checkpoints hold its heads and say where they come from; the base of ``AnomalyModule``."""

    auxiliary: str | None
    fit_seed: int | None
    fitted_images: list[int] | None
    loaded_from: str | None
    read_files: dict[str, str | None]
    _random_state: Tensor | None

    @property
    def has_adam(self) -> bool:
        """Whether one Adam steps all heads in order, so that a checkpoint's can be compared with it."""
        return False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the heads, where they come from, and nothing that would have to be unpickled."""
        state, given = checkpoint["state_dict"], checkpoint.get("hyper_parameters", {})
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith(FROZEN)}
        checkpoint["hyper_parameters"] = {k: plain(v) for k, v in given.items() if not isinstance(v, nn.Module)}
        checkpoint["kanoclip"] = about(self, self._data, run_seed())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this model, and to the data of a fit; add the backbone's own weights.

        Raises:
            CheckpointError: If it was written by something else or fitted with other options, see ``check_agreement``.
        """
        entry = check_entry(checkpoint, "This checkpoint")
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        check_agreement(entry, checkpoint.get("hyper_parameters", {}), self, self._data if fitting else None)
        if fitting:
            callbacks = getattr(self.trainer, "callbacks", [])
            states = {one.state_key: state for one in callbacks if (state := one.state_dict())}
            own = {"loops": {"fit_loop": self.trainer.fit_loop.state_dict()}, "callbacks": states}
            check_progress(checkpoint, self, own, self.has_adam)
            # Lightning restores callbacks after this. It would take over the paths of checkpoints, and delete them.
            for one in callbacks:
                if isinstance(one, Checkpoint):
                    checkpoint["callbacks"].pop(one.state_key, None)
        else:  # what only a fit goes on with
            for name in ("loops", "callbacks", "MixedPrecision", "native_amp_scaling_state"):
                checkpoint.pop(name, None)
        self.auxiliary, self.fit_seed = entry["auxiliary"], entry.get("seed")
        self.read_files = dict(entry.get("knowledge") or {})
        images = entry.get("images")
        self.fitted_images = None if images is None else images.tolist()
        self._random_state = entry["random_state"]
        frozen = {name: value for name, value in self.state_dict().items() if name.startswith(FROZEN)}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **frozen}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as torch does; if they do not fit, the first that differs is told in one line."""
        for name, part in self.named_children():
            if isinstance(part, Head):
                start = f"{name}."
                part.make_room({k.removeprefix(start): v for k, v in state_dict.items() if k.startswith(start)})
        if strict:
            check_weights(state_dict, self)
        return super().load_state_dict(state_dict, strict, assign)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Build the model that a checkpoint tells, with its heads; one of version 0.1.0 loads too."""
        model = super().load_from_checkpoint(up_to_date(checkpoint_path, cls, kwargs), *args, **kwargs)
        model.loaded_from = f"{checkpoint_path}"
        return model

    @property
    def _data(self) -> Any:
        return getattr(self._trainer, "datamodule", None)
