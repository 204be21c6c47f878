"""Pre-VCP: the image names its object in the prompt, and learned tokens go through the text encoder (VCP-CLIP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.backbone.tuning import Hooks
from kanoclip.heads.prompts import Prompts, check_room, of_image
from kanoclip.types import Features, KanoclipError


class PreVCP(Prompts):
    """Say ``a photo of a good [v1]..[vr]``, where the vectors that stand for the object are made from the image.

    ``v = q + conv(g)``: q is learned, g is CLIP's global feature at its own length, see ``CLIPBackbone.unscaled``, and
    the convolution runs along the values of g, with one channel for each vector. Behind the begin token of each block
    of the text encoder stand learned tokens, all mapped by one linear layer; a layer norm follows the last block.

    Args:
        context: Vectors r that stand for the object.
        deep_tokens: Learned tokens at the input of each text block; 0 for none, and no layer norm then.
        dropout: Share of the values of these tokens that is dropped while fitting.
        normal: Words before the vectors of the normal prompt.
        anomalous: Words before those of the abnormal prompt.

    Raises:
        KanoclipError: If a number is out of its range, or a prompt is longer than the text encoder reads.

    Reference:
        Z. Qu et al., *VCP-CLIP: A Visual Context Prompting Model for Zero-Shot Anomaly Segmentation*, ECCV 2024,
        section 3.3, and its code. Where we differ: if images and token embeddings differ in width, which in its code
        must not be, a linear layer comes first.
    """

    words: Tensor
    eot: Tensor

    def __init__(
        self,
        context: int = 2,
        deep_tokens: int = 1,
        dropout: float = 0.1,
        normal: str = "a photo of a good",
        anomalous: str = "a photo of a damaged",
    ) -> None:
        super().__init__()
        if context < 1 or deep_tokens < 0:
            raise KanoclipError(
                f"prompts.context is {context} and prompts.deep_tokens {deep_tokens}, expected at least 1 and 0. "
                f"Use --model.prompts.context 2 --model.prompts.deep_tokens 1."
            )
        if not 0 <= dropout < 1:
            raise KanoclipError(
                f"prompts.dropout is {dropout}, expected a share in [0, 1). Use --model.prompts.dropout 0.1."
            )
        self.context = context
        self.deep_tokens = deep_tokens
        self.dropout = dropout
        self.normal = normal
        self.anomalous = anomalous

    def build(self, backbone: CLIPBackbone) -> None:
        """Embed the words, and draw the weights as its code does."""
        texts = [self.normal, self.anomalous]
        words, eot = backbone.token_embeddings(texts)  # (2, M, W), (2,)
        lengths, learned, width = backbone.text.lengths(texts), self.context + self.deep_tokens, backbone.text_width
        check_room(backbone, texts, learned, f"learned tokens and the words {texts}")
        self.ends: list[int] = (lengths - 1).tolist()  # where the end token of each is
        self.register_buffer("words", words.clone(), persistent=False)
        self.register_buffer("eot", backbone.text.moved(eot, learned), persistent=False)
        self.widen = nn.Identity() if backbone.dim == width else nn.Linear(backbone.dim, width)
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.context, width)))
        self.convolve = nn.Conv1d(1, self.context, 3, padding="same")
        if self.deep_tokens:
            blocks = len(backbone.text.blocks)
            self.deep = nn.Parameter(torch.empty(blocks, self.deep_tokens, width).uniform_(-1, 1))
            self.map_deep = nn.Linear(width, width)
            nn.init.kaiming_normal_(self.map_deep.weight, mode="fan_out")
            self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(
        self,
        category: Sequence[str],
        backbone: CLIPBackbone,
        features: Features | None = None,
        hooks: Hooks | None = None,
    ) -> Tensor:
        """Return ``(B, 2, D)``.

        Raises:
            KanoclipError: Without features.
        """
        features = of_image(features, "pre_vcp")
        named = self.query + self.convolve(self.widen(backbone.unscaled(features))[:, None])  # (B, r, W)
        every, room = (len(named), -1, -1), backbone.context_length - self.context
        prompts = torch.stack(
            [
                torch.cat([words[:end].expand(every), named, words[end:room].expand(every)], 1)
                for words, end in zip(self.words, self.ends, strict=True)
            ],
            1,
        ).flatten(0, 1)  # (B * 2, M, W)
        if self.deep_tokens:
            dropout = self.dropout if self.training else 0.0
            hooks = _Inserted(self.map_deep(self.deep), dropout, self.norm, hooks or Hooks())
        encoded = backbone.encode_embeddings(prompts, self.eot.repeat(len(named)), hooks=hooks)
        return encoded.unflatten(0, (-1, 2))


class _Inserted(Hooks):
    """Tokens ``(blocks, t, W)`` put in behind the begin token, replaced at each block, with a norm behind the last.

    They have no positions and leave those of the words as they were; as many tokens of the padding give way.
    """

    def __init__(self, tokens: Tensor, dropout: float, norm: nn.LayerNorm, inner: Hooks) -> None:
        self.tokens, self.dropout, self.norm, self.inner = tokens, dropout, norm, inner

    def before(self, number: int, tokens: Tensor) -> Tensor:
        """Insert tokens before block 1, and replace them before the others."""
        learned = F.dropout(self.tokens[number - 1].expand(len(tokens), -1, -1), self.dropout).to(tokens.dtype)
        t = learned.shape[1]
        rest = tokens[:, 1:-t] if number == 1 else tokens[:, 1 + t :]
        return self.inner.before(number, torch.cat([tokens[:, :1], learned, rest], 1))

    def after(self, number: int, tokens: Tensor) -> Tensor:
        """Norm the tokens that come out of the last block."""
        tokens = self.inner.after(number, tokens)
        return self.norm(tokens.float()).to(tokens.dtype) if number == len(self.tokens) else tokens
