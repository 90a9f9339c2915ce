"""Batches of a few classes with several rows of each, as losses of pairs want them."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse
from ...core.sampler import EpochSampler


def per_class_batches(
    labels: I[Tensor, " samples"], batch_size: int, steps: int, generator: torch.Generator, per_class: int = 4
) -> I[Tensor, "steps batch"]:
    """Row numbers of batches, each of several classes with ``per_class`` rows of each.

    With b rows a batch and C classes a batch holds P = min(C, b // per_class) classes (at least 1), which lie one after
    the other; its rows are shared among them as evenly as it goes, the first b mod P classes have one more. Classes
    come in turn: over all batches their numbers of appearances differ by at most 1. The rows of a class come in turn
    too, from a shuffled cycle: those of one batch are distinct where the class has enough of them, else they repeat.

    Args:
        labels: classes ``[N]``, any integers.
        batch_size: b >= per_class.
        steps: batches, >= 1.
        generator: of all draws.
        per_class: least rows of a class in a batch, >= 1.

    Returns:
        ``[steps, batch_size]`` int64.

    Raises:
        ValueError: no labels, numbers out of range.

    Example:
        >>> labels = torch.tensor([5, 5, 5, 9, 9, 9, 9])
        >>> labels[per_class_batches(labels, 4, 3, torch.Generator().manual_seed(0), per_class=2)].sort(1).values
        tensor([[5, 5, 9, 9],
                [5, 5, 9, 9],
                [5, 5, 9, 9]])
    """
    check_tensor("labels", labels, ndim=1, floating=False)
    for name, value in (("batch_size", batch_size), ("steps", steps), ("per_class", per_class)):
        check_number(name, value, low=1, integer=True)
    if not len(labels):
        refuse("labels", "at least one row", labels)
    if batch_size < per_class:
        refuse("batch_size", f"at least per_class, {per_class}", batch_size)
    ids, sizes = labels.detach().cpu().unique(return_inverse=True, return_counts=True)[1:]
    classes = _classes_at_once(len(sizes), batch_size, per_class)
    taken = torch.full((classes,), batch_size // classes)
    taken[: batch_size % classes] += 1
    of_slot = _in_turn(len(sizes), classes, steps, generator).flatten()
    rows_of_slot = taken.repeat(steps)
    # where each slot begins in the cycle of its class: the rows that earlier slots of the class took
    order = of_slot.argsort(stable=True)
    before = rows_of_slot[order].cumsum(0) - rows_of_slot[order]
    slots = torch.bincount(of_slot, minlength=len(sizes))
    first = before[(slots.cumsum(0) - slots).clamp_max(len(order) - 1)]
    begin = torch.empty_like(before)
    begin[order] = before - first[of_slot[order]]
    of_row = of_slot.repeat_interleave(rows_of_slot)
    start = (rows_of_slot.cumsum(0) - rows_of_slot).repeat_interleave(rows_of_slot)
    place = begin.repeat_interleave(rows_of_slot) + torch.arange(len(of_row)) - start
    mixed = torch.randperm(len(ids), generator=generator)
    cycles = mixed[ids[mixed].argsort(stable=True)]
    head = sizes.cumsum(0) - sizes
    return cycles[head[of_row] + place % sizes[of_row]].view(steps, batch_size)


def _classes_at_once(classes: int, batch_size: int, per_class: int) -> int:
    return max(1, min(classes, batch_size // per_class))


def _in_turn(classes: int, at_once: int, steps: int, generator: torch.Generator) -> Tensor:
    """``at_once`` distinct classes a step ``[steps, at_once]``: rounds of all classes in random order, one by one.

    What a round leaves at the end of a step is filled from the next round, without the classes that the step has.
    """
    left = torch.randperm(classes, generator=generator)
    chosen = []
    for _ in range(steps):
        own, left = left[:at_once], left[at_once:]
        if len(own) < at_once:
            another = torch.randperm(classes, generator=generator)
            twice = torch.isin(another, own)
            fresh, needed = another[~twice], at_once - len(own)
            own = torch.cat([own, fresh[:needed]])
            rest = torch.cat([fresh[needed:], another[twice]])
            left = rest[torch.randperm(len(rest), generator=generator)]
        chosen.append(own)
    return torch.stack(chosen)


class MPerClassSampler(EpochSampler):
    r"""Batches of P classes with at least K rows of each: every row has others of its class beside it.

    An epoch has as many steps as a pass over the rows would take. Classes come in turn, whatever their sizes, so in a
    step with :math:`b` rows a row of a class with :math:`n_c` rows comes :math:`b / (C n_c)` times on average: it is no
    pass over the rows where classes differ in size. See :func:`per_class_batches` for what a batch holds.

    Of several ranks each gets its own part of the joint batch, whose classes lie one after the other.

    Args:
        labels: class of each row ``[N]``, any integers.
        batch_size: rows of a step on one rank.
        per_class: K >= 1, the least rows of a class in a batch.
        **options: ``seed``, ``drop_last``, ``num_replicas``, ``rank``; see
            :class:`~steepest.core.sampler.EpochSampler`. Every batch is full, so ``drop_last`` changes nothing.

    Raises:
        ValueError: a batch smaller than ``per_class``, no rows.

    Example:
        >>> labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 8)
        >>> sampler = MPerClassSampler(labels, 8, per_class=4)
        >>> len(sampler), [labels[batch].unique(return_counts=True)[1].tolist() for batch in list(sampler)[:2]]
        (11, [[4, 4], [4, 4]])
    """

    name = "per_class"
    exact = False

    def __init__(self, labels: I[Tensor, " samples"], batch_size: int, per_class: int = 4, **options: Any) -> None:
        check_tensor("labels", labels, ndim=1, floating=False)
        super().__init__(len(labels), batch_size, **options)
        check_number("per_class", per_class, low=1, integer=True)
        if self.joint_size < per_class:
            refuse("batch_size", f"at least per_class, {per_class}", batch_size)
        self.labels, self.per_class = labels.detach().cpu(), per_class

    def order(self, epoch: int, generator: torch.Generator) -> list[Tensor]:
        """Full batches of an epoch."""
        steps = math.ceil(self.num_samples / self.joint_size)
        return list(per_class_batches(self.labels, self.joint_size, steps, generator, self.per_class))

    def times(self, epoch: int) -> Tensor:
        """How often each row comes, on average over draws ``[N]``, float64."""
        ids, sizes = self.labels.unique(return_inverse=True, return_counts=True)[1:]
        rows = math.ceil(self.num_samples / self.joint_size) * self.joint_size
        expected: Tensor = rows / (len(sizes) * sizes[ids].double())
        return expected

    @classmethod
    def samples(cls, **options: Any) -> list[Self]:
        """Classes of several sizes, more and fewer than a batch holds; one of a single row."""
        labels = torch.tensor([3] * 9 + [0] * 14 + [7] + [-2] * 6 + [5] * 12)
        return [cls(labels, 12, 4, **options), cls(labels % 2, 10, 3, **options)]
