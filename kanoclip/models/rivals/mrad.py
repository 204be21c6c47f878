"""MRAD: images and regions of the auxiliary set, remembered with their labels, say what an image is alike to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from kanoclip.backbone.attention import VV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.labelled_memory import LabelledMemory, ProjectedMemory
from kanoclip.heads.losses import dice_loss, focal_loss, global_loss, with_mask
from kanoclip.heads.scoring import Score, TopKScore, check_blur, check_temperature, scaled, smooth
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import part_of, tensor_of
from kanoclip.types import Batch, Features, KanoclipError, Scores


class MRADTF(CLIPModule):
    """Compare images and patches with those of the auxiliary set, by their labels; no text, nothing learned (MRAD-TF).

    A fit fills the memory in one pass over the auxiliary set, and is then done.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, level 24 alone, behind the last
            norm and before the projection.
        attention: What the second path attends to. null: v-v attention in all blocks but the first.
        memory: What is remembered, and how it is read.
        score: What the map adds to the image score. null: the mean of its highest 1 %.
        alpha: Share of the image's own probability in the image score, in [0, 1].
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; scaled to other sizes.
        lr: Not used: nothing is optimised; so are ``betas``.

    Raises:
        KanoclipError: If ``alpha`` is not in [0, 1], or ``sigma`` below 0.

    Reference:
        C. Xu et al., *MRAD: Zero-Shot Anomaly Detection with Memory-Driven Retrieval*, ICLR 2026, arXiv 2602.00522,
        and its code, github.com/CROVO1026/MRAD. Where we differ: the script that fills its memory is not published, its
        functions are; masks are resized to stay 0 or 1; all processes of a run fill one memory.
    """

    name = "mrad_tf"
    of_score = ("alpha",)
    heads: ClassVar[tuple[str, ...]] = ("memory",)
    own_memory: type[LabelledMemory] = LabelledMemory
    memory: LabelledMemory
    score: Score

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        memory: LabelledMemory | None = None,
        score: Score | None = None,
        alpha: float = 0.7,
        sigma: float = 4.0,
        lr: float = 4e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__(lr, betas)
        self.save_hyperparameters(logger=False)
        self.compose(backbone, attention, memory, score, alpha, sigma)

    def compose(
        self,
        backbone: CLIPBackbone | None,
        attention: Attention | None,
        memory: LabelledMemory | None,
        score: Score | None,
        alpha: float,
        sigma: float,
        **parts: nn.Module,
    ) -> None:
        """Take over what all kinds of MRAD have, and further ``parts`` by kind, as ``assemble``."""
        if not 0 <= alpha <= 1:
            raise KanoclipError(f"alpha is {alpha}, expected a share in [0, 1]. Use --model.alpha 0.7.")
        check_blur(sigma)
        self.assemble(
            backbone or CLIPBackbone(levels=[24], position="bilinear", cls_norm=False, levels_at="norm"),
            attention or VV(first=2),
            memory=memory or self.own_memory(),
            **parts,
            score=score or TopKScore(),
        )
        self.alpha = alpha
        self.sigma = scaled(sigma, self.image_size)
        self.loss_temperature = 0.07

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges."""
        features = self.features(batch)
        p_image, p_patch = self.memory.read(features)  # (B,), (B, N)
        grid = self.local(features, p_patch).unflatten(-1, features.grid)[:, None]
        maps = F.interpolate(grid, size=(self.image_size,) * 2, mode="bilinear")[:, 0]  # (B, H, W)
        heat = maps if self.training else smooth(maps, self.sigma)
        score = self.alpha * p_image + (1 - self.alpha) * self.score(p_image, heat)  # (B,)
        logits = torch.stack([1 - p_image, p_image], -1) / self.loss_temperature  # a probability, as in its code
        return self.with_terms(Scores(heat, score, maps[None], logits))

    def local(self, features: Features, p_patch: Tensor) -> Tensor:
        """Return p(anomalous) of each patch ``(B, N)``: what the memory says of it, ``p_patch``."""
        return p_patch

    @classmethod
    def learns(cls, options: Mapping[str, Any]) -> bool | None:
        """A fit is needed, to fill the memory."""
        return True

    @property
    def needs_training(self) -> bool:
        """A fit is needed, to fill the memory."""
        return True

    def setup(self, stage: str) -> None:
        """Make a fit one pass if nothing is trained."""
        super().setup(stage)
        if stage != "fit" or any(parameter.requires_grad for parameter in self.parameters()):
            return
        self.trainer.fit_loop.max_epochs = 1  # or progress would speak of as many as there might be
        self.trainer.accumulate_grad_batches = 1  # or its one batch is no step, and nothing is kept
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):  # DDP refuses to wrap a module without a gradient to average
            strategy.configure_ddp = partial(_wrap_what_is_trained, strategy)  # type: ignore[method-assign]  # of this one

    def configure_optimizers(self) -> Any:
        """Nothing is optimised."""
        return None

    def training_step(self, batch: Batch) -> Any:  # type: ignore[override]  # Lightning hands over one batch
        """End the fit, which is done: the memory was filled when it started."""
        self.trainer.should_stop = True
        return torch.zeros((), requires_grad=True) if self.trainer.world_size > 1 else None  # Lightning asks for a loss

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the memory that its functions write: ``cache_model_X.pt`` and ``cache_patch_model_X.pt``.

        Returns:
            Options of the constructor, and the weights of our heads.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        weights: dict[str, Tensor] = {}
        for kind, prefix in (("image", "cache_model_"), ("patch", "cache_patch_model_")):
            name = file_of(files, prefix)
            keys = tensor_of(files[name], "keys", (None, None), name)
            labels = tensor_of(files[name], "values", (len(keys), 2), name)[:, 1]
            weights |= {f"memory.{kind}_keys": keys, f"memory.{kind}_labels": labels.contiguous()}
        backbone = {"levels": [24], "position": "bilinear", "cls_norm": False, "levels_at": "norm"}
        return {"backbone": {"class_path": "clip", "init_args": backbone}}, weights


