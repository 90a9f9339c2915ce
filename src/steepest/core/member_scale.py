"""Inputs that several members scale each in its own way, and the gradients of that."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import native
from .transforms import by_hand

SOURCE = Path(__file__).with_name("member_scale.cpp")


def member_scale(x: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """Inputs ``[M, B, D]`` times the scales ``[M, k, D]`` of each member: ``[M, k, B, D]``, into ``out`` if given."""
    return torch.mul(x.unsqueeze(1), scale.unsqueeze(2), out=out)


def member_scale_backward(g: Tensor, x: Tensor, scale: Tensor, needed: bool = True) -> tuple[Tensor, Tensor | None]:
    """The gradients of the scales ``[M, k, D]`` and, where needed, of the inputs ``[M, B, D]``.

    Args:
        g: of the scaled inputs, ``[M, k, B, D]``.
        x: the inputs.
        scale: the scales.
        needed: whether that of the inputs is.

    >>> member_scale_backward(torch.ones(1, 2, 3, 1), torch.full((1, 3, 1), 2.0), torch.tensor([[[5.0], [7.0]]]))
    (tensor([[[6.],
             [6.]]]), tensor([[[12.],
             [12.],
             [12.]]]))
    """
    tensors = (g, x, scale)
    fits = all(t.dtype == torch.float32 and t.is_cpu for t in tensors) and g.is_contiguous() and x.is_contiguous()
    library = _library(native.level()) if fits and by_hand(*tensors) else None
    if library is None:
        below = (g * scale.unsqueeze(2)).sum(1) if needed else None
        return (g * x.unsqueeze(1)).sum(2), below
    own = scale.contiguous()
    of_scale, of_x = torch.empty_like(own), torch.empty_like(x) if needed else None
    models, members, rows, width = g.shape
    library.member_scale_backward(
        *(ctypes.c_void_p(t.data_ptr()) for t in (g, x, own, of_scale)),
        None if of_x is None else ctypes.c_void_p(of_x.data_ptr()),
        *map(ctypes.c_int64, (models, members, rows, width)),
        ctypes.c_int(torch.get_num_threads()),
    )
    return of_scale, of_x


@cache
def _library(level: str) -> ctypes.CDLL | None:
    library = native.library(SOURCE)
    if library is not None:
        library.member_scale_backward.restype = None
    return library
