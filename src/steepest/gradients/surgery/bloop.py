"""Bloop: the main gradient, and of the auxiliary one what is orthogonal to a moving average of the main gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.aggregator import CHUNK, Aggregator
from ...core.checks import check_number, check_tensor, refuse


@torch.no_grad()
def bloop_direction(
    g_main: F[Tensor, " n"],
    g_aux: F[Tensor, " n"],
    ema: F[Tensor, " n"],
    lam: float,
    *,
    sizes: Sequence[int] | None = None,
) -> F[Tensor, " n"]:
    r"""The main gradient plus the part of the auxiliary gradient that is orthogonal to an average of main gradients.

    .. math:: d = g_m + \lambda \Big(g_a - \frac{\langle g_a, e\rangle}{\|e\|^2} e\Big)

    Args:
        g_main, g_aux: ``[n]``, gradients of the main and of the auxiliary loss.
        ema: ``[n]``, the average e; where it is 0 nothing is taken away. ``g_main`` itself gives the exact direction
            of a full batch.
        lam: weight of the auxiliary loss, >= 0.
        sizes: numbers of entries of the tensors that ``[n]`` is made of, for a projection of each by itself.

    Returns:
        ``[n]`` in the type of ``g_main``.

    Raises:
        ValueError: shapes that differ, sizes that don't sum to n, a negative ``lam``.

    Example:
        >>> g_main, g_aux = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
        >>> bloop_direction(g_main, g_aux, torch.tensor([1.0, 1.0]), 0.5)
        tensor([2., 1.])

    Source: Careful with that Scalpel: Improving Gradient Surgery with an EMA, arXiv:2402.02998.
    """
    check_tensor("g_main", g_main, ndim=1, floating=True)
    check_tensor("g_aux", g_aux, floating=True, shape=tuple(g_main.shape))
    check_tensor("ema", ema, floating=True, shape=tuple(g_main.shape))
    check_number("lam", lam, low=0.0)
    pieces = _checked(sizes, len(g_main))
    wide = torch.promote_types(torch.promote_types(g_main.dtype, ema.dtype), torch.float32)
    return torch.cat(
        [
            _of_one_tensor(main, aux, average, lam, wide).to(g_main.dtype)
            for main, aux, average in zip(g_main.split(pieces), g_aux.split(pieces), ema.split(pieces))
        ]
    )


class Bloop(Aggregator):
    r"""Minimises auxiliary losses among the minimisers of the main loss, also with mini-batches.

    .. math::
        d = g_m + \lambda \Big(g_a - \frac{\langle g_a, e\rangle}{\|e\|^2} e\Big), \qquad
        e \leftarrow (1 - \rho) e + \rho g_m,

    in this order: e is free of this batch's noise, but at the first step, where it is g_m. Row 0 of the Jacobian is
    g_m; the sum of the others is g_a. Noise of single batches would hide the direction that must be spared, hence the
    average. Gradients that are scaled for half precision are to be unscaled before, or e mixes scales.

    Args:
        lam: weight of the auxiliary loss, >= 0; 0 gives the main gradient, larger ones trade main for auxiliary loss.
        rho: share of the new gradient in the average, in (0, 1].
        sizes: numbers of entries of the tensors that a row is made of, for a projection of each by itself; None
            projects the whole row, as published.

    Raises:
        ValueError: an argument out of its range; a Jacobian of another width than that of the calls before.

    Example:
        >>> aggregator = Bloop(lam=0.5, rho=0.1)
        >>> aggregator(torch.tensor([[1.0, 1.0], [3.0, -1.0]]))
        tensor([2., 0.])
        >>> aggregator(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        tensor([2., 1.])
        >>> aggregator.average
        tensor([1.0000, 1.1000])

    Source: Careful with that Scalpel: Improving Gradient Surgery with an EMA, arXiv:2402.02998.
    """

    name = "bloop"
    properties = frozenset({"homogeneous", "linear_under_scaling"})
    average: Tensor

    def __init__(self, lam: float, rho: float = 0.01, sizes: Sequence[int] | None = None) -> None:
        super().__init__()
        check_number("lam", lam, low=0.0)
        check_number("rho", rho, low=0.0, high=1.0, open_low=True)
        for size in sizes or ():
            check_number("sizes", size, low=0, integer=True)
        self.lam, self.rho = lam, rho
        self.sizes = None if sizes is None else tuple(sizes)
        self.register_buffer("average", torch.zeros(0))

    def _aggregate(self, jacobian: Tensor) -> Tensor:
        wide = torch.promote_types(jacobian.dtype, torch.float32)
        main, auxiliary = jacobian[0], jacobian[1:].sum(0, dtype=wide)
        if not len(self.average):
            self.average = main.to(wide, copy=True)
        if len(self.average) != len(main):
            refuse("jacobian", f"{len(self.average)} columns as in the calls before", jacobian)
        direction = bloop_direction(main, auxiliary, self.average, self.lam, sizes=self.sizes)
        kind = torch.promote_types(self.average.dtype, wide)
        self.average = self.average.to(kind).lerp(main.to(kind), self.rho)
        return direction

    def reset(self) -> None:
        """Forget the average."""
        self.average = self.average.new_zeros(0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (average := cast(Tensor | None, state_dict.get(f"{prefix}average"))) is not None:
            self.average = torch.empty_like(average, device=self.average.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def instances(cls) -> list[Bloop]:
        """A small and a large weight."""
        return [cls(0.5), cls(3.0, rho=0.5)]


def _of_one_tensor(main: Tensor, auxiliary: Tensor, average: Tensor, lam: float, wide: torch.dtype) -> Tensor:
    if not len(main):
        return main.to(wide)
    top = average.abs().amax().double()
    inverse = torch.where(top > 0, 1 / top, torch.where(top == 0, 0.0, top))
    along, square = torch.zeros_like(inverse), torch.zeros_like(inverse)
    for piece, of_average in zip(auxiliary.split(CHUNK), average.split(CHUNK)):
        unit = of_average.double() * inverse
        along, square = along + piece.double() @ unit, square + unit @ unit
    coefficient = torch.where(square == 0, 0.0, along / square)
    along_average = (coefficient * inverse * average.double()).to(wide)
    return main.to(wide) + lam * (auxiliary.to(wide) - along_average)


def _checked(sizes: Sequence[int] | None, width: int) -> list[int]:
    pieces = [width] if sizes is None else list(sizes)
    if sum(pieces) != width:
        refuse("sizes", f"numbers that sum to {width}", sizes)
    return pieces
