"""Networks with a shared trunk and a head for each task, many of them trained at once on the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


class Trunks(nn.Module):
    """Equal networks at the start: tanh layers shared by all tasks, and a linear head for each.

    Args:
        members: how many.
        inputs: features.
        widths: of the shared layers.
        heads: outputs of each task.
        seed: of the weights, which all members begin with.
        dtype: of the weights.
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        widths: Sequence[int],
        heads: Mapping[str, int],
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def layer(width: int, out: int) -> nn.ParameterList:
            weight = torch.randn(width, out, generator=generator, dtype=torch.float64) / math.sqrt(width)
            stacked = weight.to(dtype).expand(members, width, out).clone()
            return nn.ParameterList([stacked, torch.zeros(members, 1, out, dtype=dtype)])

        self.shared = nn.ModuleList([layer(a, b) for a, b in zip([inputs, *widths[:-1]], widths)])
        self.heads = nn.ModuleDict({name: layer(widths[-1], out) for name, out in heads.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Inputs ``[B, inputs]`` to the outputs of each task, ``[members, B, out]``."""
        own = list(self.shared[0])
        hidden = (x @ own[0] + own[1]).tanh()
        for weight, bias in (list(layer) for layer in list(self.shared)[1:]):
            hidden = torch.baddbmm(bias, hidden, weight).tanh()
        return {name: torch.baddbmm(layer[1], hidden, layer[0]) for name, layer in self.heads.items()}  # type: ignore[index]


class StackedAdam:
    """Adam with a learning rate a member, which falls to 0 along a cosine.

    Its second moments decay by 0.99 and not 0.999 a step: weights of losses that change by powers of ten within some
    hundred steps would else find steps that are still divided by the gradients of before.

    Args:
        parameters: ``[members, ...]`` each.
        rates: ``[members]``.
        steps: after which the rate is 0.
    """

    def __init__(self, parameters: Iterator[Tensor], rates: Tensor, steps: int) -> None:
        self.parameters = list(parameters)
        self.rates, self.steps, self.step_number = rates, steps, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Go along the gradients, and forget them."""
        fall = 0.5 * (1 + math.cos(math.pi * self.step_number / self.steps))
        self.step_number += 1
        first, second = 1 - 0.9**self.step_number, 1 - 0.99**self.step_number
        for parameter, (mean, square) in zip(self.parameters, self.moments):
            gradient = parameter.grad
            assert gradient is not None
            mean.lerp_(gradient, 0.1)
            square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            rate = (fall * self.rates / first).view(-1, *[1] * (parameter.ndim - 1))
            parameter -= rate * mean / ((square / second).sqrt() + 1e-8)
            parameter.grad = None


def batches(rows: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of each step: every row once an epoch, in another order each time."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(left) < size:
            left = torch.randperm(rows, generator=generator)
        yield left[:size]
        left = left[size:]
