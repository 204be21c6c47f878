"""Deep tokens: learned tokens inside the blocks of both towers, some of them made from the image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks, Tuning
from kanoclip.types import Features, KanoclipError


class DeepTokens(Tuning):
    """Learn tokens at the input of the first blocks of the image and of the text tower.

    In the image tower they stand behind the patches: appended before block 1, replaced before each further block up to
    ``depth``, and kept from then on. In the text tower they replace the first tokens after the begin token before
    blocks 2 to ``depth``; block 1 reads the text as it is.

    Static tokens are learned for each block. Dynamic ones are added to them: a linear layer for each token, the same
    for all blocks, makes them from the global feature that the untouched tower makes of the image, see
    ``CLIPBackbone.unscaled``. The tower then runs twice, and the texts are encoded for each image anew.

    Args:
        length: Tokens t per block.
        depth: Blocks that get tokens, counted from the first; towers with fewer blocks get them in all.
        towers: Which of the two towers is tuned.
        dynamic: Whether tokens made from the image are added to the static ones.
        round_tokens: Whether tokens are rounded to half precision before they enter a block, as in AdaCLIP's code,
            also where everything else is float32: its published weights were made with it.

    Raises:
        KanoclipError: If ``length`` is below 1, if ``depth`` is below 2 (1 for the image tower alone), or if the
            tokens are more than a text has room for.

    Reference:
        Y. Cao et al., *AdaCLIP: Adapting CLIP with Hybrid Learnable Prompts for Zero-Shot Anomaly Detection*, ECCV
        2024, and its code: 5 tokens in 4 blocks. Where we differ: its text tower also holds static tokens for block 1,
        which nothing reads.
    """

    def __init__(
        self,
        length: int = 5,
        depth: int = 4,
        towers: Literal["both", "image", "text"] = "both",
        dynamic: bool = True,
        round_tokens: bool = False,
    ) -> None:
        super().__init__()
        if towers not in ("both", "image", "text"):
            raise KanoclipError(
                f"tuning.towers is {towers!r}, expected both, image or text. Use --model.tuning.towers both."
            )
        least = 1 if towers == "image" else 2  # block 1 of the text tower has none
        if length < 1 or depth < least:
            raise KanoclipError(
                f"tuning.length is {length} and tuning.depth {depth}, expected at least 1 token in at least "
                f"{least} blocks. Use --model.tuning.length 5 --model.tuning.depth 4."
            )
        self.length = length
        self.depth = depth
        self.towers = towers
        self.dynamic = dynamic
        self.round_tokens = round_tokens
        self.in_image = towers != "text"
        self.in_text = towers != "image"
        self.needs_features = dynamic

    def build(self, backbone: CLIPBackbone) -> None:
        """Draw the static tokens from N(0, 0.02), and create the layers of the dynamic ones."""
        if self.in_text and self.length > backbone.context_length - 2:
            raise KanoclipError(
                f"tuning.length is {self.length}, but the texts of {backbone.description} have room for "
                f"{backbone.context_length - 2}. Use a smaller --model.tuning.length."
            )
        self._unscaled = backbone.unscaled
        t, D = self.length, backbone.dim
        if self.in_image:
            self.image_tokens = nn.Parameter(0.02 * torch.randn(min(self.depth, backbone.depth), t, backbone.width))
            self.image_dynamic = nn.Linear(D, t * backbone.width) if self.dynamic else None
        if self.in_text:
            blocks = min(self.depth, len(backbone.text.blocks))
            self.text_tokens = nn.Parameter(0.02 * torch.randn(blocks - 1, t, backbone.text_width))
            self.text_dynamic = nn.Linear(D, t * backbone.text_width) if self.dynamic else None

    def image(self, features: Features | None) -> Hooks | None:
        """Return the hooks that append and replace the tokens of the image tower."""
        if not self.in_image:
            return None
        return _Appended(self._tokens(self.image_tokens, self.image_dynamic, features))

    def text(self, features: Features | None) -> Hooks | None:
        """Return the hooks that replace the tokens of the text tower; with dynamic ones, for a single image."""
        if not self.in_text:
            return None
        return _Replaced(self._tokens(self.text_tokens, self.text_dynamic, features))

    def _tokens(self, static: Tensor, layer: nn.Linear | None, features: Features | None) -> Tensor:
        """Return static plus dynamic tokens: ``(blocks, B, t, W)``, with B = 1 if there are no dynamic ones."""
        tokens = static[:, None]
        if layer is not None:
            assert features is not None  # for the type checker: needs_features
            tokens = tokens + layer(self._unscaled(features)).unflatten(-1, static.shape[1:])
        return tokens.half() if self.round_tokens else tokens


class _Appended(Hooks):
    """Tokens ``(blocks, B or 1, t, W)`` behind the patches."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def before(self, number: int, tokens: Tensor) -> Tensor:
        """Append the tokens of block 1, and replace them before the next ones."""
        if number > len(self.tokens):
            return tokens
        learned = self.tokens[number - 1].to(tokens.dtype).expand(len(tokens), -1, -1)
        kept = tokens if number == 1 else tokens[:, : -learned.shape[1]]
        return torch.cat([kept, learned], dim=1)


class _Replaced(Hooks):
    """Tokens ``(blocks, 1, t, W)`` instead of those after the begin token, from block 2 on."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def before(self, number: int, tokens: Tensor) -> Tensor:
        """Replace the tokens before blocks 2 to ``blocks + 1``."""
        if not 2 <= number <= len(self.tokens) + 1:
            return tokens
        learned = self.tokens[number - 2].to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, :1], learned, tokens[:, 1 + learned.shape[1] :]], dim=1)
