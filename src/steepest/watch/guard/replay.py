"""Training again on batches that are held, without those that are suspected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.probe import call_arguments, untouched
from ...core.torch_private import foreach_mul_
from ...core.undisturbed import same_random_states

if TYPE_CHECKING:
    from .guard import Guard


@dataclass
class Batch:
    """A batch as it was told, and the precision in which it ran.

    Args:
        inputs, targets: references.
        autocast: device type and dtype, where it was told under autocast.
    """

    inputs: Any
    targets: Any
    autocast: tuple[str, torch.dtype] | None = None

    def precision(self) -> AbstractContextManager[Any]:
        """The context of its forward pass."""
        return nullcontext() if self.autocast is None else torch.autocast(self.autocast[0], dtype=self.autocast[1])


@dataclass
class Step:
    """A step that was taken: what a replay needs of it.

    Args:
        number: of the step.
        batches: one, or several that were accumulated.
        rates: of each group.
    """

    number: int
    batches: Sequence[Batch]
    rates: Sequence[Any]


def precision_of(device: torch.device) -> tuple[str, torch.dtype] | None:
    """The autocast that is on for a device now."""
    kind = device.type
    return (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def loss_of(guard: Guard, batch: Batch) -> Tensor | None:
    """The loss of a batch with its graph; None where nobody knows how it is computed."""
    if batch.inputs is None:
        return None
    args, kwargs = call_arguments(batch.inputs)
    with batch.precision():
        outputs = guard.model(*args, **kwargs)
        if guard.objective is not None:
            return guard.objective(outputs, batch.targets).mean()
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return loss.mean() if isinstance(loss, Tensor) else None


def replay(guard: Guard, steps: Sequence[Step]) -> int:
    """Take steps again; gives how many, and ends where rules suspect ``patience`` of them in a row.

    Random numbers of the loop are not touched. A scaler's state is not either: gradients are multiplied by its scale
    and divided again.

    Args:
        guard: whose model, objective and optimizer.
        steps: in their order.
    """
    if guard.objective is None and not _gives_loss(guard, steps):
        return 0
    optimizer = guard.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = guard.scaler
    scale = float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
    attributes = {name: optimizer.__dict__.pop(name) for name in ("grad_scale", "found_inf") if name in vars(optimizer)}
    rates = [group["lr"] for group in optimizer.param_groups]
    slopes = [p.grad for p in parameters]
    taken = 0

    def gradients(batches: Sequence[Batch]) -> Tensor:
        for p in parameters:
            p.grad = None
        total = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            loss = loss_of(guard, batch)
            assert loss is not None
            (loss * (scale / len(batches))).backward()
            total = total + loss.detach().double().cpu() / len(batches)
        if scale != 1.0:
            foreach_mul_([p.grad for p in parameters if p.grad is not None], 1.0 / scale)
        guard.told_again(total)
        return total

    try:
        with same_random_states(), torch.enable_grad():
            for step in steps:
                for group, rate in zip(optimizer.param_groups, step.rates):
                    group["lr"] = rate
                guard.outer.step(partial(gradients, step.batches))  # type: ignore[arg-type]
                taken += 1
                if guard.alarmed:
                    break
    finally:
        for name, value in attributes.items():
            setattr(optimizer, name, value)
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate
        for p, slope in zip(parameters, slopes):
            p.grad = slope
    return taken


def _gives_loss(guard: Guard, steps: Sequence[Step]) -> bool:
    """Whether the model itself gives the loss of a batch."""
    if not steps:
        return False
    with untouched(guard.model), torch.no_grad():
        return loss_of(guard, steps[0].batches[0]) is not None
