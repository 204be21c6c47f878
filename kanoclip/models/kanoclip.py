"""KAnoCLIP: the whole method on one screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from kanoclip.backbone.attention import VV, Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import NoTuning, Tuning
from kanoclip.heads.adapter import Adapter, ConvAdapter
from kanoclip.heads.interaction import BiCMCI, Interaction
from kanoclip.heads.losses import KDLoss, MeanMarginKD, global_loss, local_loss, with_mask
from kanoclip.heads.memory import Memory, NoMemory
from kanoclip.heads.prompts import LearnedPrompts, Prompts
from kanoclip.heads.scoring import (
    MeanScore,
    Score,
    anomaly_map,
    check_blur,
    check_temperature,
    dot,
    level_maps,
    scaled,
    smooth,
)
from kanoclip.knowledge.facts import Facts, Known
from kanoclip.models.clip_module import CLIPModule
from kanoclip.models.contents import CheckpointError
from kanoclip.models.remembering import average
from kanoclip.ranks import mean
from kanoclip.types import ANOMALOUS, Batch, Features, KanoclipError, Scores


class KAnoCLIP(CLIPModule):
    """Find anomalies in objects never seen: a frozen CLIP with v-v attention, learned prompts, interaction, adapter.

    A component left null is the model's own; every one can be replaced by name, class path or object.

    Args:
        backbone: Frozen CLIP. null: ViT-L-14-336 with OpenAI's weights at 518 pixels.
        attention: What the second path of the image tower attends to (CLIP-VV).
        prompts: Text features of the two states (KnPL).
        interaction: How patches and texts attend to each other (Bi-CMCI).
        adapter: What corrects the global feature (Conv-Adapter).
        score: How the image score is made.
        kd_loss: How the knowledge base pulls the abnormal prompt.
        knowledge: Knowledge base read while fitting: "auto" for the one that ships for the data set it is fitted on,
            the name of one that ships, or the path of a YAML file; "none" for image knowledge alone; "shuffled" for a
            control: the words of "auto", those of image knowledge too, dealt out at random.
        image_knowledge: What a vision model said of single images: a JSONL that ``kanoclip knowledge build`` wrote, or
            "auto" for that of the data set, ``runs/knowledge/NAME.jsonl`` unless one ships; if it is not there, the fit
            says so and goes without. An image's knowledge is then that of its category and its own; null: that of all
            categories together.
        temperature: Divisor of the cosine, of global and local similarities alike.
        sigma: Gaussian blur of the map outside training, in pixels of a 518 pixel image; scaled to other sizes.
        alpha: Weight of the knowledge loss.
        beta: Weight of the global loss.
        gamma: Weight of the local loss.
        dice: Whether the local loss takes Dice over the pixels of the batch, or of each image apart as AnomalyCLIP.
        lr: Learning rate of Adam.
        betas: Its two decay rates.
        tuning: What is trained inside the frozen towers.
        memory: Reference images that patches are compared with beside the texts; the maps of both are averaged, and
            so are the score and the largest distance of a patch (ours, after WinCLIP). It plays no part in training.
        terms: Weights of loss terms, by name; for one that is not named, the head's own (``Head.term_weights``) or 1.
        stages: Which heads learn in which epochs at what rate, a list of mappings as ``Stage`` takes them; null: the
            model's own, or all heads in all epochs.

    Reference:
        C. Li et al., *KAnoCLIP: Zero-Shot Anomaly Detection through Knowledge-Driven Prompt Learning and Enhanced
        Cross-Modal Integration*, ICASSP 2025, arXiv 2501.03786. The paper states the parts, and the loss weights of 1;
        temperature, sigma, optimiser and losses are those of AnomalyCLIP (ICLR 2024), its nearest public relative.
    """

    name = "kanoclip"
    own_attention: type[Attention] = VV
    own_prompts: type[Prompts] = LearnedPrompts
    own_interaction: type[Interaction] = BiCMCI
    own_adapter: type[Adapter] = ConvAdapter
    own_score: type[Score] = MeanScore
    own_kd_loss: type[KDLoss] = MeanMarginKD
    own_tuning: type[Tuning] = NoTuning
    own_memory: type[Memory] = NoMemory
    heads = ("prompts", "interaction", "adapter", "tuning", "memory")
    prompts: Prompts
    interaction: Interaction
    adapter: Adapter
    score: Score
    kd_loss: KDLoss
    memory: Memory

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        attention: Attention | None = None,
        prompts: Prompts | None = None,
        interaction: Interaction | None = None,
        adapter: Adapter | None = None,
        score: Score | None = None,
        kd_loss: KDLoss | None = None,
        knowledge: str = "auto",
        image_knowledge: str | None = None,
        temperature: float = 0.07,
        sigma: float = 4.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        dice: Literal["batch", "image"] = "batch",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        tuning: Tuning | None = None,
        memory: Memory | None = None,
        terms: dict[str, float] | None = None,
        stages: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(lr, betas, stages)
        self.save_hyperparameters(logger=False)
        if dice not in ("batch", "image"):
            raise KanoclipError(f"dice is {dice!r}, expected batch or image. Use --model.dice batch.")
        check_blur(sigma)
        check_temperature(temperature)
        if memory is not None and memory.learns:
            raise KanoclipError(
                f"The memory {type(memory).__name__} learns from losses that {self.name} has not. Use --model.memory "
                f"labelled, or --model mrad_ft."
            )
        self.assemble(
            backbone or CLIPBackbone(),
            attention or self.own_attention(),
            prompts=prompts or self.own_prompts(),
            interaction=interaction or self.own_interaction(),
            adapter=adapter or self.own_adapter(),
            score=score or self.own_score(),
            kd_loss=kd_loss or self.own_kd_loss(),
            tuning=tuning or self.own_tuning(),
            memory=memory or self.own_memory(),
        )
        self.knowledge = knowledge
        self.image_knowledge = image_knowledge
        self.temperature = temperature
        self.sigma = scaled(sigma, self.image_size)
        self.dice = dice
        self.weigh({"kd": alpha, "global": beta, "local": gamma}, terms)
        self._facts: Tensor | None = None  # (K, D)
        self._facts_of: Facts | None = None  # with image knowledge: (K, D) for each image

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges."""
        batch = self.with_plain(batch)
        features = self.features(batch)  # patches (L, B, N, D), cls (B, D)
        states = self.states(batch, features)  # (B, 2, D)
        pairs = states.unbind(1) if states.ndim == 4 else (states,)  # (B, S, 2, D): S pairs of states
        compared = (self.compare(features, pair) for pair in pairs)  # one at a time
        logits, maps = next(compared) if len(pairs) == 1 else _average(compared)  # (B, 2), (L, B, H, W)
        heat = anomaly_map(maps)  # (B, H, W)
        if not self.training:
            heat = smooth(heat, self.sigma)
        score = self.score(logits.softmax(-1)[:, ANOMALOUS], heat)  # (B,)
        if not self.training and (distance := self.memory(features, batch.category)) is not None:  # (B, h, w)
            heat, score = self.join(heat, score, distance)
        return self.with_terms(Scores(heat, score, maps, logits, pairs[0]))

    def compare(self, features: Features, states: Tensor) -> tuple[Tensor, Tensor]:
        """Compare an image with a pair of states ``(B, 2, D)``: logits ``(B, 2)`` and maps ``(L, B, H, W)``."""
        cls = self.adapter(features.cls, features.patches, features.grid)  # (B, D)
        logits = dot(cls[:, None], states) / self.temperature  # (B, 2)
        patches, level_states = self.interaction(features.patches, states)  # (L, B, N, D), (L, B, 2, D)
        return logits, level_maps(patches, level_states, features.grid, self.image_size, self.temperature)

    def join(self, heat: Tensor, score: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Join map ``(B, H, W)`` and score ``(B,)`` by texts with distances ``(B, h, w)`` from reference images."""
        return average(heat, score, distance, self.sigma)

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return the weighted terms ``kd``, ``global`` and ``local``, and those of the heads by their names.

        Images without a known mask have no local one; hand-written prompts, which no loss can pull, have no ``kd``.
        """
        maps, logits, states = scores.level_maps, scores.logits, scores.states
        assert maps is not None  # for the type checker: forward returns all of them
        assert logits is not None
        assert states is not None
        terms = {
            "global": global_loss(logits, batch.label),
            "local": local_loss(*with_mask(maps, batch), self.dice),
        }
        if self._facts is not None and states.requires_grad:
            if self._facts_of is not None:
                pairs = list(zip(states, map(self._facts_of, batch.category, batch.path), strict=True))
            else:  # states that all images share are compared once
                pairs = [(one, self._facts) for one in (states if states.stride(0) else states[:1])]
            terms["kd"] = mean(torch.stack([self.kd_loss(*pair) for pair in pairs]).expand(len(states)))
        return self.weighted(terms, scores)

    def on_fit_start(self) -> None:
        """Read and encode, once, what the knowledge base says of the auxiliary categories and images.

        Raises:
            CheckpointError: If a fit that goes on would read other files than it began with.
        """
        super().on_fit_start()
        if not self.kd_loss.needs_knowledge:
            return
        data = getattr(self.trainer, "datamodule", None)
        known = Known.of(data, self.knowledge, self.image_knowledge)
        for name, content in self.read_files.items() if self.trainer.ckpt_path else ():
            if known.files.get(name) != content:
                began = "with another" if content else "without"
                raise CheckpointError(f"This fit began {began} {name}. Leave out --ckpt_path to fit anew.")
        self.read_files = dict(known.files)
        facts = Facts(self.backbone, known)
        self._facts, self._facts_of = facts.general, facts if known.images else None


def _average(compared: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Average over pairs of states: probabilities, as logits ``(B, 2)``, and maps ``(L, B, H, W)``."""
    pairs = iter(compared)
    logits, maps = next(pairs)
    probability, count = logits.softmax(-1), 1
    for logits, more in pairs:  # their maps together would not fit a memory
        probability, maps, count = probability + logits.softmax(-1), maps + more, count + 1
    return (probability / count).log(), maps / count
