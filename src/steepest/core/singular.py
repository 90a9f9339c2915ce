"""The largest singular value of a matrix with its vectors: by Lanczos's method, then followed as the matrix moves."""

from __future__ import annotations

import torch
from torch import Tensor

from .curvature import largest_eigenpair
from .reductions import widen

FIRST = 30
"""Products with the matrix and its transpose where no vector is known."""


def top_singular(matrix: Tensor, v: Tensor | None = None, iters: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular value s of a matrix ``[m, n]`` and its unit vectors u ``[m]`` and v ``[n]``, W v = s u.

    Without a vector to follow, Lanczos's method on W'W from a fixed random start, and the sign in which v leans to that
    start. With one, ``iters`` power iterations from it: the sign is then the one that it had, as W'W turns no vector by
    more than a right angle, and nothing is read from the device. Where what is followed is not finite, the iterations
    begin at the fixed start. A matrix of zeros has s = 0, u = 0 and the v where it began; of one that is not finite,
    all are NaN.

    Args:
        matrix: of any floating type; half is widened.
        v: of an earlier, similar matrix, or None.
        iters: power iterations from v.

    >>> s, u, v = top_singular(torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
    >>> float(s), v.abs().round(decimals=4)
    (3.0, tensor([1., 0.]))
    """
    matrix = widen(matrix.detach())
    size = matrix.abs().amax() if matrix.numel() else matrix.new_zeros(())
    scaled = matrix / torch.where(size > 0, size, 1.0)  # so that no square leaves the type
    start = _start(scaled)
    if v is None:
        _, v = largest_eigenpair(lambda x: scaled.T @ (scaled @ x), start, iters=FIRST, tol=1e-6)
        v = torch.where(v @ start < 0, -v, v)
    else:
        v = v.detach().to(scaled)
        v = torch.where(v.isfinite().all(), v, start)
        for _ in range(iters):
            v = _unit(scaled.T @ _unit(scaled @ v, scaled @ v), v)
    image = scaled @ v
    s = torch.linalg.vector_norm(image)
    return s * size, image / torch.where(s == 0, 1.0, s), v


def _start(matrix: Tensor) -> Tensor:
    draw = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start: Tensor = draw / torch.linalg.vector_norm(draw)
    return start.to(matrix)


def _unit(vector: Tensor, without: Tensor) -> Tensor:
    """A vector of length 1, or what stands for one of length 0."""
    length = torch.linalg.vector_norm(vector)
    return torch.where(length == 0, without, vector / torch.where(length == 0, 1.0, length))
