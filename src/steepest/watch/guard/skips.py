"""Steps that are not taken: a bit-exact no-op of parameters, moments and counters, never a factor."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer inside those that wrap it, which moves the weights.

    >>> sgd = torch.optim.SGD([torch.zeros(1)])
    >>> innermost(sgd) is sgd
    True
    """
    while True:
        inside = [vars(optimizer).get(name) for name in ("base_optimizer", "optimizer", "_optimizer")]
        deeper = next((inner for inner in inside if isinstance(inner, Optimizer)), None)
        if deeper is None:
            return cast(Optimizer, optimizer)
        optimizer = deeper


def reads_found_inf(optimizer: Optimizer) -> bool:
    """Whether a step is a no-op where ``optimizer.found_inf`` is 1, decided on the device.

    Fused optimizers of torch read it. Of a first step some of them would keep memory that nobody wrote as a moment:
    then not, but for those that begin with moments of zero.
    """
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.Adagrad)):
        return True
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return all(optimizer.state.get(p) for p in stepped)


class Skip:
    """What was put on an optimizer for one step, to be taken away after it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._slopes: list[tuple[Tensor, Tensor]] = []
        self._attribute = False
        self._before: Tensor | None = None
        self._rates: list[Any] = []

    def tell(self, verdict: Tensor) -> None:
        """Let the optimizer decide by ``found_inf``; what a scaler has said there counts too."""
        own = verdict.to(torch.float32)
        self._before = cast(Tensor | None, self.optimizer.__dict__.get("found_inf"))
        cast(Any, self.optimizer).found_inf = (
            own if self._before is None else torch.maximum(own, self._before.to(own.device, own.dtype))
        )
        self._attribute = True

    def hide(self) -> None:
        """Take all gradients away, so that nothing is stepped."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._slopes.append((p, p.grad))
                    p.grad = None

    def slow(self, factor: float) -> None:
        """Step at a factor of the rate."""
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def undo(self) -> None:
        """Gradients, rates and the attribute as they were."""
        for p, slope in self._slopes:
            p.grad = slope
        self._slopes = []
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate
        self._rates = []
        if self._attribute:
            if self._before is None:
                del cast(Any, self.optimizer).found_inf
            else:
                cast(Any, self.optimizer).found_inf = self._before
            self._attribute, self._before = False, None
