"""Mixed precision for frozen weights: cast once, not in every call."""

from __future__ import annotations

import copy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_cast: WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]] = WeakKeyDictionary()


def cast_once(module: AnyModule) -> AnyModule:
    """Return a frozen module as autocast would run it, to the last bit; without autocast the module itself.

    Autocast keeps the cast of a weight that learns until a step ends, but casts frozen ones anew in every call: a third
    of all kernels of a ViT. So the matrices are cast here, once for each type and device; norms and buffers are shared.

    Args:
        module: Not trained. When its weights change, they are cast again.
    """
    weights = list(module.parameters())
    kind = weights[0].device.type
    if torch.compiler.is_compiling() or not torch.is_autocast_enabled(kind):  # a compiler sees to it by itself
        return module
    dtype = torch.get_autocast_dtype(kind)
    key = dtype, [(weight.data_ptr(), weight._version) for weight in weights]
    made = _cast.get(module)
    if made is None or made[0] != key:
        memo: dict[int, Any] = {id(one): one for one in (*weights, *module.buffers())}
        with torch.inference_mode(False):  # a fit may come after a test
            for part in module.modules():
                if isinstance(part, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                    for weight in part.parameters(recurse=False):
                        memo[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
            made = _cast[module] = key, copy.deepcopy(module, memo)
    return made[1]  # type: ignore[return-value]  # a copy is of the same class
