"""The loss around trained weights along random directions of the scale of each filter, and the path that led there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.curvature import Hessian, extreme_eigenpairs
from ...core.parameter_directions import MeanLoss, Measure, evaluated, movable_by, values_at
from ...core.reductions import widen

NORMS = ("filter", "layer", "model", "weight", "dfilter", "dlayer", None)
TINY = 1e-10
Direction = Sequence[Tensor]
LossFn = Callable[[Any, Tensor], Tensor]
Grid = tuple[float, float, int]


class Trajectory(NamedTuple):
    """The path of an optimizer in the plane of its largest variance.

    Attributes:
        dirs: k directions of length 1, each a list of tensors with the shapes of the parameters.
        coords: ``[T, k]``, each checkpoint's place along them, from the last one.
        explained: ``[k]``, the share of the sum of squares along each.
    """

    dirs: list[list[Tensor]]
    coords: Tensor
    explained: Tensor


@torch.no_grad()
def filter_normalize_(
    direction: Tensor | Direction,
    weights: Tensor | Direction,
    norm: str | None = "filter",
    ignore: str | None = "biasbn",
    order: float = 2.0,
) -> Tensor | Direction:
    r"""Give a direction the scale of the weights, in place.

    .. math:: d_i \leftarrow d_i \, \frac{\|w_i\|}{\|d_i\| + 10^{-10}} \quad \text{for each filter } i

    A filter is what makes one output: a row of a linear layer, the first index of a convolution. Tensors of at most one
    dimension (biases, scale and shift of batch norm) become 0; with ``ignore=None`` each is one filter.

    Args:
        direction: a tensor, or one for each of the weights.
        weights: of the same shapes.
        norm: ``"filter"``; ``"layer"`` (a tensor as a whole), ``"model"`` (all tensors as one), ``"weight"`` (d times
            w), ``"dfilter"`` and ``"dlayer"`` (length 1 of each filter or tensor), None (as it is).
        ignore: ``"biasbn"`` or None.
        order: of the norms that lengths are, 2 or 1.

    Returns:
        The direction.

    Raises:
        ValueError: another norm or ignore, other shapes.

    Example:
        >>> d = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> filter_normalize_(d, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[5.0000, 0.0000],
                [0.7071, 0.7071]])

    Source: Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913.
    """
    check_choice("norm", norm, NORMS)
    check_choice("ignore", ignore, ("biasbn", None))
    check_choice("order", order, (1, 2))
    ds = [direction] if isinstance(direction, Tensor) else list(direction)
    ws = [weights] if isinstance(weights, Tensor) else [w.detach() for w in weights]
    if [d.shape for d in ds] != [w.shape for w in ws]:
        refuse("direction", f"shapes {[tuple(w.shape) for w in ws]}", [tuple(d.shape) for d in ds])
    moved = []
    for d, w in zip(ds, ws):
        if d.ndim <= 1 and ignore == "biasbn":
            d.zero_()
        else:
            moved.append((d, widen(w)))
    if norm == "model" and moved:
        of_weights, of_direction = (_length([pair[place] for pair in moved], order) for place in (1, 0))
        for d, _ in moved:
            d.mul_((of_weights / (of_direction + TINY)).to(d.dtype))
        return direction
    for d, w in moved:
        if norm == "weight":
            d.mul_(w.to(d.dtype))
        elif norm is not None:
            by_filter = "filter" in norm and d.ndim > 1
            lengths = _lengths(d, by_filter, order) + TINY
            target = torch.ones_like(lengths) if norm.startswith("d") else _lengths(w, by_filter, order)
            d.mul_((target.to(lengths) / lengths).to(d.dtype))
    return direction


def random_direction(
    params: Iterable[Tensor],
    norm: str | None = "filter",
    ignore: str | None = "biasbn",
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """A direction with standard normal entries, given the scale of the weights by :func:`filter_normalize_`.

    Args:
        params: the weights: ``model.parameters()``; with floating buffers behind them these move too.
        norm, ignore: of :func:`filter_normalize_`.
        generator: of the entries; torch's own by default. The same seed gives models of one form the same entries.

    Returns:
        a tensor for each of the weights, in float32 or wider.

    Example:
        >>> weight, bias = random_direction(nn.Linear(2, 3).parameters())
        >>> weight.shape, bias
        (torch.Size([3, 2]), tensor([0., 0., 0.]))

    Source: Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913.
    """
    weights = [p.detach() for p in params]
    device = "cpu" if generator is None else generator.device
    direction = [torch.randn(w.shape, generator=generator, dtype=widen(w).dtype, device=device) for w in weights]
    direction = [d.to(w.device) for d, w in zip(direction, weights)]
    filter_normalize_(direction, weights, norm, ignore)
    return direction


def loss_surface(
    model: nn.Module,
    loss_fn: LossFn,
    loader: Iterable[Any],
    dirs: tuple[Direction, Direction] | None = None,
    grid: Grid | tuple[Grid, Grid] = (-1.0, 1.0, 25),
    *,
    generator: torch.Generator | None = None,
    training: bool = False,
    chunk: int | None = None,
) -> F[Tensor, "a b"]:
    r"""The loss over a plane through the weights, :math:`f(a, b) = L(w + a d + b e)`.

    The model is in evaluation mode meanwhile, so that batch norm takes its running statistics. Weights, buffers, modes,
    flags and random states are afterwards what they were. Many points are evaluated at once where the model allows.

    Args:
        model: with the weights w.
        loss_fn: ``loss_fn(outputs, targets)``, the mean loss of a batch.
        loader: batches ``(inputs, targets)``, read once, or one pair of tensors.
        dirs: two directions, as of :func:`random_direction`; by default two that are drawn, filter-normalised.
        grid: lowest, highest and number of values of a and of b, or one such triple for each.
        generator: of the directions that are drawn.
        training: in training mode instead: batch norm by each batch's own statistics, which stay unwritten.
        chunk: points at once.

    Returns:
        the mean losses, a down and b across.

    Raises:
        ValueError: directions of other shapes, a grid without points, no batch.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> loss_surface(model, nn.functional.mse_loss, (torch.ones(4, 2), torch.ones(4, 1)), grid=(-1, 1, 5)).shape
        torch.Size([5, 5])

    Source: Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913.
    """
    if dirs is None:
        dirs = (random_direction(model.parameters(), generator=generator),
                random_direction(model.parameters(), generator=generator))  # fmt: skip
    down, across = grid if isinstance(grid[0], tuple) else (grid, grid)
    return _plane(model, MeanLoss(loss_fn, loader), dirs, _places(down), _places(across), training, chunk)


def loss_curve(
    model: nn.Module,
    loss_fn: LossFn,
    loader: Iterable[Any],
    direction: Direction | None = None,
    grid: Grid = (-1.0, 1.0, 51),
    *,
    generator: torch.Generator | None = None,
    training: bool = False,
    chunk: int | None = None,
) -> F[Tensor, " a"]:
    r"""The loss along a line through the weights, :math:`f(a) = L(w + a d)`.

    With the difference of two solutions as direction, ``[v - w for w, v in zip(model.parameters(),
    other.parameters())]``, and the grid (-0.5, 1.5, 51), it is the linear interpolation between them.

    Args:
        model, loss_fn, loader, generator, training, chunk: as of :func:`loss_surface`.
        direction: by default one that is drawn, filter-normalised.
        grid: lowest, highest and number of values of a.

    Returns:
        the mean loss at each value.

    Raises:
        ValueError: a direction of other shapes, a grid without points, no batch.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> one = torch.ones(1, 1)
        >>> loss_curve(model, nn.functional.mse_loss, (one, one), [one], (-1, 1, 3))
        tensor([1., 0., 1.])

    Source: Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913.
    """
    if direction is None:
        direction = random_direction(model.parameters(), generator=generator)
    rows = _places(grid)[:, None]
    return values_at(model, MeanLoss(loss_fn, loader), [direction], rows, training=training, chunk=chunk)


def random_plane(
    model: nn.Module,
    metric: Measure,
    distance: float = 1,
    steps: int = 20,
    normalization: str | None = "filter",
    deepcopy_model: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """A metric over a random plane through the weights, called as ``loss_landscapes.random_plane``.

    The directions have normal entries and leave biases alone, the grid runs from -distance to distance in units of a
    direction, and the model is afterwards what it was; in that package entries are uniform on [0, 1), the plane gets
    smaller as distance grows, and the model stays displaced.

    Args:
        model: with the weights.
        metric: ``metric(model)``, a number or a tensor: its loss on a batch, for example. The model is in evaluation
            mode.
        distance: how far a and b go.
        steps: values of a and of b.
        normalization: ``"filter"``, ``"layer"``, ``"model"`` or None.
        deepcopy_model: whether the metric is given a copy of the model.
        generator: of the directions.

    Returns:
        an array ``[steps, steps, ...]``.

    Raises:
        ValueError: distance not above 0, no step, another normalization.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> random_plane(model, lambda m: m(torch.ones(1, 2)).sum(), steps=3).shape
        (3, 3)

    Source: Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913.
    """
    check_number("distance", distance, low=0.0, open_low=True)
    check_choice("normalization", normalization, ("filter", "layer", "model", None))
    model = copy.deepcopy(model) if deepcopy_model else model
    d, e = (random_direction(model.parameters(), normalization, generator=generator) for _ in range(2))
    places = _places((-float(distance), float(distance), steps))
    plane: np.ndarray = _plane(model, metric, (d, e), places, places).cpu().numpy()
    return plane


def trajectory_pca(
    checkpoints: Sequence[Direction], k: int = 2, center: bool = False, ignore: str | None = None
) -> Trajectory:
    r"""The plane in which the path of an optimizer moves most, and the path in it.

    The axes are the first right singular vectors of the rows :math:`w_t - w_T`, t = 0 ... T - 1. A direction in which
    the path does not move is 0, and so are places along it.

    Args:
        checkpoints: weights in the order of training, each a list of tensors (or a state's values); the last is the
            origin.
        k: number of axes, >= 1.
        center: whether the mean row is subtracted before, as in principal component analysis and the official code;
            without it axes go through the last checkpoint.
        ignore: ``"biasbn"``: tensors of at most one dimension count as 0.

    Returns:
        axes, the places :func:`path_coordinates` gives, and the shares of the sum of squares.

    Raises:
        ValueError: fewer than two checkpoints, of other shapes, all equal, k below 1.

    Example:
        >>> path = [[torch.tensor([10.0, 1.0])], [torch.tensor([10.0, -1.0])], [torch.zeros(2)]]
        >>> trajectory_pca(path).explained, trajectory_pca(path, center=True).dirs[0]
        (tensor([0.9901, 0.0099]), [tensor([0., 1.])])

    Source: Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913.
    """
    check_number("k", k, low=1, integer=True)
    check_choice("ignore", ignore, ("biasbn", None))
    if len(checkpoints) < 2:
        refuse("checkpoints", "at least 2", len(checkpoints))
    last = [t.detach() for t in checkpoints[-1]]
    used = [ignore is None or t.ndim > 1 for t in last]
    flat = torch.stack([_flat(weights, last) for weights in checkpoints])
    rows = flat[:-1] - flat[-1]
    rows = rows * torch.cat([torch.full((t.numel(),), float(use)) for t, use in zip(last, used)]).to(rows)
    spread = rows - rows.mean(0) if center else rows
    _, lengths, axes = torch.linalg.svd(spread, full_matrices=False)
    moves = lengths > torch.finfo(widen(last[0]).dtype).eps * flat.norm()  # more than weights are rounded
    if not bool(moves.any()):
        refuse("checkpoints", "weights that move" + (" apart from their mean" if center else ""), "equal ones")
    axes = axes * moves[:, None]
    axes = torch.cat([axes, axes.new_zeros(k, axes.shape[1])])[:k]
    places = rows @ axes.T
    axes = axes * torch.where(places[places.abs().argmax(0), torch.arange(k)] < 0, -1.0, 1.0)[:, None]
    explained = torch.cat([lengths.square(), lengths.new_zeros(k)])[:k] / lengths.square().sum()
    dtype = widen(last[0]).dtype
    dirs = [[piece.view(t.shape).to(widen(t)) for piece, t in zip(_pieces(axis, last), last)] for axis in axes]
    return Trajectory(dirs, torch.cat([rows, torch.zeros_like(rows[:1])]).matmul(axes.T).to(dtype), explained.to(dtype))


def path_coordinates(weights: Direction, origin: Direction, dirs: Sequence[Direction]) -> F[Tensor, " k"]:
    r"""The place of weights along each of several directions, :math:`(w - w_0) \cdot d / \|d\|^2`.

    At this place times d lies the foot of the perpendicular, whatever the length of d. Of a direction 0 it is 0.

    Args:
        weights, origin: lists of tensors.
        dirs: k directions with the same shapes.

    Returns:
        the places.

    Example:
        >>> path_coordinates([torch.tensor([4.0, 1.0])], [torch.zeros(2)], [[torch.tensor([2.0, 0.0])]])
        tensor([2.])

    Source: Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913.
    """
    away = _flat(weights, origin) - _flat(origin, origin)
    axes = torch.stack([_flat(d, origin) for d in dirs])
    squares = axes.square().sum(1)
    return torch.where(squares > 0, (axes @ away) / squares, 0.0).to(widen(origin[0]).dtype)


def convexity_map(
    model: nn.Module,
    loss_fn: LossFn,
    loader: Iterable[Any],
    dirs: tuple[Direction, Direction],
    grid: Grid = (-1.0, 1.0, 11),
    *,
    iters: int = 30,
    tol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> tuple[F[Tensor, "a b"], F[Tensor, "a b"]]:
    """The least and the greatest eigenvalue of the Hessian over a plane: where the loss is nearly convex.

    What is plotted is their ratio, the least over the greatest in absolute value. All parameters count. Each point
    takes at most ``iters`` products with the Hessian, by Lanczos's method.

    Args:
        model, loss_fn, loader, dirs, grid: as of :func:`loss_surface`.
        iters, tol: of the search for the eigenvalues.
        generator: of the vectors from which it starts; default the same at each call.

    Returns:
        both, a down and b across.

    Raises:
        ValueError: directions of other shapes, a grid without points, no batch.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x, dirs = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), ([torch.ones(1, 2)], [torch.zeros(1, 2)])
        >>> least, greatest = convexity_map(model, nn.functional.mse_loss, (x, torch.zeros(2, 1)), dirs, (0, 1, 1))
        >>> round(float(least), 3), round(float(greatest), 3)
        (1.0, 9.0)

    Source: Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913.
    """
    measure, places = MeanLoss(loss_fn, loader), _places(grid)
    tensors = movable_by(model, dirs)
    both: list[tuple[float, float]] = []
    with evaluated(model):
        for a, b in torch.cartesian_prod(places, places).tolist():
            weights = {
                name: (widen(t.detach()) + a * d.to(t.device) + b * e.to(t.device)).to(t.dtype).requires_grad_()
                for (name, t), d, e in zip(tensors.items(), *dirs)
            }

            def loss(weights: dict[str, Tensor] = weights) -> Tensor:
                return measure(_Standing(model, weights))  # type: ignore[arg-type]

            own = [weights[name] for name, _ in model.named_parameters()]
            hessian = Hessian(loss, own, method="exact", train_mode="trust")
            largest, least = extreme_eigenpairs(hessian, tol=tol, steps=iters, generator=generator)
            both.append((float(least.eigenvalues), float(largest.eigenvalues)))
    first = next(iter(tensors.values()))
    ends = (
        torch.tensor(both, dtype=torch.float64).view(len(places), len(places), 2).to(first.device, widen(first).dtype)
    )
    return ends[..., 0], ends[..., 1]


class _Standing:
    """A model with other weights in place of its own, for a measure to call."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        self.model, self.weights = model, weights
        self.parameters, self.buffers = model.parameters, model.buffers

    def __call__(self, *inputs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights, inputs)


