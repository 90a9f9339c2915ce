"""Steps of mirror descent, and optimism: the last gradient as a guess of the next one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .torch_private import foreach_add_, foreach_sub

Projection = Callable[[Tensor], Tensor]
"""The nearest point of a convex set."""


def euclidean_step(x: Tensor, slope: Tensor, rate: Tensor | float, project: Projection | None = None) -> Tensor:
    """The point of the set that minimises rate <slope, z> + |z - x|^2 / 2.

    >>> euclidean_step(torch.tensor([0.5]), torch.tensor([-2.0]), 0.5, lambda z: z.clamp(-1, 1))
    tensor([1.])
    """
    moved = x - rate * slope
    return moved if project is None else project(moved)


def entropy_step(log_p: Tensor, slope: Tensor, rate: Tensor | float) -> Tensor:
    """Logarithms of the rows of the simplex that minimise rate <slope, z> + KL(z, p): z ~ p exp(-rate slope).

    >>> entropy_step(torch.zeros(2), torch.tensor([0.0, 1.0]), 1.0).exp()
    tensor([0.7311, 0.2689])
    """
    return torch.log_softmax(log_p - rate * slope, -1)


def optimistic(gradients: list[Tensor], previous: list[Tensor]) -> list[Tensor]:
    """Twice each gradient less the one before: a step along both at once.

    >>> optimistic([torch.tensor([1.0, 2.0])], [torch.tensor([0.5, 2.5])])
    [tensor([1.5000, 1.5000])]
    """
    ahead = list(foreach_sub(gradients, previous))
    foreach_add_(ahead, gradients)
    return ahead
