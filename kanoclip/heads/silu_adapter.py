"""The adapter of FiLo."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import Adapter
from kanoclip.types import KanoclipError


class SiLUAdapter(Adapter):
    """Add to the global feature two linear layers of it, with a ReLU between them and a SiLU behind them.

    Args:
        reduction: Divisor of D for the width between them.

    Raises:
        KanoclipError: If ``reduction`` is below 1.

    Reference:
        Z. Gu et al., *FiLo*, ACM MM 2024, of its code. It starts at random.
    """

    def __init__(self, reduction: int = 2) -> None:
        super().__init__()
        if reduction < 1:
            raise KanoclipError(
                f"adapter.reduction is {reduction}, expected 1 or more. Use --model.adapter.reduction 2."
            )
        self.reduction = reduction

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the two layers."""
        hidden = max(1, backbone.dim // self.reduction)
        self.down = nn.Linear(backbone.dim, hidden, bias=False)
        self.up = nn.Linear(hidden, backbone.dim, bias=False)

    def forward(self, cls: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``(B, D)``; ``cls`` may have any length."""
        return F.normalize(cls + F.silu(self.up(F.relu(self.down(cls)))), dim=-1)
