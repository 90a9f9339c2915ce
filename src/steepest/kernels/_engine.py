"""Losses of the rows of a linear head's logits, and the gradients in hidden states and weights, a chunk at a time.

The contract of a row function is that of :mod:`steepest.core.rowwise`: ``rule(z, g, rows) -> losses``. It reads the
logits ``z`` ``[r, V]`` of the rows ``rows``, writes the gradient of each row's loss to ``g`` and gives the losses. It
sees pieces that stay in the cache; what it needs of single rows it cuts out with ``rows``. It may write to ``z``.
Further heads over the same rows (a teacher's) come as further arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.rowwise import PIECE
from ..core.transforms import concrete, plain_gradients
from ._device import logits_buffer, row_kernels
from ._memory import Plan, chunks, computed

RowRule = Callable[..., Tensor]
Plain = Callable[..., Tensor]
"""``plain(hidden, weight, bias) -> losses [n]``, by operations that torch differentiates."""
DEVICE_PIECE = 64 << 20
"""Bytes of a piece on an accelerator."""
WIDE_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype_out")
"""Whether CUDA products of half matrices can be summed in float32 where they lie (torch 2.8)."""


@dataclass(frozen=True)
class Head:
    """A linear head over the rows that count: z = softcap(h W' + b) / temperature.

    Args:
        hidden: ``[n, D]``.
        weight: ``[V, D]`` of the same type.
        bias: ``[V]`` or None.
        softcap: s of s tanh(z / s), > 0, or None.
        temperature: > 0.
        wide_sums: whether the gradient of a half weight is summed over chunks in float32.
        result: type of the gradient of ``hidden``; None for its own.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0
    wide_sums: bool = True
    result: torch.dtype | None = None

    def raw(self, rows: slice, out: Tensor, columns: slice = slice(None)) -> Tensor:
        """h W' + b of a chunk, in ``out``."""
        h, w = self.hidden[rows], self.weight[columns]
        if out.dtype == w.dtype:
            if self.bias is None:
                return torch.mm(h, w.t(), out=out)
            return torch.addmm(self.bias[columns].to(w.dtype), h, w.t(), out=out)
        if out.device.type == "cuda" and WIDE_PRODUCTS:
            torch.mm(h, w.t(), out_dtype=out.dtype, out=out)
        else:
            out.copy_(torch.mm(h, w.t()))
        return out if self.bias is None else out.add_(self.bias[columns])

    def dense(self) -> Tensor:
        """The logits ``[n, V]`` of all rows as torch differentiates them, in float32 or wider."""
        z = (self.hidden @ self.weight.t()).to(computed(self.weight))
        z = z if self.bias is None else z + self.bias
        if self.softcap is not None:
            return torch.tanh(z / self.softcap) * (self.softcap / self.temperature)
        return z if self.temperature == 1.0 else z / self.temperature

    def shape(self, z: Tensor) -> Tensor:
        """Softcap and temperature, in place."""
        if self.softcap is not None:
            return z.div_(self.softcap).tanh_().mul_(self.softcap / self.temperature)
        return z if self.temperature == 1.0 else z.div_(self.temperature)

    def chain(self, z: Tensor, g: Tensor) -> Tensor:
        """The gradient in h W' + b from that in z, in place of ``z``."""
        if self.softcap is None:
            return torch.mul(g, 1 / self.temperature, out=z)
        slope = z.mul_(self.temperature / self.softcap)
        slope.mul_(slope).neg_().add_(1.0)
        return slope.mul_(g).mul_(1 / self.temperature)


def pieces(rows: slice, z: Tensor, limit: int) -> list[tuple[slice, slice]]:
    """Parts of a chunk of at most ``limit`` bytes: positions in the chunk and among all rows."""
    size = max(1, limit // max(1, z.shape[1] * z.element_size()))
    return [(piece, slice(rows.start + piece.start, rows.start + piece.stop)) for piece in chunks(len(z), size)]


class Collect(Protocol):
    """Makes gradients of a chunk's slopes; sees each piece's slopes before weights, softcap and temperature."""

    def see(self, slope: Tensor, part: slice) -> None:
        """A piece's slopes in its logits, and its rows in the chunk."""

    def note(self, top: Tensor, mass: Tensor, columns: Tensor, rows: Tensor, counted: Tensor) -> None:
        """In place of all pieces: largest and summed slopes of columns, the gradient's sums, how many rows count."""

    def __call__(self, head: Head, g: Tensor, rows: slice, found: Gradients, needs: Sequence[bool]) -> None:
        """Add a chunk's part to the gradients."""


@dataclass
class Gradients:
    """What a sweep found; None where nobody needs it."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


def sweep(
    head: Head,
    rule: RowRule,
    plan: Plan,
    needs: Sequence[bool] = (False, False, False),
    *,
    others: Sequence[Head] = (),
    factor: Tensor | None = None,
    keep: bool = False,
    collect: Collect | None = None,
) -> tuple[Tensor, Gradients, Tensor | None]:
    """Losses of all rows and, where needed, gradients of their weighted sum.

    Args:
        head: the head whose gradient is wanted.
        rule: the row function.
        plan: rows of a chunk.
        needs: whether hidden, weight and bias need a gradient.
        others: heads whose logits the rule reads as well.
        factor: weights ``[n]`` of the rows in the gradients, or None for ones.
        keep: leave the gradient in the logits of the (one) chunk for :func:`close`, and form no others.
        collect: what makes gradients of a chunk's slopes, in place of the dense products.

    Returns:
        Losses ``[n]``, the gradients, and the kept gradient ``[n, V]``.
    """
    n, wide = len(head.hidden), computed(head.weight)
    vocabulary = head.weight.shape[0]
    losses = head.hidden.new_empty(n, dtype=wide)
    gradients, logits = Gradients(), None
    differentiate = any(needs) or keep
    if needs[0] and not keep:
        gradients.hidden = head.hidden.new_empty(head.hidden.shape, dtype=head.result)
    if needs[1] and not keep and not n:
        gradients.weight = torch.zeros_like(head.weight)
    if needs[2] and not keep and not n:
        gradients.bias = head.weight.new_zeros(vocabulary)
    kernels = row_kernels(head.hidden.device, head.weight.dtype, rule, head.softcap, collect, others)
    if kernels is None:
        buffer = head.hidden.new_empty((min(plan.rows, n), vocabulary), dtype=wide)
    else:
        buffer = logits_buffer(head.hidden, min(plan.rows, n), vocabulary, head.weight.dtype)
    more = [head.hidden.new_empty((min(plan.rows, n), len(head_beside.weight)), dtype=wide) for head_beside in others]
    scratch = head.hidden.new_empty((0, vocabulary), dtype=wide)
    for rows in chunks(n, plan.rows):
        z = head.raw(rows, buffer[: rows.stop - rows.start])
        further = [head_beside.raw(rows, out[: len(z)]) for head_beside, out in zip(others, more)]
        if kernels is not None:
            given = None if factor is None else factor[rows].to(wide)
            _in_place(kernels, head, rule, z, rows, losses, given, differentiate, collect)
        for here, among in pieces(rows, z, plan.piece) if kernels is None else ():
            piece = head.shape(z[here])
            if len(scratch) < len(piece):
                scratch = torch.empty_like(piece)
            g = scratch[: len(piece)]
            losses[among] = rule(
                piece, g, among, *(head_beside.shape(x[here]) for head_beside, x in zip(others, further))
            )
            if differentiate:
                if collect is not None:
                    collect.see(g, here)
                if factor is not None:
                    g.mul_(factor[among].unsqueeze(1))
                head.chain(piece, g)
        if keep:
            logits = z.to(head.weight.dtype)
        elif differentiate:
            (_collect if collect is None else collect)(head, z, rows, gradients, needs)
    return losses, gradients, logits


def _in_place(
    kernels: Any,
    head: Head,
    rule: RowRule,
    z: Tensor,
    rows: slice,
    losses: Tensor,
    factor: Tensor | None,
    gradient: bool,
    collect: Collect | None,
) -> None:
    """A chunk's losses, and the gradient in the place of its h W' + b."""
    sums = torch.empty_like(losses[rows]) if gradient and collect is not None else None
    cap = {"softcap": head.softcap, "temperature": head.temperature}
    kernels.rows_in_place(z, rule, rows, losses[rows], factor=factor, gradient=gradient, sums=sums, **cap)
    if collect is not None and sums is not None:
        weight = torch.ones_like(sums) if factor is None else factor
        # weights and temperature come off again; rows of weight 0 don't count
        scale = torch.where(weight == 0, 0.0, head.temperature / weight)
        columns, top, mass = kernels.column_sums(z, scale=scale)
        collect.note(top, mass, columns, sums, (scale != 0).sum())


def close(head: Head, kept: Tensor, needs: Sequence[bool], upstream: Tensor, rule: RowRule | None = None) -> Gradients:
    """Gradients from the kept gradient of the logits; upstream ``[n]`` or a scalar goes into narrow matrices.

    Args:
        head: as in the sweep.
        kept: ``[n, V]``.
        needs: whether hidden, weight and bias need a gradient.
        upstream: ``[n]`` or ``[]``.
        rule: the row function that the gradient is of.
    """
    gradients = Gradients()
    factor = upstream.to(computed(head.weight))
    column = factor.unsqueeze(-1) if factor.ndim else factor
    if needs[0]:
        gradients.hidden = (kept @ head.weight).mul_(column)
    if needs[1]:
        gradients.weight = kept.t() @ (head.hidden * column).to(head.weight.dtype)
    if needs[2]:
        kernels = row_kernels(kept.device, kept.dtype, rule)
        if kernels is not None:
            gradients.bias, _, _ = kernels.column_sums(kept, weight=factor.expand(len(kept)))
            return gradients
        # sums, not a product: they are pairwise
        gradients.bias = head.weight.new_zeros(kept.shape[1], dtype=factor.dtype)
        for here, _ in pieces(slice(0, len(kept)), kept, PIECE if kept.device.type == "cpu" else DEVICE_PIECE):
            gradients.bias += (kept[here] * (column[here] if factor.ndim else factor)).sum(0)
    return gradients


def _collect(head: Head, g: Tensor, rows: slice, found: Gradients, needs: Sequence[bool]) -> None:
    """Add a chunk's part to the gradients; that of a half weight is summed in float32."""
    narrow, wide = g.to(head.weight.dtype), computed(head.weight)
    h = head.hidden[rows]
    if needs[0] and found.hidden is not None:
        if found.hidden.dtype == narrow.dtype:
            torch.mm(narrow, head.weight, out=found.hidden[rows])
        else:
            found.hidden[rows] = torch.mm(narrow, head.weight)
    if needs[1]:
        found.weight = add_product(found.weight, narrow.t(), h, wide if head.wide_sums else narrow.dtype)
    if needs[2]:
        total = g.sum(0, dtype=wide)
        found.bias = total if found.bias is None else found.bias.add_(total)


def add_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``total + a b`` with ``total`` of ``dtype``, in place; None counts as zero."""
    if a.dtype == dtype:
        return torch.mm(a, b) if total is None else total.addmm_(a, b)
    if a.device.type == "cuda" and WIDE_PRODUCTS:
        if total is None:
            return torch.mm(a, b, out_dtype=dtype)
        try:
            return torch.addmm(total, a, b, out_dtype=dtype, out=total)
        except RuntimeError as refusal:  # releases that want the sum in the type of the matrices; nothing has run yet
            if "dtype" not in str(refusal):
                raise
            return total.add_(torch.mm(a, b, out_dtype=dtype))
    product = torch.mm(a, b)
    return product.to(dtype) if total is None else total.add_(product)


class RowLosses(torch.autograd.Function):
    """Losses ``[n]``, or their weighted sum, of a head and a rule."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        make: Callable[..., tuple[Head, RowRule, Sequence[Head]]],
        plain: Plain,
        plan: Plan,
        factor: Tensor | None,
        scalar: bool,
        collect: Collect | None,
    ) -> Tensor:
        needs = ctx.needs_input_grad[:3]
        head, rule, others = make(hidden, weight, bias)
        ctx.plan, ctx.make, ctx.factor, ctx.collect = plan, make, factor, collect
        ctx.plain, ctx.scalar = plain, scalar
        ctx.kept = ctx.found = None
        if plan.mode == "keep" and any(needs):
            losses, _, ctx.kept = sweep(head, rule, plan, others=others, keep=True)
        elif plan.mode == "chunk" and any(needs):
            losses, ctx.found, _ = sweep(head, rule, plan, needs, others=others, factor=factor, collect=collect)
        else:
            losses, _, _ = sweep(head, rule, plan, others=others)
        ctx.save_for_backward(hidden, weight, bias)
        if not scalar:
            return losses
        return losses.sum() if factor is None else losses @ factor.to(losses.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        refuse_second_order()
        hidden, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        head, rule, others = ctx.make(hidden, weight, bias)
        many = not concrete(upstream)
        if many and not ctx.scalar:
            return (*plain_gradients(ctx.plain, (hidden, weight, bias), needs, upstream), *[None] * 6)
        # many gradients of one number are one, times many numbers
        given = hidden.new_ones((), dtype=computed(weight)) if many else upstream
        factor = given if ctx.factor is None else given * ctx.factor.to(given.dtype)
        if ctx.kept is not None:
            gradients = close(head, ctx.kept, needs, factor, rule)
        elif ctx.found is not None:
            # the first backward pass may have the buffers; a second one computes them again
            gradients, ctx.found = ctx.found, None
            return (*narrowed(gradients, hidden, weight, bias, upstream), *[None] * 6)
        else:
            rows = factor.expand(len(hidden)) if factor.ndim == 0 else factor
            _, gradients, _ = sweep(head, rule, ctx.plan, needs, others=others, factor=rows, collect=ctx.collect)
        return (*narrowed(gradients, hidden, weight, bias, upstream if many else None), *[None] * 6)


def narrowed(
    found: Gradients, hidden: Tensor, weight: Tensor, bias: Tensor | None, by: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """The gradients in the types of what they are of, multiplied by ``by`` ``[]`` in place or on the way."""

    def final(gradient: Tensor, dtype: torch.dtype) -> Tensor:
        if by is None:
            return gradient.to(dtype)
        if not concrete(by):
            return (gradient * by).to(dtype)
        return torch.mul(gradient, by, out=gradient if gradient.dtype == dtype else gradient.new_empty(0, dtype=dtype))

    return tuple(
        None if gradient is None or of is None else final(gradient, of.dtype)
        for gradient, of in ((found.hidden, hidden), (found.weight, weight), (found.bias, bias))
    )


def refuse_second_order() -> None:
    """Raise where somebody differentiates a gradient that these kernels form by hand."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the gradient of a fused linear head cannot be differentiated again (create_graph=True); "
            "use the loss on torch.nn.functional.linear's logits"
        )
