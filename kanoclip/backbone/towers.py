"""Image towers by their steps: patches in, what a block attends with, what it makes of it, joint space out."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaBlockPostNorm
from torch import Tensor
from torch.nn import functional as F

QKV = tuple[Tensor, Tensor, Tensor]


class Tower:
    """The steps of open_clip's own vision transformer. It holds no weights: the module is given.

    Attributes:
        blocks: Its transformer blocks.
        prefix: Tokens before the patches: 1, the class token.
        width: Width W of a token.
        dim: Joint width D.
        grid: Patches ``(h, w)`` that its positions are for.
        patch_size: Side of a patch in pixels.
        rotary: Whether queries and keys also carry the positions of the whole grid.
        position: Learned positions ``(prefix + h * w, W)``, of the patches alone where the class token has none.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.blocks = visual.transformer.resblocks
        self.prefix = 1
        self.width: int = visual.conv1.out_channels
        self.dim: int = visual.output_dim
        self.grid: tuple[int, int] = visual.grid_size
        self.patch_size: int = visual.conv1.kernel_size[0]
        self.position: Tensor = visual.positional_embedding
        self.rotary = False

    def use_grid(self, side: int) -> None:
        """Prepare for images of ``side`` x ``side`` patches."""

    def embed(self, image: Tensor, position: Tensor) -> Tensor:
        """Image ``(B, 3, H, W)``, normalised -> tokens ``(B, prefix + N, W)`` for the first block."""
        visual = self.visual
        patches = visual.conv1(image).flatten(2).transpose(1, 2)  # (B, N, W)
        cls = visual.class_embedding.expand(patches.shape[0], 1, -1)
        return visual.ln_pre(torch.cat([cls, patches], dim=1) + position)  # type: ignore[no-any-return]

    def split(self, block: Any, tokens: Tensor) -> QKV:
        """Return what a block attends with, each ``(B, heads, prefix + N, d)``."""
        attn = block.attn
        projected = F.linear(block.ln_1(tokens), attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in projected.chunk(3, dim=-1))
        return q, k, v

    def merge(self, block: Any, attended: Tensor) -> Tensor:
        """Attended values ``(B, heads, prefix + N, d)`` -> what the block adds to its tokens ``(B, prefix + N, W)``."""
        return block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def feed(self, block: Any, tokens: Tensor) -> Tensor:
        """Return what the feed-forward part of a block adds to its tokens."""
        return block.ls_2(block.mlp(block.ln_2(tokens)))  # type: ignore[no-any-return]

    def norm(self, tokens: Tensor) -> Tensor:
        """Tokens through the last norm."""
        return self.visual.ln_post(tokens)  # type: ignore[no-any-return]

    def project(self, tokens: Tensor) -> Tensor:
        """Normed tokens ``(..., W)`` -> joint space ``(..., D)``, each on its own."""
        return tokens @ self.visual.proj  # type: ignore[no-any-return]

    def pool(self, tokens: Tensor, norm: bool = True) -> Tensor:
        """All tokens of the last block ``(B, prefix + N, W)`` -> the global feature ``(B, D)``."""
        return self.project(self.norm(tokens[:, 0]) if norm else tokens[:, 0])


