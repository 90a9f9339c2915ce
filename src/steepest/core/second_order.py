r"""Second derivatives of a loss along directions, :math:`v^\top H v`, by one forward sweep over its operations.

The operations of a pass are recorded, with the gradient of the loss at what each of them gives. Along v the tangents x'
of inputs follow from those before, and what an operation f bends adds up:

.. math:: v^\top H v = \sum_f \langle \partial L / \partial f, \, f''[x', x'] \rangle

Linear operations add nothing, a product of matrices :math:`2 A' B'`. So a layer costs three products where a product
with the Hessian costs six, and nothing goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .torch_private import TorchDispatchMode, tree_leaves

Tangents = list[Tensor | None]
Rule = Callable[[Tangents], Tensor | None]
"""Writes the tangent of what an operation gives, and returns what the operation adds to the form."""

LINEAR = {
    "_adaptive_avg_pool2d", "_to_copy", "alias", "avg_pool2d", "clone", "cumsum", "diagonal", "embedding", "expand",
    "flip", "gather", "index_select", "mean", "neg", "permute", "repeat", "roll", "select", "slice", "split",
    "split_with_sizes", "squeeze", "sum", "t", "transpose", "tril", "triu", "unbind", "unfold", "unsqueeze",
}  # fmt: skip
"""In their first argument."""
SINGLE_ENTRIES = {
    "abs", "clamp", "clamp_min", "cos", "elu", "erf", "exp", "expm1", "gelu", "hardtanh", "leaky_relu", "log", "log1p",
    "mish", "pow", "reciprocal", "relu", "rsqrt", "sigmoid", "silu", "sin", "softplus", "sqrt", "tanh",
}  # fmt: skip


class NoRule(Exception):
    """An operation whose second derivative is not known here."""


@dataclass
class Operation:
    """One of a pass; derived: whether gradients are on."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    derived: bool

    @property
    def name(self) -> str:
        """Without the overload."""
        name: str = self.func.overloadpacket.__name__
        return name


