"""MRAD-CLIP: the regions that the memory finds shift prompts, with which the patches are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.labelled_memory import LabelledMemory, neighbourhoods
from kanoclip.heads.losses import local_loss, with_mask
from kanoclip.heads.regional_prompts import RegionalPrompts
from kanoclip.heads.scoring import Score, check_temperature, dot
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import part_of, tensor_of
from kanoclip.models.rivals.anomalyclip import read_prompts
from kanoclip.models.rivals.mrad import MRADFT, file_of
from kanoclip.models.stages import Stage
from kanoclip.types import ANOMALOUS, Batch, Features, Scores


class MRADCLIP(MRADFT):
    """MRAD-FT whose patches are compared with prompts, which the regions that the memory finds shift (MRAD-CLIP).

    It is fitted in two stages: the layers of the memory as in MRAD-FT, then the prompts, whose map takes the place of
    the memory's. The image score is that of the memory, with the highest pixels of the map.

    Args:
        backbone: As in ``MRADTF``.
        attention: As in ``MRADTF``.
        memory: As in ``MRADTF``, with layers that learn.
        prompts: Prompts that the regions of an image shift.
        score: As in ``MRADTF``.
        alpha: As in ``MRADTF``.
        sigma: As in ``MRADTF``.
        temperature: Divisor of the cosine of patches and prompts.
        loss_temperature: As in ``MRADFT``.
        lr: Learning rate of a fit without stages.
        betas: The two decay rates of Adam.
        stages: Which heads learn in which epochs at what rate; null: the two of its code. The first of several fits
            the map of the memory, the others that of the prompts.

    Reference:
        As ``MRADTF``. In the first stage the rate is constant, unlike in a fit of MRAD-FT. Its code hides what
        ``ProjectedMemory`` hides in both stages; a comment has 0.95 for the regions of MRAD-CLIP. Where we differ:
        learned tokens inside the text encoder are not rounded to half precision; those that are imported were.
    """

    name = "mrad_clip"
    published = "mrad_clip_"
    heads = ("memory", "prompts")
    own_prompts = RegionalPrompts
    own_stages = (Stage(train=("memory",), epochs=1, lr=4e-4), Stage(train=("prompts",), epochs=5, lr=4e-4))
    prompts: RegionalPrompts

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        memory: LabelledMemory | None = None,
        prompts: RegionalPrompts | None = None,
        score: Score | None = None,
        alpha: float = 0.7,
        sigma: float = 4.0,
        temperature: float = 0.07,
        loss_temperature: float = 0.07,
        lr: float = 4e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        stages: list[dict[str, Any]] | None = None,
    ) -> None:
        check_temperature(temperature)
        check_temperature(loss_temperature)
        CLIPModule.__init__(self, lr, betas, stages)
        self.save_hyperparameters(logger=False)
        self.compose(backbone, attention, memory, score, alpha, sigma, prompts=prompts or self.own_prompts())
        self.temperature = temperature
        self.loss_temperature = loss_temperature

    @property
    def fits_memory(self) -> bool:
        """Whether the stage is being fitted in which the map is that of the memory."""
        return self.stage == 0 and len(self.stages) > 1

    def local(self, features: Features, p_patch: Tensor) -> Tensor:
        """Return p(anomalous) of each patch ``(B, N)``, by prompts that are shifted by what ``p_patch`` tells apart."""
        if self.fits_memory:
            return p_patch
        patches, at = neighbourhoods(features), self.backbone.levels_at
        patches = F.normalize(patches, dim=-1) if at == "joint" else self.backbone.joint(patches, norm=at == "block")
        states = self.prompts.shifted(patches, p_patch > 0.5, self.backbone)  # (B, 2, D)
        return (dot(patches[:, :, None], states[:, None]) / self.temperature).softmax(-1)[..., ANOMALOUS]

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the terms of MRAD-FT in the first of its stages, then ``local``: focal + both Dice of the prompts."""
        if self.fits_memory:
            return super().losses(batch, scores)
        assert scores.level_maps is not None  # for the type checker: forward returns them
        return self.weighted({"local": local_loss(*with_mask(scores.level_maps, batch), "image", 1e-5)}, scores)

    def configure_optimizers(self) -> Any:
        """Adam, whose rates are those of the stages."""
        return CLIPModule.configure_optimizers(self)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read ``mrad_clip_final.pth`` or one ``mrad_clip_epoch_N.pth`` of a folder with the two files of its memory.

        Returns:
            Options of the constructor, and the weights of our heads.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        options, weights = super().from_published(files)
        name = file_of(files, cls.published)
        prompts, learned = read_prompts(part_of(files[name], "prompt_learner", name), name)
        learned["prompts.deep"] = learned["prompts.deep"].half().float()  # as its code does in each block
        theirs, width = part_of(files[name], "prompt_proj", name), learned["prompts.vectors"].shape[-1]
        dim = weights["memory.image_keys"].shape[1]
        for i, layer in enumerate(("mlp1", "mlp2")):
            for key, shape in (("weight", (width, dim)), ("bias", (width,))):
                learned[f"prompts.shift.{i}.{key}"] = tensor_of(theirs, f"{layer}.{key}", shape, name)
        return {**options, "prompts": {"class_path": "regional", "init_args": prompts}}, {**weights, **learned}
