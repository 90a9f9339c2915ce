"""Curvature of a loss without its Hessian: products with vectors, and the largest eigenvalue by Lanczos's method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def hessian_product(loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """The map from a vector ``[n]`` to its product with the Hessian of a loss in parameters; n counts their entries.

    The loss is computed once, with attention in its plain form, whose derivative can be derived again. ``.grad`` stays
    as it is. A parameter on which the loss does not depend, or only linearly, has zeros. The vector's type is that of
    the product, whatever types parameters have.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_product(lambda: w[0] ** 2 * w[1], [w])(torch.tensor([1.0, 0.0]))
    tensor([4., 2.])
    """
    params = list(params)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        loss = loss_fn()
        slopes: Sequence[Tensor | None] = [None] * len(params)
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    curved = [slope for slope in slopes if slope is not None and slope.requires_grad]
    sizes = [p.numel() for p in params]

    def product(vector: Tensor) -> Tensor:
        if not curved:
            return torch.zeros_like(vector)
        pieces = [piece.view_as(p).to(p) for piece, p in zip(vector.split(sizes), params)]
        upstream = [v for v, slope in zip(pieces, slopes) if slope is not None and slope.requires_grad]
        rows = torch.autograd.grad(curved, params, upstream, retain_graph=True, allow_unused=True)
        whole = [torch.zeros_like(p) if row is None else row for p, row in zip(params, rows)]
        return torch.cat([row.flatten().to(vector) for row in whole])

    return product


def largest_eigenpair(
    product: Callable[[Tensor], Tensor], start: Tensor, iters: int = 30, tol: float = 1e-3
) -> tuple[float, Tensor]:
    """The algebraically largest eigenvalue of a symmetric map and its vector of length 1, by Lanczos's method.

    In the space of a start and its images no vector has a larger quotient than the one that is returned, so that the
    other end of the spectrum may be as large as it likes, and power iteration with as many products is never nearer.
    All vectors are kept, at most ``iters`` of them, and made orthogonal twice. Where a product is not finite, both are
    NaN.

    Args:
        product: of a vector ``[n]``.
        start: any vector that is not 0.
        iters: products at most.
        tol: the residual, as a share of the eigenvalue's size, at which the search ends.

    >>> value, vector = largest_eigenpair(lambda v: v * torch.tensor([-9.0, 1.0, 2.0]), torch.ones(3))
    >>> round(value, 4), vector.abs().round(decimals=3)
    (2.0, tensor([0., 0., 1.]))
    """
    most = min(iters, start.numel())
    basis = start.new_empty(most, start.numel())
    basis[0] = start / _length(start)
    diagonal: list[float] = []
    beside: list[float] = []
    for last in range(most):
        image = product(basis[last])
        diagonal.append(float(image @ basis[last]))
        columns = basis[: last + 1]
        for _ in range(2):
            image = image - columns.T @ (columns @ image)
        length = _length(image)
        if not math.isfinite(diagonal[-1] + length):
            return math.nan, torch.full_like(start, math.nan)
        beyond = torch.tensor(beside, dtype=torch.float64)
        ladder = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + beyond.diag(1) + beyond.diag(-1)
        values, vectors = torch.linalg.eigh(ladder)
        value, mix = float(values[-1]), vectors[:, -1]
        nothing = 10 * torch.finfo(start.dtype).eps * float(values.abs().max())
        if last + 1 == most or length * abs(float(mix[-1])) <= tol * abs(value) or length <= nothing:
            break
        beside.append(length)
        basis[last + 1] = image / length
    return value, mix.to(start) @ columns


def _length(vector: Tensor) -> float:
    """In float64, as squares of a small or large vector leave float32."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
