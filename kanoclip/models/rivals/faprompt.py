"""FAPrompt: abnormal prompts of several kinds, shifted by patches of the image, over CLIP with v-v attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kanoclip.backbone.attention import VV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.binary_focal import binary_focal_loss
from kanoclip.heads.fine_grained import FineGrainedPrompts
from kanoclip.heads.losses import global_loss, local_loss, with_mask
from kanoclip.heads.scoring import anomaly_map, check_blur, check_temperature, dot, scaled, smooth
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.published import only_file, part_of, tensor_of
from kanoclip.ranks import total
from kanoclip.types import ANOMALOUS, NORMAL, Batch, KanoclipError, Scores


class FAPrompt(CLIPModule):
    """Compare patches with a normal and ten abnormal prompts twice, the second time shifted by patches of the image.

    A component left null is the model's own.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels, level 24 alone. The last level is
            the one that is read.
        attention: What the second path of the image tower attends to.
        prompts: The fine-grained prompts.
        temperature: Divisor of the cosine, of global and local similarities alike.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; scaled to other sizes.
        score_loss: What the focal loss of the image score takes the score for: a "probability", which it is; or
            "logits", of which its code takes the sigmoid once more.
        terms: Weights of the loss terms local, global, score, orthogonality and prior, by name; 0.1 for
            orthogonality and 1 for the others if they are not named, as in the paper.
        lr: Learning rate of Adam.
        betas: Its two decay rates.

    Reference:
        J. Zhu et al., *Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection*, ICCV 2025, and its
        code, github.com/mala-lab/FAPrompt. Where we differ: the prior is made of the most abnormal patches, as in the
        paper, where its code takes the first ten of the top row (``prior_patches: first``), and learned tokens inside
        the text encoder are not rounded to half precision (``round_tokens: true``); its published weights are fitted
        to both. Masks are resized to stay 0 or 1, and a batch may have one image. Which epoch its tables show is not
        stated; its script fits 15 and its test loads the seventh.
    """

    name = "faprompt"
    own_attention: type[Attention] = VV
    own_prompts = FineGrainedPrompts
    heads = ("prompts",)
    prompts: FineGrainedPrompts

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        prompts: FineGrainedPrompts | None = None,
        temperature: float = 0.07,
        sigma: float = 10.0,
        score_loss: Literal["probability", "logits"] = "probability",
        terms: dict[str, float] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__(lr, betas)
        self.save_hyperparameters(logger=False)
        check_blur(sigma)
        check_temperature(temperature)
        if score_loss not in ("probability", "logits"):
            raise KanoclipError(
                f"score_loss is {score_loss!r}, expected probability or logits. Use --model.score_loss probability."
            )
        self.assemble(
            backbone or CLIPBackbone(levels=[24], position="bilinear", cls_norm=False),
            attention or self.own_attention(),
            prompts=prompts or self.own_prompts(),
        )
        self.temperature = temperature
        self.sigma = scaled(sigma, self.image_size)
        self.score_loss = score_loss
        self.weigh({"local": 1.0, "global": 1.0, "score": 1.0, "prior": 1.0}, terms)

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges. ``level_maps`` has the two passes, "L = 2"."""
        features = self.features(batch)  # patches (L, B, N, D), cls (B, D)
        static = self.prompts.static(self.backbone)  # (2, D)
        prior = self.prompts.prior(features, static)  # (B, W)
        informed = self.prompts.informed(prior, self.backbone)  # (B, 2, D)

        states = torch.stack([static.expand_as(informed), informed])  # (2 passes, B, 2, D)
        toward = (states[:, :, ANOMALOUS] - states[:, :, NORMAL])[:, :, None]  # (2, B, 1, D)
        anomalous = (dot(features.patches[-1], toward) / self.temperature).sigmoid()  # (2, B, N)
        maps = F.interpolate(anomalous.unflatten(-1, features.grid), size=(self.image_size,) * 2, mode="bilinear")
        heat = anomaly_map(maps)  # (B, H, W)
        logits = dot(features.cls[:, None], informed) / self.temperature  # (B, 2)
        first, second = anomalous.amax(-1)  # of each pass (B,)
        score = (logits.softmax(-1)[:, ANOMALOUS] + (2 * first + second) / 3) / 2
        if not self.training:
            return Scores(smooth(heat, self.sigma), score, maps, logits, informed)
        of_normals = (prior.square().mean(-1) * (batch.label == NORMAL)).sum()  # of which nothing should be told
        return self.with_terms(Scores(heat, score, maps, logits, informed, {"prior": total(of_normals)}))

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the weighted terms local, global, score, orthogonality and prior."""
        maps, logits = scores.level_maps, scores.logits
        assert maps is not None  # for the type checker: forward returns both
        assert logits is not None
        maps, mask = with_mask(maps, batch)
        first, second = maps[:, None]  # of each pass (1, B, H, W)
        probability = scores.image_score if self.score_loss == "probability" else scores.image_score.sigmoid()
        terms = {
            "local": local_loss(first, mask, "image") + 0.5 * local_loss(second, mask, "image"),
            "global": global_loss(logits, batch.label),
            "score": binary_focal_loss(probability, batch.label),
        }
        return self.weighted(terms, scores)

    @classmethod
    def from_published(cls, files: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Turn the authors' ``epoch_N.pth`` into options and weights of this model.

        Args:
            files: Name of the file -> ``{"prompt_learner": state dict}``.

        Raises:
            KanoclipError: Naming what is missing or has another shape.
        """
        file, content = only_file(files, "epoch_7.pth")
        learner = part_of(content, "prompt_learner", file)

        def take(key: str, *shape: int | None) -> Tensor:
            return tensor_of(learner, key, shape, file)

        shared = take("ctx_pos", 1, 1, None, None)[0, 0]  # (E, W)
        context, width = shared.shape
        own = take("ctx_neg", 1, None, None, width)[0]  # (K, A, W)
        depth = sum(key.startswith("compound_prompts_text.") for key in learner)
        tokens = len(take("compound_prompts_text.0", None, width)) if depth else 0
        deep = [take(f"compound_prompts_text.{i}", tokens, width) for i in range(depth)]
        down = take("patch_meta_net.linear1.weight", None, None)  # (k * D / 16, k * D)
        hidden, chosen = down.shape
        state = {
            "prompts.shared": shared,
            "prompts.own": own,
            "prompts.to_prior.0.weight": down,
            "prompts.to_prior.0.bias": take("patch_meta_net.linear1.bias", hidden),
            "prompts.to_prior.2.weight": take("patch_meta_net.linear2.weight", width, hidden),
            "prompts.to_prior.2.bias": take("patch_meta_net.linear2.bias", width),
        }
        if deep:
            state["prompts.deep"] = torch.stack(deep)
        prompts = {
            "context": context,
            "abnormal": len(own),
            "abnormal_context": own.shape[1],
            "patches": chosen // width,  # its patches are as wide as its texts
            "prior_patches": "first",
            "deep_tokens": tokens,
            "deep_depth": depth,
            "round_tokens": True,
        }
        backbone = {"levels": [24], "position": "bilinear", "cls_norm": False}
        options = {
            "backbone": {"class_path": "clip", "init_args": backbone},
            "prompts": {"class_path": "fine_grained", "init_args": prompts},
            "score_loss": "logits",
        }
        return options, state
