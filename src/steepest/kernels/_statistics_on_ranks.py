"""Statistics of tokens under a head whose classes are cut over the ranks of a group.

Each rank forms the logits of its own classes. Of each token the ranks tell each other their largest logit, and sums:
two collectives forward. Backward each rank forms the gradient of its own logits from what the whole softmax is known to
be, and the ranks add up their parts of the gradient of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.transforms import concrete
from ._engine import Gradients, Head, RowRule, narrowed, refuse_second_order, sweep
from ._memory import Plan, computed
from ._ranks import VocabularyShard


class OwnNumbers(NamedTuple):
    """What a rank's logits say of each token, ``[r]`` and, of the columns, ``[r, J]``.

    Attributes:
        top: the largest, -inf where the rank has none.
        rest: the sum of e^(z - top) over all classes but one of the largest.
        depth: the mean of top - z under the rank's own softmax.
        cost: the mean of the costs under it.
        label: the label's logit where it is the rank's, else 0.
        columns: those that are the rank's, else 0.
    """

    top: Tensor
    rest: Tensor
    depth: Tensor
    cost: Tensor
    label: Tensor
    columns: Tensor


class Known(NamedTuple):
    """Of the whole softmax of each token, ``[n, 1]``: largest logit, what log Z is above it, entropy, mean cost."""

    top: Tensor
    above: Tensor
    entropy: Tensor
    cost: Tensor

    def of(self, rows: slice) -> Known:
        """Of some tokens."""
        return Known(*(value[rows] for value in self))


class PartRule(Protocol):
    """Numbers of rows of some classes, and the gradient in their logits."""

    want: tuple[str, ...]
    costs: Tensor | None
    count: int

    def own_numbers(self, z: Tensor, g: Tensor, rows: slice) -> OwnNumbers:
        """Of logits ``[r, W]``; ``g`` is overwritten."""

    def own_slope(self, z: Tensor, g: Tensor, rows: slice, upstream: Tensor, known: Known) -> None:
        """Write to ``g`` the gradient in ``z`` of the numbers of the whole softmax, each times its upstream."""


Make = Callable[[Tensor, Tensor, Tensor | None], tuple[Head, RowRule, Any]]


class OfParts(torch.autograd.Function):
    """Numbers ``[n, width]`` of this rank's tokens under a head of which it has a part."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        make: Make,
        rule: PartRule,
        layout: Plan,
        shard: VocabularyShard,
    ) -> Tensor:
        head = _of_everyone(make(hidden, weight, bias)[0], shard)
        wide, tokens = computed(head.weight), len(head.hidden)
        shapes = [(tokens,)] * 5 + [(tokens, rule.count)]
        own = OwnNumbers(*(head.hidden.new_empty(shape, dtype=wide) for shape in shapes))

        def note(z: Tensor, g: Tensor, rows: slice) -> Tensor:
            for place, value in zip(own, rule.own_numbers(z, g, rows)):
                place[rows] = value
            return z.new_zeros(len(z))

        sweep(head, note, layout)
        known, label, of_columns = _joined(own, shard.group)
        ctx.make, ctx.rule, ctx.layout, ctx.shard = make, rule, layout, shard
        ctx.save_for_backward(hidden, weight, bias, *known)
        named = {
            "label": label, "log_z": known.top + known.above, "log_p": (label - known.top) - known.above,
            "entropy": known.entropy,
        }  # fmt: skip
        numbers = [named[name] for name in rule.want]
        numbers += [] if rule.costs is None else [known.cost]
        return torch.cat([*numbers, of_columns], 1)[shard.place]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        refuse_second_order()
        if not concrete(upstream):
            raise RuntimeError("group: call the statistics outside batched backward passes")
        hidden, weight, bias, *numbers = ctx.saved_tensors
        known, shard, rule = Known(*numbers), ctx.shard, ctx.rule
        needs = ctx.needs_input_grad[:3]
        head = _of_everyone(ctx.make(hidden, weight, bias)[0], shard)
        upstream = shard.everyone(upstream.contiguous())

        def slope(z: Tensor, g: Tensor, rows: slice) -> Tensor:
            rule.own_slope(z, g, rows, upstream[rows].to(z.dtype), known.of(rows))
            return z.new_zeros(len(z))

        _, gradients, _ = sweep(head, slope, ctx.layout, needs)
        if gradients.hidden is not None:
            partial = gradients.hidden.to(computed(head.weight))
            gradients = Gradients(shard.join(partial), gradients.weight, gradients.bias)
        return (*narrowed(gradients, hidden, weight, bias), *[None] * 4)


def _of_everyone(head: Head, shard: VocabularyShard) -> Head:
    """The head over the tokens of all ranks; the gradient of its hidden states is summed in float32 or wider."""
    return Head(
        shard.everyone(head.hidden), head.weight, head.bias, head.softcap, head.temperature, head.wide_sums,
        computed(head.weight),
    )  # fmt: skip


def _joined(own: OwnNumbers, group: Any) -> tuple[Known, Tensor, Tensor]:
    """The whole softmax of each token, the label's logit ``[n, 1]`` and columns ``[n, J]`` from all ranks' numbers."""
    ranks = dist.get_world_size(group)
    tops = own.top.new_empty(ranks * len(own.top))
    dist.all_gather_into_tensor(tops, own.top, group=group)
    top, holder = tops.reshape(ranks, -1).max(0)  # of equals one, the same on all ranks
    scale = torch.exp(own.top - top)
    there = own.top > -torch.inf
    mass = scale * (1.0 + own.rest)
    beside = torch.where(holder == dist.get_rank(group), own.rest, mass)
    deep = mass * (own.depth + (top - own.top))
    parts = [torch.where(there, value, 0.0) for value in (beside, deep, mass * own.cost)] + [own.label]
    sums = torch.cat([torch.stack(parts, 1), own.columns], 1)
    dist.all_reduce(sums, group=group)
    rest, deep, cost = sums[:, :3].unbind(1)
    above = rest.log1p()
    known = Known(*(value.unsqueeze(1) for value in (top, above, above + deep / (1.0 + rest), cost / (1.0 + rest))))
    return known, sums[:, 3:4], sums[:, 4:]
