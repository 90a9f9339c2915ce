"""The contract of an aggregator: from the gradients of several losses to one direction."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from .arguments import Arguments
from .checks import check_tensor, refuse

PROPERTIES = (
    "non_conflicting",
    "linear_under_scaling",
    "permutation_invariant",
    "in_span",
    "stationary",
    "homogeneous",
)
CHUNK, IN_CACHE = 1 << 22, 1 << 17
"""Numbers of a Jacobian that are widened or rescaled at once; on the CPU so many that they stay in its cache."""


class Aggregator(Arguments, nn.Module):
    r"""``forward(jacobian) -> direction``: a Jacobian ``[m, n]``, row i the gradient of loss i, gives ``[n]``.

    Called with one tensor as TorchJD's aggregators are, so that each works in the other's loop. Row 0 is the main loss
    where order matters. What is kept between calls lies in ``state_dict``; :meth:`reset` forgets it.

    Class attributes:
        name: snake_case, unique.
        properties: which of :data:`PROPERTIES` it has, each a check of the suite: nothing conflicts with the direction
            (J d >= 0); d is linear in positive factors on the rows, or in a factor on all of them; the order of rows
            does not matter; d lies in the span of the rows; d is 0 only where no direction descends all losses.
        exempt: names of conformance checks that don't apply, each with its reason.

    Members write :meth:`_aggregate`, which gets a checked matrix without a graph.
    """

    name: ClassVar[str] = ""
    properties: ClassVar[frozenset[str]] = frozenset()
    exempt: ClassVar[dict[str, str]] = {}

    @torch.no_grad()
    def forward(self, jacobian: F[Tensor, "m n"], /) -> F[Tensor, " n"]:
        """The direction of the Jacobian's rows: its negative is where parameters go.

        Raises:
            ValueError: not a matrix, or without rows.
            TypeError: no floating numbers.
        """
        _check_matrix("jacobian", jacobian)
        return self._aggregate(jacobian.detach())

    def _aggregate(self, jacobian: Tensor) -> Tensor:
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what earlier calls left."""

    @classmethod
    def instances(cls) -> list[Self]:
        """Aggregators for the conformance suite."""
        return [cls()]


class GramianAggregator(Aggregator):
    """An aggregator whose direction is a weighted sum of the rows, and whose weights follow from J J' alone.

    Members write :meth:`_weigh`, or :meth:`_weigh_cosines`, which gets rows at length 1.
    """

    @torch.no_grad()
    def weights(self, gramian: F[Tensor, "m m"], /) -> F[Tensor, " m"]:
        """Weights ``[m]`` of the rows of a Jacobian with this Gramian J J'.

        Raises:
            ValueError: not a square matrix.
        """
        _check_matrix("gramian", gramian)
        if gramian.shape[0] != gramian.shape[1]:
            refuse("gramian", "a square matrix [m, m]", gramian)
        return self._weigh(gramian.detach().double(), None).to(gramian.dtype)

    def _aggregate(self, jacobian: Tensor) -> Tensor:
        top, gramian = scaled_gramian(jacobian)
        return combination(self._weigh(gramian, top), jacobian, top)

    def _weigh(self, gramian: Tensor, scale: Tensor | None) -> Tensor:
        """Weights ``[m]`` in float64 that give the direction of rows ``scale_i r_i`` as a sum of the r_i, by r r'.

        So no square of a tiny or a huge gradient is ever formed: the largest number in each r_i is 1, unless ``scale``
        is None, for 1.
        """
        lengths = gramian.diagonal().sqrt()
        inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
        cosines = inverse.unsqueeze(1) * gramian * inverse
        return self._weigh_cosines(cosines, lengths if scale is None else lengths * scale) * inverse

    def _weigh_cosines(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        """Weights ``[m]`` of the rows at length 1, from their Gramian and their lengths, in float64."""
        raise NotImplementedError


def scaled_gramian(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """``(top [m], G [m, m])`` in float64: the largest entry of each row, and J J' of the rows divided by it.

    >>> scaled_gramian(torch.tensor([[1e-30, 0.0], [4.0, 4.0]]))
    (tensor([1.0000e-30, 4.0000e+00], dtype=torch.float64), tensor([[1., 1.],
            [1., 2.]], dtype=torch.float64))
    """
    rows, width = jacobian.shape
    pieces = jacobian.split(max(1, (IN_CACHE if jacobian.device.type == "cpu" else CHUNK) // rows), 1)
    top = jacobian.new_zeros(rows, dtype=torch.float64)
    if width:
        top = torch.stack([columns.abs().amax(1) for columns in pieces]).amax(0).double()
    inverse = torch.where(top > 0, 1 / top, torch.where(top == 0, 0.0, top)).unsqueeze(1)
    gramian = torch.zeros(rows, rows, dtype=torch.float64, device=jacobian.device)
    for columns in pieces:
        unit = columns.double() * inverse
        gramian.addmm_(unit, unit.T)
    return top, gramian


def combination(weights: Tensor, jacobian: Tensor, top: Tensor) -> Tensor:
    """``sum_i weights_i J_i / top_i`` ``[n]`` in the type of the Jacobian; no row is too small or too large for it."""
    inverse = torch.where(top > 0, 1 / top, 0.0)
    direct = weights * inverse
    if jacobian.device.type == "cpu" and bool((direct.abs() < torch.finfo(jacobian.dtype).max / 2).all()):
        return direct.to(jacobian.dtype) @ jacobian
    columns = jacobian.split(max(1, CHUNK // len(jacobian)), 1)  # a look at the weights would wait for an accelerator
    return torch.cat([(direct @ block.double()).to(jacobian.dtype) for block in columns])


def _check_matrix(argument: str, value: object) -> None:
    check_tensor(argument, value, ndim=2, floating=True)
    assert isinstance(value, Tensor)
    if not len(value):
        refuse(argument, "at least one row, a loss each", value)
