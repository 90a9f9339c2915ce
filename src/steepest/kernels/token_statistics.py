"""What losses of tokens need of rows of logits, none of which is copied: label, partition, entropy, columns, costs.

Each is differentiable with any upstream weights, from logits that are there or from hidden states and a head, a chunk
of rows at a time. Losses of sequences, policies, preferences and forgetting are plain operations on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ..core.checks import check_number, check_range, check_tensor, refuse
from ..core.reductions import widen
from ..core.rowwise import BLOCK, add_at, at, softmax_parts
from ..core.transforms import by_hand, concrete, plain_gradients, without_autocast
from ._engine import close, narrowed, pieces, refuse_second_order, sweep
from ._head import Job, check_cap, check_head
from ._memory import Plan, chunks
from ._ranks import SequenceShard, VocabularyShard, parts
from ._rows import Rows, select
from ._statistics_on_ranks import Known, OfParts, OwnNumbers

WANTED = ("label", "log_z", "log_p", "entropy", "largest", "mean")
CONSTANT = ("largest", "mean")
"""What gets no gradient."""


class TokenStatistics(NamedTuple):
    """What logits z say of each token, in float32 or wider; 0 where a token is ignored, None where nobody asked.

    Attributes:
        label: z of the label, shaped as the labels.
        log_z: :math:`\\log \\sum_v e^{z_v}`.
        log_p: label - log_z, of which large logits round nothing away.
        entropy: of the softmax, in nats.
        largest: the largest logit; no gradient flows from it.
        mean: of all logits; no gradient flows from it.
        columns: z of the columns ``[..., J]``.
        cost: the mean of a cost under the softmax.
        valid: whether the token counts.
    """

    label: Tensor | None
    log_z: Tensor | None
    log_p: Tensor | None
    entropy: Tensor | None
    largest: Tensor | None
    mean: Tensor | None
    columns: Tensor | None
    cost: Tensor | None
    valid: Tensor


def token_statistics(
    source: F[Tensor, "*batch width"],
    labels: I[Tensor, "*batch"],
    head: F[Tensor, "classes width"] | None = None,
    *,
    bias: F[Tensor, " classes"] | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    want: Sequence[str] = ("label", "log_z", "entropy"),
    columns: I[Tensor, " columns"] | None = None,
    costs: tuple[F[Tensor, "rows classes"], I[Tensor, "*batch"]] | None = None,
    ignore_index: int = -100,
    memory: str | int | float = "auto",
    group: Any = None,
    token_group: Any = None,
) -> TokenStatistics:
    r"""Logit of the label, log-partition, entropy, some columns and a mean cost of each token, differentiable.

    Logits z are ``source`` itself over the temperature, or softcap(h W' + b) / temperature of hidden states and a head,
    which are then formed a chunk of rows at a time, in the backward pass once more where they do not fit. What labels
    ignore is left out before the matrix products: NaN and inf there do no harm.

    With a ``group`` the classes are cut over its ranks: each rank gives its part of head, bias and costs; labels and
    columns are numbers among the classes of all. All ranks get the same numbers and give them the same upstream
    gradients; the gradient of the hidden states is the whole one on each rank, that of the head the rank's part.

    Args:
        source: logits ``[..., V]``, or hidden states ``[..., D]`` of a head.
        labels: classes ``[...]`` in 0..V-1, aligned with ``source``, or ``ignore_index``.
        head: W ``[V, D]`` of the type of ``source``, or None; this rank's part with ``group``.
        bias, softcap, memory: of the head; as of :func:`~steepest.kernels.linear_cross_entropy`.
        temperature: > 0.
        want: of "label", "log_z", "log_p", "entropy", "largest", "mean".
        columns: classes ``[J]`` whose logits are wanted too.
        costs: rows ``[R, V]`` and for each token the number ``[...]`` of its row (anything where it is ignored); the
            mean cost is :math:`\sum_v p_v c_v`. Costs are finite, and get no gradient. With ``group`` the columns of
            this rank's classes.
        ignore_index: of labels.
        group: ranks that each hold a part of the head, in their order, and the same tokens; or a
            :class:`~steepest.kernels.VocabularyShard`, which saves the ranks the asking for sizes.
        token_group: the ranks of ``group`` again, where each holds tokens of its own: these go to all ranks, their
            gradients back, and the numbers are those of the rank's own.

    Raises:
        ValueError: shapes that don't belong together, a class or a row out of range, an option that is not known or
            belongs to a head where there is none; a group without a head, or under a transform or ``torch.compile``.

    Example:
        >>> z = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> of_z = token_statistics(z, torch.tensor([0, -100]), columns=torch.tensor([2]))
        >>> of_z.label, of_z.log_z, of_z.entropy, of_z.columns
        (tensor([2., 0.]), tensor([2.4076, 0.0000]), tensor([0.8324, 0.0000]), tensor([[0.],
                [0.]]))
    """
    check_cap(softcap, temperature)
    if head is None:
        check_tensor("source", source, floating=True)
        if not source.ndim:
            refuse("source", "logits [..., V]", source)
        for name, value in (("bias", bias), ("softcap", softcap)):
            if value is not None:
                refuse(name, "None without a head", value)
    else:
        check_head(source, head, bias)
    if isinstance(want, str) or not set(want) <= set(WANTED):
        refuse("want", f"some of {WANTED}", want)
    classes = source.shape[-1] if head is None else head.shape[0]
    shard = None if group is None and token_group is None else _shard(source, head, bias, group, token_group)
    choose = _all_rows if torch.compiler.is_compiling() else select
    rows = choose(source, labels, classes=classes if shard is None else shard.total, ignore_index=ignore_index)
    if rows.factor is not None:  # ignored rows are still there: what is not finite in them is no 0 times 0
        rows = replace(rows, hidden=torch.where((rows.factor > 0).unsqueeze(1), rows.hidden, 0.0))
    if shard is not None and set(want) & set(CONSTANT):
        refuse("want", f"none of {CONSTANT} with a group", want)
    total = classes if shard is None else shard.total
    columns, table, which = _beside(rows, classes, total, columns, costs)
    rule = _Rule(rows.target, tuple(name for name in WANTED if name in want), columns, table, which)
    if head is None:
        values = _of_logits(rows, rule, temperature)
    else:
        values = _of_head(rows, head, bias, rule, softcap, temperature, memory, shard)
    counts = None if rows.factor is None else rows.factor > 0
    if counts is not None:
        values = torch.where(counts.unsqueeze(1), values, 0.0)
    named: dict[str, Tensor | None] = dict.fromkeys(TokenStatistics._fields)
    for name, own in zip(rule.want, values.unbind(1)):
        named[name] = rows.spread(own.detach() if name in CONSTANT else own)
    place = len(rule.want)
    if rule.costs is not None:
        named["cost"], place = rows.spread(values[:, place]), place + 1
    if rule.columns is not None:
        named["columns"] = torch.stack([rows.spread(own) for own in values[:, place:].unbind(1)], -1)
    true = torch.ones_like(rows.target, dtype=torch.bool) if counts is None else counts
    named["valid"] = rows.spread(true, False)
    return TokenStatistics(**named)  # type: ignore[arg-type]


def _shard(source: Tensor, head: Tensor | None, bias: Tensor | None, group: Any, token_group: Any) -> VocabularyShard:
    """This rank's part of the vocabulary."""
    if group is None:
        refuse("group", "the ranks of token_group", None)
    if head is None:
        refuse("group", "None without a head", group)
    if torch.compiler.is_compiling() or not concrete(source, head, bias):
        refuse("group", "None under torch.compile and transforms", group)
    shard, further = parts(group, token_group, len(head), source.shape[:-1].numel())
    if further:
        refuse("token_group", "the ranks of group, or None", token_group)
    assert shard is not None
    return shard


def _all_rows(source: Tensor, labels: Tensor, *, classes: int, ignore_index: int) -> Rows:
    """Every token with whether it counts: a graph has no rows whose number hangs on values."""
    check_number("ignore_index", ignore_index, integer=True)
    check_tensor("labels", labels, floating=False, shape=tuple(source.shape[:-1]))
    valid = (labels != ignore_index).reshape(-1)
    target = torch.where(valid, labels.reshape(-1), 0).long()
    return Rows(source.reshape(-1, source.shape[-1]), target, None, valid.float(), None, labels.shape)


def _beside(
    rows: Rows, classes: int, total: int, columns: Tensor | None, costs: tuple[Tensor, Tensor] | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Columns, costs and each counted token's row of them, checked."""
    if columns is not None:
        check_tensor("columns", columns, ndim=1, floating=False)
        if not len(columns):
            refuse("columns", "one and more", columns)
        check_range("columns", columns, 0, total - 1)
        columns = columns.long()
    if costs is None:
        return columns, None, None
    table, which = costs
    check_tensor("costs[0]", table, floating=True, shape=(None, classes))
    check_tensor("costs[1]", which, floating=False, shape=tuple(rows.shape))
    if table.requires_grad and torch.is_grad_enabled():
        refuse("costs[0]", "a tensor without a gradient, which it would not get", table)
    which = which.reshape(-1)
    which = which if rows.index is None else which[rows.index]
    if rows.factor is not None:  # what doesn't count is still there
        which = which.masked_fill(rows.factor == 0, 0)
    check_range("costs[1]", which, 0, len(table) - 1)
    return columns, widen(table.detach()), which.long()


@dataclass(frozen=True)
class _Rule:
    """Numbers of rows of logits, and the gradient of their weighted sums; one copy of it for all sources.

    Args:
        target: ``[n]``.
        want: names, in the order of ``WANTED``.
        columns: ``[J]`` or None.
        costs: ``[R, V]`` or None.
        which: of each row, the row of costs ``[n]``, or None.
        scratch: memory for the costs of some rows.
        here: whether the target is among these classes ``[n]``; None where all are.
        places: of the columns that are among these classes, the place among all; None where all are.
        count: of all columns.
    """

    target: Tensor
    want: tuple[str, ...]
    columns: Tensor | None
    costs: Tensor | None
    which: Tensor | None
    scratch: list[Tensor] = field(default_factory=list)
    here: Tensor | None = None
    places: Tensor | None = None
    count: int = 0

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return len(self.want) + (self.costs is not None) + (0 if self.columns is None else len(self.columns))

    def part(self, target: Tensor, which: Tensor | None, start: int, classes: int) -> _Rule:
        """Of the classes from ``start`` on, over tokens of these targets and rows of costs."""
        local, count = target - start, 0 if self.columns is None else len(self.columns)
        columns = places = None
        if self.columns is not None:
            own = self.columns - start
            places = ((own >= 0) & (own < classes)).nonzero().squeeze(1)
            columns = own[places]
        here = (local >= 0) & (local < classes)
        clamped = local.clamp(0, max(0, classes - 1))
        return replace(
            self, target=clamped, columns=columns, which=which, here=here, places=places, count=count, scratch=[]
        )

    def own_numbers(self, z: Tensor, g: Tensor, rows: slice) -> OwnNumbers:
        """Of logits of a part of the classes; ``g`` is overwritten."""
        zero = z.new_zeros(len(z))
        of_columns = z.new_zeros(len(z), self.count)
        if not z.shape[1]:
            return OwnNumbers(torch.full_like(zero, -torch.inf), zero, zero, zero, zero, of_columns)
        assert self.here is not None
        top, above = softmax_parts(z, g)
        label = torch.where(self.here[rows], at(z, self.target[rows]).squeeze(1), 0.0)
        depth = _mean(g, top - z).squeeze(1) if "entropy" in self.want else zero
        cost = zero if self.costs is None else torch.linalg.vecdot(g, self.own_costs(rows, z))
        if self.columns is not None and self.places is not None:
            of_columns[:, self.places] = z.index_select(1, self.columns)
        return OwnNumbers(top.squeeze(1), above.squeeze(1).expm1(), depth, cost, label, of_columns)

    def own_slope(self, z: Tensor, g: Tensor, rows: slice, upstream: Tensor, known: Known) -> None:
        """:meth:`slope` where the whole softmax is known and ``z`` are logits of a part of the classes."""
        torch.sub(z, known.top, out=g).sub_(known.above)
        log_p = g.clone() if "entropy" in self.want else None
        g.exp_()
        if log_p is not None:
            log_p.masked_fill_(g == 0, 0.0)
        own = None if self.costs is None else self.own_costs(rows, z)
        self.turn(z, g, rows, upstream, log_p, known.entropy, own, known.cost)

    def values(self, z: Tensor, g: Tensor, rows: slice) -> Tensor:
        """``[r, width]``; ``g`` is overwritten."""
        y = self.target[rows]
        label = at(z, y)
        named = {"label": label}
        if "mean" in self.want:
            named["mean"] = z.mean(1, keepdim=True)
        if self.of_softmax:
            top, above = softmax_parts(z, g)
            named |= {"log_z": top + above, "log_p": (label - top) - above, "largest": top}
            if "entropy" in self.want:
                named["entropy"] = above + _mean(g, top - z)
        numbers = [named[name] for name in self.want]
        if self.costs is not None:
            numbers.append(torch.linalg.vecdot(g, self.own_costs(rows, z)).unsqueeze(1))
        if self.columns is not None:
            numbers.append(z.index_select(1, self.columns))
        return torch.cat(numbers, 1)

    def own_costs(self, rows: slice, like: Tensor) -> Tensor:
        """The costs of some rows ``[r, V]``, in memory that the next ones take again."""
        assert self.costs is not None
        assert self.which is not None
        which = self.which[rows]
        if self.costs.dtype != like.dtype or torch.compiler.is_compiling():
            return self.costs[which].to(like.dtype)
        if not self.scratch or len(self.scratch[0]) < len(which):
            self.scratch[:] = [like.new_empty(len(which), like.shape[1])]
        return torch.index_select(self.costs, 0, which, out=self.scratch[0][: len(which)])

    def slope(self, z: Tensor, g: Tensor, rows: slice, upstream: Tensor) -> None:
        """Write to ``g`` the gradient in ``z`` of the numbers' sum, each times its upstream ``[r, width]``."""
        if not self.of_softmax:
            self.turn(z, g, rows, upstream, None)
            return
        top, above = softmax_parts(z, g)
        own = self.own_costs(rows, z) if self.costs is not None else None
        cost = None if own is None else torch.linalg.vecdot(g, own).unsqueeze(1)
        log_p = (z - top - above).masked_fill(g == 0, 0.0) if "entropy" in self.want else None
        entropy = None if log_p is None else -_mean(g, log_p)
        self.turn(z, g, rows, upstream, log_p, entropy, own, cost)

    @property
    def of_softmax(self) -> bool:
        """Whether more than single logits and their mean is wanted."""
        return self.costs is not None or bool(set(self.want) - {"label", "mean"})

    def turn(
        self,
        z: Tensor,
        g: Tensor,
        rows: slice,
        upstream: Tensor,
        log_p: Tensor | None,
        entropy: Tensor | None = None,
        own_costs: Tensor | None = None,
        cost: Tensor | None = None,
    ) -> None:
        """The same with the softmax in ``g``, its logarithm (0 where it is 0), entropy, costs and their mean."""
        by = dict(zip(self.want, upstream[:, : len(self.want)].split(1, 1)))
        place, zero = len(self.want), upstream.new_zeros(())
        if not self.of_softmax:
            g.zero_()
        else:
            factor = by.get("log_z", zero) - by.get("log_p", zero)
            if log_p is not None and entropy is not None:  # dH/dz = -p (log p + H)
                factor = factor - by["entropy"] * (log_p + entropy)
            if own_costs is not None and cost is not None:
                factor = own_costs.sub_(cost).mul_(upstream[:, place : place + 1]).add_(factor)
                place += 1
            g.mul_(factor)
        of_label = (by.get("label", zero) + by.get("log_p", zero)).expand(len(z), 1).to(g.dtype)
        if self.here is not None:
            of_label = torch.where(self.here[rows].unsqueeze(1), of_label, 0.0)
        if z.shape[1]:
            add_at(g, self.target[rows], of_label)
        if self.columns is not None:
            of_columns = upstream[:, place:] if self.places is None else upstream[:, place:][:, self.places]
            g.index_add_(1, self.columns, of_columns.to(g.dtype))

    def plain(self, z: Tensor) -> Tensor:
        """The same ``[n, width]`` as torch differentiates it."""
        log_z = z.logsumexp(1, keepdim=True)
        label = z.gather(1, self.target.unsqueeze(1))
        log_p = z.log_softmax(1)
        named = {"label": label, "log_z": log_z, "log_p": log_p.gather(1, self.target.unsqueeze(1))}
        named |= {"largest": z.amax(1, keepdim=True).detach(), "mean": z.mean(1, keepdim=True).detach()}
        p = log_p.exp()
        if "entropy" in self.want:
            named["entropy"] = -(p * log_p.masked_fill(p == 0, 0.0)).sum(1, keepdim=True)
        numbers = [named[name] for name in self.want]
        if self.costs is not None and self.which is not None:
            numbers.append((p * self.costs[self.which].to(z.dtype)).sum(1, keepdim=True))
        if self.columns is not None:
            numbers.append(z.index_select(1, self.columns))
        return torch.cat(numbers, 1)


def _mean(p: Tensor, values: Tensor) -> Tensor:
    """Of each row under p ``[r, 1]``; where p is 0 values may be anything."""
    means: Tensor = torch.linalg.vecdot(p, values.masked_fill(p == 0, 0.0))
    return means.unsqueeze(1)


def _of_logits(rows: Rows, rule: _Rule, temperature: float) -> Tensor:
    """From logits that are there."""

    def plain(logits: Tensor) -> Tensor:
        z = widen(logits)
        return rule.plain(z if temperature == 1.0 else z / temperature)

    with without_autocast(rows.hidden):
        if not by_hand(rows.hidden):
            return plain(rows.hidden)
        values: Tensor = _OfLogits.apply(rows.hidden, rule, plain, temperature)
    return values


class _OfLogits(torch.autograd.Function):
    """Numbers of rows of logits, a piece that stays in the cache at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rule: _Rule, plain: Callable[[Tensor], Tensor], temperature: float) -> Tensor:
        ctx.rule, ctx.plain, ctx.temperature = rule, plain, temperature
        ctx.save_for_backward(logits)
        values = logits.new_empty(len(logits), rule.width, dtype=widen(logits[:0]).dtype)
        rest, first = rule, rule.width
        if rule.columns is not None:  # a few numbers of all rows at once: a call for each piece would cost more
            rest, first = replace(rule, columns=None), rule.width - len(rule.columns)
            z = widen(logits.index_select(1, rule.columns))
            values[:, first:] = z if temperature == 1.0 else z / temperature
        for rows, z in _pieces(logits, temperature) if first else ():
            values[rows, :first] = rest.values(z, torch.empty_like(z), rows)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        (logits,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not by_hand(upstream):
            return plain_gradients(ctx.plain, (logits,), (True,), upstream)[0], None, None, None
        gradient, rule = torch.empty_like(logits), ctx.rule
        wide = upstream.dtype == gradient.dtype
        rest, columns = (replace(rule, columns=None), rule.columns) if wide else (rule, None)
        with without_autocast(logits):
            for rows, z in _pieces(logits, ctx.temperature):
                g = gradient[rows] if wide else torch.empty_like(z)
                rest.slope(z, g, rows, upstream[rows])
                if ctx.temperature != 1.0:
                    g.div_(ctx.temperature)
                if not wide:
                    gradient[rows] = g
            if columns is not None:
                gradient.index_add_(1, columns, upstream[:, -len(columns) :] / ctx.temperature)
        return gradient, None, None, None


def _pieces(logits: Tensor, temperature: float) -> Any:
    """Rows and their logits in float32 or wider, over the temperature."""
    size = BLOCK // max(1, logits.shape[1] * 4) if logits.device.type == "cpu" else len(logits)
    for rows in chunks(len(logits), max(1, size)):
        z = widen(logits[rows])
        yield rows, z if temperature == 1.0 else z / temperature


def _of_head(
    rows: Rows,
    weight: Tensor,
    bias: Tensor | None,
    rule: _Rule,
    softcap: float | None,
    temperature: float,
    memory: str | int | float,
    shard: VocabularyShard | None,
) -> Tensor:
    """From hidden states and a head, or this rank's part of one."""
    target, which = rows.target, rule.which
    if isinstance(shard, SequenceShard):
        shard = shard.counted(len(rows))
        target = shard.everyone(target)
        which = None if which is None else shard.everyone(which)
    job = Job(
        replace(rows, target=target),
        weight,
        bias,
        _no_losses,
        rule.plain,
        False,
        softcap=softcap,
        temperature=temperature,
        memory=memory,
        pieces=5,
    )
    if not concrete(rows.hidden, weight, bias):
        return job.plain(rows.hidden, weight, bias)
    with without_autocast(rows.hidden):
        if shard is not None:
            rule = rule.part(target, which, shard.start, len(weight))
            of_part: Tensor = OfParts.apply(rows.hidden, weight, bias, job.make, rule, job.plan(), shard)
            return of_part
        values: Tensor = _OfHead.apply(rows.hidden, weight, bias, job, rule, job.plan())
    return values


def _no_losses(z: Tensor, g: Tensor, rows: slice) -> Tensor:
    """Where a job has its row function: it plans here, and the sweeps have rules of their own."""
    raise NotImplementedError


class _OfHead(torch.autograd.Function):
    """Numbers of rows of a head's logits, which are formed again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job, rule: _Rule, layout: Plan
    ) -> Tensor:
        ctx.job, ctx.rule, ctx.layout = job, rule, layout
        ctx.save_for_backward(hidden, weight, bias)
        head, _, _ = job.make(hidden, weight, bias)
        values = widen(head.hidden[:0]).new_empty(len(hidden), rule.width)
        ctx.logits = None
        if layout.mode == "keep" and any(ctx.needs_input_grad[:3]):
            ctx.logits = z = head.raw(slice(None), values.new_empty(len(hidden), len(weight)))
            scratch = torch.empty_like(z[:0])
            for rows, _ in pieces(slice(0, len(z)), z, layout.piece):
                scratch = scratch if len(scratch) >= len(z[rows]) else torch.empty_like(z[rows])
                values[rows] = rule.values(head.shape(z[rows]), scratch[: len(z[rows])], rows)
            return values

        def note(z: Tensor, g: Tensor, rows: slice) -> Tensor:
            values[rows] = rule.values(z, g, rows)
            return z.new_zeros(len(z))

        sweep(head, note, layout)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        refuse_second_order()
        hidden, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if not concrete(upstream):
            return (*plain_gradients(ctx.job.plain, (hidden, weight, bias), needs, upstream), *[None] * 3)
        head, _, _ = ctx.job.make(hidden, weight, bias)
        rule: _Rule = ctx.rule

        def slope(z: Tensor, g: Tensor, rows: slice) -> Tensor:
            rule.slope(z, g, rows, upstream[rows].to(z.dtype))
            return z.new_zeros(len(z))

        # their gradient takes the logits' place; a second backward pass forms them again
        z, ctx.logits = ctx.logits, None
        if z is None:
            _, gradients, _ = sweep(head, slope, ctx.layout, needs)
        else:
            scratch = torch.empty_like(z[:0])
            for rows, _ in pieces(slice(0, len(z)), z, ctx.layout.piece):
                scratch = scratch if len(scratch) >= len(z[rows]) else torch.empty_like(z[rows])
                g = scratch[: len(z[rows])]
                slope(z[rows], g, rows)
                head.chain(z[rows], g)
            gradients = close(head, z.to(head.weight.dtype), (*needs[:2], False), z.new_ones(()))
            if needs[2]:
                gradients.bias = z.sum(0)
        return (*narrowed(gradients, hidden, weight, bias), *[None] * 3)
