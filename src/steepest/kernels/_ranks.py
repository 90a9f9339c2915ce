"""Ranks of a process group: parts of a vocabulary, shares of the tokens, and what the ranks tell each other.

Every collective here is one of ``torch.distributed``'s own and ends with the group's timeout. Nothing that ranks told
each other is kept between calls: what is remembered on one rank and asked for on another waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.checks import check_number, refuse
from ..core.gather import padded


@dataclass(frozen=True)
class VocabularyShard:
    """Which part of a vocabulary this rank's weight and bias are.

    Args:
        group: the ranks that hold the other parts.
        start: the first class of this part.
        total: classes of all parts, V.

    >>> VocabularyShard(None, 0, 32000).total
    32000
    """

    group: Any
    start: int
    total: int

    @classmethod
    def of(cls, group: Any, own: int, tokens: int | None = None) -> VocabularyShard:
        """Parts in the order of the ranks, of any sizes. All ranks call it together; keep what it gives.

        Args:
            group: the ranks.
            own: classes of this rank's part.
            tokens: how many tokens this rank holds, where all must hold the same.

        Raises:
            ValueError: this rank is not of the group, or others hold another number of tokens.
        """
        told = tell(group, (own, -1 if tokens is None else tokens))
        if len({tokens_told for _, tokens_told in told}) > 1:
            refuse(
                "hidden",
                "the same tokens on all ranks of process_group (or token_group=)",
                [tokens_told for _, tokens_told in told],
            )
        sizes = [size for size, _ in told]
        return cls(group, sum(sizes[: dist.get_rank(group)]), sum(sizes))

    @classmethod
    def even(cls, group: Any, total: int) -> VocabularyShard:
        """Parts as ``torch.chunk`` cuts them, which needs no asking."""
        return cls(group, min(total, dist.get_rank(group) * -(-total // dist.get_world_size(group))), total)

    def everyone(self, own: Tensor) -> Tensor:
        """Rows ``[n, ...]`` of the tokens that all ranks work on."""
        return own

    def join(self, partial: Tensor) -> Tensor:
        """The gradient of this rank's hidden states from each rank's part ``[n, D]`` of it; overwrites ``partial``."""
        dist.all_reduce(partial, group=self.group)
        return partial

    def mine(self, values: Tensor) -> Tensor:
        """This rank's among values ``[n]`` of all tokens; its gradient is gathered."""
        return values

    @property
    def place(self) -> slice:
        """Where they are."""
        return slice(None)


@dataclass(frozen=True)
class SequenceShard(VocabularyShard):
    """The same where each rank holds its own tokens, which all ranks work on and whose gradient goes back to it.

    Args:
        counts: how many rows of each rank count.
    """

    counts: tuple[int, ...] = ()

    @classmethod
    def over(cls, shard: VocabularyShard) -> SequenceShard:
        """Over the ranks of a shard; counts are not known yet."""
        return cls(shard.group, shard.start, shard.total)

    def counted(self, rows: int) -> SequenceShard:
        """With the counts of all ranks, asked for."""
        return replace(self, counts=tuple(count for (count,) in tell(self.group, (rows,))))

    @property
    def place(self) -> slice:
        start = sum(self.counts[: dist.get_rank(self.group)])
        return slice(start, start + self.counts[dist.get_rank(self.group)])

    def everyone(self, own: Tensor) -> Tensor:
        most = max(self.counts)
        if not most:
            return own
        full = own.new_empty((len(self.counts) * most, *own.shape[1:]))
        dist.all_gather_into_tensor(full, padded(own, most), group=self.group)
        if min(self.counts) == most:
            return full
        return torch.cat([of_rank[:count] for of_rank, count in zip(full.split(most), self.counts)])

    def join(self, partial: Tensor) -> Tensor:
        most = max(self.counts)
        if not most:
            return partial
        if min(self.counts) != most:
            partial = torch.cat([padded(of_rank, most) for of_rank in partial.split(self.counts)])
        own = partial.new_empty((most, *partial.shape[1:]))
        dist.reduce_scatter_tensor(own, partial, group=self.group)
        return own[: self.counts[dist.get_rank(self.group)]]

    def mine(self, values: Tensor) -> Tensor:
        own: Tensor = _OwnRows.apply(values, self)
        return own


class _OwnRows(torch.autograd.Function):
    """A rank's rows of what all ranks computed alike; the gradient of each row is where the row is used."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: SequenceShard) -> Tensor:
        ctx.shard = shard
        return values[shard.place].clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return ctx.shard.everyone(upstream.contiguous()), None


class GroupTotal(torch.autograd.Function):
    """The sum over the ranks of groups, whose gradient is that of this rank's own term."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, groups: Sequence[Any]) -> Tensor:
        return total(value.clone(), groups)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return upstream, None


def total(value: Tensor, groups: Sequence[Any]) -> Tensor:
    """The sum over the ranks of groups that cross each other, in place."""
    for group in groups:
        dist.all_reduce(value, group=group)
    return value


def tell(group: Any, numbers: Sequence[int]) -> list[list[int]]:
    """Integers of all ranks, in their order. On a group that reaches accelerators only this waits for the device."""
    member(group)
    cpu = "cpu" in str(dist.get_backend_config(group))
    device = torch.device("cpu") if cpu else torch.accelerator.current_accelerator(check_available=True)
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    told = own.new_empty(dist.get_world_size(group) * len(numbers))
    dist.all_gather_into_tensor(told, own, group=group)
    rows: list[list[int]] = told.reshape(-1, len(numbers)).tolist()
    return rows


def member(group: Any, argument: str = "process_group") -> None:
    """Refuse what is no group of this rank."""
    known = group is None or isinstance(group, dist.ProcessGroup)
    if not known or dist.get_rank(group) < 0:
        refuse(argument, "a process group of this rank", group)


def same(one: Any, other: Any) -> bool:
    """Whether two groups are of the same ranks."""
    return one is other or dist.get_process_group_ranks(one) == dist.get_process_group_ranks(other)


def parts(
    process_group: Any, token_group: Any, own: int, tokens: int
) -> tuple[VocabularyShard | None, tuple[Any, ...]]:
    """This rank's part of the vocabulary, and the groups over which sums of tokens go.

    Args:
        process_group: a group, a shard or None.
        token_group: a group or None.
        own: classes of this rank's weight.
        tokens: of its hidden states.
    """
    if token_group is not None:
        member(token_group, "token_group")
    if process_group is None:
        return None, () if token_group is None else (token_group,)
    given = isinstance(process_group, VocabularyShard)
    group = process_group.group if given else process_group
    both = token_group is not None and same(token_group, group)
    if given:
        member(group)
        shard: VocabularyShard = process_group
        check_number("process_group.start", shard.start, low=0, high=shard.total - own, integer=True)
    else:
        shard = VocabularyShard.of(group, own, None if both else tokens)
    return SequenceShard.over(shard) if both else shard, () if both or token_group is None else (token_group,)
