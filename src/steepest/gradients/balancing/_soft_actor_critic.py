"""Soft actor-critic over weights on a simplex: an agent whose whole state lies in buffers."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...core.random import RandomStream

DISCOUNT, FOLLOW = 0.99, 0.005
LEAST, MOST = -20.0, 2.0
"""Ends of the log standard deviation."""
ENTROPY_AT_START = 0.2
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class SoftActorCritic(nn.Module):
    """An actor from losses ``[B, m]`` to weights ``[B, m]`` of sum m, twin critics, and a learned entropy coefficient.

    Networks of two rectified hidden layers, flat in buffers, so that no optimizer of the user's sees them and
    ``state_dict`` is complete. Adam moves them.

    Args:
        tasks: m.
        hidden: width of the hidden layers.
        lr: of all.
        stream: of starts and draws.
    """

    actor: Tensor
    critics: Tensor
    targets: Tensor
    log_entropy: Tensor

    def __init__(self, tasks: int, hidden: int, lr: float, stream: RandomStream) -> None:
        super().__init__()
        self.tasks, self.lr = tasks, lr
        self.of_actor, self.of_critics = [tasks, hidden, hidden, 2 * tasks], [2 * tasks, hidden, hidden, 1]
        self.draws = [stream]  # in a list, so that its owner alone saves it
        for name, value in self._first().items():
            self.register_buffer(name, value)
            if name != "targets":
                for moment in ("mean", "square"):
                    self.register_buffer(f"{name}_{moment}", torch.zeros_like(value))
        self.updates = 0

    def start(self) -> None:
        """New networks."""
        for name, value in self._first().items():
            getattr(self, name).copy_(value)
        for name, buffer in self.named_buffers():
            if name.endswith(("_mean", "_square")):
                buffer.zero_()
        self.updates = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state)

    @torch.no_grad()
    def act(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn weights ``[B, m]`` and the log density ``[B]`` of what the softmax was taken of."""
        return self._act(self.actor, state)

    def update(self, state: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> None:
        """One step of critics, actor, entropy coefficient and targets on a batch of transitions."""
        self.updates += 1
        entropy = self.log_entropy.exp()
        with torch.no_grad():
            then, log_density = self.act(after)
            value = self._values(self.targets, after, then).amin(0) - entropy * log_density
            wanted = reward + DISCOUNT * value
        with torch.enable_grad():
            critics = self.critics.detach().requires_grad_()
            loss = (self._values(critics, state, action) - wanted).square().mean(1).sum()
            (gradient,) = torch.autograd.grad(loss, critics)
            self._adam("critics", gradient)
            actor = self.actor.detach().requires_grad_()
            own, log_density = self._act(actor, state)
            loss = (entropy * log_density - self._values(self.critics, state, own).amin(0)).mean()
            (gradient,) = torch.autograd.grad(loss, actor)
        self._adam("actor", gradient)
        self._adam("log_entropy", -(log_density.detach() - self.tasks).mean())
        self.targets.lerp_(self.critics, FOLLOW)

    def _act(self, actor: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_deviation = network(actor, self.of_actor, state)[0].chunk(2, 1)
        log_deviation = log_deviation.clamp(LEAST, MOST)
        noise = self.draws[0].normal(*mean.shape).to(mean)
        log_density = (-0.5 * noise.square() - log_deviation - HALF_LOG_TWO_PI).sum(1)
        return self.tasks * torch.softmax(mean + log_deviation.exp() * noise, 1), log_density

    def _values(self, critics: Tensor, state: Tensor, action: Tensor) -> Tensor:
        return network(critics, self.of_critics, torch.cat([state, action], 1)).squeeze(2)

    @torch.no_grad()
    def _adam(self, name: str, gradient: Tensor) -> None:
        mean, square = getattr(self, f"{name}_mean"), getattr(self, f"{name}_square")
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        corrected = (square / (1 - 0.999**self.updates)).sqrt() + 1e-8
        getattr(self, name).sub_(self.lr * mean / (1 - 0.9**self.updates) / corrected)

    def _first(self) -> dict[str, Tensor]:
        critics = torch.stack([self._layers(self.of_critics) for _ in range(2)])
        return {
            "actor": self._layers(self.of_actor).unsqueeze(0),
            "critics": critics,
            "targets": critics.clone(),
            "log_entropy": torch.tensor(math.log(ENTROPY_AT_START)),
        }

    def _layers(self, sizes: list[int]) -> Tensor:
        """Uniform within the inverse root of the inputs, weights and biases, flat."""
        pieces = []
        for width, out in pairwise(sizes):
            draw = torch.rand(width * out + out, generator=self.draws[0].generator)
            pieces.append((2 * draw - 1) / math.sqrt(width))
        return torch.cat(pieces)


def network(flat: Tensor, sizes: list[int], x: Tensor) -> Tensor:
    """K networks, flat ``[K, n]``, on ``[B, sizes[0]]``: ``[K, B, sizes[-1]]``, rectified between layers."""
    hidden, position = x.expand(len(flat), *x.shape), 0
    for number, (width, out) in enumerate(pairwise(sizes)):
        weight = flat[:, position : position + width * out].view(-1, width, out)
        bias = flat[:, position + width * out : position + width * out + out].unsqueeze(1)
        position += width * out + out
        hidden = torch.baddbmm(bias, hidden.relu() if number else hidden, weight)
    return hidden
