"""Units that are left out in training, drawn by a hash of place, step and seed: the same alone and among others."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import native
from .checks import check_number
from .transforms import by_hand

SOURCE = Path(__file__).with_name("dropout.cpp")
_WORD = (1 << 32) - 1


def rectified_dropout_(x: Tensor, seeds: Sequence[int], step: int, p: float) -> Tensor:
    r"""Rectify ``x`` in place, and leave out each unit with probability p.

    .. math:: y = \frac{\max(x, 0)}{1 - p} \text{ where a hash of (seed, step, place) is above } p, \text{ else } 0

    So y > 0 says which units take part, and the gradient is that of y > 0 over 1 - p.

    Args:
        x: ``[M, ...]``, contiguous, with at most 2^32 places a model.
        seeds: of each model, >= 0.
        step: a number that no earlier call with these seeds had, >= 0.
        p: share in [0, 1).

    Returns:
        ``x``.

    Raises:
        ValueError: p outside its range.

    >>> rectified_dropout_(torch.tensor([[1.0, -1.0, 2.0]]), [7], 0, 0.0)
    tensor([[1., 0., 2.]])
    """
    check_number("p", p, low=0.0, high=1.0, open_high=True)
    if p == 0.0:
        return x.relu_()
    least = min(_WORD, round(p * (1 << 32)))
    words = np.array(
        [np.random.SeedSequence([seed, step]).generate_state(2, np.uint32) for seed in seeds], dtype=np.uint32
    )
    library = _library(native.level()) if x.dtype == torch.float32 and x.is_cpu and by_hand(x) else None
    if library is not None and x.is_contiguous():
        low, high = np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])
        library.rectified_dropout(
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(low.ctypes.data),
            ctypes.c_void_p(high.ctypes.data),
            ctypes.c_uint32(least),
            ctypes.c_float(1.0 / (1.0 - p)),
            ctypes.c_int64(len(x)),
            ctypes.c_int64(x[0].numel()),
            ctypes.c_int(torch.get_num_threads()),
        )
        return x
    drawn = _drawn(torch.as_tensor(words.astype(np.int64), device=x.device), x[0].numel()).view_as(x)
    return x.relu_().mul_(1.0 / (1.0 - p)).masked_fill_(drawn < least, 0.0)


def rectified_dropout_slope(g: Tensor, y: Tensor, p: float) -> Tensor:
    """The gradient of what :func:`rectified_dropout_` took, from that of what it gave; may overwrite ``g``.

    Args:
        g: gradient of ``y``.
        y: what it gave.
        p: as there.

    >>> rectified_dropout_slope(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 4.0]), 0.5)
    tensor([0., 2.])
    """
    factor = 1.0 / (1.0 - p)
    alike = all(t.dtype == torch.float32 and t.is_cpu and t.is_contiguous() for t in (g, y))
    library = _library(native.level()) if alike and by_hand(g, y) else None
    if library is None:
        slope: Tensor = torch.ops.aten.threshold_backward(g, y, 0)
        return slope.mul_(factor)
    pointers = ctypes.c_void_p(g.data_ptr()), ctypes.c_void_p(y.data_ptr())
    library.rectified_dropout_slope(
        *pointers, ctypes.c_float(factor), ctypes.c_int64(g.numel()), ctypes.c_int(torch.get_num_threads())
    )
    return g


def _drawn(words: Tensor, count: int) -> Tensor:
    """Numbers ``[M, count]`` in 0 .. 2^32 - 1, from two words ``[M, 2]`` a model."""
    place = torch.arange(count, device=words.device)
    h = (place * 0x9E3779B1 + words[:, :1]) & _WORD
    h ^= h >> 16
    h = _times(h, 0x85EBCA6B)
    h = h ^ (h >> 13) ^ words[:, 1:]
    h = _times(h, 0xC2B2AE35)
    return h ^ (h >> 16)


def _times(h: Tensor, factor: int) -> Tensor:
    """The lowest 32 bits of a product, without a number beyond 63 bits."""
    low, high = factor & 0xFFFF, factor >> 16
    return (h * low + (((h * high) & 0xFFFF) << 16)) & _WORD


@cache
def _library(level: str) -> ctypes.CDLL | None:
    library = native.library(SOURCE)
    if library is not None:
        library.rectified_dropout.restype = library.rectified_dropout_slope.restype = None
    return library
