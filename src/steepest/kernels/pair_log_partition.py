"""The log-partition of similarities of all pairs of two sets of rows, whose matrix need not exist as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ..core.checks import check_choice, check_flag, check_number, check_range, check_tensor, refuse, refuse_type
from ..core.gather import Shares
from ..core.reductions import widen
from ..core.rowwise import softmax_parts
from ..core.transforms import by_hand, plain_gradients, without_autocast
from ._memory import budget, chunks

Block = Callable[[slice], Tensor]
"""``block(rows) -> [r, M]``: the part of a matrix of pairs that some rows have, made when it is wanted."""

PIECE = 1 << 21
"""Bytes of similarities that are worked on at once on a CPU."""


class PairPartition(NamedTuple):
    r"""What similarities s say of each row, in float32 or wider; a row that has nothing to sum has -inf.

    Attributes:
        positive: s of each row and its positive ``[N]``, -inf where there is none or the mask hides it; None where
            nobody asked.
        log_z: :math:`\log \sum_j e^{s_{ij}}` ``[N]``.
        log_p: positive - log_z ``[N]``, of which large similarities round nothing away.
        count: how many pairs the sum has ``[N]``.
        column_log_z: :math:`\log \sum_i e^{s_{ij}}` ``[M]``; as the next two None with ``sides="row"``.
        column_log_p: of each row the positive less the log-partition of its column ``[N]``.
        column_count: ``[M]``.
        mean: of s under the softmax of each row ``[N]``, without a gradient, 0 in a row that has nothing; None where
            nobody asked.
    """

    positive: Tensor | None
    log_z: Tensor
    log_p: Tensor | None
    count: Tensor  # type: ignore[assignment]
    column_log_z: Tensor | None = None
    column_log_p: Tensor | None = None
    column_count: Tensor | None = None
    mean: Tensor | None = None


def pair_log_partition(
    a: F[Tensor, "rows width"],
    b: F[Tensor, "columns width"],
    *,
    scale: float | Tensor = 1.0,
    positive: str | I[Tensor, " rows"] = "diagonal",
    bias: float | Tensor | Block | None = None,
    weight: Tensor | Block | None = None,
    mask: Tensor | Block | None = None,
    ids: Tensor | tuple[Tensor, Tensor] | None = None,
    sides: str = "row",
    include_positive: bool = True,
    mean: bool = False,
    ranks: Any = None,
    memory: str | int | float = "auto",
) -> PairPartition:
    r"""Log-partition of each row of similarities, and of each column; a block of rows at a time.

    .. math:: s_{ij} = \mathrm{scale} \cdot a_i^\top b_j + \mathrm{bias}_{ij} + \log w_{ij}, \qquad
        \log Z_i = \log \sum_{j} e^{s_{ij}}

    over the pairs that count. Gradients reach ``a``, ``b``, and of ``scale``, ``bias`` and ``weight`` those that are
    tensors. The matrix is kept for the backward pass where it fits ``memory`` (three matrix products in all), and is
    formed again a block at a time where it does not (four, and memory of the order of the rows).

    Scale, bias, weight and mask broadcast against ``[N, M]``: ``[M]`` is one number a column, ``[N, 1]`` one a row.
    Bias, weight and mask may be functions of a slice of rows that give ``[r, M]``; what they give has no gradient.

    Args:
        a: ``[N, d]``.
        b: ``[M, d]``.
        scale: one over the temperature.
        positive: the column of each row's positive ``[N]``, -1 where it has none; "diagonal" (column i is that of row
            i) or "none".
        bias: added to similarities.
        weight: w >= 0 of a pair's term.
        mask: boolean, true for pairs that count. Rows and columns of which no pair counts may hold anything (of a
            function this is not known).
        ids: what rows and columns are, ``[N]`` where N = M, or ``([N], [M])``. A pair of one id is left out but for the
            positive: duplicates of a row, and the row itself.
        sides: ``"row"`` or ``"both"``.
        include_positive: whether the sums have the positive's term.
        mean: whether the mean of s under the softmax of each row is wanted.
        ranks: a process group whose ranks each have some rows of both; columns (with ``"both"`` also rows) are then
            those of all. Options must not depend on the column, and ``positive`` is "diagonal" or "none". See
            :meth:`~steepest.core.gather.Shares.mean` for the mean over ranks.
        memory: "auto", bytes, or a fraction of what is free, for similarities that are kept.

    Raises:
        ValueError: shapes that don't belong together, a positive out of range, an option out of range.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> pair_log_partition(z, z, scale=2.0).log_p
        tensor([-0.1269, -0.1269])

    Source: Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748.
    """
    check_tensor("a", a, ndim=2, floating=True)
    check_tensor("b", b, floating=True, shape=(None, a.shape[1]))
    check_choice("sides", sides, ("row", "both"))
    check_flag("include_positive", include_positive)
    check_flag("mean", mean)
    if ranks is not None:
        return _over_ranks(a, b, ranks, scale, positive, bias, weight, mask, ids, sides, include_positive, mean, memory)
    n, m = a.shape[0], b.shape[0]
    a, b = widen(a), widen(b)
    if a.dtype != b.dtype:
        wider = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(wider), b.to(wider)
    own = _positive(positive, n, m, a)
    if own is None and not include_positive:
        refuse("include_positive", "True where there are no positives", include_positive)
    pairs = _Pairs(
        n, m, own, _ids(ids, n, m), _matrix("mask", mask, n, m, boolean=True), include_positive, sides == "both", mean
    )
    a, b = _blank(a, b, mask)
    with without_autocast(a):
        tensors, pairs = _operands(pairs, a, b, scale, bias, weight)
        if isinstance(scale, Tensor):  # of rows and columns of which no pair counts may be anything too
            tensors = (*_blank(tensors[0], tensors[1], mask), *tensors[2:])
        if by_hand(*tensors):
            keep = n * m * a.element_size() <= budget(memory, a.device)
            outputs = _Partition.apply(pairs, keep, *tensors)
        else:
            outputs = pairs.plain(*tensors)
    positive_, log_z, log_p, count, means, *columns = outputs
    counted = pairs.positive is not None
    both = columns if pairs.both else [None, None, None]
    return PairPartition(
        positive_ if counted else None, log_z, log_p if counted else None, count, both[0],
        both[1] if counted else None, both[2], means if mean else None,
    )  # fmt: skip


def _positive(positive: str | Tensor, n: int, m: int, like: Tensor) -> Tensor | None:
    if isinstance(positive, str):
        check_choice("positive", positive, ("diagonal", "none"))
        if positive == "none":
            return None
        if n > m:
            refuse("b", f"at least {n} rows, as a has, for positives on the diagonal", m)
        return torch.arange(n, device=like.device)
    check_tensor("positive", positive, floating=False, shape=(n,))
    if positive.dtype == torch.bool:
        refuse("positive", "columns", positive)
    check_range("positive", positive, -1, m - 1)
    return positive.long()


def _ids(ids: Tensor | tuple[Tensor, Tensor] | None, n: int, m: int) -> tuple[Tensor, Tensor] | None:
    if ids is None:
        return None
    of_rows, of_columns = ids if isinstance(ids, tuple) else (ids, ids)
    check_tensor("ids", of_rows, floating=False, shape=(n,))
    check_tensor("ids", of_columns, floating=False, shape=(m,))
    return of_rows, of_columns


def _matrix(name: str, value: Any, n: int, m: int, boolean: bool = False) -> Any:
    """Something that broadcasts to ``[N, M]``, or a function of rows."""
    if value is None or (callable(value) and not isinstance(value, Tensor)):
        return value
    check_tensor(name, value)
    if boolean and value.dtype != torch.bool:
        refuse_type(name, "a boolean tensor", value)
    if not boolean and not value.is_floating_point():
        refuse_type(name, "a floating tensor", value)
    shape = (1,) * (2 - value.ndim) + tuple(value.shape)
    if value.ndim > 2 or shape[0] not in (1, n) or shape[1] not in (1, m):
        refuse(name, f"a shape that broadcasts to ({n}, {m})", value)
    return value.reshape(shape)


def _blank(a: Tensor, b: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
    """Zeros in rows and columns of which no pair counts, so that what stands there reaches no product."""
    if not isinstance(mask, Tensor) or not a.shape[0] or not b.shape[0]:
        return a, b
    shape = (1,) * (2 - mask.ndim) + tuple(mask.shape)
    mask = mask.reshape(shape)
    columns, rows = mask.any(0).unsqueeze(1), mask.any(1).unsqueeze(1)
    return torch.where(rows, a, 0.0), torch.where(columns, b, 0.0)


def _operands(
    pairs: _Pairs, a: Tensor, b: Tensor, scale: Any, bias: Any, weight: Any
) -> tuple[tuple[Tensor | None, ...], _Pairs]:
    """The tensors that gradients reach: a and b with the scale in them if it fits, a scale of pairs, bias, weight."""
    of_pairs = None
    if isinstance(scale, Tensor):
        scale = _matrix("scale", scale, pairs.n, pairs.m).to(a.dtype)
        if scale.shape[1] == 1:
            a = a * scale
        elif scale.shape[0] == 1:
            b = b * scale.t()
        else:
            of_pairs = scale
    else:
        check_number("scale", scale)
        a = a if scale == 1.0 else a * scale
    blocks: list[Any] = []
    tensors: list[Tensor | None] = []
    for name, value in (("bias", bias), ("weight", weight)):
        if value is not None and not isinstance(value, Tensor) and not callable(value):
            check_number(name, value)
            value = a.new_tensor(value)
        value = _matrix(name, value, pairs.n, pairs.m)
        blocks.append(value if callable(value) and not isinstance(value, Tensor) else None)
        tensors.append(value.to(a.dtype) if isinstance(value, Tensor) else None)
    return (a, b, of_pairs, *tensors), replace(pairs, bias_block=blocks[0], weight_block=blocks[1])


def _cut(value: Any, rows: slice) -> Any:
    """The rows of what broadcasts to ``[N, M]``."""
    return value if value is None or value.shape[0] == 1 else value[rows]


@dataclass(frozen=True)
class _Pairs:
    """Which pairs count and what is added to their similarities; one copy of it for all ways to sum.

    Args:
        n, m: rows and columns.
        positive: ``[N]`` or None.
        ids: of rows and of columns, or None.
        mask: boolean, broadcasts to ``[N, M]``, or a function, or None.
        include_positive: whether it is summed.
        both: whether columns are summed too.
        mean: whether the means of rows are wanted.
        bias_block, weight_block: functions, or None.
    """

    n: int
    m: int
    positive: Tensor | None
    ids: tuple[Tensor, Tensor] | None
    mask: Any
    include_positive: bool
    both: bool
    mean: bool
    bias_block: Block | None = None
    weight_block: Block | None = None

    def hidden(self, rows: slice) -> Tensor | None:
        """Pairs ``[r, M]`` that the mask leaves out; None: no pair."""
        if self.mask is None:
            return None
        counts = _cut(self.mask, rows) if isinstance(self.mask, Tensor) else self.mask(rows)
        left_out: Tensor = ~counts.detach()
        return left_out

    def closed(self, rows: slice, like: Tensor) -> Tensor | None:
        """Pairs that are not summed, beside those."""
        closed: Tensor | None = None
        if self.ids is not None:
            closed = self.ids[0][rows].unsqueeze(1) == self.ids[1]
        if self.positive is None or not self.m:
            return closed
        place = self.positive[rows].unsqueeze(1)
        if not self.include_positive and closed is None:
            closed = like.new_zeros((len(place), self.m), dtype=torch.bool)
        if closed is None:
            return None
        none, place = place < 0, place.clamp_min(0)
        own = closed.gather(1, place) & none if self.include_positive else closed.gather(1, place) | ~none
        return closed.scatter(1, place, own)

    def scores(self, a: Tensor, b: Tensor, rows: slice, scale: Any, bias: Any, weight: Any) -> Tensor:
        """Similarities ``[r, M]`` of some rows, -inf where the mask hides a pair."""
        s = a @ b.t()
        if scale is not None:
            s = s * _cut(scale, rows)
        for added in self.added(rows, bias, weight):
            s = s + added
        hidden = self.hidden(rows)
        return s if hidden is None else s.masked_fill(hidden, -torch.inf)

    def added(self, rows: slice, bias: Any, weight: Any) -> list[Tensor]:
        """What is added to products: the bias, the logarithm of the weight."""
        bias = self.bias_block(rows).detach() if self.bias_block else _cut(bias, rows)
        weight = self.weight_block(rows).detach() if self.weight_block else _cut(weight, rows)
        if weight is not None:  # the logarithm of 0 has no slope that could be multiplied by 0
            weight = weight.masked_fill(weight == 0, 1.0).log().masked_fill(weight == 0, -torch.inf)
        return [added for added in (bias, weight) if added is not None]

    def at_positive(self, s: Tensor, rows: slice) -> Tensor:
        """s of the positives ``[r]``, -inf where a row has none."""
        if self.positive is None or not self.m:
            return s.new_full((s.shape[0],), -torch.inf)
        place = self.positive[rows].unsqueeze(1)
        return s.gather(1, place.clamp_min(0)).masked_fill(place < 0, -torch.inf).squeeze(1)

    def of_column(self, top: Tensor, above: Tensor, positive: Tensor) -> Tensor:
        """positive - log Z of its column, ``[N]``."""
        if self.positive is None or not self.m:
            return positive
        place = self.positive.clamp_min(0)
        return (positive - top[place]) - above[place]

    def plain(self, a: Any, b: Any, scale: Any, bias: Any, weight: Any) -> tuple[Tensor, ...]:
        """All numbers as torch differentiates them, of all pairs at once."""
        rows = slice(0, self.n)
        s = self.scores(a, b, rows, scale, bias, weight)
        positive = self.at_positive(s, rows)
        closed, hidden = self.closed(rows, s), self.hidden(rows)
        s = s if closed is None else s.masked_fill(closed, -torch.inf)
        out = closed if hidden is None else hidden if closed is None else closed | hidden
        out = torch.zeros_like(s, dtype=torch.bool) if out is None else out.expand_as(s)
        numbers: list[Tensor] = [positive]
        top, above = _parts(s, 1)
        numbers += [top + above, (positive - top) - above, (~out).sum(1)]
        p = (s - (top + above).masked_fill(top == -torch.inf, 0.0).unsqueeze(1)).exp().detach()
        numbers.append((p * s.detach().masked_fill(p == 0, 0.0)).sum(1))
        if self.both:
            top, above = _parts(s, 0)
            numbers += [top + above, self.of_column(top, above, positive), (~out).sum(0)]
        return tuple(numbers)


def _parts(s: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest of s and the logarithm of the sum above it; -inf and 0 where all are -inf."""
    if not s.shape[dim]:
        nothing = s.sum(dim)  # which has a graph
        return nothing - torch.inf, nothing
    top = s.detach().amax(dim)
    none = top == -torch.inf
    safe = top.masked_fill(none, 0.0)
    total = (s - safe.unsqueeze(dim)).exp().sum(dim)
    return top, total.masked_fill(none, 1.0).log()


