"""Weights by how much each task can still improve: by the ratio to an early loss, or chosen by an agent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.balancer import Balancer
from ...core.checks import check_number, refuse, values_visible
from ...core.random import RandomStream
from ._soft_actor_critic import SoftActorCritic


class _LogLosses(Balancer):
    """A sum of log losses with weights that carry no gradient, and the mean loss of the second epoch."""

    base: Tensor
    weights: Tensor

    def __init__(self, num_tasks: int, steps_per_epoch: int | None) -> None:
        check_number("num_tasks", num_tasks, low=1, integer=True)
        if steps_per_epoch is not None:
            check_number("steps_per_epoch", steps_per_epoch, low=1, integer=True)
        super().__init__(num_tasks)
        self.num_tasks, self.steps_per_epoch = num_tasks, steps_per_epoch
        self.register_buffer("base", torch.zeros(num_tasks))
        self.register_buffer("weights", torch.ones(num_tasks))
        self.steps, self.based = 0, False

    def set_base(self, losses: Tensor | Sequence[Tensor]) -> None:
        """The reference of each task, its mean training loss over an early epoch (the second).

        Raises:
            ValueError: another number, or one that is not positive.
        """
        joined = self._positive(self.joined(losses))
        self.base.copy_(joined.detach())
        self.based = True

    def weighted_losses(self, losses: Tensor | Sequence[Tensor]) -> F[Tensor, " m"]:
        """The terms of the sum, for an aggregator of gradients; takes the place of a call.

        Raises:
            ValueError: another number of losses, or one that is not positive.
        """
        joined = self._positive(self.joined(losses))
        weights = self._weigh(joined.detach())
        if self.training:
            self.weights.copy_(weights)
            self._advance(joined.detach())
        return weights * joined.log()

    def reset(self) -> None:
        """Without a base again."""
        self.base.zero_()
        self.weights.fill_(1.0)
        self.steps, self.based = 0, False

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.steps, int(self.based)])

    def set_extra_state(self, state: Tensor) -> None:
        self.steps, self.based = int(state[0]), bool(state[1])

    def _balance(self, losses: Tensor) -> Tensor:
        return self.weighted_losses(losses).sum()

    def _weigh(self, losses: Tensor) -> Tensor:
        raise NotImplementedError

    def _advance(self, losses: Tensor) -> None:
        epoch = self.steps_per_epoch
        if epoch is not None and not self.based and epoch <= self.steps < 2 * epoch:
            self.base += losses / epoch
            self.based = self.steps + 1 == 2 * epoch
        self.steps += 1

    def _positive(self, losses: Tensor) -> Tensor:
        if values_visible(losses) and bool((losses <= 0).any()):
            refuse("losses", "losses > 0, as their logarithms are summed", losses.tolist())
        return losses


class IGBv1(_LogLosses):
    r"""Log losses, each weighted by the ratio of the loss to that of an early epoch.

    .. math::
        L = \sum_i \lambda_i \log \ell_i, \qquad
        \lambda = m \, \mathrm{softmax}(\ell_i / \bar\ell_i) \quad \text{(no gradient)}

    Before the base is known the weights are 1. A weight never exceeds m, whatever a loss does; a loss near 0 has the
    large gradient 1/l.

    Args:
        num_tasks: m.
        steps_per_epoch: where it is given, the base is the mean over the second epoch of calls while training, unless
            :meth:`set_base` came before; else that alone sets it.

    Raises:
        ValueError: at a call, a loss that is not positive.

    Example:
        >>> balancer = IGBv1(2)
        >>> balancer.set_base(torch.tensor([1.0, 1.0]))
        >>> round(balancer(torch.tensor([0.5, 2.0])).item(), 4)
        0.8805
        >>> balancer.weights
        tensor([0.3649, 1.6351])

    Source: Improvable Gap Balancing for Multi-Task Learning, arXiv:2307.15429.
    """

    name = "igb_v1"

    def __init__(self, num_tasks: int, steps_per_epoch: int | None = None) -> None:
        super().__init__(num_tasks, steps_per_epoch)

    def _weigh(self, losses: Tensor) -> Tensor:
        if not self.based:
            return torch.ones_like(losses)
        return self.num_tasks * torch.softmax(losses / self.base, 0)

    @classmethod
    def instances(cls) -> list[IGBv1]:
        return [cls(3), cls(3, steps_per_epoch=1)]


ImprovableGapBalancing = IGBv1


class IGBv2(_LogLosses):
    r"""Log losses, weighted by a soft actor-critic agent that is rewarded by the worst task's progress.

    .. math::
        \lambda = m \, \mathrm{softmax}(u), \quad u \sim N(\mu(\ell), \sigma(\ell)), \qquad
        r = c \min_i \frac{\ell_i^{t-1} - \ell_i^t}{\bar\ell_i}

    For five epochs the weights are drawn, m softmax(N(0, I)). From the third on, once the base of the second is known,
    the agent learns every 50 steps. As the softmax cannot be inverted, the density that its entropy counts is that of
    u, without a correction; the official code corrects for a tanh that is not there.

    A call is a step of training; in ``eval`` it draws weights and keeps nothing else.

    Args:
        num_tasks: m.
        steps_per_epoch: calls of an epoch.
        start_epoch: epochs with drawn weights.
        update_after: epochs before the agent learns, at least 2.
        update_every: steps between its updates, and twice the number of updates where the memory is empty.
        batch_size: of transitions, at a full memory; half of it where it is empty.
        buffer_size: transitions that are remembered.
        hidden: width of the two hidden layers of actor and critics.
        lr: of the agent.
        seed: of the agent; None takes it from torch's generator.

    ``reward_scale``, c, is 1; where the network's rate falls, set it to the first rate divided by the present one.

    Example:
        >>> balancer = IGBv2(2, steps_per_epoch=10, seed=0)
        >>> loss = balancer(torch.tensor([0.5, 2.0]))
        >>> round(balancer.weights.sum().item(), 4)
        2.0

    Source: Improvable Gap Balancing for Multi-Task Learning, arXiv:2307.15429.
    """

    name = "igb_v2"
    last: Tensor
    memory: Tensor

    def __init__(
        self,
        num_tasks: int,
        steps_per_epoch: int,
        start_epoch: int = 5,
        update_after: int = 3,
        update_every: int = 50,
        batch_size: int = 256,
        buffer_size: int = 10_000,
        hidden: int = 128,
        lr: float = 3e-4,
        seed: int | None = None,
    ) -> None:
        super().__init__(num_tasks, steps_per_epoch)
        for argument, value, low in (
            ("start_epoch", start_epoch, 0),
            ("update_after", update_after, 2),
            ("update_every", update_every, 1),
            ("batch_size", batch_size, 2),
            ("buffer_size", buffer_size, 1),
            ("hidden", hidden, 1),
        ):
            check_number(argument, value, low=low, integer=True)
        check_number("lr", lr, low=0.0, open_low=True)
        self.start_epoch, self.update_after, self.update_every = start_epoch, update_after, update_every
        self.batch_size, self.buffer_size, self.reward_scale = batch_size, buffer_size, 1.0
        self.stream = RandomStream(seed)
        self.agent = SoftActorCritic(num_tasks, hidden, lr, self.stream)
        self.register_buffer("memory", torch.zeros(buffer_size, 3 * num_tasks + 1))
        self.register_buffer("last", torch.zeros(2, num_tasks))  # losses and weights of the step before
        self.written = 0

    def reset(self) -> None:
        """A new agent, without a memory."""
        super().reset()
        self.stream.generator.manual_seed(self.stream.generator.initial_seed())
        self.agent.start()
        for buffer in (self.memory, self.last):
            buffer.zero_()
        self.reward_scale, self.written = 1.0, 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.steps, self.based, self.written, self.reward_scale], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        self.written, self.reward_scale = int(state[2]), float(state[3])

    def _weigh(self, losses: Tensor) -> Tensor:
        if self.training:
            self._learn(losses)
        assert self.steps_per_epoch is not None
        if self.steps < self.start_epoch * self.steps_per_epoch:
            draw = self.stream.normal(self.num_tasks).to(losses)
            return self.num_tasks * torch.softmax(draw, 0)
        return self.agent.act(losses.float().unsqueeze(0))[0][0].to(losses)

    def _advance(self, losses: Tensor) -> None:
        self.last[0], self.last[1] = losses, self.weights
        super()._advance(losses)

    def _learn(self, losses: Tensor) -> None:
        """Remember how the last weights have done; learn, where it is time."""
        if self.based:
            progress = ((self.last[0] - losses) / self.base).min() * self.reward_scale
            transition = torch.cat([self.last.flatten(), progress.view(1), losses])
            self.memory[self.written % self.buffer_size] = transition.to(self.memory.dtype)
            self.written += 1
        assert self.steps_per_epoch is not None
        due = self.steps >= self.update_after * self.steps_per_epoch and self.steps % self.update_every == 0
        if due and self.written:
            filled = min(self.written, self.buffer_size)
            share = (1 + filled / self.buffer_size) / 2
            for _ in range(int(self.update_every * share)):
                rows = torch.randint(filled, (int(self.batch_size * share),), generator=self.stream.generator)
                state, action, reward, after = self.memory[rows.to(self.memory.device)].split(
                    [self.num_tasks, self.num_tasks, 1, self.num_tasks], 1
                )
                self.agent.update(state, action, reward.squeeze(1), after)

    @classmethod
    def instances(cls) -> list[IGBv2]:
        small = {"update_every": 2, "batch_size": 4, "buffer_size": 8, "hidden": 4, "seed": 1}
        return [cls(3, 100), cls(3, 1, start_epoch=3, update_after=2, **small)]
