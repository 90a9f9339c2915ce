"""The C++ softmax over contiguous float32 rows ``[rows, columns]`` on the CPU; the interface of ``_triton_softmax``."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..core import native

SOURCE = Path(__file__).with_name("softmax.cpp")


@cache
def available() -> bool:
    """Whether the library is there; the first call may build it."""
    return native.library(SOURCE) is not None


@cache
def _function(name: str, pointers: int) -> ctypes._CFuncPtr:
    function = getattr(native.library(SOURCE), name)
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    function.restype = None
    return function


def _call(name: str, shape: torch.Size, *tensors: Tensor) -> None:
    pointers = [tensor.data_ptr() for tensor in tensors]
    _function(name, len(tensors))(*pointers, shape[0], shape[1], torch.get_num_threads())


def forward(x: Tensor, log: bool) -> Tensor:
    """Softmax, or its logarithm, of each row."""
    y = torch.empty_like(x)
    _call("log_softmax_forward" if log else "softmax_forward", x.shape, x, y)
    return y


def backward(y: Tensor, dy: Tensor, log: bool) -> Tensor:
    """The gradient in x from the result and its gradient."""
    dx = torch.empty_like(y)
    _call("log_softmax_backward" if log else "softmax_backward", y.shape, y, dy, dx)
    return dx


def sums(x: Tensor) -> Tensor:
    """``[rows, 3]`` M, N and shift: the sum of e^x is M 2^N e^shift."""
    of_rows = x.new_empty(len(x), 3)
    _call("softmax_sums", x.shape, x, of_rows)
    return of_rows


def weights(x: Tensor, found: Tensor, factor: Tensor) -> Tensor:
    """``factor e^(x - shift) 2^-N`` with one factor a row, for the ``found`` of :func:`sums`."""
    y = torch.empty_like(x)
    _call("softmax_weights", x.shape, x, found, factor, y)
    return y