class MRADFT(MRADTF):
    """MRAD-TF with linear layers in front of queries and memory, which a fit trains (MRAD-FT).

    Args:
        loss_temperature: Divisor of the probabilities in the cross-entropy of the image.
        lr: Learning rate of Adam; it falls along a cosine to 1e-6 at the last step.
        betas: Its two decay rates.
        **options: As in ``MRADTF``.

    Reference:
        As ``MRADTF``. Its code hides the same rows in training as ``ProjectedMemory``.
    """

    name = "mrad_ft"
    published: ClassVar[str] = "mrad_ft_"
    """What the names of its authors' files of weights begin with."""
    own_memory = ProjectedMemory

    def __init__(
        self,
        loss_temperature: float = 0.07,
        lr: float = 4e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        **options: Any,
    ) -> None:
        check_temperature(loss_temperature)
        super().__init__(lr=lr, betas=betas, **options)
        self.loss_temperature = loss_temperature

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return ``global``, cross-entropy, and ``local``, focal + Dice(anomalous)."""
        assert scores.level_maps is not None  # for the type checker: forward returns both
        assert scores.logits is not None
        maps, mask = with_mask(scores.level_maps, batch)
        terms = {
            "global": global_loss(scores.logits, batch.label),
            "local": focal_loss(maps, mask) + dice_loss(maps, mask, "image"),
        }
        return self.weighted(terms, scores)

    training_step = CLIPModule.training_step

    def configure_optimizers(self) -> Any:
        """Adam over the linear layers, with a cosine over all steps of the fit."""
        optimizer = CLIPModule.configure_optimizers(self)
        schedule = CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches), eta_min=1e-6)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read ``mrad_ft_final.pth`` or ``mrad_ft_epoch_1.pth`` of a folder with the two files of its memory.

        Returns:
            Options of the constructor, and the weights of our heads.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        options, weights = super().from_published(files)
        name = file_of(files, cls.published)
        for kind, layers in (("image", ("mlp1", "mlp2")), ("patch", ("fc.0", "fc.1"))):
            theirs = part_of(files[name], f"{kind}_proj", name)
            width, dim = (weights[f"memory.{which}_keys"].shape[1] for which in (kind, "image"))
            for ours, layer in zip(("query", "key"), layers, strict=True):
                for key, shape in (("weight", (dim, width)), ("bias", (dim,))):
                    weights[f"memory.{kind}_{ours}.{key}"] = tensor_of(theirs, f"{layer}.{key}", shape, name)
        return options, weights


def _wrap_what_is_trained(strategy: DDPStrategy) -> None:
    """Do what a strategy's own ``configure_ddp`` does, unless its model trains nothing."""
    model = strategy.lightning_module
    assert model is not None  # for the type checker: its setup is over
    if any(parameter.requires_grad for parameter in model.parameters()):
        type(strategy).configure_ddp(strategy)


def file_of(files: Mapping[str, Any], prefix: str) -> str:
    """Return the name of the one file whose name begins so.

    Raises:
        KanoclipError: If there is none, there are several, or it is no mapping.
    """
    found = [name for name in files if name.startswith(prefix)]
    if len(found) != 1 or not isinstance(files[found[0]], Mapping):
        raise KanoclipError(
            f"Expected one file {prefix}*, a mapping of weights, among {', '.join(files)}. Put the two files of the "
            f"memory, and the weights of MRAD-FT, into one folder and give that."
        )
    return found[0]
