"""Curvature of each class's own loss: whether a network that fits frequent classes sits on a saddle of rare ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...core.checks import check_number, check_tensor, refuse
from ...core.curvature import Hessian, Krylov
from ...core.curvature_batches import ParameterFilter, frozen_batches
from ...core.displaced import length
from ...core.lanczos import random_vector
from ...core.probe import inner_module
from ...core.torch_private import tree_leaves, tree_map


@dataclass(frozen=True)
class ClassSpectrum:
    """The spectrum of the Hessian of one class's loss, as :func:`classwise_hessian` sees it.

    Attributes:
        lam_max: the largest eigenvalue.
        lam_min: the smallest; below 0 the loss of the class falls to both sides of the point.
        nodes: ``[m]``, float64: where the density of eigenvalues lies, in order, ``lam_min`` to ``lam_max``.
        weights: ``[m]``, with sum 1.
        residuals: of the largest and of the smallest: an eigenvalue lies no further from each.
        count: samples of the class: of few of them the Hessian is noisy.
        loss: their mean loss.
        slope: the length of its gradient: the point is no saddle of the class in the strict sense where that is not 0.
    """

    lam_max: float
    lam_min: float
    nodes: Tensor
    weights: Tensor
    residuals: tuple[float, float]
    count: int
    loss: float
    slope: float


def classwise_hessian(
    model: nn.Module,
    loader: Any,
    classes: Iterable[int] | None = None,
    steps: int = 64,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    params: ParameterFilter = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> dict[int, ClassSpectrum]:
    r"""Both ends and the density of the spectrum of each class's Hessian, :math:`\nabla^2 L_c(w)`.

    :math:`L_c` is the mean of plain cross-entropy over samples of class c, without the weights, margins or offsets of
    the training loss. The largest eigenvalue and the smallest, nodes and weights come of one run of Lanczos's method
    with full reorthogonalisation. The model is seen in evaluation mode and left as it was.

    Args:
        model: of classes: outputs ``[B, C]``.
        loader: one batch ``(inputs, target [B])`` or an iterable of batches; read once.
        classes: which; default all that occur.
        steps: products with the Hessian a class, at most as many as there are parameters; >= 2. Published ones are 50
            to 100.
        loss: of outputs and target, a mean over samples.
        params: which parameters: a rule ``(name, tensor) -> bool``, or names; default all that need gradients.
        generator: of the random start; default the same at each call, and for each class.
        options: of :class:`~steepest.core.hessian.Hessian`, such as ``method="differences"``.

    Returns:
        a spectrum a class, in the order of classes. NaN where a product is not finite.

    Raises:
        TypeError, ValueError: targets that are no indices, a class without samples, ``steps`` below 2.

    Example:
        >>> torch.manual_seed(0); model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        <torch._C.Generator object at ...>
        >>> x, y = torch.randn(20, 4), torch.tensor([0] * 18 + [1] * 2)
        >>> spectra = classwise_hessian(model, (x, y))
        >>> {c: spectrum.count for c, spectrum in spectra.items()}
        {0: 18, 1: 2}
        >>> all(spectrum.lam_min < 0 < spectrum.lam_max for spectrum in spectra.values())
        True

    Source: Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data, arXiv:2212.13827.
    """
    check_number("steps", steps, low=2, integer=True)
    hessians = class_hessians(model, loader, classes, loss=loss, params=params, **options)
    start = random_vector(next(iter(hessians.values()))[0], generator or torch.Generator().manual_seed(0))
    # taken out one by one: the graph of each goes with it
    return {label: _spectrum(*hessians.pop(label), start, steps) for label in list(hessians)}


def class_hessians(
    model: nn.Module,
    loader: Any,
    classes: Iterable[int] | None = None,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    params: ParameterFilter = None,
    **options: Any,
) -> dict[int, tuple[Hessian, int]]:
    """The Hessian of each class's mean loss as an operator, and how many samples the class has.

    Their mean with those numbers as weights is the Hessian of the mean loss of all samples.

    Args:
        model, loader, classes, loss, params, options: as of :func:`classwise_hessian`.

    Raises:
        TypeError, ValueError: likewise.

    >>> model, x = nn.Linear(1, 2), torch.tensor([[1.0], [2.0], [3.0]])
    >>> hessians = class_hessians(model, (x, torch.tensor([0, 0, 1])))
    >>> [(label, count) for label, (_, count) in hessians.items()]
    [(0, 2), (1, 1)]
    """
    inside = inner_module(model)
    parameter = next(inside.parameters(), None)
    pairs = frozen_batches(loader, torch.device("cpu") if parameter is None else parameter.device)
    for _, target in pairs:
        check_tensor("target", target, ndim=1, floating=False)
    labels = torch.cat([target for _, target in pairs])
    if not len(labels):
        refuse("loader", "one sample or more", "none")
    wanted = labels.unique().tolist() if classes is None else list(dict.fromkeys(classes))
    size = max(len(target) for _, target in pairs)
    options = {"train_mode": "evaluate", **options}
    operators = {}
    for label in wanted:
        check_number("classes", label, integer=True)
        batches = _of_class(pairs, int(label), size)
        if not batches:
            refuse("classes", "classes that have samples", label)
        hessian = Hessian.of_model(inside, loss, batches, params=params, **options)
        operators[int(label)] = hessian, sum(len(target) for _, target in batches)
    if not operators:
        refuse("classes", "one or more", "none")
    return operators


def saddle_ratio(spectrum: ClassSpectrum) -> float:
    r"""How deep the saddle is beside the steepest wall: :math:`|\lambda_{min} / \lambda_{max}|`, 0 without a descent.

    Args:
        spectrum: of a class; anything with ``lam_max`` and ``lam_min``.

    Returns:
        >= 0; 0 where no eigenvalue is below 0, inf where none but those differ from 0.

    Example:
        >>> ends = torch.tensor([-1.0, 2.0], dtype=torch.float64)
        >>> saddle_ratio(ClassSpectrum(2.0, -1.0, ends, torch.full((2,), 0.5), (0.0, 0.0), 5, 0.1, 0.0))
        0.5

    Source: Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data, arXiv:2212.13827.
    """
    depth = max(-spectrum.lam_min, 0.0) if not math.isnan(spectrum.lam_min) else math.nan
    wall = abs(spectrum.lam_max)
    return depth / wall if wall else depth * math.inf if depth else 0.0


def _of_class(pairs: list[tuple[Any, Tensor]], label: int, size: int) -> list[tuple[Any, Tensor]]:
    """Batches of the samples of one class alone, each of at most ``size``."""
    rows: list[tuple[Any, Tensor]] = []
    for inputs, target in pairs:
        own = target == label
        if bool(own.any()):
            rows.append((tree_map(partial(_rows, places=own), inputs), target[own]))
    joined: list[tuple[Any, Tensor]] = []
    for inputs, target in rows:  # small ones with the one before
        if joined and len(joined[-1][1]) + len(target) <= size and _alike(joined[-1][0], inputs):
            before, ahead = joined[-1]
            more = iter(tree_leaves(inputs))
            joined[-1] = tree_map(partial(_followed, more=more), before), torch.cat([ahead, target])
        else:
            joined.append((inputs, target))
    return joined


def _rows(value: Any, places: Tensor) -> Any:
    by_sample = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == len(places)
    return value[places] if by_sample else value


def _alike(first: Any, second: Any) -> bool:
    """Whether batches can be joined: the same trees, of tensors whose samples have one shape."""
    one, two = tree_leaves(first), tree_leaves(second)
    return len(one) == len(two) and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim > 0 and a.shape[1:] == b.shape[1:]
        for a, b in zip(one, two)
    )


def _followed(value: Tensor, more: Iterator[Tensor]) -> Tensor:
    return torch.cat([value, next(more)])


def _spectrum(hessian: Hessian, count: int, start: Tensor, steps: int) -> ClassSpectrum:
    value, slope = float(hessian.loss()), float(length(hessian.gradient()))
    krylov = Krylov(hessian, start, steps)
    while not krylov.closed and len(krylov.alphas) < krylov.most:
        krylov.step()
        if not krylov.finite:
            nothing = torch.full((1,), math.nan, dtype=torch.float64)
            return ClassSpectrum(math.nan, math.nan, nothing, nothing, (math.nan, math.nan), count, value, slope)
    values, vectors = krylov.ritz()
    residuals = abs(krylov.betas[-1] * vectors[-1])
    return ClassSpectrum(
        float(values[-1]), float(values[0]), torch.from_numpy(values.copy()), torch.from_numpy(vectors[0] ** 2),
        (float(residuals[-1]), float(residuals[0])), count, value, slope,
    )  # fmt: skip
