"""Build what a file describes without taking more memory than its tensors can need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....core.torch_private import TorchDispatchMode, tree_leaves, tree_map
from ...errors import InputError


class Bounded(TorchDispatchMode):
    """Inside, no tensor of more than ``most`` elements is made: the size is known before the memory is taken.

    >>> with Bounded(10):
    ...     _ = torch.zeros(10)
    ...     torch.zeros(10**15)
    Traceback (most recent call last):
    steepest.core.errors.InputError: a tensor of 1,000,000,000,000,000 elements, and there can be 10 at most
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        size = _size(func, args, kwargs)
        if size > self.most:
            raise InputError(f"a tensor of {size:,} elements, and there can be {self.most:,} at most")
        return func(*args, **kwargs)


def _size(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Elements of the largest tensor that an operation gives, without its memory; 0 where only the values tell."""

    def shape_only(value: Any) -> Any:
        return (
            torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta") if _is(value) else value
        )

    makes_tensors = any(argument.name == "device" for argument in func._schema.arguments)
    told = (
        {**tree_map(shape_only, kwargs), "device": torch.device("meta")}
        if makes_tensors
        else tree_map(shape_only, kwargs)
    )
    if "generator" in told:
        told["generator"] = None
    try:
        shaped = func(*tree_map(shape_only, args), **told)
    except Exception:  # its size depends on values: no more than there are of them
        return 0
    return max((tensor.numel() for tensor in tree_leaves(shaped) if _is(tensor)), default=0)


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)
