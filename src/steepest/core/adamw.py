"""A step of AdamW for many models of float32 on the CPU in C++: one pass over their numbers instead of ten."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import native
from .transforms import by_hand

SOURCE = Path(__file__).with_name("adamw.cpp")


def runs(*tensors: Tensor) -> bool:
    """Whether the C++ form takes these tensors: float32 on the CPU, contiguous.

    The first call in a process may build the library.
    """
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        and by_hand(*tensors)
        and _library(native.level()) is not None
    )


class Step:
    """What moves some weights ``[M, numbers]`` and the averages of gradients and of their squares, in place.

    Args:
        flat, first, second: ``[M, numbers]``; for which :func:`runs`.
        sizes: numbers of each parameter, in the order in which they lie in a row.
        rate, shrink: of each model its learning rate, and one less rate times decay.
    """

    def __init__(
        self, flat: Tensor, first: Tensor, second: Tensor, sizes: Sequence[int], rate: Tensor, shrink: Tensor
    ) -> None:
        library = _library(native.level())
        assert library is not None
        models, count = len(flat), len(sizes)
        self._call = library.adamw_step
        self._tensors = (flat, first, second, rate, shrink)  # their memory is what the pointers are of
        self._gradients = (ctypes.c_void_p * count)()
        self._scalars = (ctypes.c_float * 6)()
        self._arguments = (
            *(ctypes.c_void_p(t.data_ptr()) for t in (flat, first, second)),
            self._gradients,
            (ctypes.c_int64 * count)(*sizes),
            *(ctypes.c_void_p(t.data_ptr()) for t in (rate, shrink)),
            ctypes.c_int64(count),
            ctypes.c_int64(models),
            ctypes.c_int64(flat.shape[1]),
            self._scalars,
        )

    def __call__(self, gradients: Sequence[Tensor], scalars: Sequence[float]) -> None:
        """One step.

        Args:
            gradients: one tensor ``[M, ...]`` a parameter, float32 on the CPU.
            scalars: one less beta_1, beta_2, one less beta_2, (1 - beta_2^t)^(-1/2), eps, -1 / (1 - beta_1^t).
        """
        rows = [gradient.contiguous() for gradient in gradients]
        self._gradients[:] = [row.data_ptr() for row in rows]
        self._scalars[:] = list(scalars)
        self._call(*self._arguments)


@cache
def _library(level: str) -> ctypes.CDLL | None:
    return native.library(SOURCE)
