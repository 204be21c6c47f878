"""Collectives of a distributed run; a process of it is called a rank. Outside of one, each rank is the only one.

Collective: every rank must call these equally often and in the same order, or the run hangs.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

Value = TypeVar("Value")


def rank_of() -> tuple[int, int]:
    """Return the rank of this process, from 0, and the number of ranks; not a collective."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: Value) -> list[Value]:
    """Return the values of all ranks, in the order of ranks; any object that can be pickled."""
    world = rank_of()[1]
    values = [value] * world
    if world > 1:
        dist.all_gather_object(values, value)
    return values


def total(mine: Tensor) -> Tensor:
    """Sum a tensor over ranks, of the same shape in each.

    A loss made of such sums is the loss of the images of all ranks, equal in each. Its gradient in a rank is that of
    the rank's own images times the number of ranks, because DDP averages gradients over ranks.
    """
    summed: Tensor = _Total.apply(mine) if rank_of()[1] > 1 else mine
    return summed


def mean(values: Tensor) -> Tensor:
    """Average the elements of all ranks, which may differ in number; 0 where there are none."""
    if rank_of()[1] == 1:
        return values.mean() if values.numel() else values.sum()
    added, count = total(torch.stack([values.float().sum(), values.new_tensor(values.numel(), dtype=torch.float32)]))
    return added / count.clamp_min(1)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        summed = mine.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]  # torch passes one for each output
        return gradient * dist.get_world_size()
