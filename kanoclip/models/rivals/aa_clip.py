"""AA-CLIP: residual adapters, first in the text tower, so that it tells damage, then in the image tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import QKV, VV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.residual import ResidualTuning
from kanoclip.backbone.tuning import Tuning
from kanoclip.heads.adapter import Adapter
from kanoclip.heads.interaction import Interaction, LevelProjection
from kanoclip.heads.losses import dice_loss, focal_loss, global_loss, with_mask
from kanoclip.heads.projections import PatchMean, ProjectedPrompts
from kanoclip.heads.prompts import Prompts
from kanoclip.heads.scoring import MeanScore, Score, check_blur, dot, level_maps
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import AS_PUBLISHED, part_of, tensor_of
from kanoclip.models.stages import Stage
from kanoclip.ranks import mean
from kanoclip.types import ANOMALOUS, NORMAL, Batch, Features, KanoclipError, Scores

TEMPERATURE = 0.01  # a logit scale of 100


class Values(Attention):
    """Attend to nothing: each token keeps its own value, as in MaskCLIP."""

    in_place = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the values."""
        return v


class AcrossImages(Attention):
    """Let a place attend to the same place of the other images of the batch, value to value.

    AA-CLIP's code does so in its first stage: a module that wants the batch first gets the tokens first.
    """

    in_place = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend over the batch."""
        places = v.transpose(0, 2)  # (N, heads, B, d)
        return F.scaled_dot_product_attention(places, places, places).transpose(0, 2)


class PatchesInPlace(VV):
    """Values attend to values of the same image, in place of CLIP's own attention."""

    in_place = True


STAGE1_ATTENTION: dict[str, type[Values] | type[AcrossImages] | type[PatchesInPlace]] = {
    "value": Values,
    "batch": AcrossImages,
    "patches": PatchesInPlace,
}


