"""What tells one backbone from another: its weights, and what its blocks make of them."""

from __future__ import annotations

import hashlib

from torch import nn

from kanoclip.data.digests import tensor_bytes


def fingerprint(backbone: nn.Module) -> str:
    """Return the sha256, hexadecimal, of all weights (names, types, shapes, values) and of what else blocks compute.

    That is each activation other than GELU, each norm whose epsilon is not 1e-5, and the number of heads where
    their width is not 64, or 32 in towers narrower than 256; what is usual adds nothing, and old caches stay valid.

    Args:
        backbone: With its image tower as ``visual``.
    """
    digest = hashlib.sha256()
    trunk = getattr(backbone.visual, "trunk", None)  # of timm: every activation and number of heads counts
    for name, module in trunk.named_modules() if trunk is not None else ():
        if "activation" in type(module).__module__ or hasattr(module, "num_heads"):
            digest.update(f"{name} {type(module).__name__} {module.extra_repr()}".encode())
            digest.update(f"{getattr(module, 'num_heads', 0)}".encode())
    for name, module in backbone.named_modules():
        if name.endswith(".gelu") and repr(module) != repr(nn.GELU()):  # open_clip's name for any activation
            digest.update(f"{name} {module!r}".encode())
        width, heads = getattr(module, "embed_dim", 0), getattr(module, "num_heads", 0)
        eps = getattr(module, "eps", 1e-5)
        if width and heads and width != heads * (64 if width >= 256 else 32):
            digest.update(f"{name} {heads} heads".encode())
        if eps != 1e-5:
            digest.update(f"{name} {eps}".encode())
    for name, weight in sorted(backbone.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(tensor_bytes(weight))
    return digest.hexdigest()
