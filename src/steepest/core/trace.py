"""The trace of a symmetric operator by random probes, with its standard error: Hutchinson's, Hutch++, XTrace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_choice, check_number
from .lanczos import random_signs
from .symmetric import SymmetricOperator

METHODS = ("hutchinson", "hutch++", "xtrace")


@dataclass(frozen=True)
class TraceEstimate:
    """A trace.

    Attributes:
        estimate: of the trace.
        stderr: its standard error; NaN where one probe alone tells nothing, 0 where the trace is exact.
        samples: ``[probes]``, float64: estimates whose mean it is.
        products: how many products were computed.
    """

    estimate: float
    stderr: float
    samples: Tensor
    products: int


def trace(
    operator: SymmetricOperator,
    products: int = 48,
    method: str = "hutchinson",
    *,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    r"""The trace by random probes, with its standard error.

    - "hutchinson": the mean of :math:`z^\top A z` over random signs z. Its variance is twice the sum of squares off the
      diagonal.
    - "hutch++": a third of the products finds a subspace Q that has most of A, a third gives the trace in it exactly,
      and a third is Hutchinson's outside of it.
    - "xtrace": the same with every probe used for both: the mean over i of the trace in the subspace of all probes but
      i, plus probe i's estimate outside of it. Half of the products make the subspace.

    With products for n columns or more the trace is exact.

    Args:
        operator: symmetric.
        products: at most so many; at least 1, 3 and 4.
        method: one of the three.
        generator: of probes; default the same at each call.

    Raises:
        ValueError: another method, too few products.

    Example:
        >>> from steepest.core.symmetric import MatrixOperator
        >>> swap = MatrixOperator(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> estimate = trace(swap, 40)
        >>> estimate.samples.abs().unique(), abs(estimate.estimate) < 3 * estimate.stderr
        (tensor([2.], dtype=torch.float64), True)

    Source: Hutch++, arXiv:2010.09649; XTrace, arXiv:2301.07825.
    """
    check_choice("method", method, METHODS)
    check_number("products", products, low={"hutchinson": 1, "hutch++": 3, "xtrace": 4}[method], integer=True)
    generator = generator or torch.Generator().manual_seed(0)
    if method == "hutchinson":
        return _hutchinson(operator, products, generator)
    if products >= operator.size:
        exact = float(operator.matrix().diagonal().double().sum())
        return TraceEstimate(exact, 0.0, torch.tensor([exact], dtype=torch.float64), operator.size)
    if method == "hutch++":
        return _hutch_pp(operator, products, generator)
    return _xtrace(operator, products // 2, generator)


def _estimate(samples: Tensor, products: int) -> TraceEstimate:
    error = float(samples.std()) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return TraceEstimate(float(samples.mean()), error, samples.cpu(), products)


def _quadratic(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of columns, in float64."""
    products: Tensor = torch.linalg.vecdot(left.double(), right.double(), dim=0)
    return products


def sign_samples(operator: SymmetricOperator, count: int, generator: torch.Generator) -> Tensor:
    r"""Samples ``[count]`` of the trace, :math:`z^\top A z` over random signs z, float64."""
    size = operator.together()
    counts = [min(size, count - done) for done in range(0, count, size)]
    return torch.cat([operator.quadratics(random_signs(operator, generator, own), count) for own in counts])


def _hutchinson(operator: SymmetricOperator, products: int, generator: torch.Generator) -> TraceEstimate:
    return _estimate(sign_samples(operator, products, generator), products)


def _subspace(images: Tensor) -> Tensor:
    """An orthonormal basis, in columns, of the span of columns, without directions that are rounding alone."""
    left, sizes, _ = torch.linalg.svd(images.double(), full_matrices=False)
    large = sizes > len(images) * torch.finfo(images.dtype).eps * sizes[:1]
    basis: Tensor = left[:, large]
    return basis


def _hutch_pp(operator: SymmetricOperator, products: int, generator: torch.Generator) -> TraceEstimate:
    third = products // 3
    basis = _subspace(operator @ random_signs(operator, generator, third).T)
    inside = basis.to(operator.dtype)
    exact = float(_quadratic(inside, operator @ inside).sum()) if basis.shape[1] else 0.0
    signs = random_signs(operator, generator, products - 2 * third).T.double()
    outside = (signs - basis @ (basis.T @ signs)).to(operator.dtype)
    samples = exact + _quadratic(outside, operator @ outside)
    return _estimate(samples, products - third + basis.shape[1])


def _xtrace(operator: SymmetricOperator, count: int, generator: torch.Generator) -> TraceEstimate:
    n = operator.size
    probes = torch.randn(count, n, generator=generator, dtype=torch.float64, device=generator.device).T
    omega = probes.to(operator.device, operator.dtype)
    images = operator @ omega
    whole = _subspace(images)
    if whole.shape[1] < count:  # the probes have the whole range of the operator, so that nothing is outside
        inside = whole.to(operator.dtype)
        exact = float(_quadratic(inside, operator @ inside).sum()) if whole.shape[1] else 0.0
        return TraceEstimate(exact, 0.0, torch.tensor([exact], dtype=torch.float64), count + whole.shape[1])
    q, r = torch.linalg.qr(images.double())
    h = q.T @ (operator @ q.to(operator.dtype)).double()
    h = (h + h.T) / 2
    # without column i, the span of the images loses the direction s_i, orthogonal to all other columns of r
    s = torch.linalg.solve_triangular(r.T, torch.eye(count, dtype=r.dtype, device=r.device), upper=False)
    s = s / torch.linalg.vector_norm(s, dim=0)
    w = q.T @ omega.double()
    x = w - s * torch.linalg.vecdot(s, w, dim=0)
    inside = h.diagonal().sum() - torch.linalg.vecdot(s, h @ s, dim=0)
    rest = (
        torch.linalg.vecdot(w, r, dim=0) - 2 * torch.linalg.vecdot(x, r, dim=0) + torch.linalg.vecdot(x, h @ x, dim=0)
    )
    # a probe outside the subspace has a random direction; its length is made the one that is expected
    length = omega.double().square().sum(0) - x.square().sum(0)
    return _estimate(inside + rest * (n - count + 1) / length, 2 * count)