def _plane(
    model: nn.Module,
    measure: Measure,
    dirs: tuple[Direction, Direction],
    down: Tensor,
    across: Tensor,
    training: bool = False,
    chunk: int | None = None,
) -> Tensor:
    rows = torch.cartesian_prod(down, across)
    values = values_at(model, measure, dirs, rows, training=training, chunk=chunk)
    return values.view(len(down), len(across), *values.shape[1:])


def _places(grid: Grid) -> Tensor:
    """Evenly spaced in float64, the middle one of an odd number exactly."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 3:
        refuse("grid", "(lowest, highest, number)", grid)
    low, high, count = grid
    check_number("grid", count, low=1, integer=True)
    check_number("grid", low)
    check_number("grid", high, low=low)
    steps = max(1, count - 1)
    return torch.tensor([(low * (steps - i) + high * i) / steps for i in range(count)], dtype=torch.float64)


def _lengths(value: Tensor, by_filter: bool, order: float) -> Tensor:
    dims = tuple(range(1, value.ndim)) if by_filter else tuple(range(value.ndim))
    lengths: Tensor = torch.linalg.vector_norm(widen(value), order, dim=dims, keepdim=True)
    return lengths


def _length(tensors: Sequence[Tensor], order: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(torch.cat([widen(t).flatten() for t in tensors]), order)
    return length


def _flat(weights: Direction, like: Direction) -> Tensor:
    for t in weights:
        check_tensor("weights", t)
    if [t.shape for t in weights] != [t.shape for t in like]:
        refuse("checkpoints", f"shapes {[tuple(t.shape) for t in like]}", [tuple(t.shape) for t in weights])
    return torch.cat([t.detach().flatten().double().cpu() for t in weights])


def _pieces(vector: Tensor, like: Direction) -> list[Tensor]:
    return list(vector.split([t.numel() for t in like]))
