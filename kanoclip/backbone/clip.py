"""Frozen CLIP with a second attention path: image -> patch features of several levels and the global feature."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kanoclip.backbone.attention import Attention
from kanoclip.backbone.blocks import embed_patches, pool, project, resize_position, run_blocks
from kanoclip.backbone.casting import cast_once
from kanoclip.backbone.fingerprints import fingerprint
from kanoclip.backbone.loading import SCHEMES, load, set_activation
from kanoclip.backbone.text import TextEncoder
from kanoclip.backbone.towers import tower_of
from kanoclip.backbone.tuning import Hooks
from kanoclip.types import Features, KanoclipError

_uncopied = ContextVar("uncopied", default=False)


@contextmanager
def uncopied() -> Iterator[None]:
    """Let ``copy.deepcopy`` return a backbone itself, so that hyperparameters hold no second copy of the weights."""
    token = _uncopied.set(True)
    try:
        yield
    finally:
        _uncopied.reset(token)


class CLIPBackbone(nn.Module):
    """Frozen CLIP: any open_clip model whose image tower is a plain vision transformer, see docs/backbones.md.

    Always in eval mode, without gradients for its weights. Beside CLIP's own path (attention and feed-forward) runs a
    second one with another attention and no feed-forward, on the q, k, v of CLIP's path:
    ``x2 <- x2 + W_o attention(q, k, v)``. Patches come from the second path where there is one, the global feature
    always from CLIP's own.

    Args:
        name: open_clip's name of the model, such as ViT-L-14-336; or ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``,
            which bring their own weights.
        pretrained: open_clip's tag of the weights, or the path of a local .safetensors or .pt file, best with the
            tag in its name, which decides activation and colours. null: random weights, for tests and timing.
        image_size: Side of the square image in pixels, a multiple of the patch size.
        levels: Blocks after which patches are read, counted from 1. null: the four quarters of the depth
            (6, 12, 18, 24 of 24).
        position: How the position embedding is resized if the image size is not that of the pretraining: bicubic with
            antialias, as in open_clip; bilinear without, as in CLIP Surgery and AnomalyCLIP; or
            bicubic_no_antialias, as in AdaCLIP, which differs in enlarging too (by 5 % of the spread, 24 to 37).
        cls_norm: Whether the global feature passes CLIP's last norm. AnomalyCLIP's code leaves it out: false.
        levels_at: Where patches are read: "joint", behind CLIP's last norm and projection, of width D and unit length;
            "norm", behind the norm alone; or "block", as the block returns them. The latter two have the tower's width.
        activation: Of both towers. null: what the weights were trained with, by their tag. APRIL-GAN, AdaCLIP, AA-CLIP
            and Bayes-PFL ran OpenAI's weights, trained with QuickGELU, with GELU: their heads need ``gelu``.
        unit_cls: Whether the global feature gets unit length; false for heads that read its own, such as those of CoPS.

    Attributes:
        dim: Joint width D of images and texts.
        width: Width W of the image tower.
        patch_dim: Width of the patches that it returns: D or W, see ``levels_at``.
        prefix: Tokens before the patches: 1, the class token, or 0 where there is none, as in SigLIP.
        rotary: Whether its blocks turn queries and keys by their place in the grid, as in EVA02.
        depth: Number of image blocks.
        patch_size: Side of a patch in pixels.
        text_width: Width of a token embedding of the text encoder.
        context_length: Longest text in tokens, begin and end included.
        description: Name and weights in one line, for checkpoints and reports.

    Raises:
        BackboneUnavailableError: If the weights must be downloaded and cannot be.
        MissingError: If ``pretrained`` is a path where no file is.
        KanoclipError: If a name is unknown, the model is not supported, or the sizes or levels do not fit it.

    Reference:
        Y. Li et al., *CLIP Surgery*, arXiv 2304.05653, 2023; Q. Zhou et al., *AnomalyCLIP*, ICLR 2024, whose code
        this matches to 1e-5 with ``position="bilinear", cls_norm=False``. LayerScale, where a model has it, scales
        both paths: ours.
    """

    mean: Tensor
    std: Tensor
    position: Tensor

    def __init__(
        self,
        name: str = "ViT-L-14-336",
        pretrained: str | None = "openai",
        image_size: int = 518,
        levels: list[int] | None = None,
        position: Literal["bicubic", "bilinear", "bicubic_no_antialias"] = "bicubic",
        cls_norm: bool = True,
        activation: Literal["gelu", "quick_gelu"] | None = None,
        levels_at: Literal["joint", "norm", "block"] = "joint",
        unit_cls: bool = True,
    ) -> None:
        super().__init__()
        model, tokenizer = load(name, pretrained)
        if activation is not None:
            set_activation(model, activation)
        self.visual = visual = model.visual
        if levels_at not in ("joint", "norm", "block"):
            raise KanoclipError(
                f"levels_at is {levels_at!r}, expected joint, norm or block. Use --model.backbone.levels_at joint."
            )
        tower = tower_of(visual)
        self.dim, self.width, self.patch_size = tower.dim, tower.width, tower.patch_size
        self.prefix, self.rotary = tower.prefix, tower.rotary
        _check_class_token(levels_at, tower.prefix, name)
        self.levels_at = levels_at
        self.patch_dim = self.dim if levels_at == "joint" else self.width
        self.depth = len(tower.blocks)
        self.image_size = image_size
        self.levels = _check_levels(levels, self.depth, name)
        self.cls_norm = cls_norm
        self.unit_cls = unit_cls
        self._resizing = position
        self.description = name if name.startswith(SCHEMES) else f"{name} {pretrained or 'random weights'}"
        _check_image_size(image_size, self.patch_size, name)

        self.text = TextEncoder(model, tokenizer)
        self.context_length = self.text.context_length
        self.text_width = self.text.token_embedding.embedding_dim

        grid = (image_size // self.patch_size,) * 2
        resized = resize_position(tower.position.detach(), tower.grid, grid, position)
        tower.use_grid(grid[0])
        self.register_buffer("position", resized, persistent=False)  # (1 + N, width)
        for key in ("mean", "std"):
            value = torch.tensor(visual.preprocess_cfg[key]).view(3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self.requires_grad_(False)
        self._fingerprint: str | None = None
        self.train(False)

    def train(self, mode: bool = True) -> CLIPBackbone:
        """Stay in eval mode, whatever ``mode`` says."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> CLIPBackbone:
        """Copy as any module does; within ``uncopied`` return the backbone itself."""
        if _uncopied.get():
            return self
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def reading(self, levels_at: Literal["joint", "norm", "block"]) -> CLIPBackbone:
        """Return a backbone of the same weights, shared, whose levels are read elsewhere; raises as the constructor."""
        _check_class_token(levels_at, self.prefix, self.description)
        twin = copy.copy(self)
        twin.levels_at, twin.patch_dim = levels_at, self.dim if levels_at == "joint" else self.width
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return next(self.visual.parameters()).dtype

    @property
    def settings(self) -> dict[str, Any]:
        """What the features depend on besides the weights and the image size."""
        settings = {"levels": self.levels, "position": self._resizing, "cls_norm": self.cls_norm}
        settings = settings if self.unit_cls else settings | {"unit_cls": False}
        return settings if self.levels_at == "joint" else settings | {"levels_at": self.levels_at}

    @property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of all weights and of what else the blocks compute, see ``fingerprints``."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self)
        return self._fingerprint

    @torch.no_grad()
    def forward(self, image: Tensor, attention: Attention) -> Features:
        """Read the patches of each level and the global feature.

        Args:
            image: ``(B, 3, image_size, image_size)`` in [0, 1]; CLIP's mean and std are applied here.
            attention: What the second path attends to.

        Returns:
            patches ``(L, B, N, D)`` and cls ``(B, D)``, both float32 and unit length, and the grid ``(h, w)``.

        Raises:
            KanoclipError: If the image has another size than the backbone was built for.
        """
        return self.tuned(image, attention)

    def tuned(self, image: Tensor, attention: Attention, hooks: Hooks | None = None) -> Features:
        """As ``forward``, with what is trained inside the tower: gradients reach the hooks."""
        visual, grid = cast_once(self.visual), (self.image_size // self.patch_size,) * 2
        tokens, levels = run_blocks(visual, self.embed_image(image), attention, self.levels, hooks)
        whole = self.prefix + grid[0] * grid[1]  # without what hooks have appended
        cls = pool(visual, tokens[:, :whole], self.cls_norm, self.unit_cls)  # (B, D)
        levels = [level[:, :whole] for level in levels]
        if self.levels_at == "joint":
            return Features(torch.stack([project(visual, level[:, self.prefix :]) for level in levels]), cls, grid)
        norm = tower_of(visual).norm
        read = torch.stack([norm(one) if self.levels_at == "norm" else one for one in levels]).float()
        return Features(read[:, :, 1:], cls, grid, read[:, :, 0])  # (L, B, N, W) and (L, B, W)

    def joint(self, tokens: Tensor, norm: bool = True) -> Tensor:
        """Tokens as a block returns them ``(..., W)`` -> ``(..., D)``, by CLIP's last norm and projection; unit length.

        Args:
            tokens: Of the image tower.
            norm: Whether they pass the norm; false for those that are read behind it.
        """
        return project(cast_once(self.visual), tokens, norm)

    def unscaled(self, features: Features) -> Tensor:
        """Return the global feature ``(B, D)`` as long as the last norm and projection make it.

        The length is that of the class token of the last level, so levels should end with the last block. ``levels_at``
        "joint" keeps no such token: there, the length is 1.
        """
        if features.level_cls is None:
            return features.cls
        tower, token = tower_of(cast_once(self.visual)), features.level_cls[-1]
        if self.levels_at == "block" and self.cls_norm:
            token = tower.norm(token)
        return features.cls * tower.project(token).float().norm(dim=-1, keepdim=True)

    def embed_image(self, image: Tensor) -> Tensor:
        """Image ``(B, 3, image_size, image_size)`` in [0, 1] -> tokens ``(B, 1 + N, width)`` for the first block.

        Raises:
            KanoclipError: If the image has another size than the backbone was built for.
        """
        if image.shape[-2:] != (self.image_size, self.image_size):
            raise KanoclipError(
                f"The images are {image.shape[-1]} x {image.shape[-2]} pixels (width x height), the backbone is built "
                f"for {self.image_size} x {self.image_size}. Use --model.backbone.image_size {image.shape[-1]}."
            )
        pixels = ((image - self.mean) / self.std).to(self.dtype)
        return embed_patches(self.visual, pixels, self.position)

    def encode_text(self, texts: list[str], hooks: Hooks | None = None) -> Tensor:
        """Texts -> ``(K, D)``, unit length; without gradients but for those of the hooks."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and hooks is not None):
            return self.text.encode(texts, hooks)

    @torch.no_grad()
    def token_embeddings(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Texts -> token embeddings ``(K, M, text_width)`` and index ``(K,)`` of the end token, ``eot``.

        The embeddings are without positions: begin token at 0, words from 1, end token at ``eot``, then padding.
        """
        return self.text.embed(texts)

    def encode_embeddings(
        self, embeddings: Tensor, eot: Tensor, deep: Tensor | None = None, hooks: Hooks | None = None
    ) -> Tensor:
        """Token embeddings -> ``(K, D)``, unit length; gradients reach ``embeddings`` and ``deep``.

        Args:
            embeddings: ``(K, M, text_width)`` as ``token_embeddings`` returns them.
            eot: ``(K,)``, index of the end token.
            deep: ``(depth, t, text_width)``: learned tokens that replace the t tokens after the begin token at the
                input of text blocks 2 to ``depth + 1``, as in AnomalyCLIP.
            hooks: What is trained inside the text tower.

        Raises:
            KanoclipError: If ``deep`` has more sets than there are blocks after the first, or more tokens than texts.
        """
        return self.text(embeddings, eot, deep, hooks)


def _check_image_size(image_size: int, patch_size: int, name: str) -> None:
    if image_size < patch_size or image_size % patch_size:
        below = image_size // patch_size * patch_size
        sizes = f"{below} or {below + patch_size}" if below > 0 else f"{patch_size}"
        raise KanoclipError(
            f"image_size {image_size} is not a multiple of the patch size {patch_size} of {name}. "
            f"Use {sizes}, or choose a backbone with another patch size."
        )


def _check_levels(levels: list[int] | None, depth: int, name: str) -> list[int]:
    if levels is None:
        return sorted({-(-depth * quarter // 4) for quarter in (1, 2, 3, 4)})  # rounded up: 2, 3, 5, 6 of 6
    if not levels or sorted(set(levels)) != levels or levels[0] < 1 or levels[-1] > depth:
        raise KanoclipError(
            f"levels {levels} do not fit {name}: expected rising block numbers from 1 to {depth}, each once. "
            f"Use --model.backbone.levels '{_check_levels(None, depth, name)}'."
        )
    return list(levels)


def _check_class_token(levels_at: str, prefix: int, name: str) -> None:
    if levels_at != "joint" and not prefix:
        raise KanoclipError(
            f"levels_at is {levels_at}, but {name} has no class token to read there. Use joint, or another model."
        )