class _Record(TorchDispatchMode):
    """The operations of a pass, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.operations.append(Operation(func, args, kwargs or {}, outputs, torch.is_grad_enabled()))
        return result


class SecondOrder:
    """The second derivative of a loss along directions in parameters.

    Args:
        run: gives the loss, a scalar.
        params: in which it is derived.

    Raises:
        NoRule: for an operation that is not known here, or that writes into what is there.

    >>> w = torch.tensor([2.0, 3.0], requires_grad=True)
    >>> form = SecondOrder(lambda: (w * w * w).sum(), [w])
    >>> form([torch.tensor([1.0, 0.0])])
    tensor(12., dtype=torch.float64)
    """

    def __init__(self, run: Callable[[], Tensor], params: Sequence[Tensor]) -> None:
        with torch.enable_grad(), _Record() as record:
            loss = run()
        self._places = {id(p): place for place, p in enumerate(params)}
        if len(self._places) < len(params):
            raise NoRule("a parameter that is there twice")
        self._rules: list[Rule] = []
        self._count = len(params)
        if not loss.requires_grad:
            return
        operations = [operation for operation in record.operations if self._moves(operation)]
        if id(loss) not in self._places:
            raise NoRule("what gives the loss")
        if not operations:
            return
        given = [t for operation in operations for t in operation.outputs if t.requires_grad]
        slopes = {
            id(t): slope.contiguous()
            for t, slope in zip(given, torch.autograd.grad(loss, given, allow_unused=True))
            if slope is not None
        }
        with torch.no_grad():
            for operation in operations:
                if any(id(t) in slopes for t in operation.outputs):  # the loss needs it
                    slope = slopes.get(id(operation.outputs[0]))
                    self._rules.append(_rule(operation, self._places, slope))
        self._count = len(self._places)
        self._places.clear()  # addresses of tensors that go

    def _moves(self, operation: Operation) -> bool:
        """Whether parameters move what an operation gives, which then has a place."""
        inputs = [t for t in tree_leaves([operation.args, operation.kwargs]) if isinstance(t, Tensor)]
        if not operation.derived:
            memory = {t.data_ptr() for t in inputs}  # views pass for derived also without gradients
            if any(output.requires_grad and output.data_ptr() not in memory for output in operation.outputs):
                raise NoRule("a function with its own backward")
            return False
        if not any(t.requires_grad and id(t) in self._places for t in inputs):
            return False
        if operation.func._schema.is_mutable:
            raise NoRule(operation.name)
        for output in operation.outputs:
            if output.requires_grad:
                if output.dtype not in (torch.float32, torch.float64):
                    raise NoRule(f"{operation.name} in {output.dtype}")
                self._places[id(output)] = len(self._places)
        return any(output.requires_grad for output in operation.outputs)

    def __call__(self, direction: Sequence[Tensor]) -> Tensor:
        """The form, float64, of one direction in the shapes of the parameters."""
        tangents: Tangents = [*direction, *[None] * (self._count - len(direction))]
        with torch.no_grad():
            terms = [term for rule in self._rules if (term := rule(tangents)) is not None]
            if not terms:
                return torch.zeros((), dtype=torch.float64)
            return torch.stack(terms).double().sum()


class _Step:
    """One operation with what its rule needs.

    Attributes:
        args: without graphs.
        moved: the places of arguments that parameters move, None for others.
        out, value, slope: the place of what it gives, what that is, and the gradient of the loss there.
    """

    def __init__(self, operation: Operation, places: dict[int, int], slope: Tensor | None) -> None:
        def place_of(value: Any) -> int | None:
            return places.get(id(value)) if isinstance(value, Tensor) and value.requires_grad else None

        self.name, self.func, self.kwargs = operation.name, operation.func, operation.kwargs
        self.moved = [place_of(value) for value in operation.args]
        self.args = [value.detach() if isinstance(value, Tensor) else value for value in operation.args]
        self.outputs = [(place_of(t), t.detach()) for t in operation.outputs]
        place, self.value = self.outputs[0]
        hidden = [value for value in operation.args if not isinstance(value, Tensor)] + list(self.kwargs.values())
        self.listed = [place_of(value) for value in tree_leaves(hidden) if isinstance(value, Tensor)]
        if self.name in ("cat", "stack"):
            self.moved = self.listed
        elif any(inside is not None for inside in self.listed):
            raise NoRule(self.name)
        self.out = -1 if place is None else place
        self.slope = torch.zeros_like(self.value) if slope is None else slope

    def only(self) -> int:
        """The place of the first argument, where no other one moves."""
        first = self.moved[0] if self.moved else None
        if first is None or any(place is not None for place in self.moved[1:]):
            raise NoRule(self.name)
        return first

    def linear(self, function: Callable[[Tensor], Tensor]) -> Rule:
        """A linear function of the first argument."""
        source, out = self.only(), self.out

        def rule(t: Tangents) -> None:
            own = t[source]
            assert own is not None
            t[out] = function(own)

        return rule


def _rule(operation: Operation, places: dict[int, int], slope: Tensor | None) -> Rule:
    """What is done at one operation, with the gradient of the loss at its first output."""
    step = _Step(operation, places, slope)
    name, func, args, kwargs = step.name, step.func, step.args, step.kwargs
    if name in ("view", "_unsafe_view", "reshape"):
        shape = step.value.shape
        return step.linear(lambda t: t.reshape(shape))
    if name in LINEAR:
        if len(step.outputs) > 1:
            return _several(step)
        return step.linear(lambda t: func(t, *args[1:], **kwargs))
    if name in ("mul", "div") and len(args) == 2 and not isinstance(args[1], Tensor):
        return step.linear(lambda t: func(t, args[1]))
    if name in ("nll_loss_forward", "nll_loss2d_forward"):
        return step.linear(lambda t: func(t, *args[1:], **kwargs)[0])
    if name in ("masked_fill", "constant_pad_nd"):
        return step.linear(lambda t: func(t, args[1], 0))
    if name == "max_pool2d_with_indices":
        indices, shape = step.outputs[1][1].flatten(-2), step.value.shape
        return step.linear(lambda t: t.flatten(-2).gather(-1, indices).view(shape))
    if name == "rsub" and not isinstance(args[1], Tensor):
        factor = -(args[2] if len(args) > 2 else kwargs.get("alpha", 1))
        return step.linear(lambda t: factor * t)
    if name in ("add", "sub"):
        return _sum(step)
    if name in ("cat", "stack"):
        return _joined(step)
    if name == "div" and not kwargs:
        return _quotient(step)
    if name in ("mul", "mm", "bmm") and not kwargs:
        return _product(step, func, args, step.moved)
    if name == "addmm" and not kwargs:
        return _product(step, torch.mm, args[1:], step.moved[1:], step.moved[0])
    if name == "convolution":
        return _convolution(step)
    if name in SINGLE_ENTRIES:
        return _single_entries(step)
    if name in ("_softmax", "_log_softmax", "_safe_softmax"):
        return _softmax(step)
    if name == "native_layer_norm":
        return _layer_norm(step)
    if name == "mse_loss":
        return _squared_error(step)
    raise NoRule(name)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, of tensors of one shape."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _several(step: _Step) -> Rule:
    source, func, args, kwargs = step.only(), step.func, step.args, step.kwargs
    places = [place for place, _ in step.outputs]

    def rule(t: Tangents) -> None:
        for place, own in zip(places, func(t[source], *args[1:], **kwargs)):
            if place is not None:
                t[place] = own

    return rule


def _sum(step: _Step) -> Rule:
    alpha = step.kwargs.get("alpha", 1)
    sign = alpha if step.name == "add" else -alpha
    (left, right), out, shape = step.moved[:2] if len(step.moved) > 1 else (None, None), step.out, step.value.shape

    def rule(t: Tangents) -> None:
        a = None if left is None else t[left]
        b = None if right is None else t[right]
        if a is not None and b is not None:
            t[out] = torch.add(a, b, alpha=sign)
        elif a is not None:
            t[out] = a.expand(shape)
        elif b is not None:
            t[out] = (b if sign == 1 else sign * b).expand(shape)

    return rule


def _joined(step: _Step) -> Rule:
    func, rest, out, moved = step.func, step.args[1:], step.out, step.moved
    values = [value.detach() for value in step.args[0]]
    if len(values) != len(moved):
        raise NoRule(step.name)

    def rule(t: Tangents) -> None:
        own = [None if place is None else t[place] for place in moved]
        t[out] = func([torch.zeros_like(v) if d is None else d for v, d in zip(values, own)], *rest)

    return rule


def _quotient(step: _Step) -> Rule:
    (left, right), (_, b), out, value = step.moved, step.args, step.out, step.value
    bend = -2 * step.slope / b

    def rule(t: Tangents) -> Tensor | None:
        da = None if left is None else t[left]
        db = None if right is None else t[right]
        if db is None:
            t[out] = None if da is None else (da / b).expand(value.shape)
            return None
        image = (-value * db if da is None else da - value * db) / b
        t[out] = image
        return _dot(image * db, bend)

    return rule


def _product(
    step: _Step,
    product: Callable[[Tensor, Tensor], Tensor],
    factors: Sequence[Any],
    moved: Sequence[int | None],
    bias: int | None = None,
    along: Sequence[int] | None = None,
) -> Rule:
    """A function that is linear in each of two arguments, and a bias that is added."""
    if len(factors) != 2 or not all(isinstance(factor, Tensor) for factor in factors):
        raise NoRule(step.name)
    (a, b), (left, right), out, slope = factors, moved, step.out, step.slope

    def rule(t: Tangents) -> Tensor | None:
        da = None if left is None else t[left]
        db = None if right is None else t[right]
        image: Tensor | None = None
        if db is not None:
            image = product(a, db)
        if da is not None:
            own = product(da, b)
            image = own if image is None else image.add_(own)
        shift = None if bias is None else t[bias]
        if shift is not None:
            shift = shift if along is None else shift.view(along)
            image = shift.expand(slope.shape) if image is None else image.add_(shift)
        t[out] = image
        return None if da is None or db is None else 2 * _dot(product(da, db), slope)

    return rule


def _convolution(step: _Step) -> Rule:
    func, rest = step.func, step.args[3:]

    def product(x: Tensor, weight: Tensor) -> Tensor:
        image: Tensor = func(x, weight, None, *rest)
        return image

    along = [1, -1, *[1] * (step.value.ndim - 2)]
    if step.value.ndim != step.args[0].ndim or step.kwargs:
        raise NoRule(step.name)
    return _product(step, product, step.args[:2], step.moved[:2], step.moved[2], along)


def _single_entries(step: _Step) -> Rule:
    source, out, func = step.only(), step.out, step.func
    if step.name == "pow" and isinstance(step.args[1], Tensor):
        raise NoRule(step.name)
    with torch.enable_grad():
        z = step.args[0].clone().requires_grad_()
        (first,) = torch.autograd.grad(func(z, *step.args[1:], **step.kwargs).sum(), z, create_graph=True)
        second = torch.autograd.grad(first.sum(), z)[0] if first.requires_grad else torch.zeros_like(first)
    factor, bend = first.detach(), step.slope * second
    bent = bool((second != 0).any())

    def rule(t: Tangents) -> Tensor | None:
        own = t[source]
        assert own is not None
        t[out] = factor * own
        return _dot(own * own, bend) if bent else None

    return rule


def _softmax(step: _Step) -> Rule:
    """With s what is left of x' without its mean under p: y' is p s, or s of the logarithm."""
    source, out, log = step.only(), step.out, step.name == "_log_softmax"
    axis = int(step.args[1])
    p = step.value.exp() if log else step.value
    sums = (step.slope if log else step.slope * p).sum(axis, keepdim=True)
    bend = -sums * p if log else p * (step.slope - sums)

    def rule(t: Tangents) -> Tensor:
        own = t[source]
        assert own is not None
        centred = own - (p * own).sum(axis, keepdim=True)
        t[out] = centred if log else p * centred
        return _dot(centred * centred, bend)

    return rule


def _layer_norm(step: _Step) -> Rule:
    x, shape, weight = step.args[0], step.args[1], step.args[2]
    (source, _, scale, shift), out = step.moved[:4], step.out
    axes = tuple(range(-len(shape), 0))
    inverse = step.outputs[2][1]
    unit = (x - step.outputs[1][1]) * inverse
    slope = step.slope if weight is None else step.slope * weight
    plain = step.slope

    def rule(t: Tangents) -> Tensor | None:
        dx, dw, db = (None if place is None else t[place] for place in (source, scale, shift))
        image: Tensor | None = None
        term: Tensor | None = None
        if dx is not None:
            moved = (dx - dx.mean(axes, keepdim=True)).mul_(inverse)
            along = (unit * moved).mean(axes, keepdim=True)
            square = (moved * moved).mean(axes, keepdim=True)
            change = moved - unit * along
            image = change if weight is None else change * weight
            term = _dot(unit * (3 * along * along - square) - 2 * moved * along, slope)
            if dw is not None:
                term = term + 2 * _dot(change * dw, plain)
        if dw is not None:
            image = unit * dw if image is None else image + unit * dw
        if db is not None:
            image = db.expand(plain.shape) if image is None else image + db
        t[out] = image
        return term

    return rule


def _squared_error(step: _Step) -> Rule:
    source, out, reduction = step.only(), step.out, step.args[2] if len(step.args) > 2 else 1
    gap = step.args[0] - step.args[1]
    if gap.shape != step.args[0].shape:
        raise NoRule(step.name)
    count, slope = gap.numel(), step.slope

    def rule(t: Tangents) -> Tensor:
        own = t[source]
        assert own is not None
        if reduction == 0:
            t[out] = 2 * gap * own
            return 2 * _dot(own * own, slope)
        factor = 2 / count if reduction == 1 else 2.0
        t[out] = factor * _dot(gap, own)
        return factor * _dot(own, own) * slope

    return rule
