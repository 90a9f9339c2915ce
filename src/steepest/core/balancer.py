"""The contract of a balancer: from the losses of several tasks to the one that is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from .arguments import Arguments
from .checks import check_tensor, refuse


class Balancer(Arguments, nn.Module):
    """``forward(losses) -> scalar``: losses ``[m]``, one a task, give the loss to go down.

    What is learned with the network lies in ``parameters()``, for the optimizer; what is kept between calls in buffers.

    Class attributes:
        name: snake_case, unique.
        exempt: names of conformance checks that don't apply, each with its reason.

    Members write :meth:`_balance`, which gets checked losses in float32 or wider, with their graph.
    """

    name: ClassVar[str] = ""
    exempt: ClassVar[dict[str, str]] = {}

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks

    def forward(self, losses: F[Tensor, " m"] | Sequence[Tensor]) -> Tensor:
        """The loss to go down, a scalar.

        Args:
            losses: ``[m]``, or m scalars.

        Raises:
            ValueError: another number of losses.
            TypeError: no floating numbers.
        """
        return self._balance(self.joined(losses))

    def joined(self, losses: Tensor | Sequence[Tensor]) -> Tensor:
        """The losses as one tensor ``[m]``, checked."""
        joined = as_losses(losses)
        if len(joined) != self.tasks:
            refuse("losses", f"{self.tasks} losses, one a task", joined)
        return joined

    def _balance(self, losses: Tensor) -> Tensor:
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what earlier calls left."""

    @classmethod
    def instances(cls) -> list[Self]:
        """Balancers of three tasks for the conformance suite."""
        return [cls(3)]


def as_losses(losses: Tensor | Sequence[Tensor]) -> Tensor:
    """Losses as one tensor ``[m]`` in float32 or wider.

    Raises:
        ValueError: none, or another shape.
        TypeError: not tensors, or no floating numbers.
    """
    if not isinstance(losses, Tensor):
        for loss in losses:
            check_tensor("losses", loss, ndim=0, floating=True)
        if not losses:
            refuse("losses", "at least one loss", losses)
        losses = torch.stack(list(losses))
    check_tensor("losses", losses, ndim=1, floating=True)
    if not len(losses):
        refuse("losses", "at least one loss", losses)
    return losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses
