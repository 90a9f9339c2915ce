"""A guard against training that only looks fast: gradients that are zero, steps that move nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core.checks import check_number, refuse, refuse_type
from ...core.torch_private import foreach_norm


class ZeroGradientGuard:
    r"""Raise when gradients are zero or not finite, or when a step leaves every parameter as it was.

    A step is dead if the global gradient norm :math:`(\sum g^2)^{1/2}` is 0 or not finite, or if no parameter changed.
    After ``patience`` dead steps in a row the guard raises. The gradient is judged by its largest magnitude, which is 0
    or not finite exactly where the norm is and neither under- nor overflows; it is judged before the step is taken, so
    that what raises never reaches the weights (with a closure: after it). To see whether anything moved, the guard
    keeps a copy of the trained parameters while a step runs. Looking at values waits for the device: this is a guard
    for the first steps of a run and for benchmarks.

    Args:
        patience: dead steps in a row that raise, >= 1.

    Attributes:
        largest: the largest magnitude in the last gradient.
        dead: dead steps in a row.
        steps: steps seen.

    Raises:
        RuntimeError: from the optimizer's ``step()``, after ``patience`` dead steps in a row.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> handle = ZeroGradientGuard().attach(optimizer)
        >>> (weight * 0).sum().backward()
        >>> optimizer.step()
        Traceback (most recent call last):
        RuntimeError: dead training at step 1 (1 in a row): the gradient of all 1 parameters is zero

    Source: Chronicals, code Ajwebdevs/Chronicals.
    """

    def __init__(self, patience: int = 1) -> None:
        check_number("patience", patience, low=1, integer=True)
        self.patience = patience
        self.largest = float("nan")
        self.dead = 0
        self.steps = 0
        self._watched: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._reason = ""

    def attach(self, optimizer: Optimizer) -> Callable[[], None]:
        """Watch every step of an optimizer; the function that comes back ends it."""
        if not isinstance(optimizer, Optimizer):
            refuse_type("optimizer", "an optimizer of torch", optimizer)

        def parameters() -> list[Tensor]:
            return [p for group in optimizer.param_groups for p in group["params"]]

        def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = kwargs.get("closure", args[1] if len(args) > 1 else None)
            self.before_step(parameters(), gradients=given is None)

        def after(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = kwargs.get("closure", args[1] if len(args) > 1 else None)
            self.after_step(gradients=given is not None)

        handles = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)

        def detach() -> None:
            for handle in handles:
                handle.remove()

        return detach

    def before_step(self, parameters: Iterable[Tensor], *, gradients: bool = True) -> None:
        """Judge the gradients of ``parameters`` (unless told not to) and remember their values."""
        self._watched = [p for p in parameters if p.requires_grad]
        if not self._watched:
            refuse("parameters", "at least one that is trained", [])
        self.steps += 1
        self._reason = self._judge() if gradients else ""
        if self._reason and self.dead + 1 >= self.patience:
            self._raise()
        self._copies = [p.detach().clone() for p in self._watched]

    def after_step(self, *, gradients: bool = False) -> None:
        """Judge whether the step moved anything; the gradients here where a closure made them."""
        if not self._copies:
            raise RuntimeError("after_step: expected before_step first")
        if gradients:
            self._reason = self._judge()
        if not self._reason and all(map(torch.equal, self._watched, self._copies)):
            self._reason = f"the step changed none of {len(self._watched)} parameters"
        self._copies = []
        if not self._reason:
            self.dead = 0
        elif self.dead + 1 >= self.patience:
            self._raise()
        else:
            self.dead += 1

    def _judge(self) -> str:
        """What is wrong with the gradient, or nothing."""
        values = [
            p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in self._watched if p.grad is not None
        ]
        values = [v for v in values if v.numel()]
        self.largest = 0.0
        if values:
            tops = foreach_norm(values, float("inf"))
            self.largest = float(torch.stack([top.to(tops[0].device, torch.float64) for top in tops]).max())
        if self.largest == 0.0:
            missing = sum(p.grad is None for p in self._watched)
            extra = f" ({missing} have none)" if missing else ""
            return f"the gradient of all {len(self._watched)} parameters is zero{extra}"
        return "" if self.largest < float("inf") else f"the largest gradient is {self.largest}"

    def _raise(self) -> None:
        self.dead += 1
        self._copies = []
        raise RuntimeError(f"dead training at step {self.steps} ({self.dead} in a row): {self._reason}")
