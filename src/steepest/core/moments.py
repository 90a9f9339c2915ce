"""Averages of gradients and of their squares, and what a step's length is made of, in C++ for float32 on the CPU.

Each tensor is passed through once, by itself: averages, inner products and metric together, where operations on lists
of tensors pass through all of them for each.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import native
from .lists import Memory, plain_lists

SOURCE = Path(__file__).with_name("moments.cpp")


def runs(*lists: Sequence[Tensor]) -> bool:
    """Whether the C++ form takes these lists of tensors: float32 on the CPU, contiguous, of like sizes.

    The first call in a process may build the library.
    """
    return plain_lists(*lists) and _library(native.level()) is not None


class Moments:
    r"""Lists of weights with their averages, for which :func:`runs`.

    .. math:: d \leftarrow \beta d + \gamma g, \quad v \leftarrow \beta_2 v + \gamma_2 g^2, \quad
        D = \sqrt v \, s + \epsilon, \qquad w \leftarrow w - \alpha D^{-1} d

    Args:
        weights: w, in place.
        slopes: g.
        averages: d, in place; none: the gradients themselves.
        squares: v, in place; none: D = 1.
        shares: s of each tensor; none: 1.
        eps: > 0.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        slopes: Sequence[Tensor],
        averages: Sequence[Tensor] = (),
        squares: Sequence[Tensor] = (),
        shares: Sequence[float] = (),
        eps: float = 1.0,
    ) -> None:
        library = _library(native.level())
        assert library is not None
        self._library, self.count, self.eps = library, len(weights), max(eps, torch.finfo(torch.float32).tiny)
        self._memory = memory = Memory()
        self._weights, self._slopes, self._averages, self._squares = map(
            memory.pointers, (weights, slopes, averages, squares)
        )
        self._moved, self._sizes = weights, memory.sizes(weights)
        self._shares = memory.numbers("f", shares or [1.0] * self.count)

    def products(
        self, beta: float = 0.0, gain: float = 1.0, beta2: float = 0.0, gain2: float = 1.0
    ) -> tuple[float, float, float]:
        """Take the gradients into the averages; gives ``<g, w>``, ``<d, w>`` and ``<d, d / D>`` over all tensors.

        Sums are in float32 over 64 vectors of 16, 8 or 4 numbers, then in float64, and the same however many tensors
        are passed at once.
        """
        out = array("d", bytes(24 * self.count))
        self._library.moments_products(
            self._weights, self._slopes, self._averages, self._squares, self._sizes, self._shares,
            ctypes.c_int64(self.count), (ctypes.c_float * 5)(beta, gain, beta2, gain2, self.eps),
            ctypes.c_void_p(out.buffer_info()[0]),
        )  # fmt: skip
        return sum(out[::3]), sum(out[1::3]), sum(out[2::3])

    def move(self, length: float) -> None:
        """The step of length alpha."""
        self._library.moments_move(
            self._weights, self._averages or self._slopes, self._squares, self._sizes, self._shares,
            ctypes.c_int64(self.count), ctypes.c_float(self.eps), ctypes.c_float(length),
        )  # fmt: skip
        torch.autograd.graph.increment_version(list(self._moved))


def momentum_pass(
    weights: Sequence[Tensor],
    slopes: Sequence[Tensor],
    momenta: Sequence[Tensor],
    rate: float,
    momentum: float,
    gain: float,
    shrink: float,
) -> None:
    r"""A step along momenta in one pass over lists of tensors for which :func:`runs`, in place.

    .. math:: m \leftarrow \mu m + \gamma g, \qquad w \leftarrow s w - \alpha m

    Args:
        weights, slopes, momenta: w, g, m; without m, g stands for it.
        rate, momentum, gain, shrink: :math:`\alpha, \mu, \gamma, s`.
    """
    library = _library(native.level())
    assert library is not None
    memory = Memory()
    library.moments_momentum(
        *map(memory.pointers, (weights, slopes, momenta)), memory.sizes(weights),
        ctypes.c_int64(len(weights)), (ctypes.c_float * 4)(momentum, gain, shrink, rate),
    )  # fmt: skip
    torch.autograd.graph.increment_version([*weights, *momenta])


@cache
def _library(level: str) -> ctypes.CDLL | None:
    return native.library(SOURCE)
