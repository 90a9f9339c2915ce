"""Rows of float32 on the CPU in C++: their softmax, their moments, and the mixtures that gradients are."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import native
from .transforms import by_hand

SOURCE = Path(__file__).with_name("rows.cpp")

WORTH = 1 << 13
"""From this many values on a call in place of one or two of torch is worth it; in place of ten it almost always is."""

Column = Tensor | float
"""A number for each row, ``[r, 1]``, or one for all."""


@dataclass(frozen=True, eq=False)
class RowFunctions:
    """The functions of a C++ source that work on rows.

    Each takes pointers to its tensors, then columns, each with the step from one row to the next, then the numbers of
    rows, of columns and of threads; the first tensor is ``[r, C]``.

    Attributes:
        source: the file.
        tensors: how many tensors each function takes.
    """

    source: Path
    tensors: Mapping[str, int]

    def runs(self, *tensors: Tensor, gain: int = 1) -> bool:
        """Whether they take these tensors: float32 on the CPU, contiguous, with values enough in the first.

        The first call in a process may build the library.

        Args:
            tensors: what is read and written.
            gain: what a call saves, in multiples of what one costs.
        """
        if gain * tensors[0].numel() < WORTH:
            return False
        for t in tensors:
            if t.dtype != torch.float32 or not t.is_cpu or not t.is_contiguous():
                return False
        return by_hand(*tensors) and _library(self, native.level()) is not None

    def call(self, name: str, tensors: Sequence[Tensor | None], *columns: Column | None) -> None:
        """Call a function; None is a null pointer."""
        given: list[Any] = [None if t is None else t.data_ptr() for t in tensors]
        for column in columns:
            if isinstance(column, Tensor):
                given += (column.data_ptr(), 1)
            else:
                given += (None if column is None else ctypes.byref(ctypes.c_float(column)), 0)
        assert tensors[0] is not None
        _function(self, native.level(), name, len(columns))(*given, *tensors[0].shape, torch.get_num_threads())


@cache
def _function(functions: RowFunctions, level: str, name: str, columns: int) -> Any:
    function = getattr(_library(functions, level), name)
    pointers = [ctypes.c_void_p] * functions.tensors[name] + [ctypes.c_void_p, ctypes.c_int64] * columns
    function.argtypes = [*pointers, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    function.restype = None
    return function


@cache
def _library(functions: RowFunctions, level: str) -> ctypes.CDLL | None:
    return native.library(functions.source)


_functions = RowFunctions(SOURCE, {"softmax_rows": 8, "moments_rows": 4, "mix_rows": 4})
runs = _functions.runs


def takes(z: Tensor, *columns: Column | None) -> bool:
    """Whether numbers of rows are such as the C++ forms read beside ``z``: floats, or contiguous float32 columns."""
    for t in columns:
        if isinstance(t, Tensor) and (t.dtype != z.dtype or not t.is_contiguous() or t.numel() != len(z)):
            return False
    return True


def softmax(z: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Fill ``p`` with the softmax of rows.

    Returns:
        top, their largest value, and the sum of e^(z - top) over all values but one of that size, each ``[r, 1]``.
    """
    top, rest = z.new_empty(2, len(z), 1).unbind()
    _functions.call("softmax_rows", (z, p, top, rest, None, None, None, None), None, None)
    return top, rest


def target_softmax(
    z: Tensor, p: Tensor, target: Tensor, scale: Column = 1.0, shift: Column = 0.0, excess: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Fill ``p`` with the softmax of u = scale (z + shift e_y - its largest value).

    Returns:
        The largest value, u_y, the sum of e^u over all but one largest, 1 - p_y, and the sum of e^u - 1, or None; each
        ``[r, 1]``.
    """
    top, gap, rest, away, *more = z.new_empty(4 + excess, len(z), 1).unbind()
    over = more[0] if more else None
    plain = not isinstance(scale, Tensor) and scale == 1.0
    still = not isinstance(shift, Tensor) and shift == 0.0
    tensors = (z, p, top, rest, target, gap, away, over)
    _functions.call("softmax_rows", tensors, None if plain else scale, None if still else shift)
    return top, gap, rest, away, over


def moments(z: Tensor, without: Tensor | None = None, centre: Column | None = None) -> tuple[Tensor, Tensor]:
    """The mean of rows, and the sum of squares about it; each ``[r, 1]``.

    Args:
        z: ``[r, C]``.
        without: of each row the column whose square is left out.
        centre: in place of the mean, which is then not computed.
    """
    mean, squares = z.new_empty(2, len(z), 1).unbind()
    _functions.call("moments_rows", (z, mean, squares, without), centre)
    return mean, squares


def mix(
    g: Tensor,
    target: Tensor | None,
    value: Tensor | None,
    factor: Column | None,
    z: Tensor | None,
    slope: Column | None,
    centre: Column | None,
    shift: Column | None,
) -> None:
    """``g = factor g + slope (z - centre) + shift``, then ``g[i, target[i]] = value[i]``, in place; None is nothing."""
    _functions.call("mix_rows", (g, z, target, value), factor, slope, centre, shift)
