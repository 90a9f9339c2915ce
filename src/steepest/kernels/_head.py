"""From rows that count to losses: checks of a head, types under autocast, the plan, the way taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..core.checks import check_number, check_tensor, refuse, refuse_type
from ..core.rowwise import PIECE
from ..core.transforms import autocast_dtype, concrete, without_autocast
from ._device import row_kernels
from ._engine import DEVICE_PIECE, Gradients, Head, RowLosses, RowRule, sweep
from ._filter import GradientFilter
from ._memory import DEVICE_GRAIN, Plan, budget, computed, plan
from ._ranks import VocabularyShard
from ._rows import Rows
from ._slab import SlabLosses, Slabs, as_rule

HALF_ROWS = 512
"""Rows of a chunk of half matrices on the CPU, where nobody says how much memory there is and 256 MiB allow it."""


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, compute_dtype: torch.dtype | None = None) -> None:
    """Check a head and its hidden states against each other."""
    check_tensor("hidden", hidden, floating=True)
    check_tensor("weight", weight, ndim=2, floating=True)
    if hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        refuse("hidden", f"{weight.shape[1]} numbers in the last dimension, as weight", hidden)
    if bias is not None:
        check_tensor("bias", bias, floating=True, shape=(weight.shape[0],))
    if compute_dtype is not None and not compute_dtype.is_floating_point:
        refuse("compute_dtype", "a floating type", compute_dtype)
    if hidden.dtype != weight.dtype and compute_dtype is None and autocast_dtype(hidden) is None:
        refuse_type("hidden", f"{weight.dtype} as weight, or autocast or compute_dtype", hidden)


def check_cap(softcap: float | None, temperature: float) -> None:
    """Check what is done to logits."""
    if softcap is not None:
        check_number("softcap", softcap, low=0.0, open_low=True)
    check_number("temperature", temperature, low=0.0, open_low=True)


@dataclass(frozen=True)
class Job:
    """Weighted losses of rows under a linear head, by the fastest way within a budget.

    Args:
        rows: that count.
        weight: ``[V, D]``.
        bias: ``[V]`` or None.
        rule: the row function.
        dense: the same of all logits at once, by operations that torch differentiates: ``(z, *further z) -> losses``.
        scalar: whether the sum of the losses is wanted, not each.
        softcap, temperature: of the head.
        memory: ``"auto"``, bytes or a share of what is free.
        wide_sums: whether half weights' gradients are summed in float32.
        compute_dtype: of the matrix products; None for the weight's, or autocast's.
        shard: the part of the vocabulary that ``weight`` is.
        others: further heads over the same rows.
        filter: of classes.
        pieces: how many pieces of logits the rule holds at once.
    """

    rows: Rows
    weight: Tensor
    bias: Tensor | None
    rule: RowRule
    dense: Callable[..., Tensor]
    scalar: bool
    softcap: float | None = None
    temperature: float = 1.0
    memory: str | int | float = "auto"
    wide_sums: bool = True
    compute_dtype: torch.dtype | None = None
    shard: VocabularyShard | None = None
    others: tuple[Head, ...] = ()
    filter: GradientFilter | None = None
    pieces: int = 2

    def __post_init__(self) -> None:
        # asked here, since the operations themselves run without autocast
        object.__setattr__(self, "compute_dtype", self.type())

    def losses(self) -> Tensor:
        """Losses ``[n]`` or their sum, differentiable in hidden states, weight and bias."""
        factor, hidden = self.factor(), self.rows.hidden
        if not concrete(hidden, self.weight, self.bias):
            losses = self.plain(hidden, self.weight, self.bias)
            losses = losses if factor is None else losses * factor
            return losses.sum() if self.scalar else losses
        layout = self.plan()
        with without_autocast(hidden):
            if not self.by_slabs(layout):
                told = factor if self.scalar else None
                losses = RowLosses.apply(
                    hidden, self.weight, self.bias, self.make, self.plain, layout, told, self.scalar, self.filter
                )
                return losses if self.scalar or factor is None else losses * factor
            losses, _ = SlabLosses.apply(hidden, self.weight, self.bias, partial(self.slabs, layout), self.plain)
            losses = losses if factor is None else losses * factor
            return losses.sum() if self.scalar else losses

    def plain(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Losses ``[n]``, not weighted, from all logits at once: where nothing may go beside torch."""
        if self.shard is not None:
            raise RuntimeError("process_group: call the loss outside torch.func and batched backward passes")
        with without_autocast(hidden):
            head, _, others = self.make(hidden, weight, bias)
            if self.rows.factor is None:
                heads: Sequence[Head] = (head, *others)
            else:  # what doesn't count may be infinite, and times 0 that is no 0
                counts = (self.rows.factor > 0).unsqueeze(1)
                heads = [
                    replace(one_head, hidden=torch.where(counts, one_head.hidden, 0.0)) for one_head in (head, *others)
                ]
            return self.dense(*(one_head.dense() for one_head in heads))

    def gradients(self, needs: Sequence[bool], upstream: Tensor | None = None) -> tuple[Tensor, Gradients]:
        """Weighted losses ``[n]`` and gradients of their sum (each times ``upstream[i]``), without autograd."""
        layout, factor, hidden = self.plan(), self.factor(), self.rows.hidden
        weights = factor if upstream is None else upstream if factor is None else upstream * factor
        with without_autocast(hidden):
            if self.by_slabs(layout):
                slabs = self.slabs(layout, hidden, self.weight, self.bias)
                losses, lse = slabs.forward()
                ones = losses.new_ones(()) if weights is None else weights
                gradients = slabs.backward(lse, ones, list(needs)) if any(needs) else Gradients()
            else:
                head, rule, others = self.make(hidden, self.weight, self.bias)
                losses, gradients, _ = sweep(
                    head, rule, layout, needs, others=others, factor=weights, collect=self.filter
                )
        return losses if factor is None else losses * factor, gradients

    def factor(self) -> Tensor | None:
        """Weights of the rows in the type that losses have."""
        return None if self.rows.factor is None else self.rows.factor.to(computed(self.weight))

    def by_slabs(self, found: Plan) -> bool:
        """Whether the vocabulary is gone over in slabs."""
        return self.shard is not None or found.mode == "slab"

    def type(self) -> torch.dtype:
        """Of the matrix products."""
        return self.compute_dtype or autocast_dtype(self.rows.hidden) or self.weight.dtype

    def plan(self) -> Plan:
        """How to go over rows and vocabulary."""
        kind = self.type()
        half, cast, heads = kind.itemsize < 4, kind != self.weight.dtype, 1 + len(self.others)
        # a half chunk exists three times: as the product gives it, wide, and as the next products take it
        size, extra, total, held = (8 if half else kind.itemsize), 0, 6, self.pieces
        device, shape = self.rows.hidden.device, (len(self.rows.target), self.weight.shape[1])
        if row_kernels(device, kind, self.rule, self.softcap, self.filter, self.others) is not None:
            size, total, held = kind.itemsize, 4, 0  # all of it happens where the logits lie
        if self.memory != "auto":
            extra = self.weight.numel() * ((total if half and self.wide_sums else 0) + (kind.itemsize if cast else 0))
        limit = budget(self.memory, device)
        if half and self.memory == "auto" and device.type == "cpu":
            # each chunk adds a product to wide sums: too short ones spend their time there
            limit = max(limit, min(4 * limit, HALF_ROWS * size * self.weight.shape[0] + held * PIECE))
        grain = {} if device.type == "cpu" else {**DEVICE_GRAIN, "aside": 4 * shape[0] * shape[1] if half else 0}
        layout = plan(
            shape[0],
            self.weight.shape[0],
            size,
            limit,
            scalar=self.scalar,
            heads=heads,
            slabs=not self.others and self.filter is None and as_rule(self.rule) is not None,
            accumulator=extra,
            pieces=held,
            piece=PIECE if self.rows.hidden.device.type == "cpu" else DEVICE_PIECE,
            **grain,
        )
        if self.filter is not None and layout.mode == "keep":
            return replace(layout, mode="chunk" if self.scalar else "recompute")
        return layout

    def make(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Head, RowRule, Sequence[Head]]:
        """The head of these tensors in the type of the matrix products, its rule, further heads."""
        kind = self.type()
        result = hidden.dtype if kind != weight.dtype else None
        head = Head(hidden.to(kind), weight.to(kind), bias, self.softcap, self.temperature, self.wide_sums, result)
        others = [
            replace(beside, hidden=beside.hidden.to(kind), weight=beside.weight.to(kind)) for beside in self.others
        ]
        return head, self.rule, others

    def slabs(self, found: Plan, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Slabs:
        """The same as slabs of the vocabulary; one plan for both passes, since what is free changes."""
        entropy = as_rule(self.rule)
        assert entropy is not None
        head, _, _ = self.make(hidden, weight, bias)
        if self.shard is not None:
            head = replace(head, hidden=self.shard.everyone(head.hidden))
        return Slabs(head, entropy, found.columns, self.shard, found.mode == "keep", found.piece)
