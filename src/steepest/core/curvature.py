"""Curvature of a loss without its Hessian: one family of symmetric operators, and what is asked of them.

Operators, each ``operator @ v`` for ``v`` of ``[n]``, ``[n, k]``, a list of tensors in the shapes of the parameters, or
of stacks ``[k, *shape]``, with ``.size``, ``.matrix()`` and ``.to_scipy()``:

- ``Hessian(losses, params, *, weights=None, method="auto", eps=None, keep=None, chunk=None, train_mode="refuse")`` of
  functions that give losses; ``.gradient()`` and ``.loss()`` at the same data; ``Hessian.of_model(model, loss, batches,
  *, params=None, weights=None, forward=call_model, **options)`` of a model and pairs of inputs and target;
- ``GaussNewton(model, loss, batches, *, params=None, weights=None, forward=call_model, keep=None, chunk=None,
  train_mode="refuse")``, and ``Jacobian(model, inputs, *, params=None, forward=call_model, train_mode="refuse")`` with
  ``.jvp(vector)``, ``.vjp(upstream)``, ``.outputs``;
- ``Preconditioned(operator, diagonal)``, with ``adam_diagonal(optimizer, params)``; ``MatrixOperator(product, size)``.

Questions, each with an error that can be read:

- ``eigenpairs(operator, k=1, which="LA" | "SA" | "LM", *, tol=1e-4, steps=None, start=None, generator=None)`` and, of
  one run, ``extreme_eigenpairs(operator, k=1, ...) -> (largest, smallest)``: ``Eigenpairs(eigenvalues [k], eigenvectors
  [k, n], residuals [k], iterations, converged)``;
- ``spectral_density(operator, probes=1, steps=80, *, starts=None, generator=None) -> SpectralDensity(nodes, weights,
  size)`` with ``.mean(function) -> (value, stderr)`` and ``.curve(grid, sigma) -> (density, stderr)``;
- ``trace(operator, products=48, method="hutchinson" | "hutch++" | "xtrace", *, generator=None) ->
  TraceEstimate(estimate, stderr, samples, products)``;
- ``conjugate_gradient(operator, b, *, damping=0, tol=1e-5, iters=None, start=None, preconditioner=None) ->
  Solution(solution, residual, iterations, converged, negative, curvature)``.

And of one loss and plain vectors: :func:`hessian_product`, :func:`~.lanczos.largest_eigenpair`. Data, random numbers
and running statistics are frozen for an operator's life; batch norm and dropout in training mode are refused, or run in
evaluation mode (``train_mode="evaluate"``), or frozen (``"freeze"``). Modes, flags, ``.grad`` and random states stay.
The default generators are the same at each call: same seed, same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch  # noqa: F401 - the examples use it
from torch import Tensor

from .conjugate_gradient import Solution, conjugate_gradient
from .gauss_newton import GaussNewton, Jacobian
from .hessian import Hessian
from .lanczos import (
    Eigenpairs,
    Krylov,
    SpectralDensity,
    eigenpairs,
    extreme_eigenpairs,
    largest_eigenpair,
    spectral_density,
)
from .symmetric import MatrixOperator, Preconditioned, SymmetricOperator, adam_diagonal
from .trace import TraceEstimate, trace

__all__ = [
    "Eigenpairs",
    "GaussNewton",
    "Hessian",
    "Jacobian",
    "Krylov",
    "MatrixOperator",
    "Preconditioned",
    "Solution",
    "SpectralDensity",
    "SymmetricOperator",
    "TraceEstimate",
    "adam_diagonal",
    "conjugate_gradient",
    "eigenpairs",
    "extreme_eigenpairs",
    "hessian_product",
    "largest_eigenpair",
    "spectral_density",
    "trace",
]


def hessian_product(loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """The map from a vector ``[n]`` to its product with the Hessian of a loss in parameters; n counts their entries.

    The loss is computed once, with attention in its plain form, whose derivative can be derived again. ``.grad`` stays
    as it is. A parameter on which the loss does not depend, or only linearly, has zeros. The vector's type is that of
    the product, whatever types parameters have. See :class:`~.hessian.Hessian`, whose exact product it is.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_product(lambda: w[0] ** 2 * w[1], [w])(torch.tensor([1.0, 0.0]))
    tensor([4., 2.])
    """
    hessian = Hessian(loss_fn, params, method="exact", train_mode="trust")
    hessian.prepare()

    def product(vector: Tensor) -> Tensor:
        image: Tensor = hessian @ vector
        return image

    return product
