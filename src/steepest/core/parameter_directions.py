"""Directions in parameter space: what a model gives at many points of a line or a plane through its weights.

A model's own weights, buffers, modes, flags and the random state are afterwards what they were, to the last bit: moved
weights stand in for its own during a call, and nothing is written into them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_number, refuse, refuse_type
from .displaced import random_numbers, same_random_numbers
from .moved_linear import MovedLayers, SharedProducts
from .moved_stack import MovedStack, layers_of
from .reductions import widen
from .torch_private import AnyConvolution, foreach_add_, foreach_copy_
from .undisturbed import same_random_states

Measure = Callable[[Any], Any]
WEIGHTS, FEATURES, MOST = 2**20, 2**19, 64
"""Weights, and rows times features of a layer, at so many points at once as fit a cache; and points at most."""
_CONVOLUTIONS = (AnyConvolution, nn.RNNBase)


def movable(model: nn.Module, states: bool = False) -> dict[str, Tensor]:
    """The parameters of a model by name, each once; with ``states`` also its floating buffers, behind them.

    >>> list(movable(nn.BatchNorm1d(2), states=True))
    ['weight', 'bias', 'running_mean', 'running_var']
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    if states:
        tensors |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    return tensors


def movable_by(model: nn.Module, directions: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """The tensors of a model that directions move: its parameters, or these and its floating buffers.

    Raises:
        ValueError: directions of other shapes.
    """
    tensors = movable(model)
    shapes = [tuple(t.shape) for t in tensors.values()]
    for direction in directions:
        if len(direction) > len(shapes):
            tensors = movable(model, states=True)
            shapes = [tuple(t.shape) for t in tensors.values()]
    for direction in directions:
        if [tuple(d.shape) for d in direction] != shapes:
            refuse(
                "directions",
                f"tensors of the shapes of the model's parameters, {shapes}",
                [tuple(d.shape) for d in direction],
            )
    return tensors


@contextmanager
def evaluated(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Inside the block all of a model is in one mode; modes, flags and random states are then what they were."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with same_random_states():
            model.train(training)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, flag in flags:
            p.requires_grad_(flag)


class Measured(nn.Module):
    """A number of a model as the output of a module, so that weights can stand in for the model's own."""

    def __init__(self, model: nn.Module, measure: Measure) -> None:
        super().__init__()
        self.model, self.measure = model, measure

    def forward(self) -> Any:
        """The measure, of the model."""
        return self.measure(self.model)


def values_at(
    model: nn.Module,
    measure: Measure,
    directions: Sequence[Sequence[Tensor]],
    coefficients: Tensor,
    *,
    chunk: int | None = None,
    training: bool = False,
) -> Tensor:
    r"""A number of a model at :math:`w + \sum_k c_k d_k` for many rows c, without gradients.

    Many points are evaluated at once: the mean loss of plain stacks of layers on the CPU in buffers that are used again
    (:class:`~.moved_stack.MovedStack`, whose first point is compared with the model's), others where the model and the
    measure can be vectorised (``torch.func.vmap``), else one after the other. A measure that draws random numbers draws
    the same ones at every point.

    Args:
        model: whose weights w are.
        measure: of a model, for example its loss on a batch: a tensor, of one shape for all points, or a number.
        directions: K lists of tensors with the shapes of the model's parameters, in their order; or of its parameters
            and floating buffers, as :func:`movable` gives them.
        coefficients: ``[P, K]``.
        chunk: points at once; 1: never vectorised. By default at most 64, fewer where weights or batches are large, and
            1 for recurrent networks and convolutions outside of stacks on the CPU, which that makes slower.
        training: whether the model is in training mode; buffers stay what they are also then.

    Returns:
        values ``[P, ...]`` in the measure's type.

    Raises:
        ValueError: directions of other shapes, coefficients that don't fit them.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> values_at(model, lambda m: m(torch.ones(1)).sum(), [[torch.ones(1, 1)]], torch.tensor([[0.0], [0.5]]))
    tensor([2.0000, 2.5000])
    """
    if not isinstance(model, nn.Module):
        refuse_type("model", "a torch.nn.Module", model)
    tensors = movable_by(model, directions)
    if coefficients.ndim != 2 or coefficients.shape[1] != len(directions):
        refuse("coefficients", f"shape (*, {len(directions)})", coefficients)
    if chunk is not None:
        check_number("chunk", chunk, low=1, integer=True)
    whole = {
        name: torch.stack(
            [widen(v.detach()).to(t.device, widen(t).dtype) for v in (t, *(d[place] for d in directions))]
        )
        for place, (name, t) in enumerate(tensors.items())
    }
    buffers = {name: b for name, b in model.named_buffers() if name not in tensors}
    with evaluated(model, training), torch.no_grad():
        numbers = random_numbers()

        def one_by_one(rows: Tensor) -> Tensor:
            return _one_by_one(model, measure, tensors, buffers, whole, rows, numbers)

        if chunk != 1 and len(coefficients) > 1 and not training and isinstance(measure, MeanLoss):
            layers = layers_of(model, tensors) if _plain_batches(measure, tensors) else None
            if layers is not None:
                values = _of_stack(MovedStack(layers, whole, measure.loss_fn, measure.batches), coefficients, chunk)
                if values is not None and _alike(values[:1], one_by_one(coefficients[:1])):
                    return values
        chunk = _points_at_once(model, tensors, getattr(measure, "rows", 1)) if chunk is None else chunk
        if chunk > 1:
            try:
                return _together(Measured(model, measure), tensors, buffers, whole, coefficients, chunk)
            except _OneByOne:
                pass
        return one_by_one(coefficients)


def _plain_batches(measure: MeanLoss, tensors: dict[str, Tensor]) -> bool:
    """Whether inputs are single tensors on the CPU, of the type of all weights."""
    own = [batch[0] for batch in measure.batches] + list(tensors.values())
    if torch.is_autocast_enabled("cpu") or not tensors:
        return False
    if not all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in own):
        return False
    if not all(isinstance(batch[1], Tensor) and batch[1].device.type == "cpu" for batch in measure.batches):
        return False
    return {t.dtype for t in own} in ({torch.float32}, {torch.float64})


def _of_stack(stack: MovedStack, coefficients: Tensor, chunk: int | None) -> Tensor | None:
    """Losses of a stack; None where they draw random numbers, which each point would draw anew, or cannot be had."""
    before = random_numbers()["cpu"]
    try:
        values = [stack.losses(coefficients[:1])]
    except Exception:  # what is wrong is raised by the other way
        return None
    if not torch.equal(before, random_numbers()["cpu"]):
        return None
    values += [stack.losses(rows) for rows in coefficients[1:].split(chunk or stack.points())]
    return torch.cat(values)


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two values are equal up to the order of sums."""
    near = 1e-5 if first.dtype == torch.float32 else 1e-10
    return first.dtype == second.dtype and torch.allclose(first, second, rtol=10 * near, atol=near, equal_nan=True)


class _OneByOne(Exception):
    """Something cannot be vectorised."""


def _together(
    measured: Measured,
    tensors: dict[str, Tensor],
    buffers: dict[str, Tensor],
    whole: dict[str, Tensor],
    coefficients: Tensor,
    chunk: int,
) -> Tensor:
    """Many points at once."""
    shared = SharedProducts(whole)

    def value(row: Tensor) -> Any:
        """At one point, of many under ``vmap``."""
        weights = {}
        for name, t in tensors.items():
            base, across = whole[name][0], whole[name][1:]
            weights[name] = (base + (row.to(base) @ across.flatten(1)).view(base.shape)).to(t.dtype)
        own = weights | {name: b.detach().clone() for name, b in buffers.items()}
        with MovedLayers(row, weights, shared):
            return torch.func.functional_call(measured, {f"model.{name}": t for name, t in own.items()}, ())

    values: list[Tensor] = []
    for rows in coefficients.split(chunk):
        try:
            values.append(torch.func.vmap(value)(rows))
        except Exception:  # whatever cannot be vectorised; what is wrong otherwise is raised by the other way
            if values:
                raise
            raise _OneByOne from None
    return torch.cat(values) if values else torch.empty(0)


def _one_by_one(
    model: nn.Module,
    measure: Measure,
    tensors: dict[str, Tensor],
    buffers: dict[str, Tensor],
    whole: dict[str, Tensor],
    coefficients: Tensor,
    numbers: dict[str, Tensor],
) -> Tensor:
    """A point after the other, in memory that takes the place of the weights' and the buffers'."""
    base = [own[0] for own in whole.values()]
    ways = [[own[1 + k] for own in whole.values()] for k in range(coefficients.shape[1])]
    values: list[Tensor] = []
    with _elsewhere([*tensors.values(), *buffers.values()]) as places:
        moved, held = places[: len(tensors)], places[len(tensors) :]
        values_held = [own.clone() for own in held]
        bound = [(m._buffers, name, b) for m in model.modules() for name, b in m._buffers.items()]
        wide = [own if own.dtype == b.dtype else torch.empty_like(b) for own, b in zip(moved, base)]
        for row in coefficients.tolist():
            foreach_copy_(wide, base)
            for factor, way in zip(row, ways):
                foreach_add_(wide, way, alpha=factor)
            for own, narrow in zip(wide, moved):
                if own is not narrow:
                    narrow.copy_(own)
            for place, own in zip(held, values_held):
                place.copy_(own)
            try:
                with same_random_numbers(numbers):
                    values.append(torch.as_tensor(measure(model)).detach().clone()[None])
            finally:
                for own_buffers, name, b in bound:
                    own_buffers[name] = b
    return torch.cat(values) if values else torch.empty(0)


@contextmanager
def _elsewhere(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Inside the block tensors have memory of their own, with their values; theirs is not written to."""
    before = [t.data for t in tensors]
    try:
        for t, own in zip(tensors, before):
            t.data = own.clone()
        yield [t.data for t in tensors]
    finally:
        for t, own in zip(tensors, before):
            t.data = own


def closure_values(
    closure: Callable[[], Any], params: Sequence[Tensor], direction: Sequence[Tensor], steps: Sequence[float]
) -> Tensor:
    """The value of a closure with parameters moved along a direction, ``[S]``, and then put back to the last bit.

    For losses that cannot be given a model: parameters are written. The closure may differentiate; it draws the same
    random numbers at every point.

    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> closure_values(lambda: (w ** 2).sum(), [w], [torch.ones(1)], [0.0, 1.0])
    tensor([1., 4.])
    """
    before = [p.detach().clone() for p in params]
    values = []
    try:
        with same_random_states():
            numbers = random_numbers()
            for step in steps:
                with torch.no_grad():
                    for p, own, d in zip(params, before, direction):
                        p.copy_(widen(own) + float(step) * d.to(widen(own)))
                with same_random_numbers(numbers):
                    values.append(torch.as_tensor(closure()).detach())
    finally:
        with torch.no_grad():
            for p, own in zip(params, before):
                p.copy_(own)
    return torch.stack(values)


class MeanLoss:
    """The mean loss of a model over batches, weighted by their sizes; they are read once, as it is made.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``, the mean of a batch.
        loader: batches ``(inputs, targets)``; inputs that are a tuple or a list are several arguments. A pair of
            tensors is one batch.

    Raises:
        ValueError: no batch.

    >>> measure = MeanLoss(nn.functional.mse_loss, [(torch.ones(2, 1), torch.zeros(2, 1))])
    >>> measure(nn.Identity()), measure.rows
    (tensor(1.), 2)
    """

    def __init__(self, loss_fn: Callable[[Any, Tensor], Tensor], loader: Iterable[Any]) -> None:
        pair = isinstance(loader, (tuple, list)) and len(loader) == 2 and all(isinstance(t, Tensor) for t in loader)
        with same_random_states():
            self.batches: list[Any] = [loader] if pair else list(loader)
        if not self.batches:
            refuse("loader", "at least one batch", self.batches)
        self.loss_fn = loss_fn
        self.rows = max(len(targets) for _, targets in self.batches)

    def __call__(self, model: nn.Module) -> Tensor:
        tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
        device = self.batches[0][1].device if tensor is None else tensor.device
        total, count, dtype = torch.zeros((), dtype=torch.float64, device=device), 0, torch.float32
        for inputs, targets in self.batches:
            arguments = [a.to(device) for a in (inputs if isinstance(inputs, (tuple, list)) else [inputs])]
            loss = self.loss_fn(model(*arguments), targets.to(device))
            dtype = widen(loss).dtype
            total = total + loss.double() * len(targets)
            count += len(targets)
        return (total / count).to(dtype)


def _points_at_once(model: nn.Module, tensors: dict[str, Tensor], rows: int) -> int:
    on_cpu = all(t.device.type == "cpu" for t in tensors.values())
    if on_cpu and any(isinstance(module, _CONVOLUTIONS) for module in model.modules()):
        return 1
    weights = max(1, sum(t.numel() for t in tensors.values()))
    widest = max((t.shape[0] for t in tensors.values() if t.ndim > 1), default=1)
    return max(1, min(MOST, WEIGHTS // weights, FEATURES // max(1, rows * widest)))
