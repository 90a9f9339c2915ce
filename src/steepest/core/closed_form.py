"""A value whose gradient somebody computed, as a tensor that every transform of torch can work with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .transforms import eager, forward_mode

Slopes = Callable[[], tuple[Tensor, ...]]


def with_gradient(value: Tensor, inputs: tuple[Tensor, ...], slopes: Slopes, what: str) -> Tensor:
    """``value`` ``[...]`` with a gradient in each input ``[..., *]``, of which there is no derivative.

    Batched backward passes, ``torch.func.grad``, ``vmap`` and ``jvp`` work; a derivative of the gradient is refused,
    not taken for 0.

    Args:
        value: each entry depends on the entries of the inputs with the same leading indices.
        inputs: what it depends on.
        slopes: gives the gradient of each entry in each input, shaped as the inputs; asked only where it is wanted.
        what: names the value in the error.

    >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> size = with_gradient(x.detach().norm(), (x,), lambda: (x.detach() / x.detach().norm(),), "the norm")
    >>> torch.autograd.grad(size, x)
    (tensor([0.6000, 0.8000]),)
    """
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if eager() and not forward_mode() and not wanted:
        return value
    # torch.compile takes no function with tangents of its own
    function = _WithGradient if torch.compiler.is_compiling() else _WithTangent
    result: Tensor = function.apply(what, len(inputs), value, *inputs, *slopes())
    return result


def _refuse(what: str) -> NoReturn:
    raise RuntimeError(f"{what} has no second derivatives: its gradient is a closed form")


def _tied(what: str, slope: Tensor, *inputs: Tensor) -> Tensor:
    """``slope``, whose derivative is refused and not taken for 0."""
    function = _Slope if torch.compiler.is_compiling() else _SlopeWithTangent
    tied: Tensor = function.apply(what, slope, *inputs)
    return tied


def _flow(upstream: Tensor, slope: Tensor) -> Tensor:
    return upstream.reshape(*upstream.shape, *[1] * (slope.ndim - upstream.ndim)) * slope


class _WithGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(what: str, count: int, value: Tensor, *tensors: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.what, ctx.count, _, *tensors = inputs
        ctx.entries = output.ndim
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = ctx.count, ctx.saved_tensors
        gradients = [
            _flow(upstream, _tied(ctx.what, slope, *saved[:count])) if needed else None
            for slope, needed in zip(saved[count:], ctx.needs_input_grad[3:])
        ]
        return None, None, None, *gradients, *[None] * count


class _Slope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(what: str, slope: Tensor, *inputs: Tensor) -> Tensor:
        return slope.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.what = inputs[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, ...]:
        _refuse(ctx.what)


class _WithTangent(_WithGradient):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        count, saved = ctx.count, ctx.saved_tensors
        total = None
        for tangent, slope in zip(tangents[3 : 3 + count], saved[count:]):
            if tangent is not None:
                share = _tied(ctx.what, slope, *saved[:count]) * tangent
                share = share.sum(tuple(range(ctx.entries, share.ndim))) if share.ndim > ctx.entries else share
                total = share if total is None else total + share
        assert isinstance(total, Tensor)
        return total


class _SlopeWithTangent(_Slope):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        _refuse(ctx.what)
