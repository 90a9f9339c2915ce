"""Lists of tensors for C++: whether it may take them, and where their memory is."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from .transforms import by_hand

_PLAIN = {Tensor, torch.nn.Parameter}
_ON_CPU, _TYPE = attrgetter("is_cpu"), attrgetter("dtype")


def plain_lists(*lists: Sequence[Tensor]) -> bool:
    """Whether all tensors are of float32 on the CPU, contiguous, and the lists of like sizes, in an eager call.

    >>> a, b = torch.zeros(2), torch.zeros(3)
    >>> plain_lists([a, b], [a, b]), plain_lists([a], [b]), plain_lists([a.double()])
    (True, False, False)
    """
    return (
        all(map(_plain, lists))
        and all(list(map(Tensor.numel, tensors)) == list(map(Tensor.numel, lists[0])) for tensors in lists[1:])
        and by_hand()
    )


def _plain(tensors: Sequence[Tensor]) -> bool:
    return (
        set(map(type, tensors)) <= _PLAIN
        and all(map(_ON_CPU, tensors))
        and set(map(_TYPE, tensors)) <= {torch.float32}
        and all(map(Tensor.is_contiguous, tensors))
    )


class Memory:
    """Arrays for a call of C++, which live as long as this.

    >>> memory = Memory()
    >>> memory.pointers([torch.zeros(2)]).value is not None, memory.pointers([])
    (True, None)
    """

    def __init__(self) -> None:
        self._owned: list[Any] = []

    def pointers(self, tensors: Sequence[Tensor]) -> ctypes.c_void_p | None:
        """Where the numbers of each tensor are; None for no tensors."""
        self._owned.append(tensors)
        return self.numbers("Q", map(Tensor.data_ptr, tensors)) if tensors else None

    def pointer(self, tensor: Tensor) -> ctypes.c_void_p:
        """Where the numbers of one tensor are."""
        self._owned.append(tensor)
        return ctypes.c_void_p(tensor.data_ptr())

    def numbers(self, kind: str, values: Iterable[float]) -> ctypes.c_void_p:
        """An array of a type by its letter in Python's ``array``."""
        own = array(kind, values)
        self._owned.append(own)
        return ctypes.c_void_p(own.buffer_info()[0])

    def sizes(self, tensors: Sequence[Tensor]) -> ctypes.c_void_p:
        """How many numbers each tensor has."""
        return self.numbers("q", map(Tensor.numel, tensors))
