"""What loops of other libraries need for steps that take two gradients, the loss, or several losses.

Those loops run micro-batch by micro-batch, scale losses, clip, and call ``optimizer.step()`` without a closure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core.balancer import as_losses
from ..core.checks import check_tensor, refuse, refuse_type
from ..core.displaced import Traces, random_numbers, same_random_numbers
from ..core.jacobian import add_to_gradients, jacobian_rows
from ..core.wrapper import TwoPassWrapper, Wrapper

R = TypeVar("R")
_AROUND = ("accelerate", "lightning", "pytorch_lightning")
"""Libraries that put an optimizer of their own around the user's."""


def bare(optimizer: Any) -> Any:
    """The optimizer within those that a library puts around it."""
    while type(optimizer).__module__.partition(".")[0] in _AROUND:
        optimizer = optimizer.optimizer
    return optimizer


def takes_loss(optimizer: Optimizer) -> bool:
    """Whether its step has an argument ``loss``."""
    return "loss" in inspect.signature(type(optimizer).step).parameters


class WithLoss(Wrapper):
    """An optimizer whose ``step(loss=...)`` gets the loss that was left here: loops call ``step()`` alone.

    Args:
        base_optimizer: one with an argument ``loss`` of its step.

    >>> class Polyak(torch.optim.SGD):
    ...     def step(self, closure=None, loss=None):
    ...         print(float(loss))
    >>> optimizer = WithLoss(Polyak([torch.zeros(1, requires_grad=True)], lr=0.1))
    >>> optimizer.loss = torch.tensor(2.0)
    >>> optimizer.step()
    2.0
    """

    loss: Tensor | None = None

    def _advance(self, closure: Callable[[], Any] | None) -> None:
        if self.loss is None:
            refuse("loss", "that of the gradients, before the step", None)
        loss, self.loss = self.loss, None
        step: Any = self.base_optimizer.step
        step(loss=loss)


class Window:
    """The micro-batches of one step, run once as they come, and once more where the optimizer takes two gradients.

    Both times a micro-batch draws the same random numbers, and running statistics and memories keep what the first
    pass left in them.

    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> window = Window()
    >>> for share in (0.25, 0.75):
    ...     def run(share=share):
    ...         loss = share * w.square().sum()
    ...         loss.backward()
    ...         return loss
    ...     window.add(window.run(run))
    >>> window.loss, w.grad
    (tensor(2.), tensor([2., 2.]))
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """The next micro-batch is the first of a step."""
        self._runs: list[tuple[Callable[[], Any], dict[str, Tensor]]] = []
        self._traces = Traces()
        self.loss: Tensor | None = None
        """The sum over micro-batches."""

    def run(self, work: Callable[[], R], again: Callable[[], Any] | None = None) -> R:
        """What a micro-batch gives when it runs the first time.

        Args:
            work: runs it, at least forward.
            again: runs it forward and backward, in the second pass; None is the same.
        """
        start = random_numbers()
        with self._traces.watching():
            result = work()
        self._runs.append((work if again is None else again, start))
        return result

    def add(self, loss: Tensor) -> None:
        """The part of a micro-batch in the loss of the step."""
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def again(
        self,
        optimizer: TwoPassWrapper,
        zero: Callable[[], Any],
        unsynced: Callable[[], AbstractContextManager[Any]],
        *,
        scaler: torch.amp.GradScaler | None = None,
        finish: Callable[[], Any] | None = None,
    ) -> None:
        """The second pass over all micro-batches; afterwards ``optimizer.step()`` makes the step.

        Args:
            optimizer: that which moves the weights.
            zero: makes gradients zero.
            unsynced: keeps ranks from averaging gradients, around all micro-batches but the last.
            scaler: of the first gradient.
            finish: makes gradients of what the passes left, while the weights are still moved.
        """
        optimizer._step_supports_amp_scaling = False  # loops then unscale, clip and skip by themselves
        with optimizer.moved(self._traces, scaler=scaler), torch.enable_grad():
            zero()
            for number, (work, start) in enumerate(self._runs, start=1):
                with same_random_numbers(start):
                    if number < len(self._runs):
                        with unsynced():
                            work()
                    else:
                        work()
            if finish is not None:
                finish()


class Joint:
    """Gradients of several losses, summed over micro-batches and ranks, joined by an aggregator once a step.

    Args:
        aggregator: from a Jacobian ``[m, n]`` to a direction ``[n]``.
        shared: parameters that it is about; others get the gradient of the sum of the losses. None is all.
    """

    def __init__(self, aggregator: Any, shared: Iterable[Tensor] | None = None) -> None:
        if not callable(aggregator):
            refuse_type("aggregator", "an aggregator, or a function of a Jacobian", aggregator)
        self.aggregator = aggregator
        self.shared = None if shared is None else {id(p) for p in shared}
        self.jacobian: Tensor | None = None

    def add(self, losses: Tensor, parameters: Sequence[Tensor], factor: Tensor | float = 1.0) -> None:
        """Add the Jacobian of ``factor`` times the losses of a micro-batch."""
        if (shared := self.shared) is not None:
            parameters = sorted(parameters, key=lambda p: id(p) not in shared)
        rows = jacobian_rows(losses * factor, parameters)
        if self.jacobian is not None and len(self.jacobian) != len(rows):
            refuse("losses", f"{len(self.jacobian)} of them, as in the micro-batches before", losses)
        self.parameters = parameters
        self.jacobian = rows if self.jacobian is None else self.jacobian + rows

    def write(self, mean: Callable[[Tensor], Tensor] | None = None, scale: float = 1.0) -> None:
        """Add the direction to ``.grad``; NaN where a gradient is not finite, and then the aggregator learns of none.

        Args:
            mean: over ranks.
            scale: of the losses; the aggregator sees gradients without it, ``.grad`` has it.
        """
        jacobian, self.jacobian = self.jacobian, None
        assert jacobian is not None
        jacobian = jacobian if mean is None else mean(jacobian)
        if scale != 1.0:
            jacobian = jacobian / scale
        own = sum(p.numel() for p in self.parameters if self.shared is None or id(p) in self.shared)
        if not bool(jacobian.isfinite().all()):
            direction = torch.full_like(jacobian[0], torch.nan)
        else:
            joined = self.aggregator(jacobian[:, :own])
            check_tensor("aggregator", joined, shape=(own,))
            direction = torch.cat([joined.to(jacobian), jacobian[:, own:].sum(0)]) * scale
        add_to_gradients(direction, self.parameters)


def several(losses: Any, where: str) -> Tensor:
    """Losses ``[m]`` of a tensor, a sequence or a dict of scalars."""
    if losses is None:
        refuse(where, "losses: a tensor [m], or m scalars in a sequence or a dict", None)
    return as_losses(list(losses.values()) if isinstance(losses, Mapping) else losses)


def trained(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer that require a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
