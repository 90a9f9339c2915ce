"""Copies in CPU memory of all that training has changed, and the way back to the last good one, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.wrapper import Wrapper

_COPIED = (bool, int, float, str, type(None))


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_cpu(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(inner) for inner in value) if type(value) in (list, tuple) else copy.deepcopy(value)
    return value if isinstance(value, _COPIED) else copy.deepcopy(value)


@torch.no_grad()
def _back(now: Any, value: Any, device: torch.device) -> Any:
    """A value of an optimizer's state; a tensor that is there already is written into."""
    if isinstance(value, Tensor):
        if isinstance(now, Tensor) and now.shape == value.shape and now.dtype == value.dtype:
            now.copy_(value)
            return now
        return value.to(device, copy=True)
    return _to_cpu(value)


def _tensors(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    everything = [*model.parameters(), *model.buffers()]
    everything += [p for group in optimizer.param_groups for p in group["params"]]
    return list({id(t): t for t in everything}.values())


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def take(step: int, model: nn.Module, outer: Any, optimizer: Optimizer) -> dict[str, Any]:
    """A copy of a run: weights, buffers, moments, counters, options of groups, random state; plain values and tensors.

    Args:
        step: its number.
        model: what is trained.
        outer: the optimizer that the loop steps.
        optimizer: the one inside that moves the weights.
    """
    snapshot: dict[str, Any] = {
        "step": step,
        "values": [t.detach().to("cpu", copy=True) for t in _tensors(model, optimizer)],
        "moments": [_to_cpu(dict(optimizer.state.get(p, {}))) for p in _parameters(optimizer)],
        "options": [
            {name: _to_cpu(value) for name, value in group.items() if name not in ("params", "param_names", "lr")}
            for group in optimizer.param_groups
        ],
        "random": torch.get_rng_state(),
    }
    if isinstance(outer, Wrapper):
        snapshot["wrapper"] = _to_cpu(outer.own_state())
    return snapshot


@torch.no_grad()
def infinite_buffers(model: nn.Module, optimizer: Optimizer) -> set[int]:
    """Places, among the values of a snapshot, of buffers that are not finite now: masks of attention are -inf."""
    buffers = {id(buffer) for buffer in model.buffers()}
    return {
        place
        for place, tensor in enumerate(_tensors(model, optimizer))
        if id(tensor) in buffers and not bool(tensor.isfinite().all())
    }


@torch.no_grad()
def finite(snapshot: dict[str, Any], besides: Collection[int] = ()) -> bool:
    """Whether all weights and moments of a snapshot are finite.

    Args:
        snapshot: as :func:`take` gives it.
        besides: places of values that need not be.
    """
    tensors = [value for place, value in enumerate(snapshot["values"]) if place not in besides]
    tensors += [v for own in snapshot["moments"] for v in own.values() if isinstance(v, Tensor)]
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point() or t.is_complex())


@torch.no_grad()
def restore(snapshot: dict[str, Any], model: nn.Module, outer: Any, optimizer: Optimizer) -> None:
    """Go back; tensors keep their dtype and place, rates stay what the loop has set."""
    for tensor, value in zip(_tensors(model, optimizer), snapshot["values"]):
        tensor.copy_(value)
    for p, moments in zip(_parameters(optimizer), snapshot["moments"]):
        own = optimizer.state[p] if moments else optimizer.state.get(p)
        if own is None:
            continue
        for name in set(own) - set(moments):
            del own[name]
        for name, value in moments.items():
            own[name] = _back(own.get(name), value, _place(own.get(name), value, p))
        if not moments:
            del optimizer.state[p]
    for group, options in zip(optimizer.param_groups, snapshot["options"]):
        for name, value in options.items():
            group[name] = _back(group.get(name), value, torch.device("cpu"))
    if isinstance(outer, Wrapper) and "wrapper" in snapshot:
        outer.load_own_state(_to_cpu(snapshot["wrapper"]))


def _place(now: Any, value: Any, parameter: Tensor) -> torch.device:
    if isinstance(now, Tensor):
        return now.device
    alike = isinstance(value, Tensor) and value.shape == parameter.shape
    return parameter.device if alike else torch.device("cpu")


class Snapshots:
    """The last snapshot that is known to be good, and a newer one that is not yet.

    A snapshot is known to be good when a newer one is taken, with no alarm between. It stays until a newer is known
    to be good, whatever happens: the last healthy copy is never rotated away.
    """

    def __init__(self) -> None:
        self.good: dict[str, Any] | None = None
        self.pending: dict[str, Any] | None = None

    def add(self, snapshot: dict[str, Any]) -> None:
        """A new one; that before becomes the good one."""
        if self.pending is not None:
            self.good = self.pending
        self.pending = snapshot

    def doubt(self) -> None:
        """An alarm: the newest may hold what caused it."""
        if self.good is not None:
            self.pending = None

    def before(self, step: int) -> dict[str, Any] | None:
        """The newest one that is older than a step and not in doubt."""
        for snapshot in (self.pending, self.good):
            if snapshot is not None and snapshot["step"] < step:
                return snapshot
        return None

    def state_dict(self) -> dict[str, Any]:
        """Both: they are never written into."""
        return {"good": self.good, "pending": self.pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        self.good, self.pending = state["good"], state["pending"]
