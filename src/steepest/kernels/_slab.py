"""Linear cross-entropy by slabs of the vocabulary, on one rank or with the vocabulary sharded over a group.

Each row keeps a running maximum and sum; the backward pass forms a slab's logits again, turns them into their gradient
and is done with the slab: the gradient of its weight needs no accumulator, that of the hidden states is ``[n, D]``.
Ranks exchange a maximum and two or three sums a row in the forward pass and the gradient of the hidden states in the
backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.rowwise import PIECE
from ..core.transforms import concrete, plain_gradients
from ._cross_entropy_rows import CrossEntropyRows
from ._device import logits_buffer, row_kernels
from ._engine import Gradients, Head, Plain, RowRule, add_product, narrowed, pieces, refuse_second_order
from ._memory import chunks, computed
from ._ranks import VocabularyShard as VocabularyShard


@dataclass
class Partials:
    """What a row knows of its logits so far, each ``[n]``."""

    top: Tensor
    total: Tensor
    inner: Tensor
    plain: Tensor
    moment: Tensor
    best: Tensor
    index: Tensor

    @classmethod
    def empty(cls, rows: int, like: Tensor, dtype: torch.dtype) -> Partials:
        """Nothing seen."""
        low = like.new_full((rows,), -torch.inf, dtype=dtype)
        zero = like.new_zeros(rows, dtype=dtype)
        index = like.new_zeros(rows, dtype=torch.int64)
        return cls(low, zero, zero.clone(), zero.clone(), zero.clone(), low.clone(), index)

    def see(self, z: Tensor, scratch: Tensor, rows: slice, start: int, row: CrossEntropyRows) -> None:
        """Take in the logits of the classes from ``start`` on; ``scratch`` is of the shape of ``z``."""
        own, argument = z.max(1)
        top = torch.maximum(self.top[rows], own)
        safe = torch.where(top == -torch.inf, 0.0, top)
        e = torch.sub(z, safe.unsqueeze(1), out=scratch).exp_()
        shrink = torch.exp(self.top[rows] - safe)
        self.total[rows] = self.total[rows] * shrink + e.sum(1)
        if row.statistics is not None:
            finite = z.clamp_(min=torch.finfo(z.dtype).min)
            self.moment[rows] = self.moment[rows] * shrink + e.mul_(finite).sum(1)
            self.index[rows] = torch.where(own > self.best[rows], argument + start, self.index[rows])
            self.best[rows] = torch.maximum(self.best[rows], own)
        self.top[rows] = top
        y, here = inside(row.target[rows], start, z.shape[1])
        self.inner[rows] += torch.where(here, z.gather(1, y.unsqueeze(1)).squeeze(1), 0.0)
        if row.smoothing:
            c = row.class_weight
            self.plain[rows] += z.sum(1) if c is None else z @ c[start : start + z.shape[1]]

    def exchange(self, group: Any, statistics: bool, smoothing: bool) -> None:
        """Join what the ranks of a group know: one maximum and one sum of two to four numbers a row."""
        top = self.top.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        shrink = torch.exp(self.top - torch.where(top == -torch.inf, 0.0, top))
        parts = [self.total * shrink, self.inner]
        parts += [self.plain] if smoothing else []
        parts += [self.moment * shrink] if statistics else []
        joined = torch.stack(parts)
        dist.all_reduce(joined, group=group)
        self.total, self.inner = joined[:2]
        self.top = top
        if smoothing:
            self.plain = joined[2]
        if statistics:
            self.moment = joined[-1]
            # the lowest class among equals, as argmax gives
            index = torch.where(self.best == top, self.index, torch.iinfo(torch.int64).max)
            dist.all_reduce(index, dist.ReduceOp.MIN, group=group)
            self.index = index


def inside(target: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Targets as columns of a slab, clamped, and whether they lie in it."""
    y = target - start
    return y.clamp(0, width - 1), (y >= 0) & (y < width)


