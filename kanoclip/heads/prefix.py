"""Prefix prompts: learned vectors before a text, the same for both states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.prompts import Prompts, check_room
from kanoclip.types import Features, KanoclipError


class PrefixPrompts(Prompts):
    """Learn vectors that stand before the whole text of either state, begin token included.

    ``[V1]..[VE] <begin> without defect. <end>`` and ``[V1]..[VE] <begin> with defect. <end>``: the same E vectors.

    Args:
        context: Learned vectors E.
        normal: Text of the normal state.
        anomalous: Text of the anomalous state.

    Raises:
        KanoclipError: If ``context`` is below 1, or a prompt is longer than the text encoder reads.

    Reference:
        Q. Fang et al., *AF-CLIP: Zero-Shot Anomaly Detection via Anomaly-Focused CLIP Adaptation*, ACM MM 2025, and its
        code.
    """

    words: Tensor
    eot: Tensor

    def __init__(self, context: int = 12, normal: str = "without defect.", anomalous: str = "with defect.") -> None:
        super().__init__()
        if context < 1:
            raise KanoclipError(f"prompts.context is {context}, but a learned prompt needs at least 1 vector.")
        self.context = context
        self.normal = normal
        self.anomalous = anomalous

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the learned vectors from N(0, 0.01), and embed the texts behind them."""
        texts = [self.normal, self.anomalous]
        words, eot = backbone.token_embeddings(texts)  # (2, M, W), (2,)
        check_room(backbone, texts, self.context, f"learned vectors and the texts {texts}")
        self.register_buffer("words", words[:, : backbone.context_length - self.context].clone(), persistent=False)
        self.register_buffer("eot", backbone.text.moved(eot, self.context), persistent=False)
        self.prefix = nn.Parameter(0.01 * torch.randn(self.context, backbone.text_width))

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, 2, D)``: the same states for each image."""
        prompts = torch.cat([self.prefix.expand(2, -1, -1), self.words], 1)  # (2, M, W)
        return backbone.encode_embeddings(prompts, self.eot, hooks=hooks).expand(len(category), -1, -1)
