"""Rows of float32 on the CPU in C++: their softmax, and the last step of a gradient that is made of it."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import native
from .transforms import by_hand

SOURCE = Path(__file__).with_name("rows.cpp")

WORTH = 1 << 13
"""From this many values on a call is worth it; under it torch's own forms take microseconds too."""


def runs(*tensors: Tensor) -> bool:
    """Whether the C++ forms take these tensors: float32 on the CPU, contiguous, ``WORTH`` values or more in the first.

    The first call in a process may build the library.
    """
    return (
        tensors[0].numel() >= WORTH
        and all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        and by_hand(*tensors)
        and _library(native.level()) is not None
    )


def softmax(z: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Fill ``p`` with the softmax of rows; gives top, their largest value, and the sum of e^(z - top), ``[r, 1]``."""
    top, total = z.new_empty(len(z), 1), z.new_empty(len(z), 1)
    _call("softmax_rows", z.shape, z, p, top, total)
    return top, total


def scale(g: Tensor, factor: Tensor, value: Tensor, target: Tensor) -> None:
    """``g[i] *= factor[i]``, then ``g[i, target[i]] += value[i]``, in place."""
    _call("scale_rows", g.shape, g, factor, value, target)


def _call(name: str, shape: torch.Size, *tensors: Tensor) -> None:
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    size = (ctypes.c_int64(shape[0]), ctypes.c_int64(shape[1]))
    getattr(_library(native.level()), name)(*pointers, *size, ctypes.c_int(torch.get_num_threads()))


@cache
def _library(level: str) -> ctypes.CDLL | None:
    return native.library(SOURCE)
