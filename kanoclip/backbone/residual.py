"""Residual adapters: a linear layer behind a block of the frozen towers, blended into its tokens."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks, Tuning
from kanoclip.types import Features, KanoclipError


def xavier_linear(width: int, dim: int) -> nn.Linear:
    """Return a linear layer without bias, drawn Xavier uniform."""
    layer = nn.Linear(width, dim, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class ResidualAdapters(nn.ModuleList, Hooks):
    """Adapters behind the first blocks of one tower: ``x <- weight * |x| a / |a| + (1 - weight) * x``.

    ``a = LeakyReLU(W x)`` for each token, W without bias and one for each block.

    Args:
        blocks: How many.
        width: Of the tower's tokens.
        weight: Share of what is adapted, in (0, 1].
    """

    def __init__(self, blocks: int, width: int, weight: float) -> None:
        super().__init__(xavier_linear(width, width) for _ in range(blocks))
        self.weight = weight

    def after(self, number: int, tokens: Tensor) -> Tensor:
        """Blend what is adapted into the tokens that come out of a block."""
        if number > len(self):
            return tokens
        weight = cast("nn.Linear", self[number - 1]).weight
        direction = F.normalize(F.leaky_relu(F.linear(tokens, weight.to(tokens.dtype))), dim=-1)
        return self.weight * tokens.norm(dim=-1, keepdim=True) * direction + (1 - self.weight) * tokens


class ResidualTuning(Tuning):
    """Learn a residual adapter behind each of the first blocks of the image tower, the text tower or both.

    It keeps the length of each token and turns its direction. Drawn at random, it does not start as the identity.

    Args:
        image_blocks: How many blocks of the image tower have one, from the first on; 0: none. null: the first quarter
            (6 of 24).
        text_blocks: Likewise in the text tower (3 of 12).
        image_weight: Share of what is adapted in the tokens of the image tower, in (0, 1].
        text_weight: Likewise in the text tower.

    Raises:
        KanoclipError: If there is no adapter at all, a tower has fewer blocks, or a weight is not in (0, 1].

    Reference:
        W. Ma et al., *AA-CLIP: Enhancing Zero-Shot Anomaly Detection via Anomaly-Aware CLIP*, CVPR 2025, and its code,
        which has 6, 3, 0.1 and 0.1.
    """

    def __init__(
        self,
        image_blocks: int | None = None,
        text_blocks: int | None = None,
        image_weight: float = 0.1,
        text_weight: float = 0.1,
    ) -> None:
        super().__init__()
        for name, share in (("image_weight", image_weight), ("text_weight", text_weight)):
            if not 0 < share <= 1:
                raise KanoclipError(
                    f"tuning.{name} is {share}, expected a share in (0, 1]. Use --model.tuning.{name} 0.1."
                )
        if min(image_blocks or 0, text_blocks or 0) < 0 or image_blocks == text_blocks == 0:
            raise KanoclipError(
                f"tuning.image_blocks is {image_blocks} and text_blocks {text_blocks}, expected 0 or more of each and "
                f"not both 0. For no tuning use --model.tuning none."
            )
        self.image_blocks = image_blocks
        self.text_blocks = text_blocks
        self.image_weight = image_weight
        self.text_weight = text_weight

    @property
    def in_image(self) -> bool:  # type: ignore[override]  # other kinds have it for all
        """Whether it changes the image tower."""
        return self.image_blocks != 0

    @property
    def in_text(self) -> bool:  # type: ignore[override]  # likewise
        """Whether it changes the text tower."""
        return self.text_blocks != 0

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the adapters, Xavier uniform."""
        self.image_blocks = _blocks("image_blocks", self.image_blocks, backbone.depth, backbone)
        self.text_blocks = _blocks("text_blocks", self.text_blocks, len(backbone.text.blocks), backbone)
        self.visual = ResidualAdapters(self.image_blocks, backbone.width, self.image_weight)
        self.textual = ResidualAdapters(self.text_blocks, backbone.text_width, self.text_weight)

    def image(self, features: Features | None = None) -> ResidualAdapters | None:
        """Return the adapters of the image tower."""
        return self.visual if self.in_image else None

    def text(self, features: Features | None = None) -> ResidualAdapters | None:
        """Return the adapters of the text tower."""
        return self.textual if self.in_text else None


def _blocks(name: str, blocks: int | None, depth: int, backbone: CLIPBackbone) -> int:
    if blocks is not None and blocks > depth:
        raise KanoclipError(
            f"tuning.{name} is {blocks}, but that tower of {backbone.description} has {depth}. Use "
            f"--model.tuning.{name} {depth}."
        )
    return -(-depth // 4) if blocks is None else blocks
