"""Conjugate gradients for a symmetric operator, which stop at negative curvature and tell its direction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_number, refuse
from .symmetric import SymmetricOperator


@dataclass(frozen=True)
class Solution:
    """What conjugate gradients give.

    Attributes:
        solution: x ``[n]``.
        residual: the length of b - (A + damping) x, over that of b.
        iterations: how many products were computed.
        converged: whether the residual is at most the tolerance.
        negative: a direction ``[n]`` of length 1 along which the operator does not curve upwards; None if none came up.
        curvature: its quotient v'(A + damping)v, at most 0 up to rounding; NaN without one.
    """

    solution: Tensor
    residual: float
    iterations: int
    converged: bool
    negative: Tensor | None
    curvature: float


def conjugate_gradient(
    operator: SymmetricOperator,
    b: Tensor,
    *,
    damping: float = 0.0,
    tol: float = 1e-5,
    iters: int | None = None,
    start: Tensor | None = None,
    preconditioner: SymmetricOperator | Tensor | None = None,
) -> Solution:
    r"""Solve :math:`(A + \delta I) x = b` for a symmetric A, as far as it curves upwards.

    Where a direction p with :math:`p^\top (A + \delta I) p \le 0` comes up, the search ends: the solution is the one
    before it, and the direction is told. Scalars are float64.

    Args:
        operator: A.
        b: right side ``[n]``.
        damping: :math:`\delta`.
        tol: residual, as a share of the length of b, at which the search ends.
        iters: products at most; default n, at most 1000.
        start: first x; default 0.
        preconditioner: products with an inverse of A, nearly: an operator, or the diagonal ``[n]`` of one, > 0.

    Raises:
        ValueError: tensors of another length.

    Example:
        >>> from steepest.core.symmetric import MatrixOperator
        >>> operator = MatrixOperator(torch.diag(torch.tensor([2.0, 4.0])))
        >>> conjugate_gradient(operator, torch.tensor([2.0, 8.0])).solution.round(decimals=4)
        tensor([1., 2.])
        >>> operator = MatrixOperator(torch.diag(torch.tensor([2.0, -1.0])))
        >>> answer = conjugate_gradient(operator, torch.tensor([1.0, 3.0]))
        >>> answer.converged, answer.curvature < 0
        (False, True)
    """
    n = operator.size
    for name, vector in (("b", b), ("start", start)):
        if vector is not None and vector.shape != (n,):
            refuse(name, f"shape [{n}]", list(vector.shape))
    check_number("damping", damping)
    check_number("tol", tol, low=0.0)
    most = min(n, 1000) if iters is None else iters
    check_number("iters", most, low=0, integer=True)

    def shifted(v: Tensor) -> Tensor:
        image: Tensor = operator @ v
        return image + damping * v if damping else image

    def prepared(v: Tensor) -> Tensor:
        if preconditioner is None:
            return v
        return preconditioner * v if isinstance(preconditioner, Tensor) else preconditioner @ v

    b = b.to(operator.device, operator.dtype)
    goal = _length(b)
    x = torch.zeros_like(b) if start is None else start.to(b).clone()
    used = 0
    residual = b
    if start is not None and goal:
        residual, used = b - shifted(x), 1
    if not goal:
        return Solution(torch.zeros_like(b), 0.0, 0, True, None, math.nan)
    z = prepared(residual)
    p = z.clone()
    rho = _dot(residual, z)
    size = 0.0
    eps = torch.finfo(b.dtype).eps
    while _length(residual) > tol * goal and used < most:
        image = shifted(p)
        used += 1
        square, curved = _dot(p, p), _dot(p, image)
        if not math.isfinite(curved) or not square:
            break
        size = max(size, _length(image) / math.sqrt(square))
        if curved <= eps * size * square:
            share = _length(residual) / goal
            return Solution(x, share, used, share <= tol, p / math.sqrt(square), curved / square)
        step = rho / curved
        x = x + step * p
        residual = residual - step * image
        z = prepared(residual)
        before, rho = rho, _dot(residual, z)
        p = z + (rho / before) * p
    share = _length(residual) / goal
    return Solution(x, share, used, share <= tol, None, math.nan)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
