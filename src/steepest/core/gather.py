"""Rows of all ranks in one tensor, with gradient: what a loss of a whole batch needs where each rank has a share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .checks import refuse


@dataclass(frozen=True)
class Shares:
    """How many rows each rank of a group has.

    Args:
        group: a process group, or None for that of all ranks.
        counts: rows of each rank, in their order.
        rank: this one.
    """

    group: Any
    counts: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, rows: int, group: Any = None) -> Shares:
        """Asked of all ranks, which call it together.

        Raises:
            ValueError: no process group, or one that this rank is not of.
        """
        if not dist.is_available() or not dist.is_initialized():
            refuse("group", "a process group that is initialised", group)
        rank = dist.get_rank(group)
        if rank < 0:
            refuse("group", "a process group of this rank", group)
        told: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(told, rows, group=group)
        return cls(group, tuple(told), rank)

    @property
    def start(self) -> int:
        """The place of this rank's first row among those of all."""
        return sum(self.counts[: self.rank])

    @property
    def own(self) -> slice:
        """The places of this rank's rows."""
        return slice(self.start, self.start + self.counts[self.rank])

    def gather(self, rows: Tensor, *, everywhere: bool = True) -> Tensor:
        """Rows ``[n, ...]`` of all ranks, one rank after the other.

        Args:
            rows: of this rank.
            everywhere: whether every rank computes the same loss of all rows; its own rows' gradient is then W times
                that of the loss, W being the number of ranks, so that the average over ranks, which
                ``DistributedDataParallel`` takes, is the gradient. Otherwise each rank has a loss of its own in which
                all rows take part, and gradients of a row are summed over them.

        Raises:
            ValueError: another number of rows than was told.
        """
        if rows.shape[0] != self.counts[self.rank]:
            refuse("rows", f"{self.counts[self.rank]} rows", rows)
        if not rows.is_floating_point():
            return self.joined(rows)
        gathered: Tensor = _Gathered.apply(rows, self, everywhere)
        return gathered

    def joined(self, rows: Tensor) -> Tensor:
        """The same without a gradient."""
        most = max(self.counts)
        kind = rows.dtype
        sent = padded(rows.detach().to(torch.uint8) if kind == torch.bool else rows.detach(), most)
        all_rows = [torch.empty_like(sent) for _ in self.counts]
        dist.all_gather(all_rows, sent, group=self.group)
        return torch.cat([of_rank[:count] for of_rank, count in zip(all_rows, self.counts)]).to(kind)

    def summed(self, rows: Tensor) -> Tensor:
        """This rank's among rows of all, each summed over the ranks."""
        total = rows.contiguous().clone()
        dist.all_reduce(total, group=self.group)
        return total[self.own]

    def mean(self, losses: Tensor, counts: Tensor) -> Tensor:
        """The sum of losses over the count of those that count, over all ranks; its gradient is of this rank's alone.

        It is W times this rank's share, so that the average over ranks is the gradient of the mean.
        """
        value: Tensor = _Mean.apply(losses.sum(), counts.sum().to(losses.dtype), self.group)
        return value


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: Shares, everywhere: bool) -> Tensor:
        ctx.shares, ctx.everywhere = shares, everywhere
        return shares.joined(rows)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        shares: Shares = ctx.shares
        if ctx.everywhere:
            return upstream[shares.own] * len(shares.counts), None, None
        return shares.summed(upstream), None, None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, count: Tensor, group: Any) -> Tensor:
        both = torch.stack([total, count])
        dist.all_reduce(both, group=group)
        below = both[1].clamp_min(1.0)
        ctx.factor = dist.get_world_size(group) / below
        return both[0] / below

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.factor, None, None


def padded(rows: Tensor, most: int) -> Tensor:
    """With rows of zeros up to ``most``.

    >>> padded(torch.ones(1, 2), 2)
    tensor([[1., 1.],
            [0., 0.]])
    """
    if len(rows) == most:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros((most - len(rows), *rows.shape[1:]))])
