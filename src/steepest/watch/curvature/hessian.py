"""The spectrum, trace and density of a model's Hessian in three calls, in the form that users of PyHessian know."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import check_number, refuse
from ...core.curvature import Eigenpairs, Hessian, eigenpairs, spectral_density
from ...core.curvature_batches import ParameterFilter, batch_weights, call_model, chosen_parameters, frozen_batches
from ...core.probe import inner_module
from ...core.trace import sign_samples

LEAST_SAMPLES = 20
"""So many samples of a trace must be there before it may end: two that are equal by chance say nothing."""


class hessian(Hessian):
    r"""The Hessian of a model's mean loss over a batch or a loader: eigenvalues, trace, density, products.

    Called as PyHessian is, with what differs on purpose: the model is seen in evaluation mode and then left in the
    modes, flags, gradients and random states in which it was; a loader is read once, so that every product is of the
    same data; ``eigenvalues`` gives the algebraically largest, not those of largest modulus; nothing is added to norms
    or tolerances, so that results scale with the loss; the trace ends by its standard error; weights of the density
    are squared first components, which sum to 1. Calls with the same seed give the same bits.

    It is an operator too: ``h @ v`` of a vector ``[n]``, a matrix ``[n, k]`` or a list of tensors, ``h.to_scipy()``,
    ``h.matrix()`` for few parameters.

    Args:
        model: compiled and DDP models are looked into.
        criterion: loss of outputs and targets, a mean over samples or a sum.
        data: one batch ``(inputs, targets)``.
        dataloader: or an iterable of batches.
        cuda: takes what PyHessian takes; data go to the device of the model, whatever it says.
        params: which parameters: a rule ``(name, tensor) -> bool``, for the Hessian of a layer, or names; default all
            that need gradients.
        seed: of random vectors.
        options: of :class:`~steepest.core.hessian.Hessian`, such as ``method="differences"``.

    Raises:
        ValueError: neither data nor a loader, or both.

    Example:
        >>> layer = nn.Linear(1, 2, bias=False)
        >>> h = hessian(layer, nn.MSELoss(), data=(torch.tensor([[2.0]]), torch.zeros(1, 2)))
        >>> values, vectors = h.eigenvalues()
        >>> round(values[0], 4), vectors[0][0].shape
        (4.0, torch.Size([2, 1]))
        >>> h @ torch.tensor([1.0, 0.0])
        tensor([4., 0.])
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Any], Tensor],
        data: tuple[Any, Any] | None = None,
        dataloader: Iterable[tuple[Any, Any]] | None = None,
        cuda: bool = True,
        *,
        params: ParameterFilter = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if (data is None) == (dataloader is None):
            refuse("data", "one batch, or dataloader=, and not both", "neither" if data is None else "both")
        self.model, self.criterion = inner_module(model), criterion
        own = list(chosen_parameters(self.model, params).values())
        pairs = frozen_batches([data] if dataloader is None else dataloader, own[0].device)
        losses = [self._loss_of(inputs, targets) for inputs, targets in pairs]
        modules = [self.model, criterion] if isinstance(criterion, nn.Module) else [self.model]
        options = {"train_mode": "evaluate", "modules": modules, **options}
        super().__init__(losses, own, weights=batch_weights(criterion, pairs), **options)
        self.seed = seed

    def _loss_of(self, inputs: Any, targets: Any) -> Callable[[], Tensor]:
        return lambda: self.criterion(call_model(self.model, inputs), targets)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def eigenpairs(self, k: int = 1, which: str = "LA", **options: Any) -> Eigenpairs:
        """Eigenvalues, vectors, residuals, and whether they converged: :func:`~steepest.core.lanczos.eigenpairs`."""
        return eigenpairs(self, k, which, **{"generator": self._generator(), **options})

    def eigenvalues(
        self, maxIter: int = 100, tol: float = 1e-3, top_n: int = 1, *, which: str = "LA"
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The first eigenvalues and their vectors, each a list of tensors in the shapes of the parameters.

        Warns where some have not converged.

        Args:
            maxIter: products at most, for all of them together; at least ``2 top_n + 20`` are allowed.
            tol: residual, as a share of the eigenvalue's modulus.
            top_n: how many.
            which: "LA" the algebraically largest, "SA" the smallest, "LM" the largest in modulus.
        """
        check_number("maxIter", maxIter, low=1, integer=True)
        pairs = self.eigenpairs(top_n, which, tol=tol, steps=max(maxIter, 2 * top_n + 20))
        if not pairs.converged:
            text = ", ".join(f"{r:.2g}" for r in pairs.residuals.tolist())
            warnings.warn(
                f"eigenvalues: not converged after {pairs.iterations} products; residuals {text}", stacklevel=2
            )
        vectors = [
            [piece.view(shape) for piece, shape in zip(row.split(self.sizes), self.shapes)]
            for row in pairs.eigenvectors
        ]
        return pairs.eigenvalues.tolist(), vectors

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> list[float]:
        """Samples of the trace, whose mean is the estimate: Hutchinson's, with random signs.

        They end at ``maxIter``, or when there are 20 and the standard error of their mean is at most ``tol`` times it.
        """
        check_number("maxIter", maxIter, low=1, integer=True)
        check_number("tol", tol, low=0.0)
        generator = self._generator()
        samples: list[float] = []
        while len(samples) < maxIter:
            samples += sign_samples(self, min(LEAST_SAMPLES, maxIter - len(samples)), generator).tolist()
            values = torch.tensor(samples, dtype=torch.float64)
            error = float(values.std()) / math.sqrt(len(samples)) if len(samples) > 1 else math.inf
            if len(samples) >= LEAST_SAMPLES and error <= tol * abs(float(values.mean())):
                break
        return samples

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights of the density of eigenvalues, a list for each of ``n_v`` random vectors.

        Args:
            iter: products for each vector, at most n; fewer nodes where its space is closed before.
            n_v: vectors.
        """
        density = spectral_density(self, n_v, iter, generator=self._generator())
        places = [row > 0 for row in density.weights]
        nodes = [row[place].tolist() for row, place in zip(density.nodes, places)]
        return nodes, [row[place].tolist() for row, place in zip(density.weights, places)]
