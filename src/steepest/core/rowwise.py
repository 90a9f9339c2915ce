"""Losses of one row of outputs at a time: value and gradient in one pass over pieces that stay in the cache.

A loss gives its plain form, which torch differentiates, and a rule that writes the gradient itself. The rule runs in
eager training; under ``torch.compile``, ``vmap``, forward-mode differentiation, or where a gradient of the gradient is
asked for, the plain form does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .checks import eager

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
    if eager() and outputs.requires_grad and torch.is_grad_enabled() and forward_ad._current_level < 0:
        found: Tensor = _Rowwise.apply(outputs, plain, rule)
        return found
    return plain(outputs)


def _run(outputs: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Losses ``[N]`` and gradient ``[N, C]``; on an accelerator all rows are one piece."""
    rows, columns = outputs.shape
    losses, gradient = [outputs.new_empty(0)] if not rows else [], torch.empty_like(outputs)
    piece = max(1, PIECE // max(1, columns * outputs.element_size())) if outputs.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, piece):
        part = slice(start, min(start + piece, rows))
        losses.append(rule(outputs[part], gradient[part], part))
    return torch.cat(losses), gradient


class _Rowwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, plain: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
        loss, ctx.gradient = _run(outputs.detach(), rule)
        ctx.save_for_backward(outputs)
        ctx.plain, ctx.rule = plain, rule
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (outputs,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates the gradient
            found: Tensor
            (found,) = torch.autograd.grad(ctx.plain(outputs), outputs, upstream, create_graph=True)
            return found, None, None
        # the first backward pass may have the buffer; a second one computes it again
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            _, gradient = _run(outputs.detach(), ctx.rule)
        return gradient.mul_(upstream.unsqueeze(-1)), None, None


def softmax_into(z: Tensor, g: Tensor) -> Tensor:
    """Fill ``g`` with the softmax of the rows of ``z`` and give their log-partition ``[r, 1]``."""
    top, above = softmax_parts(z, g)
    return top + above


def softmax_parts(z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The same with the log-partition in two parts, the largest output and what lies above it, each ``[r, 1]``.

    ``(top - z_y) + above`` is a loss that large outputs don't round away.
    """
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


def log_probability_rule(target: Tensor, phi: Callable[[Tensor, slice], tuple[Tensor, Tensor]]) -> Rule:
    """The rule of a loss of ``log softmax(z)_y`` alone.

    Args:
        target: class indices ``[N]``, int64.
        phi: ``(log p [r, 1], rows) -> (loss, its slope in log p)``, both ``[r, 1]``.
    """

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        y = target[rows]
        loss, slope = phi(at(z, y) - softmax_into(z, g), rows)
        g.mul_(-slope)
        add_at(g, y, slope)
        return loss.squeeze(1)

    return rule
