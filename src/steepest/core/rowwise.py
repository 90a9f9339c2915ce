"""Losses of one row of outputs at a time: value and gradient in one pass over pieces that stay in the cache.

A loss gives its plain form, which torch differentiates, and a rule that writes the gradient itself. The rule runs in
eager mode, for the losses alone too; under ``torch.compile``, ``vmap``, forward-mode differentiation, on meta and fake
tensors, where a gradient of the gradient is asked for, or one of another tensor than the outputs, the plain form does.
So a gradient flows, or is stopped, as the plain form says, whichever runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import rows as native_rows
from .rows import Column
from .transforms import by_hand, forward_mode, plain_gradients

PIECE = 1 << 19
"""Bytes of a piece of outputs: about half of a core's second-level cache."""

BLOCK = 1 << 21
"""Bytes of outputs that one call of a rule gets: its share of the last cache, and few calls."""

SPARED = 1 << 16
"""Outputs from which on a pass over their gradient is worth to be spared."""

Rule = Callable[[Tensor, Tensor, slice], Tensor]
"""``rule(z, g, rows) -> loss [r]``: it reads outputs ``z`` ``[r, C]`` of these rows, writes their gradient to ``g``."""


def rowwise(outputs: Tensor, plain: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
    """Losses ``[N]`` of outputs ``[N, C]``, each of its own row.

    Of a large batch the gradient is written as that of the mean, so that a mean has no further pass over it. Another
    reduction multiplies it: entries below N times the smallest normal number lose digits there.

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
    if not by_hand(outputs) or torch.is_inference_mode_enabled():  # where a rule could not differentiate its parts
        return plain(outputs)
    if not torch.is_grad_enabled():
        return _run(outputs, rule, None)[0]
    if _reaches_further(plain):
        return plain(outputs)
    losses: Tensor = _Rowwise.apply(outputs, plain, rule) if outputs.requires_grad else _run(outputs, rule, None)[0]
    return losses


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


def _run(outputs: Tensor, rule: Rule, share: float | None) -> tuple[Tensor, Tensor | None]:
    """Losses ``[N]`` and gradient ``[N, C]`` times a share, or None; on an accelerator all rows are one piece."""
    rows, columns = outputs.shape
    losses = [outputs.new_empty(0)] if not rows else []
    piece = max(1, BLOCK // max(1, columns * outputs.element_size())) if outputs.device.type == "cpu" else max(1, rows)
    gradient = torch.empty_like(outputs) if share is not None else None
    spare = outputs.new_empty(min(piece, rows), columns) if gradient is None else gradient
    for start in range(0, rows, piece):
        rows_now = slice(start, min(start + piece, rows))
        own = spare[: rows_now.stop - start] if gradient is None else gradient[rows_now]
        losses.append(rule(outputs[rows_now], own, rows_now))
        if share is not None and share != 1.0:
            own.mul_(share)  # while it is in the cache
    return torch.cat(losses), gradient


class _Rowwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, plain: Callable[[Tensor], Tensor], rule: Rule) -> Tensor:
        # what a mean asks for; a pass over a few numbers more costs less than to ask
        ctx.share = float(outputs.new_tensor(1.0 / len(outputs))) if outputs.numel() >= SPARED else 1.0
        loss, ctx.gradient = _run(outputs.detach(), rule, ctx.share)
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
            _, gradient = _run(outputs.detach(), ctx.rule, ctx.share)
        hand, share = by_hand(upstream), ctx.share
        upstream = upstream.to(gradient.dtype)
        if share != 1.0:
            if hand and upstream.is_cpu and all(float(end) == share for end in upstream.aminmax()):
                return gradient, None, None
            upstream = upstream / share
        if hand:
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
    if native_rows.runs(z, g, gain=256):
        top, rest = native_rows.softmax(z, g)
        return top, rest.log1p_()
    top, place = z.max(1, keepdim=True)
    return top, _softmax_apart(z, g, top, place).log1p()


def _softmax_apart(u: Tensor, g: Tensor, top: Tensor, place: Tensor) -> Tensor:
    """Fill ``g`` with the softmax of ``u`` and give the sum of e^(u - top) over all columns but one ``[r, 1]``."""
    if u.shape[1] > 32:
        torch.softmax(u, 1, out=g)
    else:  # torch's own softmax is slow on short rows
        torch.sub(u, top, out=g)
        g.exp_()
    largest = g.gather(1, place)
    g.scatter_(1, place, 0.0)  # beside it a small sum would be rounded away
    rest = g.sum(1, keepdim=True).div_(largest)
    g.scatter_(1, place, largest)
    if u.shape[1] <= 32:
        g.div_(1.0 + rest)
    return rest


class Softmax(NamedTuple):
    """Of each row's softmax p of u what a loss of its target needs, exact also where p_y rounds to 1; ``[r, 1]``.

    Attributes:
        top: the largest of z + shift e_y.
        gap: u_y less the largest u.
        rest: the sum of e^(u - top) over all columns but one of the largest.
        away: 1 - p_y.
        excess: the sum of e^(u - top) - 1, exact also where all u are nearly equal; None where nobody asked.
    """

    top: Tensor
    gap: Tensor
    rest: Tensor
    away: Tensor
    excess: Tensor | None

    @property
    def log_p(self) -> Tensor:
        """log p_y."""
        return self.gap - self.rest.log1p()


def target_softmax(
    z: Tensor, g: Tensor, target: Tensor, *, scale: Column = 1.0, shift: Column = 0.0, excess: bool = False
) -> Softmax:
    """Fill ``g`` with the softmax of the rows of u = scale (z + shift e_y).

    Args:
        z: outputs ``[r, C]``.
        g: what is filled.
        target: y ``[r]``, int64.
        scale, shift: numbers, or one a row ``[r, 1]``; ``scale`` > 0.
        excess: whether that sum is wanted.
    """
    if native_rows.runs(z, g, gain=256) and native_rows.takes(z, scale, shift) and _plain_places(target):
        return Softmax(*native_rows.target_softmax(z, g, target, scale, shift, excess))
    column = target.unsqueeze(1)
    u = z
    if isinstance(shift, Tensor) or shift:
        u = u.scatter_add(1, column, torch.as_tensor(shift, dtype=z.dtype, device=z.device).expand(column.shape))
    most, place = u.max(1, keepdim=True)
    top = most
    if isinstance(scale, Tensor) or scale != 1.0:
        u, top = (u - most).mul_(scale), torch.zeros_like(most)
    over = (u - top).expm1_().sum(1, keepdim=True) if excess else None
    gap = u.gather(1, column) - top
    rest = _softmax_apart(u, g, top, place)
    away = torch.where(column == place, rest / (1.0 + rest), 1.0 - g.gather(1, column))
    return Softmax(most, gap, rest, away, over)


def moments(z: Tensor, *, without: Tensor | None = None, centre: Column | None = None) -> tuple[Column, Tensor]:
    """The mean of each row, or a centre that is given, and the sum of squares about it; each ``[r, 1]``.

    Args:
        z: ``[r, C]``.
        without: of each row the column whose square is left out, ``[r]``, int64.
        centre: a number, or one a row ``[r, 1]``.
    """
    if native_rows.runs(z) and native_rows.takes(z, centre) and (without is None or _plain_places(without)):
        mean, squares = native_rows.moments(z, without, centre)
        return mean if centre is None else centre, squares
    middle: Column = z.mean(1, keepdim=True) if centre is None else centre
    apart = z - middle
    if centre is None:
        left = apart.mean(1, keepdim=True)  # by rounding
        middle, apart = middle + left, apart.sub_(left)
    if without is not None:
        apart.scatter_(1, without.unsqueeze(1), 0.0)
    return middle, apart.square_().sum(1, keepdim=True)


def mix(
    g: Tensor,
    *,
    factor: Column | None = 1.0,
    z: Tensor | None = None,
    slope: Column = 1.0,
    centre: Column = 0.0,
    shift: Column = 0.0,
    target: Tensor | None = None,
    value: Tensor | None = None,
) -> None:
    """``g = factor g + slope (z - centre) + shift``, then ``g[i, target[i]] = value[i]``, in place.

    Args:
        g: ``[r, C]``; with ``factor=None`` what it holds doesn't count.
        factor, slope, centre, shift: numbers, or one a row ``[r, 1]``.
        z: ``[r, C]``, or None for nothing.
        target: columns ``[r]``, int64, or None.
        value: what is put there ``[r, 1]``.
    """
    still = not isinstance(shift, Tensor) and shift == 0.0
    whole = not isinstance(factor, Tensor) and factor == 1.0
    if not (whole and still and z is None):
        given = [t for t in (z, value) if t is not None]
        if (
            native_rows.runs(g, *given)
            and native_rows.takes(g, factor, slope, centre, shift)
            and (target is None or _plain_places(target))
        ):
            native_rows.mix(g, target, value, factor, z, None if z is None else slope, centre, shift)
            return
    if not whole:
        g.zero_() if factor is None else g.mul_(factor)
    if z is not None:
        apart = z - centre if isinstance(centre, Tensor) or centre else z
        g.addcmul_(apart, slope) if isinstance(slope, Tensor) else g.add_(apart, alpha=slope)
    if not still:
        g.add_(shift)
    if target is not None:
        assert value is not None
        g.scatter_(1, target.unsqueeze(1), value)


def _plain_places(target: Tensor) -> bool:
    return target.dtype == torch.int64 and target.is_contiguous()


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
        softmax = target_softmax(z, g, y)
        loss, slope = phi(softmax.log_p, rows)
        mix(g, factor=-slope, target=y, value=slope * softmax.away)
        return loss.squeeze(1)

    return rule
