"""CoPS: prompts synthesized from the image, weighed by the distances of its patches from their prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import VV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.losses import dice_loss, focal_loss, global_loss, with_mask
from kanoclip.heads.scoring import check_blur, check_temperature, dot, scaled, smooth
from kanoclip.heads.synthesized_prompts import SynthesizedPrompts
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import only_file, part_of, tensor_of
from kanoclip.ranks import total
from kanoclip.types import ANOMALOUS, NORMAL, Batch, KanoclipError, Scores

WEIGHTS = {"global": 1.0, "local": 4.0, "normal": 1.0, "anomalous": 1.0}


class CoPS(CLIPModule):
    """Compare patches with prompts synthesized from the image, and weigh them by their distance from its prototypes.

    A component left null is the model's own.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, level 24 behind the last norm,
            and the global feature at its own length. The last level is the one that is read.
        attention: What the second path of the image tower attends to. null: v-v attention in all blocks.
        prompts: The synthesized prompts.
        alpha: Weight of the distance from the nearest normal prototype, in [0, 1]; the rest is that of the nearness of
            the nearest anomalous one.
        beta: Weight of the global probability in the image score, in [0, 1]; the rest is that of the highest patch.
        temperature: Divisor of the cosine, of global and local similarities alike.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; scaled to other sizes.
        terms: Weights of the loss terms ``global``, ``local``, ``normal``, ``anomalous``, ``kl`` and ``recon``, by
            name; 4 for ``local`` and 1 for the others if they are not named.
        lr: Learning rate of Adam.
        betas: Its two decay rates.

    Raises:
        KanoclipError: If a number is out of its range.

    Reference:
        Q. Chen et al., *CoPS: Conditional Prompt Synthesis for Zero-Shot Anomaly Detection*, CVPR 2026 Findings, arXiv
        2508.03447, and its code, github.com/cqylunlun/CoPS. Where we differ: the normal prompt gets the normal
        prototypes (``swapped_prototypes``), each image is reconstructed from its own latent (``recon: image``) and
        learned tokens are not rounded to half precision (``round_tokens``); its published weights are fitted to the
        other. Latents at a test are the same for all images, and the distances are stretched to [0, 1] over the patches
        of an image, as there with a batch of one. Its ``pool``, ``alpha`` and ``beta`` follow the name of the test set:
        here they are the same for all, see the config. Images without a mask have no local loss.
    """

    name = "cops"
    own_attention: type[Attention] = VV
    own_prompts = SynthesizedPrompts
    heads = ("prompts",)
    prompts: SynthesizedPrompts

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        prompts: SynthesizedPrompts | None = None,
        alpha: float = 0.26,
        beta: float = 0.9,
        temperature: float = 0.07,
        sigma: float = 4.0,
        terms: dict[str, float] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__(lr, betas)
        self.save_hyperparameters(logger=False)
        check_blur(sigma)
        check_temperature(temperature)
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not 0 <= weight <= 1:
                raise KanoclipError(f"{name} is {weight}, expected a weight in [0, 1]. Leave it out for the paper's.")
        own = {"levels": [24], "levels_at": "norm", "position": "bilinear", "cls_norm": False, "unit_cls": False}
        self.assemble(
            backbone or CLIPBackbone(**own),  # type: ignore[arg-type]  # a mapping of several types
            attention or self.own("attention", VV, first=1),
            prompts=prompts or self.own_prompts(),
        )
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.sigma = scaled(sigma, self.image_size)
        self.weigh(WEIGHTS, terms)

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges."""
        features = self.features(batch)
        patches = self.prompts.local(features, self.backbone)  # (B, N, D)
        prototypes = self.prompts.prototypes(patches)  # (B, 2, P, D)
        # Prototypes learn by their distances alone.
        states = self.prompts.synthesize(prototypes.detach(), features.cls, self.backbone)  # (B, 2, D)

        patches = F.normalize(patches, dim=-1)
        with torch.autocast(patches.device.type, enabled=False):  # which would round, so that patches tie
            cosine = F.normalize(prototypes, dim=-1).flatten(1, 2) @ patches.mT  # (B, 2 * P, N)
        distance = 1 - cosine.unflatten(1, (2, -1)).amax(2)  # from the nearest prototype of either state (B, 2, N)
        toward = (states[:, ANOMALOUS] - states[:, NORMAL])[:, None]  # (B, 1, D)
        probability = (dot(patches, toward) / self.temperature).sigmoid()  # (B, N)
        cls = F.normalize(features.cls, dim=-1)
        logits = dot(cls[:, None], states) / self.temperature  # (B, 2)
        if not self.training:
            near = _stretched(distance)
            probability = probability * (self.alpha * near[:, NORMAL] + (1 - self.alpha) * (1 - near[:, ANOMALOUS]))
        maps = F.interpolate(probability.unflatten(1, features.grid)[None], size=(self.image_size,) * 2)  # nearest
        score = self.beta * logits.softmax(-1)[:, ANOMALOUS] + (1 - self.beta) * probability.amax(1)
        if not self.training:
            return Scores(smooth(maps[0], self.sigma), score, maps, logits, states)
        terms = _distances(distance, batch, features.grid)
        return self.with_terms(Scores(maps[0], score, maps, logits, states, terms))

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the weighted terms: ``global``, ``local``, ``normal``, ``anomalous``, ``kl`` and ``recon``."""
        assert scores.level_maps is not None  # for the type checker: forward returns both
        assert scores.logits is not None
        maps, mask = with_mask(scores.level_maps, batch)
        local = focal_loss(maps, mask, smooth=1e-5) + dice_loss(maps, mask, over="image", normal=True)
        return self.weighted({"global": global_loss(scores.logits, batch.label), "local": local}, scores)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Turn the authors' ``epoch_N.pth`` into options and weights of this model.

        The encoder of the latents, which they leave out as no test needs it, becomes that of N(0, 1). ``pool`` is that
        of their fit on VisA; for the one on MVTec AD give ``--model.prompts.pool 3``.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        name, content = only_file(files, "epoch_10.pth")
        weights = part_of(content, "prompt_learner", name)
        count, dim = tensor_of(weights, "t_n", (None, None), name).shape
        learned = tensor_of(weights, "ctx_pos", (1, 1, None, dim), name).shape[2]
        depth = sum(key.startswith("compound_prompts_text.") for key in weights)
        vectors = [tensor_of(weights, key, (1, 1, learned, dim), name)[0, 0] for key in ("ctx_pos", "ctx_neg")]
        ours = {
            "prompts.vectors": torch.stack(vectors),
            "prompts.prototypes.queries": torch.stack(
                [tensor_of(weights, key, (count, dim), name) for key in ("t_n", "t_a")]
            ),
        }
        for mine, its, size in (
            ("prototypes.attention.in_proj_", "extractor.attn.in_proj_", 3 * dim),
            ("prototypes.attention.out_proj.", "extractor.attn.out_proj.", dim),
            ("prototypes.widen.", "extractor.mlp.c_fc.", dim),
            ("prototypes.narrow.", "extractor.mlp.c_proj.", dim),
            ("latent.decode.0.", "vae_decoder.net.0.", dim),
            ("latent.decode.2.", "vae_decoder.net.2.", dim),
        ):
            ours[f"prompts.{mine}weight"] = tensor_of(weights, f"{its}weight", (size, dim), name)
            ours[f"prompts.{mine}bias"] = tensor_of(weights, f"{its}bias", (size,), name)
        for mine, its in (("first_norm", "ln_1"), ("second_norm", "ln_2")):
            for kind in ("weight", "bias"):
                ours[f"prompts.prototypes.{mine}.{kind}"] = tensor_of(weights, f"extractor.{its}.{kind}", (dim,), name)
        for layer in ("inner", "mean", "log_variance"):
            ours |= {f"prompts.latent.{layer}.weight": torch.zeros(dim, dim)}
            ours |= {f"prompts.latent.{layer}.bias": torch.zeros(dim)}
        options = {
            "context": learned - count - 2,
            "prototypes": count,
            "swapped_prototypes": True,
            "recon": "pairs",
            "deep_tokens": 0,
            "round_tokens": True,
        }
        if depth:
            tokens = len(tensor_of(weights, "compound_prompts_text.0", (None, dim), name))
            deep = [tensor_of(weights, f"compound_prompts_text.{i}", (tokens, dim), name) for i in range(depth)]
            ours["prompts.deep"] = torch.stack(deep)
            options |= {"deep_tokens": tokens, "deep_depth": depth}
        backbone = {"levels": [24], "levels_at": "norm", "position": "bilinear", "cls_norm": False, "unit_cls": False}
        return {
            "backbone": {"class_path": "clip", "init_args": backbone},
            "prompts": {"class_path": "synthesized", "init_args": options},
        }, ours


def _stretched(distance: Tensor) -> Tensor:
    """Bring the distances ``(B, 2, N)`` of the patches of an image to [0, 1]."""
    low, high = distance.amin(-1, keepdim=True), distance.amax(-1, keepdim=True)
    return (distance - low) / (high - low).clamp_min(1e-12)


def _distances(distance: Tensor, batch: Batch, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Average the distances ``(B, 2, N)`` of normal patches from normal prototypes, and of anomalous from anomalous.

    A patch is anomalous if any of its pixels is; of images whose mask is not known, none counts.
    """
    anomalous = F.adaptive_max_pool2d(batch.mask.float()[:, None], grid).flatten(1)  # (B, N)
    which = torch.stack([1 - anomalous, anomalous], 1) * batch.has_mask[:, None, None]  # (B, 2, N)
    added, patches = total(torch.stack([(distance * which).sum((0, 2)), which.sum((0, 2))]))
    normal, damaged = added / patches.clamp_min(1)
    return {"normal": normal, "anomalous": damaged}
