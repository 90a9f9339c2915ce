"""DTensors as what they are on this rank: local tensors, a part of a vocabulary, groups that share tokens."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.checks import refuse, refuse_type
from ._ranks import SequenceShard, VocabularyShard

Key = tuple[int, ...]


def distributed(*values: Any) -> bool:
    """Whether any is a DTensor; costs nothing where nobody imported them."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(item, module.DTensor) for item in flat)


@dataclass
class Placed:
    """The tensors of a call as they lie on this rank, and what its ranks share."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Any
    class_weight: Tensor | None
    token_weight: Tensor | None
    shard: VocabularyShard | None = None
    totals: tuple[Any, ...] = ()


def localise(given: Placed, process_group: Any, token_group: Any, shift: int) -> Placed:
    """Local tensors of DTensors, whose gradients become DTensors of the same placement.

    Where ``hidden`` is a DTensor, tensors are meant as wholes: over a dimension of its mesh, a weight sharded by
    classes is a part of the vocabulary, hidden states sharded by tokens are shares of one batch. Where it is a plain
    tensor it is the rank's own data: a sharded weight is gathered, and its gradient the mean over the ranks, as
    FSDP2 forms it; but over the ranks of ``process_group`` the weight is a part of the vocabulary.

    Args:
        given: what came.
        process_group: a group, a shard or None.
        token_group: a group or None, beside plain hidden states.
        shift: of the targets; a sequence cut across ranks has none.
    """
    if token_group is not None and distributed(given.hidden):
        refuse("token_group", "None where hidden is a DTensor, whose placements say it", token_group)
    shard = process_group if isinstance(process_group, VocabularyShard) else None
    group = shard.group if shard is not None else process_group
    placed = _tokens(given.hidden, shift)
    weight, group = _classes(given.weight, placed, group, "weight")
    bias = None if given.bias is None else _classes(given.bias, placed, group, "bias")[0]
    if shard is None and group is not None:
        whole = distributed(given.weight)
        shard = VocabularyShard.even(group, len(given.weight)) if whole else VocabularyShard.of(group, len(weight))
    cut = [value for key, (value, sharded) in placed.items() if sharded]
    if shard is not None and any(_key(value) == _key(shard.group) for value in cut):
        cut = [value for value in cut if _key(value) != _key(shard.group)]
        shard = SequenceShard.over(shard)
    target = given.target
    if isinstance(target, tuple):
        target = tuple(_as_hidden(value, given.hidden, "target") for value in target)
    else:
        target = _as_hidden(target, given.hidden, "target")
    return Placed(
        _as_hidden(given.hidden, given.hidden, "hidden"),
        weight,
        bias,
        target,
        _whole(given.class_weight),
        _as_hidden(given.token_weight, given.hidden, "token_weight"),
        shard,
        tuple(cut),
    )


def _key(group: Any) -> Key:
    return tuple(dist.get_process_group_ranks(group))


def _dimensions(tensor: Any) -> list[tuple[Any, Any, int]]:
    """Group, placement and number of ranks of each dimension of a DTensor's mesh."""
    mesh = tensor.device_mesh
    return [(mesh.get_group(i), placement, mesh.size(i)) for i, placement in enumerate(tensor.placements)]


def _tokens(hidden: Tensor, shift: int) -> dict[Key, tuple[Any, bool]]:
    """The groups of the mesh of hidden states, and whether tokens are cut over each."""
    if not distributed(hidden):
        return {}
    placed = {}
    for group, placement, size in _dimensions(hidden):
        if size == 1:
            continue
        sharded = placement.is_shard()
        if placement.is_partial() or (sharded and placement.dim % hidden.ndim == hidden.ndim - 1):
            refuse("hidden", "tokens replicated or sharded over a mesh, not Partial nor cut in width", placement)
        if sharded and shift and placement.dim % hidden.ndim == hidden.ndim - 2:
            refuse("shift", "0 where sequences are cut across ranks (shift targets before they are cut)", shift)
        placed[_key(group)] = (group, sharded)
    return placed


def _classes(tensor: Any, placed: dict[Key, tuple[Any, bool]], group: Any, name: str) -> tuple[Tensor, Any]:
    """The local part of a weight or bias, gathered over all groups but that of the vocabulary, and this group."""
    if not distributed(tensor):
        return tensor, group
    from torch.distributed.tensor import Partial, Replicate, Shard

    asked, mean = group, 1
    wanted: list[Any] = []
    slopes: list[Any] = []
    for of_ranks, placement, size in _dimensions(tensor):
        here = placed.get(_key(of_ranks))
        by_class = placement.is_shard() and placement.dim == 0 and size > 1
        if by_class and (here is not None if asked is None else _key(of_ranks) == _key(asked)):
            if group is not None and _key(group) != _key(of_ranks):
                refuse(name, "classes sharded over one dimension of the mesh of hidden", tensor.placements)
            group = of_ranks
            wanted.append(Shard(0))
            slopes.append(Shard(0))
            continue
        wanted.append(Replicate())
        slopes.append(Partial() if size > 1 and (here is None or here[1]) else Replicate())
        mean *= size if here is None else 1
    if asked is not None and Shard(0) not in wanted and dist.get_world_size(asked) > 1:
        refuse(name, "a DTensor sharded by classes over the ranks of process_group", tensor.placements)
    divided: Any = _Divided.apply(tensor, mean) if mean > 1 else tensor
    local: Tensor = divided.redistribute(divided.device_mesh, wanted).to_local(grad_placements=slopes)
    return local, group


class _Divided(torch.autograd.Function):
    """The tensor, with its gradient divided by a number."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, by: int) -> Tensor:
        ctx.by = by
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return upstream / ctx.by, None


def _whole(tensor: Any) -> Any:
    """A tensor of no gradient on every rank."""
    return tensor.detach().full_tensor() if distributed(tensor) else tensor


def _as_hidden(tensor: Any, hidden: Any, name: str) -> Any:
    """Targets and weights of tokens, placed as the hidden states are."""
    if not distributed(tensor):
        return tensor
    if not distributed(hidden):
        refuse_type(name, "a plain tensor, as hidden", tensor)
    return tensor.redistribute(hidden.device_mesh, hidden.placements).to_local()
