"""Losses of one row of outputs at a time: value and gradient in one pass over pieces that stay in the cache.

A loss gives its plain form, which torch differentiates, and a rule that writes the gradient itself. The rule runs in
eager training; under ``torch.compile``, ``vmap``, forward-mode differentiation, on meta and fake tensors, where a
gradient of the gradient is asked for, or one of another tensor than the outputs, the plain form does. So a gradient
flows, or is stopped, as the plain form says, whichever runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from . import rows as native_rows
from .transforms import by_hand, forward_mode, plain_gradients

PIECE = 1 << 19
"""Bytes of a piece of outputs: about half of a core's second-level cache."""

Rule = Callable[[Tensor, Tensor, slice], Tensor]
"""``rule(z, g, rows) -> loss [r]``: it reads outputs ``z`` ``[r, C]`` of these rows, writes their gradient to ``g``."""


def rowwise(outputs: Tensor, plain: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
    """Losses ``[N]`` of outputs ``[N, C]``, each of its own row.

    Args:
        outputs: ``[N, C]``, float32 or wider.
        plain: ``outputs -> losses``, differentiable as often as torch can.
        rule: the same with the gradient; what it needs of single rows it cuts out with ``rows``.

    >>> z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> def rule(z, g, rows):
    ...     torch.mul(z, 2, out=g)
    ...     return z.square().sum(1)
    >>> rowwise(z, lambda z: z.square().sum(1), rule).sum().backward()
    >>> z.grad
    tensor([[2., 4.]])
    """
    if by_hand(outputs) and outputs.requires_grad and torch.is_grad_enabled() and not _reaches_further(plain):
        losses: Tensor = _Rowwise.apply(outputs, plain, rule)
        return losses
    return plain(outputs)


def _reaches_further(form: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Whether a function closes over a tensor that wants a gradient: the rule has none for it."""
    if isinstance(form, Tensor):
        return form.requires_grad
    if isinstance(form, nn.Module):
        return any(p.requires_grad for p in form.parameters())
    if id(form) in seen:
        return False
    held: Iterable[Any] = ()
    if isinstance(form, (tuple, list)):
        held = form
    elif isinstance(form, MethodType):
        held = (form.__self__, form.__func__)
    elif isinstance(form, functools.partial):
        held = (form.func, *form.args, *form.keywords.values())
    elif isinstance(form, FunctionType):
        held = (*_closed_over(form), *(form.__defaults__ or ()))
    return any(_reaches_further(value, seen | {id(form)}) for value in held)


def _closed_over(form: FunctionType) -> Iterable[Any]:
    for cell in form.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name without a value yet
            yield cell.cell_contents


def _run(outputs: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Losses ``[N]`` and gradient ``[N, C]``; on an accelerator all rows are one piece."""
    rows, columns = outputs.shape
    losses, gradient = [outputs.new_empty(0)] if not rows else [], torch.empty_like(outputs)
    piece = max(1, PIECE // max(1, columns * outputs.element_size())) if outputs.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, piece):
        rows_now = slice(start, min(start + piece, rows))
        losses.append(rule(outputs[rows_now], gradient[rows_now], rows_now))
    return torch.cat(losses), gradient


class _Rowwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, plain: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
        loss, ctx.gradient = _run(outputs.detach(), rule)
        ctx.save_for_backward(outputs)
        ctx.plain, ctx.rule = plain, rule
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:
        (outputs,) = ctx.saved_tensors
        if torch.is_grad_enabled() or forward_mode():  # somebody differentiates the gradient
            return plain_gradients(ctx.plain, (outputs,), (True,), upstream)[0], None, None
        # the first backward pass may have the buffer; a second one computes it again
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            _, gradient = _run(outputs.detach(), ctx.rule)
        if by_hand(upstream):
            return gradient.mul_(upstream.unsqueeze(-1)), None, None
        return gradient * upstream.unsqueeze(-1), None, None  # many gradients of the one


def softmax_into(z: Tensor, g: Tensor) -> Tensor:
    """Fill ``g`` with the softmax of the rows of ``z`` and give their log-partition ``[r, 1]``."""
    top, above = softmax_parts(z, g)
    return top + above


def softmax_parts(z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The same with the log-partition in two parts, the largest output and what lies above it, each ``[r, 1]``.

    ``(top - z_y) + above`` is a loss that large outputs don't round away.
    """
    if native_rows.runs(z, g):
        top, total = native_rows.softmax(z, g)
        return top, total.log_()
    top = z.amax(1, keepdim=True)
    if z.shape[1] > 32:
        torch.softmax(z, 1, out=g)
        return top, -g.amax(1, keepdim=True).log()
    torch.sub(z, top, out=g)  # torch's own softmax is slow on short rows
    g.exp_()
    total = g.sum(1, keepdim=True)
    g.div_(total)
    return top, total.log()


def at(values: Tensor, target: Tensor) -> Tensor:
    """``values[i, target[i]]`` as ``[r, 1]``."""
    return values.gather(1, target.unsqueeze(1))


def add_at(g: Tensor, target: Tensor, value: Tensor | float) -> None:
    """Add a number, or one a row ``[r, 1]``, to ``g[i, target[i]]``, in place."""
    column = target.unsqueeze(1)
    g.scatter_add_(1, column, value if isinstance(value, Tensor) else torch.full_like(column, value, dtype=g.dtype))


def scale_and_add(g: Tensor, factor: Tensor, target: Tensor, value: Tensor) -> None:
    """Multiply each row of ``g`` by its factor, then add its value to ``g[i, target[i]]``; both ``[r, 1]``."""
    if native_rows.runs(g, factor, value) and target.dtype == torch.int64 and target.is_contiguous():
        native_rows.scale(g, factor, value, target)
        return
    g.mul_(factor)
    add_at(g, target, value)


def log_probability_rule(target: Tensor, phi: Callable[[Tensor, slice], tuple[Tensor, Tensor]]) -> Rule:
    """The rule of a loss of ``log softmax(z)_y`` alone.

    Args:
        target: class indices ``[N]``, int64.
        phi: ``(log p [r, 1], rows) -> (loss, its slope in log p)``, both ``[r, 1]``.
    """

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        y = target[rows]
        loss, slope = phi(at(z, y) - softmax_into(z, g), rows)
        scale_and_add(g, -slope, y, slope)
        return loss.squeeze(1)

    return rule