@dataclass
class Slabs:
    """A head, its loss, and how wide the slabs are.

    Args:
        head: the rows and this rank's weight.
        row: cross-entropy of class indices; ``class_weight`` of all classes.
        columns: of a slab.
        shard: this rank's part, or None for the whole vocabulary.
        keep: whether the logits may stay between the passes (one slab).
        piece: bytes of logits that are worked on at once.
    """

    head: Head
    row: CrossEntropyRows
    columns: int
    shard: VocabularyShard | None = None
    keep: bool = False
    piece: int = PIECE
    kept: Tensor | None = field(default=None, init=False)

    @property
    def start(self) -> int:
        """The first class of this rank."""
        return 0 if self.shard is None else self.shard.start

    @property
    def kernels(self) -> Any:
        """Those that work on rows where they lie, or None."""
        return row_kernels(self.head.hidden.device, self.head.weight.dtype, self.row)

    def room(self) -> Tensor:
        """Memory for the logits of a slab."""
        widest = min(self.columns, len(self.head.weight))
        if self.kernels is not None:
            return logits_buffer(self.head.hidden, len(self.head.hidden), widest, self.head.weight.dtype)
        return self.head.hidden.new_empty(len(self.head.hidden) * widest, dtype=computed(self.head.weight))

    def logits(self, columns: slice, room: Tensor) -> Tensor:
        """The slab's logits ``[n, W]`` in ``room``, capped and divided; for kernels they stay h W' + b."""
        rows, width = len(self.head.hidden), columns.stop - columns.start
        if self.kernels is not None:
            return self.head.raw(slice(0, rows), room[:, :width], columns)
        z = room[: rows * width].view(rows, width)
        self.head.raw(slice(0, rows), z, columns)
        for here, _ in pieces(slice(0, rows), z, self.piece):
            self.head.shape(z[here])
        return z

    def forward(self) -> tuple[Tensor, Tensor]:
        """Losses ``[n]`` and log-partitions ``[n]``."""
        n, row = len(self.head.hidden), self.row
        seen = Partials.empty(n, self.head.hidden, computed(self.head.weight))
        room, kernels, cap = self.room(), self.kernels, (self.head.softcap, self.head.temperature)
        for columns in chunks(len(self.head.weight), self.columns):
            z = self.logits(columns, room)
            if kernels is not None:
                kernels.see_slab(z, seen, row, self.start + columns.start, *cap)
            scratch = torch.empty_like(z[:0])
            for here, _ in pieces(slice(0, n), z, self.piece) if kernels is None else ():
                if len(scratch) < here.stop - here.start:
                    scratch = torch.empty_like(z[here])
                seen.see(z[here], scratch[: here.stop - here.start], here, self.start + columns.start, row)
            self.kept = z if self.keep else None
        if self.shard is not None:
            seen.exchange(self.shard.group, row.statistics is not None, row.smoothing > 0)
        lse = seen.top + seen.total.log()
        if row.statistics is not None:
            row.statistics.lse.copy_(lse)
            row.statistics.entropy.copy_(lse - seen.moment / seen.total)
            row.statistics.argmax.copy_(seen.index)
        own, even, total = self._shares()
        loss = own * ((seen.top - seen.inner) + seen.total.log()) + even * (total * lse - seen.plain)
        return loss + row.log_partition * lse.square(), lse

    def _shares(self) -> tuple[Tensor | float, float, Tensor | float]:
        """The target's share of each row, that of every other class, and the sum of class weights."""
        row, c = self.row, self.row.class_weight
        classes = len(self.head.weight) if self.shard is None else self.shard.total
        keep, even = 1 - row.smoothing, row.smoothing / classes
        return (keep if c is None else keep * c[row.target]), even, (classes if c is None else c.sum())

    def backward(self, lse: Tensor, upstream: Tensor, needs: tuple[bool, ...] | list[bool]) -> Gradients:
        """Gradients of the losses, row ``i`` weighted by ``upstream[i]``; ``[]`` for all alike."""
        head, row = self.head, self.row
        n, wide = len(head.hidden), computed(head.weight)
        factor = upstream.to(wide).expand(n)
        own, even, total = self._shares()
        mass = factor * (own + even * total + 2 * row.log_partition * lse)
        point = -(factor * own)
        gradients = Gradients()
        if needs[1]:
            gradients.weight = torch.empty_like(head.weight, memory_format=torch.contiguous_format)
        if needs[2]:
            gradients.bias = head.weight.new_empty(len(head.weight), dtype=wide)
        hidden: Tensor | None = None
        room, kernels = self.room() if self.kept is None else None, self.kernels
        for columns in chunks(len(head.weight), self.columns):
            z = self.logits(columns, room) if room is not None else self.kept
            assert z is not None
            self.kept = None  # its gradient takes its place
            first = self.start + columns.start
            if kernels is not None:
                kernels.turn_slab(z, row, first, lse, mass, -point, factor, even, head.softcap, head.temperature)
            for rows_now, _ in pieces(slice(0, n), z, self.piece) if kernels is None else ():
                piece = z[rows_now]
                g = torch.sub(piece, lse[rows_now].unsqueeze(1)).exp_().mul_(mass[rows_now].unsqueeze(1))
                y, here = inside(row.target[rows_now], first, piece.shape[1])
                g.scatter_add_(1, y.unsqueeze(1), torch.where(here, point[rows_now], 0.0).unsqueeze(1))
                if even:
                    c = row.class_weight
                    share = factor[rows_now].unsqueeze(1) * even
                    g.sub_(share if c is None else share * c[first : first + piece.shape[1]])
                head.chain(piece, g)
            narrow = z.to(head.weight.dtype)
            if needs[0]:
                hidden = add_product(hidden, narrow, head.weight[columns], wide)
            if gradients.weight is not None:
                torch.mm(narrow.t(), head.hidden, out=gradients.weight[columns])
            if gradients.bias is not None:
                gradients.bias[columns] = z.sum(0, dtype=wide)
        if needs[0]:
            # of the same type on a rank whose part is empty
            gradients.hidden = hidden if hidden is not None else torch.zeros_like(head.hidden, dtype=wide)
            if self.shard is not None:
                gradients.hidden = self.shard.join(gradients.hidden)
        return gradients


class SlabLosses(torch.autograd.Function):
    """Losses ``[n]`` of :class:`Slabs`, differentiable, and their log-partitions, which are not."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, make: Any, plain: Plain
    ) -> tuple[Tensor, Tensor]:
        slabs = make(hidden, weight, bias)
        losses, lse = slabs.forward()
        ctx.save_for_backward(hidden, weight, bias, lse)
        ctx.make, ctx.plain, ctx.kept = make, plain, slabs.kept
        ctx.mark_non_differentiable(lse)
        return losses, lse

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
        refuse_second_order()
        hidden, weight, bias, lse = ctx.saved_tensors
        if not concrete(upstream):
            return (*plain_gradients(ctx.plain, (hidden, weight, bias), ctx.needs_input_grad[:3], upstream), None, None)
        slabs = ctx.make(hidden, weight, bias)
        slabs.kept, ctx.kept = ctx.kept, None
        gradients = slabs.backward(lse, upstream, ctx.needs_input_grad[:3])
        return (*narrowed(gradients, hidden, weight, bias), None, None)


def as_rule(rule: RowRule) -> CrossEntropyRows | None:
    """The rule where slabs can serve it: cross-entropy of class indices."""
    fits = isinstance(rule, CrossEntropyRows) and rule.share is None and rule.target.ndim == 1
    return rule if fits and isinstance(rule, CrossEntropyRows) else None
