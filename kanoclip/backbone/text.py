"""CLIP's text encoder, which also reads token embeddings, so that prompts can be learned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.casting import cast_once
from kanoclip.backbone.tuning import Hooks
from kanoclip.types import KanoclipError

_log = logging.getLogger(__name__)

TEXTS_AT_ONCE = 256  # texts encoded at a time, which bounds the memory of long lists of prompts


class TextEncoder(nn.Module):
    """The text side of an open_clip model: texts or embeddings -> unit vectors.

    It shares the model's own submodules, which are attributes of the model (``open_clip.CLIP``) or of its ``text``
    (``open_clip.CustomTextCLIP``).

    Args:
        model: An open_clip model with open_clip's own text transformer.
        tokenizer: Its tokenizer: list of texts and a length -> ids ``(K, length)``.
    """

    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    blocks: nn.ModuleList
    ln_final: nn.Module
    projection: nn.Parameter | nn.Linear | None
    mask: Tensor | None

    def __init__(self, model: Any, tokenizer: Callable[..., Tensor]) -> None:
        super().__init__()
        tower = getattr(model, "text", model)
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.blocks = tower.transformer.resblocks
        self.ln_final = tower.ln_final
        self.projection = tower.text_projection
        self.register_buffer("mask", tower.attn_mask, persistent=False)  # (M, M) causal, or None: looks both ways
        self.pooling: str = model.text_pool_type if tower is model else tower.pool_type
        self.eos: int = model.text_eos_id if tower is model else tower.eos_id
        self.context_length: int = tower.context_length
        self.tokenizer = tokenizer
        self._cut: set[str] = set()

    def tokenize(self, texts: list[str]) -> Tensor:
        """Texts -> token ids ``(K, context_length)``; a text that is too long is cut, with one warning per text."""
        ids = self.tokenizer(texts, context_length=self.context_length)
        longer = self.tokenizer(texts, context_length=self.context_length + 1)[:, : self.context_length]
        for text in [text for text, cut in zip(texts, (ids != longer).any(dim=1), strict=True) if cut]:
            if text not in self._cut:
                self._cut.add(text)
                _log.warning("Longer than CLIP's %d tokens, the rest is not read: %r", self.context_length, text)
        return ids.to(self.token_embedding.weight.device)

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Texts -> token embeddings ``(K, M, width)`` without positions, and index ``(K,)`` of the token to read."""
        ids = self.tokenize(texts)
        return self.token_embedding(ids), self._end(ids)

    def lengths(self, texts: list[str]) -> Tensor:
        """Texts -> number of tokens ``(K,)`` of each before its padding."""
        ids = self.tokenize(["", *texts])
        number = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return ((ids[1:] != ids[0, -1]) * number).amax(1)  # an empty text ends in padding

    def moved(self, eot: Tensor, count: int) -> Tensor:
        """Return where the token to read is once ``count`` tokens were put behind the first one."""
        return eot if self.pooling in ("first", "last") else eot + count

    def encode(self, texts: list[str], hooks: Hooks | None = None) -> Tensor:
        """Texts -> ``(K, D)``, unit length."""
        chunks = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        return torch.cat([self(*self.embed(chunk), hooks=hooks) for chunk in chunks])

    def forward(
        self,
        embeddings: Tensor,
        eot: Tensor,
        deep: Tensor | None = None,
        hooks: Hooks | None = None,
        projection: Callable[[Tensor], Tensor] | None = None,
        unit: bool = True,
    ) -> Tensor:
        """Token embeddings -> ``(K, D)``, unit length; differentiable.

        Args:
            embeddings: ``(K, M, width)`` without positions, M up to ``context_length``.
            eot: ``(K,)``, index of the token that is read, mostly the end token.
            deep: ``(depth, t, width)`` learned tokens that replace the t tokens after the first one at the input of
                blocks 2 to ``depth + 1``.
            hooks: What is trained between the blocks.
            projection: ``(K, width)``, behind the last norm, -> ``(K, D)``, instead of CLIP's own.
            unit: Whether the result has unit length.
        """
        if self.mask is not None:  # causal: tokens after the one that is read do not change it
            embeddings = embeddings[:, : int(eot.max()) + 1]
        K, M, _ = embeddings.shape
        if deep is not None and (len(deep) >= len(self.blocks) or deep.shape[1] >= M):
            raise KanoclipError(
                f"{len(deep)} sets of {deep.shape[1]} deep tokens do not fit a text encoder of {len(self.blocks)} "
                f"blocks and texts of {M} tokens. Use at most {len(self.blocks) - 1} sets of {M - 1} tokens."
            )
        mask = None if self.mask is None else self.mask[:M, :M]
        tokens = (embeddings + self.positional_embedding[:M]).to(self.positional_embedding.dtype)
        for number, block in enumerate(cast_once(self.blocks)):
            if deep is not None and 1 <= number <= len(deep):
                learned = deep[number - 1].to(tokens.dtype).expand(K, -1, -1)
                tokens = torch.cat([tokens[:, :1], learned, tokens[:, 1 + deep.shape[1] :]], dim=1)
            tokens = block(tokens if hooks is None else hooks.before(number + 1, tokens), attn_mask=mask)
            tokens = tokens if hooks is None else hooks.after(number + 1, tokens)
        read = self.ln_final(tokens)[torch.arange(K, device=eot.device), eot]  # (K, width)
        if projection is not None:
            read = projection(read)
        elif isinstance(self.projection, nn.Linear):
            read = self.projection(read)
        elif self.projection is not None:
            read = read @ self.projection
        return F.normalize(read.float(), dim=-1) if unit else read.float()

    def _end(self, ids: Tensor) -> Tensor:
        """Index ``(K,)`` of the token that stands for the whole text."""
        if self.pooling == "argmax":  # the end token has the highest id of all
            return ids.argmax(dim=-1)
        if self.pooling == "eos":
            return ids.eq(self.eos).int().argmax(dim=-1)
        return torch.full_like(ids[:, 0], 0 if self.pooling == "first" else ids.shape[1] - 1)
