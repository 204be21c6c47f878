"""Adapters: bring the global feature of the image closer to the text."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.head import Head
from kanoclip.types import KanoclipError


class Adapter(Head, ABC):
    """Changes the global feature; the identity before training."""

    @abstractmethod
    def forward(self, cls: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the adapted global feature ``(B, D)``, unit length, or shorter where it is less sure.

        Args:
            cls: ``(B, D)``, unit length.
            patches: ``(L, B, N, D)``, unit length.
            grid: ``(h, w)`` of the patches, N = h * w.
        """


class NoAdapter(Adapter):
    """Leave the global feature as CLIP makes it."""

    learns = False

    def forward(self, cls: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``cls``."""
        return cls


class LinearAdapter(Adapter):
    """Add a bottleneck of two linear layers to the global feature.

    Args:
        reduction: Divisor of D for the width of the bottleneck.
        scale: Weight of what is added.

    Reference:
        P. Gao et al., *CLIP-Adapter*, IJCV 2024. Ours starts at CLIP (last layer zero) and adds instead of blending.
    """

    def __init__(self, reduction: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        self.reduction = reduction
        self.scale = scale

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the two layers, the last one zero."""
        hidden = max(1, backbone.dim // self.reduction)
        self.down = nn.Linear(backbone.dim, hidden)
        self.up = zeroed(nn.Linear(hidden, backbone.dim))

    def forward(self, cls: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``(B, D)``."""
        return F.normalize(cls + self.scale * self.up(F.gelu(self.down(cls))), dim=-1)


class ConvAdapter(Adapter):
    """Correct the global feature by a convolution over the patches of the last level (Conv-Adapter).

    1x1 down to D / ``reduction``, 3x3 depthwise, GELU, pooled over the grid, 1x1 up and added to the class feature.

    Args:
        reduction: Divisor of D for the width of the bottleneck.
        scale: Weight of what is added.
        pool: How the grid becomes one vector: its "mean", or its "max", which keeps what is rare.
        class_token: Whether the class feature also passes the two 1x1 layers, as in Convpass.

    Raises:
        KanoclipError: If ``pool`` is neither mean nor max, or patches are not in the joint space.

    Reference:
        KAnoCLIP, section 2.3: a Conv-Adapter aligns the global visual feature with text; its form is not given. Ours,
        after S. Jie and Z.-H. Deng, *Convpass*, arXiv 2207.07039, 2022; the last layer starts at zero, so that
        training starts at CLIP.
    """

    def __init__(self, reduction: int = 4, scale: float = 1.0, pool: str = "mean", class_token: bool = True) -> None:
        super().__init__()
        if pool not in ("mean", "max"):
            raise KanoclipError(f"adapter.pool is {pool!r}, expected mean or max. Use --model.adapter.pool mean.")
        self.reduction = reduction
        self.scale = scale
        self.pool = pool
        self.class_token = class_token

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the three layers, the last one zero."""
        if backbone.levels_at != "joint":
            raise KanoclipError(
                f"The adapter conv takes patches that lie in the space of the texts, but levels_at is "
                f"{backbone.levels_at!r}. Use --model.backbone.levels_at joint, or --model.adapter linear."
            )
        hidden = max(1, backbone.dim // self.reduction)
        self.down = nn.Linear(backbone.dim, hidden)  # a 1x1 convolution, applied to tokens
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.up = zeroed(nn.Linear(hidden, backbone.dim))

    def forward(self, cls: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``(B, D)``."""
        tokens = self.down(patches[-1]).mT.unflatten(-1, grid)  # (B, D / reduction, h, w)
        tokens = F.gelu(self.depthwise(tokens)).flatten(2)  # (B, D / reduction, N)
        pooled = tokens.mean(-1) if self.pool == "mean" else tokens.amax(-1)
        if self.class_token:
            pooled = pooled + F.gelu(self.down(cls))
        return F.normalize(cls + self.scale * self.up(pooled), dim=-1)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Set the weights of a branch's last layer to zero, so that the branch adds nothing before training."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
