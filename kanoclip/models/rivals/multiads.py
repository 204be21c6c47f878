"""MultiADS: a softmax over a good object and each kind of defect, so that what is found has a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.defects import DefectPrompts, PeakScore, check_names, kind_maps, kinds_at_peak
from kanoclip.heads.losses import dice_loss, focal_loss, with_mask
from kanoclip.heads.prompts import readable
from kanoclip.heads.scoring import anomaly_map, dot, smooth
from kanoclip.models.rivals.april_gan import AprilGAN
from kanoclip.types import ANOMALOUS, NORMAL, Batch, KanoclipError, Scores


class MultiADS(AprilGAN):
    """Project the patches of each level to texts of a good object and of each kind of defect (MultiADS).

    Args:
        backbone: As in ``AprilGAN``.
        prompts: Texts of a good object and of each kind of defect.
        defects: Kinds of defect that may be named, as one says them: a list, or category -> list. null: those it was
            fitted on. A test may change them; the labels of what is tested are never read.
        auxiliary_defects: Kinds of defect to learn: kind -> labels of the auxiliary set that mean it. null: each of its
            labels is a kind. A checkpoint has what was learned.
        dice_mask: What the mask is multiplied by in the Dice loss; 5 in its code, where the loss falls below 0.
        **options: As in ``AprilGAN``; the weight of the loss over kinds is ``terms: {kinds: 1}``.

    Raises:
        KanoclipError: For names that are none.

    Reference:
        Y. Sadikaj et al., *MultiADS: Defect-aware Supervision for Multi-type Anomaly Detection and Segmentation in
        Zero-Shot Learning*, ICCV 2025, and its code, which ``configs/rivals/multiads.yaml`` follows. Where we differ:
        its kinds are those of the folders of the tested set, for each category those that occur; ours are the user's.
        Its phrases are written for each kind by hand, ours take any name. It names pixels; the kind of an image, which
        is that of its three highest pixels, is ours. Maps are averaged over levels where it sums them, few-shot as in
        ``AprilGAN``; scores are not stretched to [0, 1] over the tested images of a category. Mosaics of four images
        are left out, and so is its mode that compares test images with each other ("domain adaption"). An anomalous
        image whose kind is not known is fitted as one of any kind.
    """

    name = "multiads"
    own_prompts = DefectPrompts
    own_score = PeakScore
    prompts: DefectPrompts

    def __init__(
        self,
        backbone: CLIPBackbone | None = None,
        prompts: DefectPrompts | None = None,
        defects: list[str] | dict[str, list[str]] | None = None,
        auxiliary_defects: dict[str, list[str]] | None = None,
        dice_mask: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, prompts or self.own_prompts(), **options)
        lists: Mapping[str, list[str] | None] = defects if isinstance(defects, dict) else {"": defects}
        self._named = {one: check_names(names, "defects") for one, names in lists.items() if names is not None}
        self.defects, self.dice_mask = defects, dice_mask
        self._learn(auxiliary_defects)

    def _learn(self, kinds: dict[str, list[str]] | None) -> None:
        """Take over the kinds of defect of the auxiliary set, with its labels for each."""
        self.auxiliary_defects = kinds
        self._fitted = self.prompts.names if kinds is None else check_names(list(kinds), "auxiliary_defects")
        labels = list(kinds.values()) if kinds else [[]] * len(self._fitted)
        each = enumerate(zip(self._fitted, labels, strict=True))
        self._number = {label: i for i, (name, more) in each for label in (name, *map(readable, more))}

    @property
    def defect_names(self) -> list[str]:
        """The K kinds of defect that are named, of all categories."""
        return list(dict.fromkeys(name for names in self._named.values() for name in names)) or self._fitted

    def _listed(self, category: Sequence[str], names: Sequence[str], device: torch.device) -> Tensor:
        """Tell which states each image may be in: ``(B, 1 + K)`` bool, the good one first."""
        named: Mapping[str, Sequence[str]] = self._named or {"": names}
        rows = []
        for one in category:
            mine = names if self.training else named.get(one, named.get(""))
            if mine is None:
                raise KanoclipError(
                    f"defects names no kinds for {one!r}, but for {', '.join(sorted(named))}. Add its own, or use one "
                    f"list for all, such as --model.defects '[scratch, hole]'."
                )
            rows.append([True, *(name in mine for name in names)])
        return torch.tensor(rows, device=device)

    def forward(self, batch: Batch) -> Scores:
        """Score a batch; see ``Scores`` for shapes and ranges."""
        batch = self.with_plain(batch)
        features = self.features(batch)  # patches (L, B, N, D), cls (B, D)
        names = self._fitted if self.training else self.defect_names
        listed = self._listed(batch.category, names, features.cls.device)  # (B, 1 + K)
        hooks = self.tuning.text(batch.features)
        states = self.prompts.describe(batch.category, names, self.backbone, hooks)  # (B, 1 + K, D)
        cls = self.adapter(features.cls, features.patches, features.grid)
        logits = dot(cls[:, None], states) / self.temperature
        probability = 1 - logits.masked_fill(~listed, -torch.inf).softmax(-1)[:, NORMAL]  # (B,)
        levels = zip(*self.interaction(features.patches, states), strict=True)
        size, align = self.image_size, self.enlarge == "logits"
        shown = (
            kind_maps(patches, of_level, listed, features.grid, size, self.temperature, self.enlarge, align)
            for patches, of_level in levels
        )  # (B, 1 + K, H, W) each
        if self.training:
            return self.with_terms(self._fit(batch, shown, probability))
        distance = self.memory(features, batch.category)  # (B, h, w), or None
        return self.with_terms(self._name(shown, probability, distance))

    def _fit(self, batch: Batch, shown: Iterable[Tensor], probability: Tensor) -> Scores:
        """Return what the losses need: for each level any defect, and that of the image's own kind."""
        number = torch.tensor([self._number.get(readable(label), -1) for label in batch.defect])
        number, known = number.to(batch.mask.device), (number >= 0).to(batch.mask.device)[:, None, None]
        maps, of_kind = [], []
        for kinds in shown:
            maps.append(kinds[:, 1:].sum(1))  # (B, H, W)
            own = kinds[torch.arange(len(kinds)), 1 + number.clamp_min(0)]
            of_kind.append(torch.where(batch.mask.bool() & known, own, maps[-1]))
        smooth = 1e-5 / len(self._fitted)  # as its code: what is left to each of the other states
        focal = focal_loss(*with_mask(torch.stack(of_kind), batch), smooth=smooth)
        heat = anomaly_map(torch.stack(maps))
        return Scores(heat, self.score(probability, heat), torch.stack(maps), terms={"kinds": focal})

    def _name(self, shown: Iterable[Tensor], probability: Tensor, distance: Tensor | None) -> Scores:
        """Return map, score and kinds of defect of each image."""
        kinds: Tensor | None = None
        maps = []
        for one in shown:
            maps.append(one[:, 1:].sum(1))  # (B, H, W)
            kinds = one[:, 1:] if kinds is None else kinds + one[:, 1:]  # one level at a time
        assert kinds is not None  # for the type checker: there is a level
        heat = smooth(anomaly_map(torch.stack(maps)), self.sigma)
        if distance is not None:
            heat, _ = self.join(heat, probability, distance)
        return Scores(heat, self.score(probability, heat), torch.stack(maps), defects=kinds_at_peak(kinds, heat))

    def losses(self, batch: Batch, scores: Scores) -> dict[str, Tensor]:
        """Return ``local``, Dice of any defect, and ``kinds``, focal over kinds: half the mean over levels of both."""
        maps = scores.level_maps
        assert maps is not None  # for the type checker: forward returns them
        each, of_levels = 1 / (2 * len(maps)), with_mask(maps, batch)
        dice = dice_loss(of_levels[0], self.dice_mask * of_levels[1], self.dice)
        terms = self.weighted({"local": each * dice}, scores)
        return {**terms, "kinds": each * terms["kinds"]}

    def on_fit_start(self) -> None:
        """Take the kinds of defect from the labels of the auxiliary set, and keep them in the checkpoint.

        Raises:
            KanoclipError: If it has none, or one of which ``auxiliary_defects`` does not say what it is.
        """
        super().on_fit_start()
        samples = self._data.part("fit") if hasattr(self._data, "part") else []
        labels = sorted({one.defect for one in samples if one.label == ANOMALOUS and one.defect})
        if self.auxiliary_defects is None:
            if not labels:
                raise KanoclipError(
                    f"{self.auxiliary} does not say which kinds of defect its images have, and multiads learns to tell "
                    f"them apart. Use another --data, or --model april_gan."
                )
            self._learn({readable(label): [label] for label in labels})
        elif unknown := [label for label in labels if readable(label) not in self._number]:
            raise KanoclipError(
                f"auxiliary_defects does not say what kind of defect {', '.join(unknown)} of {self.auxiliary} is. Add "
                f"such as: {unknown[0]}: [{unknown[0]}], or leave it out to make each label a kind."
            )
        self.hparams["auxiliary_defects"] = {name: [*found] for name, found in (self.auxiliary_defects or {}).items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the kinds of defect that were learned, if none are given."""
        super().on_load_checkpoint(checkpoint)
        learned = checkpoint.get("hyper_parameters", {}).get("auxiliary_defects")
        if self.auxiliary_defects is None and learned:
            self._learn(learned)