class _Partition(torch.autograd.Function):
    """Numbers of rows and columns of similarities, a piece that stays in the cache at a time."""

    @staticmethod
    def forward(
        ctx: Any, pairs: _Pairs, keep: bool, a: Tensor, b: Tensor, scale: Any, bias: Any, weight: Any
    ) -> tuple[Tensor, ...]:
        n, m = pairs.n, pairs.m
        ctx.pairs = pairs
        all_scores = torch.mm(a, b.t()) if keep else None
        size = _size(a, m, keep)
        scratch = a.new_empty(min(size, n), m)
        positive, top, above, means = (a.new_empty(n) for _ in range(4))
        count = torch.full((n,), m, device=a.device)
        column_top, column_sum = a.new_full((m,), -torch.inf), a.new_zeros(m)
        column_count = torch.full((m,), n, device=a.device)
        for rows in chunks(n, size):
            g = scratch[: rows.stop - rows.start]
            s = _scores(pairs, all_scores, a, b, rows, scale, bias, weight)
            positive[rows] = pairs.at_positive(s, rows)
            hidden, closed = pairs.hidden(rows), pairs.closed(rows, a)
            if closed is not None:
                s.masked_fill_(closed, -torch.inf)
                hidden = closed if hidden is None else closed | hidden
            if hidden is not None:
                count[rows] -= hidden.expand_as(s).sum(1)
                column_count -= hidden.expand_as(s).sum(0)
            if not m:
                top[rows], above[rows], means[rows] = -torch.inf, 0.0, 0.0
                continue
            row_top, row_above = softmax_parts(s, g)
            none = row_top == -torch.inf
            if pairs.mean:
                means[rows] = (g.masked_fill_(none, 0.0) * s.masked_fill(g == 0, 0.0)).sum(1)
            top[rows], above[rows] = row_top.squeeze(1), row_above.masked_fill_(none, 0.0).squeeze(1)
            if pairs.both:
                _add_columns(s, g, column_top, column_sum)
        log_z, log_p = top + above, (positive - top) - above
        if not pairs.both:
            ctx.save_for_backward(all_scores, a, b, scale, bias, weight, positive, log_z)
            ctx.mark_non_differentiable(count, means)
            return positive, log_z, log_p, count, means
        none = column_top == -torch.inf
        column_above = column_sum.masked_fill(none, 1.0).log()
        column_log_z = column_top + column_above
        column_log_p = pairs.of_column(column_top, column_above, positive)
        ctx.save_for_backward(all_scores, a, b, scale, bias, weight, positive, log_z, column_log_z)
        ctx.mark_non_differentiable(count, column_count, means)
        return positive, log_z, log_p, count, means, column_log_z, column_log_p, column_count

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        all_scores, a, b, scale, bias, weight, positive, *log_z = ctx.saved_tensors
        pairs: _Pairs = ctx.pairs
        needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or not by_hand(*upstream):
            places = (0, 1, 2, 5, 6) if pairs.both else (0, 1, 2)

            def plain(*tensors: Any) -> Tensor:
                numbers = pairs.plain(*tensors)
                return torch.cat([numbers[i] for i in places])

            joined = torch.cat([upstream[i] for i in places], -1)
            return (None, None, *plain_gradients(plain, (a, b, scale, bias, weight), needs, joined))
        with without_autocast(a):
            return (None, None, *_gradients(pairs, all_scores, (a, b, scale, bias, weight), positive, log_z, upstream,
                                            needs))  # fmt: skip