class TimmTower(Tower):
    """The steps of timm's vision transformers, as open_clip's SigLIP, EVA, MobileCLIP-B and PE models have them.

    Some have no class token and pool the patches by attention: a patch then comes to joint space as an image that shows
    nothing else. Rotary positions belong to queries and keys; values have none.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.trunk = trunk = visual.trunk
        self.blocks = trunk.blocks
        self.prefix = trunk.num_prefix_tokens
        self.width = trunk.embed_dim
        self.dim = trunk.num_classes or trunk.num_features
        self.grid = trunk.patch_embed.grid_size
        self.patch_size = trunk.patch_embed.img_size[0] // self.grid[0]
        self.position = trunk.pos_embed[0]
        self.rotary = getattr(trunk, "rope", None) is not None
        self._rope: Tensor | None = trunk.rope.get_embed() if self.rotary else None

    def use_grid(self, side: int) -> None:
        """Prepare for images of ``side`` x ``side`` patches: rotary positions are made for a grid."""
        self.trunk.patch_embed.strict_img_size = False
        if self._rope is not None:
            self.trunk.rope.update_feat_shape([side, side])

    def embed(self, image: Tensor, position: Tensor) -> Tensor:
        """Image ``(B, 3, H, W)``, normalised -> tokens ``(B, prefix + N, W)`` for the first block."""
        patches = self.trunk.patch_embed(image)
        if patches.ndim == 4:  # (B, h, w, W), of a trunk for any size
            patches = patches.flatten(1, 2)
        if self.trunk.no_embed_class:
            patches = patches + position
        if self.prefix:
            patches = torch.cat([self.trunk.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = patches if self.trunk.no_embed_class else patches + position
        return self.trunk.norm_pre(tokens)  # type: ignore[no-any-return]

    def split(self, block: Any, tokens: Tensor) -> QKV:
        """Return what a block attends with, each ``(B, heads, prefix + N, d)``."""
        attn, x = block.attn, tokens if isinstance(block, EvaBlockPostNorm) else block.norm1(tokens)
        if attn.qkv is None:
            parts = [attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)]
        else:
            apart = getattr(attn, "q_bias", None) is not None  # as in EVA
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if apart else attn.qkv.bias
            parts = list(F.linear(x, attn.qkv.weight, bias).chunk(3, dim=-1))
        q, k, v = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts)
        return self._turned(attn.q_norm(q), attn), self._turned(attn.k_norm(k), attn), v

    def merge(self, block: Any, attended: Tensor) -> Tensor:
        """Attended values ``(B, heads, prefix + N, d)`` -> what the block adds to its tokens ``(B, prefix + N, W)``."""
        added = block.attn.proj(block.attn.norm(attended.transpose(1, 2).flatten(2)))
        return _scaled(block, 1, added)

    def feed(self, block: Any, tokens: Tensor) -> Tensor:
        """Return what the feed-forward part of a block adds to its tokens."""
        post = isinstance(block, EvaBlockPostNorm)
        return _scaled(block, 2, block.mlp(tokens if post else block.norm2(tokens)))

    def norm(self, tokens: Tensor) -> Tensor:
        """Tokens through the last norm."""
        return self.trunk.norm(tokens)  # type: ignore[no-any-return]

    def project(self, tokens: Tensor) -> Tensor:
        """Normed tokens ``(..., W)`` -> joint space ``(..., D)``, each on its own."""
        trunk = self.trunk
        if trunk.attn_pool is not None:  # attention to a single token is that token's value
            tokens = trunk.attn_pool(tokens.reshape(-1, 1, self.width)).view(*tokens.shape[:-1], -1)
        return self.visual.head(trunk.head(trunk.fc_norm(tokens)))  # type: ignore[no-any-return]

    def pool(self, tokens: Tensor, norm: bool = True) -> Tensor:
        """All tokens of the last block ``(B, prefix + N, W)`` -> the global feature ``(B, D)``."""
        normed = self.norm(tokens) if norm else tokens
        return self.visual.head(self.trunk.forward_head(normed))  # type: ignore[no-any-return]

    def _turned(self, x: Tensor, attn: Any) -> Tensor:
        if self._rope is None:
            return x
        end = self.prefix + len(self._rope)  # behind the patches there may be what hooks have appended
        patches, half = x[:, :, self.prefix : end], getattr(attn, "rotate_half", False)
        turned = apply_rot_embed_cat(patches, self._rope, half=half)
        return torch.cat([x[:, :, : self.prefix], turned, x[:, :, end:]], dim=2).type_as(x)


def _scaled(block: Any, part: int, added: Tensor) -> Tensor:
    """Apply the scale, or the norm behind it, that a block has for its first or second part."""
    if isinstance(block, EvaBlockPostNorm):
        return getattr(block, f"norm{part}")(added)  # type: ignore[no-any-return]
    if hasattr(block, f"gamma_{part}"):
        gamma = getattr(block, f"gamma_{part}")
        return added if gamma is None else gamma * added
    return getattr(block, f"ls{part}")(added)  # type: ignore[no-any-return]


def tower_of(visual: Any) -> Tower:
    """Return the steps of an open_clip model's image tower."""
    return Tower(visual) if isinstance(visual, VisionTransformer) else TimmTower(visual)