class AACLIP(CLIPModule):
    """Adapt CLIP's text tower to tell damaged from intact first, then its image tower to those texts.

    Stage 1 fits adapters in the text tower and its output projection to patches of the frozen image tower. Stage 2
    fits adapters in the image tower, a projection of each level and one of the image, to the texts as they are then.
    A component left null is the model's own; every one can be replaced by name, class path or object.

    Args:
        backbone: Frozen CLIP, whose levels are read behind its last norm. null: ViT-L-14-336 with OpenAI's weights at
            518 pixels, levels 6, 12, 18 and 24, with GELU, as in its code, though the weights were trained with
            QuickGELU.
        attention: What a second path of the tower of stage 2 attends to; null: none, qkv.
        prompts: Text features of the two states.
        interaction: How the patches of each level are brought to the texts.
        adapter: What makes the global feature.
        tuning: What is trained inside the towers.
        score: How the image score is made, of the global (cos + 1) / 2 and the map. null: their mean. For medical
            images the paper takes the highest pixel alone: map_max.
        stage1_attention: What patches attend to in blocks 6 to 24 of the tower of stage 1: "value", nothing but
            themselves; "batch", the same place in the other images of the batch, as its code does by mistake (the same
            as "value" in a batch of one); "patches", v-v attention inside the image, as was meant.
        stage1_levels: Levels that stage 1 learns from: the "last", as its code does, or "all".
        orthogonal: Weight of the squared cosine of the two states in stage 1.
        blur: Gaussian blur of the map outside training, in patches, cut at 3 times as many; for medical images 1.5.
        lr: Not used while there are stages, which have rates of their own.
        betas: The two decay rates of Adam.
        stages: Which heads learn in which epochs, a list of mappings as ``Stage`` takes them; null: the two of the
            paper. In all but the last one the text is fitted to the frozen tower.

    Reference:
        W. Ma et al., *AA-CLIP: Enhancing Zero-Shot Anomaly Detection via Anomaly-Aware CLIP*, CVPR 2025, and its code.
        Where we differ: its test map is the sum over levels of (100 cos_a + 1 - 100 cos_n) / 2; ours is the mean over
        levels of (cos_a - cos_n + 2) / 4, which ranks alike and lies in [0, 1]. It normalises maps and text scores of
        a category over the whole test set before it averages their maximum and the text score; ours are averaged as
        they are, though the map varies a quarter as much. Of one short fit of the embedded backbone, on 112 drawn
        images, image AUROC was 95 by the map alone (``score: map_max``), 90 by this mean, 85 by the text alone, 94
        normalised as in its code, and 88 with the map through a sigmoid at 0.01 first, so that is left out. Its
        descriptions of categories by hand are an option (``prompts.names``). Its paper has a loss of the image in
        stage 1 and fuses levels before comparing them; its code, and ours, have neither.
    """

    name = "aa_clip"
    of_score = ("blur",)
    heads = ("prompts", "interaction", "adapter", "tuning")
    own_interaction: type[Interaction] = LevelProjection
    own_prompts: type[Prompts] = ProjectedPrompts
    own_adapter: type[Adapter] = PatchMean
    own_tuning: type[Tuning] = ResidualTuning
    own_stages = (
        Stage(("prompts", "tuning.textual"), epochs=5, lr=1e-5),
        Stage(
            ("interaction", "adapter", "tuning.visual"), epochs=20, lr=5e-4, schedule="steps", milestones=(16000, 32000)
        ),
    )
    prompts: Prompts
    interaction: Interaction
    adapter: Adapter
    score: Score

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        prompts: Prompts | None = None,
        interaction: Interaction | None = None,
        adapter: Adapter | None = None,
        tuning: Tuning | None = None,
        score: Score | None = None,
        stage1_attention: Literal["value", "batch", "patches"] = "value",
        stage1_levels: Literal["last", "all"] = "last",
        orthogonal: float = 0.1,
        blur: float = 1.0,
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        stages: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(lr, betas, stages)
        self.save_hyperparameters(logger=False)
        check_blur(blur)
        self.assemble(
            (backbone or CLIPBackbone(activation="gelu")).reading("norm"),
            attention or QKV(),
            prompts=prompts or self.own_prompts(),
            interaction=interaction or self.own("interaction", LevelProjection, bias=False),
            adapter=adapter or self.own_adapter(),
            score=score or MeanScore(),
            tuning=tuning or self.own_tuning(),
        )
        self.stage1_attention = STAGE1_ATTENTION[stage1_attention]()
        self.stage1_levels = stage1_levels
        self.orthogonal = orthogonal
        self.blur = blur

    @property
    def fits_text(self) -> bool:
        """Whether a stage is being fitted that moves the texts toward the frozen tower."""
        return self.stage < len(self.stages) - 1

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges. While fitting, ``logits`` are bare cosines."""
        states = self.prompts(batch.category, self.backbone, None, self.tuning.text(None))  # (B, 2, D)
        features = self.frozen(batch) if self.fits_text else self.features(batch)  # patches (L, B, N, W)
        if self.fits_text:
            cls, patches = features.cls, self.frozen_patches(batch, features)  # (B, D), (1 or L, B, N, D)
        else:
            cls = self.adapter(features.cls, features.patches, features.grid)
            patches, _ = self.interaction(features.patches, states)
        each = states.expand(len(patches), -1, -1, -1)  # (L, B, 2, D)
        maps = level_maps(patches, each, features.grid, self.image_size, TEMPERATURE, "logits", align_corners=True)
        cosines = dot(cls[:, None], states)  # (B, 2)
        heat = maps.mean(0) if self.training else self.test_map(patches, states, features.grid)  # (B, H, W)
        score = self.score((cosines[:, ANOMALOUS] + 1) / 2, heat)
        return self.with_terms(Scores(heat, score, maps, cosines, states))

    def frozen_patches(self, batch: Batch, features: Features) -> Tensor:
        """Return the patches of stage 1 ``(1 or L, B, N, D)``: unit length, plus the plain tower's class token."""
        local = self.backbone(batch.image, self.stage1_attention).patches
        patches = self.backbone.joint(local if self.stage1_levels == "all" else local[-1:], norm=False)
        return patches + features.cls[:, None]

    def test_map(self, patches: Tensor, states: Tensor, grid: tuple[int, int]) -> Tensor:
        """Average the difference of the cosines over levels, blur and enlarge it: ``(B, H, W)`` in [0, 1]."""
        difference = dot(patches, (states[:, ANOMALOUS] - states[:, NORMAL])[:, None]).mean(0).unflatten(-1, grid)
        large = F.interpolate(
            blurred(difference, self.blur)[:, None], size=(self.image_size,) * 2, mode="bilinear", align_corners=True
        )
        return ((large[:, 0] + 2) / 4).clamp(0, 1)

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return ``local`` (focal and both Dice), and ``orthogonal`` in stage 1 or ``global`` in stage 2."""
        maps, logits, states = scores.level_maps, scores.logits, scores.states
        assert maps is not None  # for the type checker: forward returns all of them
        assert logits is not None
        assert states is not None
        known = with_mask(maps, batch)
        terms = {"local": focal_loss(*known, smooth=1e-5) + dice_loss(*known, "image", normal=True)}
        if self.fits_text:
            terms["orthogonal"] = self.orthogonal * mean(dot(states[:, NORMAL], states[:, ANOMALOUS])).square()
        else:
            terms["global"] = global_loss(logits, batch.label)
        return self.weighted(terms, scores)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Turn the two files that its code writes into options of the constructor and weights of the heads.

        Args:
            files: File name -> content of text_adapter.pth and of one or more image_adapter_N.pth, of which the latest
                epoch counts. The weights of the blend stand in neither: they are taken for the published 0.1.

        Raises:
            KanoclipError: Naming the file or the weight that is missing.
        """
        (text_file, text), (image_file, image) = (_latest(files, name) for name in ("text_adapter", "image_adapter"))
        relu = "det_proj.fc.0.weight" in image
        fc = "fc.0" if relu else "fc"
        text_blocks = sum(key != f"{len(text) - 1}.fc.0.weight" for key in text)
        image_blocks = sum(key.startswith("layer_adapters.") for key in image)
        levels = sum(key.startswith("seg_proj.") for key in image)
        of_text = {f"tuning.textual.{n}.weight": f"{n}.fc.0.weight" for n in range(text_blocks)}
        of_text |= {"prompts.projection.weight": f"{text_blocks}.fc.0.weight"}
        of_image = {f"tuning.visual.{n}.weight": f"layer_adapters.{n}.fc.0.weight" for n in range(image_blocks)}
        of_image |= {f"interaction.layers.{n}.weight": f"seg_proj.{n}.{fc}.weight" for n in range(levels)}
        of_image |= {"adapter.projection.weight": f"det_proj.{fc}.weight"}
        weights = {ours: tensor_of(text, key, (None, None), text_file) for ours, key in of_text.items()}
        weights |= {ours: tensor_of(image, key, (None, None), image_file) for ours, key in of_image.items()}
        options = {
            "backbone": {"class_path": "clip", "init_args": {"activation": "gelu"}},
            "tuning": {
                "class_path": "residual",
                "init_args": {"image_blocks": image_blocks, "text_blocks": text_blocks},
            },
            "interaction": {"class_path": "level_projection", "init_args": {"bias": False, "relu": relu}},
            "adapter": {"class_path": "patch_mean", "init_args": {"relu": relu}},
        }
        return options, weights


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps ``(B, h, w)`` by a Gaussian cut at 3 sigma; behind a border stands its mirror image, the edge once."""
    radius = min(int(3 * sigma), min(maps.shape[-2:]) - 1)
    if radius < 1:
        return maps
    distance = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    weights = (-(distance**2) / (2 * sigma**2)).exp()
    weights = weights / weights.sum()
    padded = F.pad(maps[:, None], (radius,) * 4, mode="reflect")[:, 0]
    for axis in (-2, -1):
        padded = (padded.unfold(axis, 2 * radius + 1, 1) * weights).sum(-1)
    return padded


def _latest(files: Mapping[str, Any], part: str) -> tuple[str, dict[str, Any]]:
    """Return name and weights of the file that has a part, such as image_adapter; of several, of the latest epoch."""
    found = {name: one for name, one in files.items() if isinstance(one, Mapping) and part in one}
    if not found:
        raise KanoclipError(
            f"None of {', '.join(files) or 'no file'} has {part!r}. AA-CLIP's code writes text_adapter.pth and "
            f"image_adapter_N.pth into one folder: give that folder."
        )
    epochs = {name: one.get("epoch", 0) for name, one in found.items()}
    for name, epoch in epochs.items():
        if not isinstance(epoch, int):
            raise KanoclipError(f"{name}: 'epoch' is no whole number, but {type(epoch).__name__}. {AS_PUBLISHED}")
    name = max(found, key=lambda one: epochs[one])
    return name, part_of(found[name], part, name)
