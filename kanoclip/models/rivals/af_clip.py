"""AF-CLIP: one layer of attention after a frozen tower, over its levels in windows of several sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.attention import QKV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.alignment import alignment_loss, patch_mask
from kanoclip.heads.binary_focal import binary_focal_loss
from kanoclip.heads.losses import with_mask
from kanoclip.heads.memory import Memory, NoMemory, Vectors
from kanoclip.heads.prefix import PrefixPrompts
from kanoclip.heads.prompts import Prompts
from kanoclip.heads.scoring import check_blur, check_temperature, dot, scaled, smooth
from kanoclip.heads.token_adapter import TokenAdapter, gaussian_window
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import tensor_of
from kanoclip.ranks import mean
from kanoclip.types import ANOMALOUS, Batch, Features, KanoclipError, Scores

GAMMA = 4.0  # of the focal losses
RESAVE = (
    "In the folder of AF-CLIP's own code: python -c \"import torch; torch.save(torch.load('weight/mvtec_adaptor.pt', "
    "map_location='cpu', weights_only=False).state_dict(), 'mvtec_adaptor_tensors.pt')\""
)
LAYERS = {  # of its adaptor -> of ours
    "attention.norm.weight": "norm.weight",
    "attention.norm.bias": "norm.bias",
    "attention.attn.to_q.weight": "query.weight",
    "attention.attn.to_k.weight": "key.weight",
    "attention.attn.to_v.weight": "value.weight",
    "attention.attn.to_out.0.weight": "out.weight",
    "attention.attn.to_out.0.bias": "out.bias",
}


class AFCLIP(CLIPModule):
    """Let the tokens of each level, in windows of 1, 3 and 5 patches, attend to each other before they meet the texts.

    A component left null is the model's own.

    Args:
        backbone: Frozen CLIP whose ``levels_at`` is block. null: ViT-L-14-336 with OpenAI's weights at 518 pixels,
            levels 6, 12, 18 and 24.
        attention: What the second path of the image tower attends to; its own has none.
        prompts: Text features of the two states.
        adapter: The layer of attention.
        memory: Reference images that patches are compared with beside the texts, in the same windows.
        windows: Sides of the windows in patches, odd.
        temperature: Divisor of the cosine; the logits of all levels and windows are summed.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; scaled to other sizes.
        text_weight: Weight of map and score by texts, where a memory gives distances of weight 1.
        overwritten_masks: Whether the gradient of the local focal loss takes -1 for a normal patch, as in its code: its
            alignment loss writes -1 over the 0 of the masks before the backward pass reads them.
        terms: Weights of the loss terms global, local and alignment; 1 for those that are not named.
        lr: Learning rate of Adam.
        betas: Its two decay rates.

    Raises:
        KanoclipError: If the backbone's patches are not as its blocks return them, or a window is not odd.

    Reference:
        Q. Fang et al., *AF-CLIP: Zero-Shot Anomaly Detection via Anomaly-Focused CLIP Adaptation*, ACM MM 2025, and its
        code, github.com/Faustinaqq/AF-CLIP. Where we differ: masks are resized to stay 0 or 1, where its code resizes
        them bicubically, and are not overwritten (``overwritten_masks: true`` is its code, by which its published
        weights are fitted); with a memory, map and score are divided by 1 + ``text_weight``, which ranks alike, to
        stay in [0, 1].
    """

    name = "af_clip"
    of_score = ("text_weight",)
    own_attention: type[Attention] = QKV
    own_prompts: type[Prompts] = PrefixPrompts
    own_adapter = TokenAdapter
    own_memory: type[Memory] = NoMemory
    heads = ("prompts", "adapter", "memory")
    prompts: Prompts
    adapter: TokenAdapter
    memory: Memory

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        prompts: Prompts | None = None,
        adapter: TokenAdapter | None = None,
        memory: Memory | None = None,
        windows: tuple[int, ...] = (1, 3, 5),
        temperature: float = 0.07,
        sigma: float = 4.0,
        text_weight: float = 0.1,
        overwritten_masks: bool = False,
        terms: dict[str, float] | None = None,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__(lr, betas)
        self.save_hyperparameters(logger=False)
        check_blur(sigma)
        check_temperature(temperature)
        if not windows or not all(side > 0 and side % 2 for side in windows):
            raise KanoclipError(
                f"windows are {list(windows)}, expected odd numbers of patches. Use --model.windows '[1, 3, 5]'."
            )
        backbone = backbone or CLIPBackbone(position="bilinear", levels_at="block")
        if backbone.levels_at != "block":
            raise KanoclipError(
                f"af_clip adapts tokens as blocks return them, but levels_at is {backbone.levels_at!r}. "
                f"Use --model.backbone.levels_at block."
            )
        self.assemble(
            backbone,
            attention or self.own_attention(),
            prompts=prompts or self.own_prompts(),
            adapter=adapter or self.own_adapter(),
            memory=memory or self.own_memory(),
        )
        self.windows = tuple(windows)
        self.temperature = temperature
        self.sigma = scaled(sigma, self.image_size)
        self.text_weight = text_weight
        self.overwritten_masks = overwritten_masks
        self.weigh({"global": 1.0, "local": 1.0, "alignment": 1.0}, terms)

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges. ``level_maps`` has one map, on the grid of patches."""
        sets = self.sets(self.features(batch))  # S sets: patches (S, B, N, W), class tokens (S, B, W)
        assert sets.level_cls is not None  # for the type checker: the constructor has seen to it
        tokens = torch.cat([sets.level_cls[:, :, None], sets.patches], 2)  # (S, B, 1 + N, W)
        adapted = [self.backbone.joint(self.adapter(one)) for one in tokens]  # S times (B, 1 + N, D), unit length
        states = self.prompts(batch.category, self.backbone)  # (B, 2, D)
        cosines = torch.stack([dot(one[:, :, None], states[:, None]) for one in adapted])  # (S, B, 1 + N, 2)
        logits = cosines.sum(0) / self.temperature  # (B, 1 + N, 2)
        probability = logits.softmax(-1)[..., ANOMALOUS]  # (B, 1 + N)
        score, by_text = probability[:, 0], probability[:, 1:].unflatten(1, sets.grid)  # (B,), (B, h, w)

        terms, heat = None, by_text
        if self.training:
            known = batch.has_mask
            mask = patch_mask(batch.mask[known], sets.grid)
            terms = {"alignment": alignment_loss([one[known, 1:] for one in adapted], mask)}
        elif (distance := self.memory(sets, batch.category)) is not None:  # (B, h, w)
            heat = (distance + self.text_weight * heat) / (1 + self.text_weight)
            score = (distance.flatten(1).amax(1) + self.text_weight * score) / (1 + self.text_weight)
        heat = F.interpolate(heat[:, None], size=(self.image_size,) * 2, mode="bilinear")[:, 0]  # (B, H, W)
        heat = heat if self.training else smooth(heat, self.sigma)
        return self.with_terms(Scores(heat, score, by_text[None], logits[:, 0], states, terms))

    def sets(self, features: Features) -> Features:
        """Return each level in each window: ``(L * R, B, N, W)``, and the class token of the level with each."""
        patches, cls, grid, level_cls = features
        assert level_cls is not None  # for the type checker: the constructor has seen to it
        seen = torch.stack([gaussian_window(patches, grid, side) for side in self.windows], 1)  # (L, R, B, N, W)
        return Features(seen.flatten(0, 1), cls, grid, level_cls.repeat_interleave(len(self.windows), 0))

    def vectors(self, batch: Batch) -> Vectors:
        """Return the patches of each level in each window, untouched by the adapter, which a memory keeps."""
        return list(self.sets(self.features(batch)).patches)

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the weighted terms global, local (on the grid of patches) and alignment."""
        maps, logits = scores.level_maps, scores.logits
        assert maps is not None  # for the type checker: forward returns both
        assert logits is not None
        (heat,), mask = with_mask(maps, batch)
        mask = patch_mask(mask, heat.shape[-2:])
        overwritten = torch.where(mask == 0, -1.0, mask) if self.overwritten_masks else None
        terms = {
            "global": binary_focal_loss(logits.softmax(-1)[:, ANOMALOUS], batch.label, GAMMA),
            "local": binary_focal_loss(heat, mask, GAMMA, overwritten) + mean((heat - mask).abs()),
        }
        return self.weighted(terms, scores)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Turn the authors' ``mvtec_prompt.pt`` and the tensors of ``mvtec_adaptor.pt`` into options and weights.

        Args:
            files: Name of the file -> the prompt, a tensor; and the state dict of the adaptor.

        Raises:
            KanoclipError: Naming what is missing or has another shape, or for the adaptor as its authors saved it: a
                pickled module, which nobody should open.
        """
        prompts = [name for name, content in files.items() if isinstance(content, Tensor)]
        adaptors = [name for name, content in files.items() if isinstance(content, Mapping)]
        if any(isinstance(content, nn.Module) for content in files.values()) or (prompts and not adaptors):
            raise KanoclipError(
                f"AF-CLIP's adaptor is a pickled module, and opening one runs what is in it; its tensors alone are "
                f"expected, beside the prompt. {RESAVE}"
            )
        if (len(prompts), len(adaptors)) != (1, 1):
            raise KanoclipError(
                f"{', '.join(files) or 'No file'}: expected two files of AF-CLIP, such as mvtec_prompt.pt and "
                f"mvtec_adaptor_tensors.pt, the tensors of its adaptor. Give a folder with these two."
            )
        (prompt,), (adaptor,) = prompts, adaptors
        prefix = tensor_of({"prompt": files[prompt]}, "prompt", (1, None, None), prompt)[0]  # (E, W)
        layers = files[adaptor]
        query = tensor_of(layers, "attention.attn.to_q.weight", (None, None), adaptor)
        inner, width = query.shape
        shapes = {"norm": (width,), "query": (inner, width), "key": (inner, width), "value": (inner, width)}
        shapes |= {"out.weight": (width, inner), "out.bias": (width,)}
        state = {"prompts.prefix": prefix}
        for theirs, ours in LAYERS.items():
            shape = shapes.get(ours) or shapes[ours.partition(".")[0]]
            state[f"adapter.{ours}"] = tensor_of(layers, theirs, shape, adaptor)
        options = {
            "backbone": {"class_path": "clip", "init_args": {"position": "bilinear", "levels_at": "block"}},
            "prompts": {"class_path": "prefix", "init_args": {"context": len(prefix)}},
        }
        return options, state
