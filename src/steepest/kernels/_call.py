"""One call of the linear cross-entropy: its options, its rows, what its sums are divided by, what it reports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_number, check_tensor, refuse
from ..core.transforms import concrete
from ._cross_entropy_rows import CrossEntropyRows, Statistics
from ._filter import GradientFilter
from ._head import Job
from ._memory import computed
from ._ranks import GroupTotal, SequenceShard, VocabularyShard, total
from ._rows import Rows, select


@dataclass(frozen=True)
class HeadStatistics:
    """What a linear head says of each token, detached; 0, and -1 for ``argmax``, where a token doesn't count.

    Args:
        lse: log Z, shaped as the targets.
        entropy: of the softmax, in nats.
        argmax: the most probable class.
        correct: whether that is the target.
        valid: whether the token counts.
        dropped: the mean probability that the filter left out, or None without one.
    """

    lse: Tensor
    entropy: Tensor
    argmax: Tensor
    correct: Tensor
    valid: Tensor
    dropped: Tensor | None = None

    @property
    def accuracy(self) -> Tensor:
        """The share of counted tokens whose most probable class is the target."""
        return self.correct.sum() / self.valid.sum()


@dataclass(frozen=True)
class Options:
    """What is no tensor; see :func:`~steepest.kernels.linear_cross_entropy`."""

    ignore_index: int
    reduction: str
    label_smoothing: float
    z_loss: float
    softcap: float | None
    temperature: float
    shift: int
    memory: str | int | float
    wide_sums: bool
    compute_dtype: torch.dtype | None
    valid_rows: int | None
    empty: str


@dataclass(frozen=True)
class Call:
    """Rows and their losses on the way to one number.

    Args:
        job: the losses.
        above: what their sum is divided by.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        noted: what the row function fills, or None.
        totals: groups whose ranks hold further tokens.
    """

    job: Job
    above: Tensor | float
    reduction: str
    noted: Statistics | None
    totals: tuple[Any, ...] = ()

    def loss(self, losses: Tensor) -> Tensor:
        """The result from the job's losses: each in its place, or their mean."""
        if self.reduction == "none":
            return self.job.rows.spread(losses if self.job.shard is None else self.job.shard.mine(losses))
        loss = losses / self.above if self.reduction == "mean" else losses
        if self.totals:
            loss = GroupTotal.apply(loss, self.totals)
        return loss

    def statistics(self) -> HeadStatistics:
        """What was noted, in the shape of the targets."""
        noted, rows, chosen = self.noted, self.job.rows, self.job.filter
        assert noted is not None
        target = rows.target
        if rows.share is not None:
            target = target.gather(1, rows.share.argmax(1, keepdim=True)).squeeze(1)
        elif target.ndim == 2:
            target = target.argmax(1)
        counts = torch.ones_like(target, dtype=torch.bool) if rows.factor is None else rows.factor > 0
        own = slice(None) if self.job.shard is None else self.job.shard.place
        return HeadStatistics(
            rows.spread(torch.where(counts, noted.lse, 0.0)[own]),
            rows.spread(torch.where(counts, noted.entropy, 0.0)[own]),
            rows.spread(torch.where(counts, noted.argmax, -1)[own], -1),
            rows.spread(((noted.argmax == target) & counts)[own], False),
            rows.spread(counts[own], False),
            None if chosen is None else chosen.dropped,
        )


def prepare(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | tuple[Tensor, Tensor],
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    num_items: float | Tensor | None,
    options: Options,
    *,
    shard: VocabularyShard | None = None,
    filter: GradientFilter | None = None,
    statistics: bool = False,
    totals: tuple[Any, ...] = (),
) -> Call:
    """Choose the rows, weigh them, and bind the row function."""
    rows = select(
        hidden,
        target,
        classes=weight.shape[0] if shard is None else shard.total,
        ignore_index=options.ignore_index,
        shift=options.shift,
        weight=token_weight,
        valid_rows=options.valid_rows,
    )
    if (shard is not None or filter is not None) and (rows.share is not None or rows.target.ndim == 2):
        refuse("target", "class indices with process_group or filter", target)
    if shard is not None and filter is not None:
        refuse("filter", "None with process_group", filter)
    if not concrete(hidden, weight, bias):
        filter = None  # all logits exist: nothing is saved
    if isinstance(shard, SequenceShard):
        shard = shard.counted(len(rows))
        factor = None if rows.factor is None else shard.everyone(rows.factor)
        rows = replace(rows, target=shard.everyone(rows.target), factor=factor)
    wide = computed(weight)
    noted = Statistics.empty(len(rows.target), hidden, wide) if statistics else None
    c = None if class_weight is None else class_weight.detach().to(wide)
    above, below = _denominators(rows, c, num_items, options.reduction, options.empty, wide, totals)
    penalty: float | Tensor = options.z_loss if below is None else options.z_loss * above / below
    rule = CrossEntropyRows(rows.target, rows.share, c, options.label_smoothing, penalty, noted, rows.factor)
    job = Job(
        rows,
        weight,
        bias,
        rule,
        rule.dense,
        options.reduction != "none",
        softcap=options.softcap,
        temperature=options.temperature,
        memory=options.memory,
        wide_sums=options.wide_sums,
        compute_dtype=options.compute_dtype,
        shard=shard,
        filter=filter,
    )
    return Call(job, above, options.reduction, noted, () if options.reduction == "none" else totals)


def _denominators(
    rows: Rows,
    class_weight: Tensor | None,
    num_items: Any,
    reduction: str,
    empty: str,
    dtype: torch.dtype,
    totals: tuple[Any, ...],
) -> tuple[Tensor | float, Tensor | float | None]:
    """What sums of losses and of penalties are divided by; None where both alike."""
    if reduction != "mean":
        return 1.0, None
    if num_items is not None:
        if isinstance(num_items, Tensor):
            check_tensor("num_items", num_items, shape=())
            return num_items.to(rows.hidden.device, dtype), None
        check_number("num_items", num_items, low=0.0, open_low=True)
        return float(num_items), None
    ones = rows.hidden.new_ones(len(rows.target), dtype=dtype)
    below = ones if rows.factor is None else rows.factor.to(dtype)
    weighted = class_weight is not None and rows.target.ndim == 1
    above = below * class_weight[rows.target] if weighted and class_weight is not None else below
    sums = [amount.sum() for amount in (above, below)]
    if totals:
        sums = list(total(torch.stack(sums), totals))
    if empty == "zero":
        sums = [torch.where(amount > 0, amount, 1.0) for amount in sums]
    return sums[0], sums[1] if weighted else None
