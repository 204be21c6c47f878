"""What models of a frozen CLIP and parts by name share: building the parts, reading features, a cache's key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from rich.progress import track
from torch import Tensor, nn

from kanoclip.backbone.attention import Attention
from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.head import Head
from kanoclip.backbone.tuning import NoTuning, Tuning
from kanoclip.data.digests import FEATURES_VERSION, digest, module_digest
from kanoclip.heads.memory import NoMemory, Vectors
from kanoclip.heads.prompts import Prompts
from kanoclip.models.checkpoint import run_seed
from kanoclip.models.remembering import WithMemory
from kanoclip.registry import did_you_mean
from kanoclip.types import Batch, Features, KanoclipError, Scores


class CLIPModule(WithMemory):
    """Base of models that are a frozen CLIP with parts by name; a subclass calls ``assemble`` and gives ``forward``.

    Attributes:
        backbone: Frozen CLIP.
        attention: What the second path of its image tower attends to.
        tuning: What is trained inside its towers.
    """

    heads: ClassVar[tuple[str, ...]] = ()
    """Kinds that may learn: for each, the class attribute ``own_<kind>`` is the class of the model's own part."""
    backbone: CLIPBackbone
    attention: Attention
    tuning: Tuning
    prompts: Prompts
    weights: Mapping[str, float] = MappingProxyType({})
    """Of loss terms, by name; those of heads have the heads' ``term_weights`` if they are not named, others 1."""
    _asked: frozenset[str] = frozenset()  # names in ``terms`` that no training step has shown to be right yet

    def own(self, kind: str, plain: type[nn.Module], **options: Any) -> Any:
        """Make the model's own part of a kind: with options, or as it is if a subclass has another than ``plain``."""
        chosen = getattr(self, f"own_{kind}")
        return chosen(**options) if chosen is plain else chosen()

    def assemble(self, backbone: CLIPBackbone, attention: Attention, **parts: nn.Module) -> None:
        """Take over a backbone and parts, and let each head make its weights.

        Args:
            backbone: Frozen CLIP.
            attention: What the second path attends to.
            **parts: Kind -> part, in the order in which reports name them.

        Raises:
            KanoclipError: If a head has the weights of another model, or a part does not fit the backbone.
        """
        self.backbone, self.attention, self.image_size = backbone, attention, backbone.image_size
        attention.start(backbone.depth)  # a block that is not there is an error here, not in the first batch
        self._kinds = ("attention", *parts)
        for kind, part in {"tuning": NoTuning(), "memory": NoMemory(), **parts}.items():
            if isinstance(part, Head):
                if vars(part).get("_built") and list(part.parameters()):
                    raise KanoclipError(
                        f"This {type(part).__name__} has the weights of another model. Give each model one of its own."
                    )
                part.build(backbone)
            setattr(self, kind, part)
        for part in self.children():
            if isinstance(part, Head):
                vars(part)["_built"] = True

    def weigh(self, own: Mapping[str, float], terms: Mapping[str, float] | None) -> None:
        """Set the weights of loss terms.

        Args:
            own: Of the terms that the model itself makes, by name.
            terms: Of any terms, by name; the first training step raises a ``KanoclipError`` if there is no such term.

        Raises:
            KanoclipError: If a weight is not a finite number.
        """
        self.weights = {**own, **(terms or {})}
        for name, weight in self.weights.items():
            if weight is None or not math.isfinite(weight):
                raise KanoclipError(
                    f"The weight of the loss term {name} is {weight}, expected a finite number. Change the option "
                    f"of --model that weighs it, such as alpha, beta, gamma or terms.{name}."
                )
        self._asked = frozenset(terms or ()) - frozenset(own)

    def features(self, batch: Batch) -> Features:
        """Return what the image tower makes of a batch: what came with it from a cache, or computed now."""
        if not self.tuning.in_image:
            return self.frozen(batch)
        plain = self.frozen(batch) if self.tuning.needs_features else None
        return self.backbone.tuned(batch.image, self.attention, self.tuning.image(plain))

    def vectors(self, batch: Batch) -> Vectors:
        """Return the patches of each level, which a memory keeps: ``(B, N, D)`` each."""
        return list(self.features(batch).patches)

    def frozen(self, batch: Batch) -> Features:
        """Return what the untouched image tower makes of a batch."""
        if batch.features is None:
            features: Features = self.backbone(batch.image, self.attention)
            return features
        patches, cls, grid, level_cls = batch.features
        return Features(patches.float(), cls.float(), grid, None if level_cls is None else level_cls.float())

    def with_plain(self, batch: Batch) -> Batch:
        """Add what the untouched image tower makes of a batch, if the tuning is made from it: it then runs once."""
        return batch._replace(features=self.frozen(batch)) if self.tuning.needs_features else batch

    def states(self, batch: Batch, features: Features) -> Tensor:
        """Return what the prompts say of a batch ``with_plain``, with what is trained in the text tower.

        Args:
            batch: Whose features are those of the untouched tower, if the tuning is made from them.
            features: What the prompts see.
        """
        tuning, prompts = self.tuning, self.prompts
        if not (tuning.in_text and tuning.needs_features):
            return prompts(batch.category, self.backbone, features, tuning.text(batch.features))
        assert batch.features is not None  # for the type checker: the batch is with_plain
        states, terms = [], []
        for i, category in enumerate(batch.category):  # each image has texts of its own
            hooks = tuning.text(_one(batch.features, i))
            states.append(prompts([category], self.backbone, _one(features, i), hooks))
            terms.append(prompts.take_terms())
        prompts.terms = {name: torch.stack([one[name] for one in terms]).mean() for name in terms[0]}
        return torch.cat(states)

    def on_fit_start(self) -> None:
        """Fill a memory of the auxiliary set, where the model has one."""
        super().on_fit_start()
        self.memory.collect(self._auxiliary_batches(), self.features, run_seed() or 111)

    def _auxiliary_batches(self) -> Iterator[Batch]:
        """Yield the images of the fit once, in their order, this rank's share, with a progress bar."""
        loader, strategy = self._data.fitted_dataloader(), self.trainer.strategy
        quiet = self.global_rank > 0 or self.trainer.progress_bar_callback is None
        for batch in track(loader, "filling the memory", transient=True, disable=quiet):
            yield strategy.batch_to_device(batch)

    @property
    def features_key(self) -> str | None:
        """Digest of all that the frozen features depend on besides the image, for a cache; None if it is not known.

        It is not known for a subclass with its own ``features`` or ``frozen``, for a tuned image tower, nor for a
        backbone or attention with attributes other than numbers, texts, weights and modules.
        """
        backbone = self.backbone
        hashed = ["visual", "text", "_fingerprint", "description"]  # the fingerprint has hashed their weights
        if backbone.levels_at == "joint":  # as there was nothing else: old caches stay valid
            hashed += ["levels_at", "width", "patch_dim", "prefix", "rotary"]
        if backbone.unit_cls:  # likewise
            hashed += ["unit_cls"]
        parts = module_digest(backbone, hashed), module_digest(self.attention)
        own = type(self).features is not CLIPModule.features or type(self).frozen is not CLIPModule.frozen
        if own or self.tuning.in_image or None in parts:
            return None
        return digest(FEATURES_VERSION, backbone.fingerprint, backbone.dtype, parts)

    def with_terms(self, scores: Scores) -> Scores:
        """Add the loss terms that the heads have made on the way."""
        heads = [part for part in self.children() if isinstance(part, Head)]
        terms = {name: term for head in heads for name, term in head.take_terms().items()}
        return scores._replace(terms={**(scores.terms or {}), **terms}) if terms else scores

    def weighted(self, terms: Mapping[str, Tensor], scores: Scores) -> dict[str, Tensor]:
        """Multiply loss terms, with those that the heads have made, by their weights.

        Raises:
            KanoclipError: In training, if a weight was given for a term that there is not.
        """
        made = {**terms, **(scores.terms or {})}
        heads = [part for part in self.children() if isinstance(part, Head)]
        of_heads = {name: weight for head in heads for name, weight in head.term_weights.items()}
        if self.training and self._asked:
            known = made.keys() | of_heads.keys() | self.weights.keys() - self._asked
            for name in sorted(self._asked - known):
                raise KanoclipError(
                    f"No loss term is called {name!r}.{did_you_mean(name, known)} Terms: {', '.join(sorted(known))}. "
                    f"Set --model.terms.NAME of one of them."
                )
            self._asked = frozenset()
        weights = {**of_heads, **self.weights}
        return {name: weights.get(name, 1.0) * term for name, term in made.items()}

    @classmethod
    def learns(cls, options: Mapping[str, Any]) -> bool | None:
        """Tell whether any of its heads has something to train; None if one of them is not ours."""
        heads = [options.get(kind) or getattr(cls, f"own_{kind}") for kind in cls.heads]
        does = [getattr(head, "learns", None) for head in heads]
        return True if True in does else False if does == [False] * len(heads) else None

    def describe_components(self) -> dict[str, str]:
        """Name the class of each component; no tuning and no memory are left out, as they change nothing."""
        parts = {kind: getattr(self, kind) for kind in self._kinds}
        used = {kind: part for kind, part in parts.items() if not isinstance(part, (NoTuning, NoMemory))}
        return {"backbone": self.backbone.description} | {kind: type(part).__name__ for kind, part in used.items()}


def _one(features: Features, i: int) -> Features:
    """Return the features of one image of a batch."""
    patches, cls, grid, level_cls = features
    here = slice(i, i + 1)
    return Features(patches[:, here], cls[here], grid, None if level_cls is None else level_cls[:, here])