def _size(a: Tensor, m: int, keep: bool) -> int:
    """Rows of a piece."""
    if a.device.type != "cpu":
        return max(1, a.shape[0] if keep else (1 << 28) // max(1, m * a.element_size()))
    size = max(1, PIECE // max(1, m * a.element_size()))
    return size if keep else max(size, 128)


def _scores(
    pairs: _Pairs, all_scores: Tensor | None, a: Tensor, b: Tensor, rows: slice, scale: Any, bias: Any, weight: Any
) -> Tensor:
    """Similarities of some rows in memory that may be written to: kept ones in their place."""
    s = torch.mm(a[rows], b.t()) if all_scores is None else all_scores[rows]
    if scale is not None:
        s.mul_(_cut(scale, rows))
    for added in pairs.added(rows, bias, weight):
        s.add_(added)
    hidden = pairs.hidden(rows)
    return s if hidden is None else s.masked_fill_(hidden, -torch.inf)


def _add_columns(s: Tensor, g: Tensor, top: Tensor, total: Tensor) -> None:
    """Add some rows to the sums of columns, in place; ``g`` is overwritten."""
    new = torch.maximum(top, s.amax(0))
    safe = new.masked_fill(new == -torch.inf, 0.0)
    total.mul_((top - safe).exp_()).add_(torch.sub(s, safe, out=g).exp_().sum(0))
    top.copy_(new)


def _gradients(
    pairs: _Pairs,
    all_scores: Tensor | None,
    tensors: tuple[Any, ...],
    positive: Tensor,
    log_z: list[Tensor],
    upstream: tuple[Tensor, ...],
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients in a, b, scale, bias and weight."""
    a, b, scale, bias, weight = tensors
    n, m = pairs.n, pairs.m
    own = (upstream[0] + upstream[2]).masked_fill(positive == -torch.inf, 0.0)
    by_row = (upstream[1] - upstream[2]).unsqueeze(1)
    row_z = log_z[0].masked_fill(log_z[0] == -torch.inf, 0.0).unsqueeze(1)
    by_column: Any = None
    column_z: Any = None
    if pairs.both:
        by_column = upstream[5].clone()
        if pairs.positive is not None:
            has = pairs.positive >= 0
            by_column.index_add_(0, pairs.positive.clamp_min(0), torch.where(has, -upstream[6], 0.0))
            own = own + upstream[6].masked_fill(positive == -torch.inf, 0.0)
        column_z = log_z[1].masked_fill(log_z[1] == -torch.inf, 0.0)
    sums: list[Tensor | None] = [
        torch.zeros_like(t) if t is not None and need else None for t, need in zip(tensors, needs)
    ]
    size = _size(a, m, all_scores is not None)
    if not m:
        return sums
    scratch, spare = a.new_empty(min(size, n), m), a.new_empty(min(size, n) if pairs.both else 0, m)
    for rows in chunks(n, size):
        g = scratch[: rows.stop - rows.start]
        if all_scores is None:
            s = _scores(pairs, None, a, b, rows, scale, bias, weight)
            closed = pairs.closed(rows, a)
            s = s if closed is None else s.masked_fill_(closed, -torch.inf)
        else:
            s = all_scores[rows]
        torch.sub(s, row_z[rows], out=g).exp_().mul_(by_row[rows])
        if by_column is not None:
            h = spare[: len(g)]
            g.add_(torch.sub(s, column_z, out=h).exp_().mul_(by_column))
        if pairs.positive is not None:
            place = pairs.positive[rows].unsqueeze(1)
            g.scatter_add_(1, place.clamp_min(0), own[rows].unsqueeze(1))
        _collect(sums, tensors, g, rows)
    return sums


def _collect(sums: list[Tensor | None], tensors: tuple[Any, ...], g: Tensor, rows: slice) -> None:
    """Add some rows' part to the gradients; ``g`` ``[r, M]`` is the gradient in their similarities."""
    a, b, scale, _, weight = tensors
    if sums[3] is not None:
        _add(sums[3], g, rows)
    if sums[4] is not None:  # of a weight of 0 there is no logarithm: its term is left out
        _add(sums[4], torch.where(_cut(weight, rows) > 0, g / _cut(weight, rows), 0.0), rows)
    if sums[2] is not None:
        _add(sums[2], g * (a[rows] @ b.t()), rows)
    if scale is not None:
        g = g.mul_(_cut(scale, rows))
    if sums[0] is not None:
        torch.mm(g, b, out=sums[0][rows])
    if sums[1] is not None:
        sums[1].addmm_(g.t(), a[rows])


def _add(total: Tensor, g: Tensor, rows: slice) -> None:
    own = _cut(total, rows)
    own.add_(g.sum_to_size(own.shape))


def _over_ranks(
    a: Tensor,
    b: Tensor,
    group: Any,
    scale: Any,
    positive: Any,
    bias: Any,
    weight: Any,
    mask: Any,
    ids: Any,
    sides: str,
    include_positive: bool,
    mean: bool,
    memory: Any,
) -> PairPartition:
    """Rows of this rank against the columns of all; with both sides its columns against the rows of all."""
    if not isinstance(positive, str):
        refuse("positive", "'diagonal' or 'none' with ranks", positive)
    for name, value in (("scale", scale), ("bias", bias), ("weight", weight), ("mask", mask)):
        if not (value is None or isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)):
            refuse(name, "one number with ranks", value)
    if positive == "diagonal" and a.shape[0] != b.shape[0]:
        refuse("b", f"{a.shape[0]} rows, as a, for positives on the diagonal of several ranks", b)
    rows, columns = Shares.of(a.shape[0], group), Shares.of(b.shape[0], group)
    places = columns.start + torch.arange(a.shape[0], device=a.device)
    own = places if positive == "diagonal" else "none"
    known = _ids(ids, a.shape[0], b.shape[0])
    options = {
        "scale": scale, "bias": bias, "weight": weight, "mask": mask, "include_positive": include_positive,
        "memory": memory, "positive": own,
    }  # fmt: skip
    of_columns = None if known is None else (known[0], columns.joined(known[1]))
    of_rows = pair_log_partition(a, columns.gather(b, everywhere=False), ids=of_columns, mean=mean, **options)
    if sides == "row":
        return of_rows
    joined = None if known is None else (known[1], rows.joined(known[0]))
    if positive == "none":
        options["positive"] = "none"
    turned = pair_log_partition(b, rows.gather(a, everywhere=False), ids=joined, **options)
    return of_rows._replace(column_log_z=turned.log_z, column_log_p=turned.log_p, column_count=turned.count)
