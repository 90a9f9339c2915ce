"""The spectrum of the Hessian in two numbers that tell a true minimum, and the loss over planes of chosen axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse, values_visible
from ...core.curvature import Hessian, eigenpairs, spectral_density
from ...core.parameter_directions import evaluated, values_at
from ...core.probe import Array, Moment, Probe, Reading, inner_module
from ...core.reductions import widen
from ...core.torch_private import tree_leaves
from .filter_normalized_landscape import filter_normalize_, random_direction

AXES = ("hessian", "adam", "random")
NORMALIZE = (None, "weight", "layer", "model", "filter")


class Landscape(NamedTuple):
    """The loss over a plane through the weights.

    Attributes:
        values: ``[steps, steps]``, a down and b across.
        places: ``[steps]``, of a and of b.
        axes: the two directions.
        eigenvalues: ``[2]``, of axes that are eigenvectors; else None.
    """

    values: Tensor
    places: Tensor
    axes: tuple[list[Tensor], list[Tensor]]
    eigenvalues: Tensor | None


def hessian_spectrum(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    steps: int = 100,
    runs: int = 1,
    *,
    generator: torch.Generator | None = None,
) -> tuple[F[Tensor, "runs m"], F[Tensor, "runs m"]]:
    r"""The density of the Hessian's eigenvalues by stochastic Lanczos quadrature, nodes and weights of each run.

    Every run starts from random signs; all vectors are kept and made orthogonal, so that no eigenvalue comes twice.
    (The official code keeps the last ten, and has eigenvalues that are none.) With as many steps as there are
    parameters the nodes are the distinct eigenvalues.

    Args:
        loss_fn: gives the loss from the parameters. A model's batch norm and dropout must be in evaluation mode, or
            frozen: the two Hessians differ.
        params: tensors that need gradients.
        steps: m, products a run, >= 1; more than there are parameters add nothing.
        runs: how many, >= 1.
        generator: of the signs; default the same at each call.

    Returns:
        nodes in order and weights of sum 1, both float64; a run that needs fewer nodes has weights 0 at its end.

    Raises:
        ValueError: counts below 1, no parameters, a product that is not finite.

    Example:
        >>> w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        >>> nodes, weights = hessian_spectrum(lambda: (torch.tensor([1.0, 2.0, 4.0]) * w ** 2).sum() / 2, [w])
        >>> nodes.round(decimals=6), weights.sum().round(decimals=6)
        (tensor([[1., 2., 4.]], dtype=torch.float64), tensor(1., dtype=torch.float64))

    Source: Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian
    analysis, arXiv:2412.10146.
    """
    check_number("steps", steps, low=1, integer=True)
    check_number("runs", runs, low=1, integer=True)
    density = spectral_density(Hessian(loss_fn, list(params)), runs, steps, generator=generator)
    return density.nodes, density.weights


def hessian_criteria(
    nodes: F[Tensor, "... m"], weights: F[Tensor, "... m"], n: float = 0.5, clamp: bool = True
) -> tuple[Tensor, Tensor]:
    r"""Two numbers of a spectrum, small at a true minimum, averaged over runs.

    .. math:: r_e = \frac{|\min(0, \min_i \lambda_i)|}{\max_i \lambda_i}, \qquad
        K_{Hn} = \frac{\sum_{t_i < 0} |t_i|^n}{\sum_{t_i > 0} t_i^n}, \quad t_i = \lambda_i w_i

    The official code has no min(0, .) and gives the ratio of the ends also where both are positive. Neither changes
    when the loss is multiplied. Eigenvalues that are 0 but for rounding count by the power n of what they are.

    Args:
        nodes: of :func:`hessian_spectrum`, of one run or several.
        weights: of the same shape, >= 0; nodes of weight 0 don't count.
        n: power >= 0.
        clamp: whether r_e is 0 where no node is negative.

    Returns:
        r_e and K.

    Raises:
        TypeError, ValueError: n below 0, other shapes, negative weights, a run without a positive node; values are
            looked at where that waits for no device.

    Example:
        >>> r_e, k = hessian_criteria(torch.tensor([-1.0, 0, 2, 4]), torch.tensor([0.1, 0.4, 0.3, 0.2]))
        >>> round(float(r_e), 6), round(float(k), 6)
        (0.25, 0.189469)

    Source: Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian
    analysis, arXiv:2412.10146.
    """
    check_tensor("nodes", nodes, floating=True)
    check_tensor("weights", weights, floating=True, shape=tuple(nodes.shape))
    check_number("n", n, low=0.0)
    check_flag("clamp", clamp)
    if nodes.ndim == 0 or not nodes.numel():
        refuse("nodes", "at least one node", nodes)
    nodes, weights = widen(nodes), widen(weights)
    counted = weights > 0
    if values_visible(nodes, weights):
        if bool((weights < 0).any()):
            refuse("weights", "values >= 0", weights)
        if not bool((counted & (nodes > 0)).any(-1).all()):
            refuse("nodes", "one that is positive, of a weight above 0, in every run", nodes)
    largest = torch.where(counted, nodes, -torch.inf).amax(-1)
    smallest = torch.where(counted, nodes, torch.inf).amin(-1)
    r_e = (smallest.clamp(max=0.0) if clamp else smallest).abs() / largest
    share = torch.where(counted, nodes * weights, 0.0)
    size = (share / share.abs().amax(-1, keepdim=True)).abs().pow(n)
    negative, positive = (torch.where(side, size, 0.0).sum(-1) for side in (share < 0, share > 0))
    return r_e.mean(), (negative / positive).mean()


def loss_landscape(
    model: nn.Module,
    loss_fn: Callable[[nn.Module], Tensor],
    axes: str | tuple[Sequence[Tensor], Sequence[Tensor]] = "hessian",
    normalize: str | None = None,
    steps: int = 40,
    span: float = 1.0,
    *,
    order: float = 2.0,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
    tol: float = 1e-3,
    iters: int = 100,
    training: bool = False,
    chunk: int | None = None,
) -> Landscape:
    """The loss over a plane of chosen axes through the weights, biases included.

    The curvature of a plot along an eigenvector of length 1 is its eigenvalue, which random axes, normalised or not,
    don't tell. The model is afterwards what it was.

    Args:
        model: with the weights, all of which need gradients for ``"hessian"``.
        loss_fn: ``loss_fn(model)``, the loss.
        axes: ``"hessian"``: eigenvectors of the two largest eigenvalues; ``"adam"``: the first and the second moments
            of ``optimizer``; ``"random"``: normal entries; or two lists of tensors in the shapes of the parameters.
        normalize: None, ``"weight"`` (d times |w|), ``"layer"``, ``"model"`` or ``"filter"`` (of the length of the
            weights there).
        steps: values of a and of b, evenly from -span to span; >= 2.
        span: > 0.
        order: of the norms of ``normalize``, 1 or 2.
        optimizer: with ``exp_avg`` and ``exp_avg_sq`` of every parameter.
        generator: of random axes; of where the search for eigenvectors starts.
        tol, iters: of that search.
        training: whether the model is in training mode meanwhile; batch norm and dropout are then frozen for the
            eigenvectors.
        chunk: points at once.

    Returns:
        values, places, axes, eigenvalues.

    Raises:
        ValueError: other axes or normalisations, an optimizer without moments, numbers outside their ranges, axes of
            other shapes.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> plane = loss_landscape(model, lambda m: (m(x) ** 2).mean(), steps=3)
        >>> plane.values.shape, plane.eigenvalues.round(decimals=4)
        (torch.Size([3, 3]), tensor([9., 1.], dtype=torch.float64))

    Source: Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian
    analysis, arXiv:2412.10146.
    """
    check_choice("normalize", normalize, NORMALIZE)
    check_choice("order", order, (1, 2))
    check_number("steps", steps, low=2, integer=True)
    check_number("span", span, low=0.0, open_low=True)
    params = list(model.parameters())
    eigenvalues = None
    if not isinstance(axes, str):
        shapes = [p.shape for p in params]
        if len(axes) != 2 or any([d.shape for d in direction] != shapes for direction in axes):
            refuse("axes", f"two lists of tensors of the shapes {[tuple(s) for s in shapes]}", axes)
        first, second = ([d.detach().clone() for d in direction] for direction in axes)
    elif axes == "hessian":
        with evaluated(model, training):
            mode = "freeze" if training else "trust"
            hessian = Hessian(lambda: loss_fn(model), params, method="exact", train_mode=mode)
            pairs = eigenpairs(hessian, min(2, hessian.size), tol=tol, steps=iters, generator=generator)
        eigenvalues = pairs.eigenvalues
        vectors = [*pairs.eigenvectors, torch.zeros_like(pairs.eigenvectors[0])][:2]
        first, second = (_shaped(vector, params) for vector in vectors)
    elif axes == "adam":
        first, second = _moments(optimizer, params, "exp_avg"), _moments(optimizer, params, "exp_avg_sq")
    else:
        check_choice("axes", axes, AXES)
        first, second = (random_direction(params, None, None, generator) for _ in range(2))
    for direction in (first, second):
        if normalize == "weight":
            for d, p in zip(direction, params):
                d.mul_(p.detach().abs())
        elif normalize is not None:
            filter_normalize_(direction, [p.detach() for p in params], normalize, ignore=None, order=order)
    last = steps - 1
    places = torch.tensor([span * (2 * i - last) / last for i in range(steps)], dtype=torch.float64)
    rows = torch.cartesian_prod(places, places)
    values = values_at(model, loss_fn, [first, second], rows, training=training, chunk=chunk)
    return Landscape(values.view(steps, steps), places, (first, second), eigenvalues)


class HessianCriteria(Probe):
    """r_e and K of the Hessian at this batch, and the spectrum they come from: do they grow, the minimum is not one.

    Batch norm and dropout are in evaluation mode, and the graph of the gradient is kept while it looks.

    Args:
        n: power of K, >= 0.
        lanczos: products with the Hessian a run.
        runs: of the quadrature.
        every: how many steps apart.

    Raises:
        ValueError: numbers outside their ranges.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> moment = Moment(1, "gradients", model, objective=nn.functional.mse_loss,
        ...     inputs=torch.ones(1, 1), targets=torch.ones(1, 1))
        >>> {name: float(value) for name, value in HessianCriteria().measure(moment).numbers.items()}
        {'r_e': 0.0, 'k': 0.0, 'largest': 2.0, 'smallest': 2.0}

    Source: Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian
    analysis, arXiv:2412.10146.
    """

    name = "hessian_criteria"
    phases = ("gradients",)
    needs = ("batch",)
    cost = "as many products with the Hessian as steps of Lanczos's method, 40 by default"

    def __init__(self, n: float = 0.5, lanczos: int = 40, runs: int = 1, every: int = 1000) -> None:
        check_number("n", n, low=0.0)
        check_number("lanczos", lanczos, low=1, integer=True)
        check_number("runs", runs, low=1, integer=True)
        check_number("every", every, low=1, integer=True)
        self.n, self.lanczos, self.runs, self.every = n, lanczos, runs, every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model of which nothing is trained."""
        if not any(p.requires_grad for p in inner_module(model).parameters()):
            refuse("model", "a parameter that is trained", "none")

    def measure(self, moment: Moment) -> Reading:
        """``r_e``, ``k``, the ``largest`` and ``smallest`` node; NaN where no curvature is positive."""
        params = list(moment.parameters().values())
        numbers: dict[str, Any] = dict.fromkeys(("r_e", "k", "largest", "smallest"), torch.nan)
        empty = any(isinstance(v, Tensor) and not v.numel() for v in tree_leaves(moment.inputs))
        if empty or not params:
            return Reading(numbers)
        with moment.untouched():
            moment.module.train(False)
            try:
                nodes, weights = hessian_spectrum(moment.loss, params, self.lanczos, self.runs)
            except ValueError:  # a product that is not finite
                return Reading(numbers)
        numbers |= {"largest": float(nodes.amax()), "smallest": float(nodes.amin())}
        if bool(((weights > 0) & (nodes > 0)).any(-1).all()):
            r_e, k = hessian_criteria(nodes, weights, self.n)
            numbers |= {"r_e": float(r_e), "k": float(k)}
        axes = {"run": None, "node": None}
        return Reading(numbers, {"nodes": Array(nodes, axes), "weights": Array(weights, axes)})


def _shaped(vector: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    pieces = vector.split([p.numel() for p in params])
    return [piece.view(p.shape).clone() for piece, p in zip(pieces, params)]


def _moments(optimizer: Optimizer | None, params: Sequence[Tensor], key: str) -> list[Tensor]:
    state = {} if optimizer is None else optimizer.state
    moments = [state.get(p, {}).get(key) for p in params]
    if not all(isinstance(moment, Tensor) for moment in moments):
        refuse("optimizer", f"one with {key} of every parameter", optimizer)
    return [moment.detach().clone() for moment in moments if moment is not None]
