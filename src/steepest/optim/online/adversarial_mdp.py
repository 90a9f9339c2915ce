"""Policy optimisation where losses change each episode: log-barrier regularisation, estimates of reduced magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor

from ...core.checks import check_choice, check_interval, check_number, check_simplex, check_tensor, refuse
from ...core.reductions import widen

METHODS = ("log_barrier", "magnitude_reduced", "exponential")
NEWTON = 200
"""Steps of Newton's method, at most: log2 of the number of actions, and a few more, suffice."""


def log_barrier_ftrl(cum_loss: F[Tensor, "*rows actions"], eta: float | Tensor) -> F[Tensor, "*rows actions"]:
    r"""Follow the regularised leader with a log barrier: probabilities from cumulative losses.

    .. math::
        p = \arg\min_{p \in \Delta} \eta \langle p, c \rangle + \sum_a \log \frac1{p_a}, \qquad
        p_a = \frac1{\eta c_a + \lambda}, \quad \sum_a p_a = 1

    For losses l of any sign and size, :math:`\langle p_t - p, l \rangle - D(p, p_t) / \eta
    \le \eta \sum_a p_t(a) l(a)^2`, where D is the Bregman divergence of the barrier. The multiplier is found by
    Newton's method in float64, after the least loss is taken from all: a constant that is added changes nothing.

    Args:
        cum_loss: c, the sum of (estimated) losses of each action.
        eta: learning rate > 0; a tensor holds one for each row.

    Returns:
        probabilities > 0, in float32 or wider.

    Raises:
        ValueError: no actions, eta not above 0.

    Example:
        >>> log_barrier_ftrl(torch.tensor([1.0, 0.0, 2.0]), eta=0.5)
        tensor([0.3273, 0.3914, 0.2813])

    Source: Refined Regret for Adversarial MDPs with Linear Function Approximation, arXiv:2301.12942.
    """
    check_tensor("cum_loss", cum_loss, floating=True)
    if not cum_loss.ndim or not cum_loss.shape[-1]:
        refuse("cum_loss", "at least 1 action in the last dimension", cum_loss)
    rates = _rates("eta", eta, cum_loss)
    wide = cum_loss.detach().double()
    gaps = rates * (wide - wide.amin(-1, keepdim=True))
    root = torch.ones_like(gaps[..., :1])  # left of the root of a convex function: steps only grow towards it
    for _ in range(NEWTON):
        shares = 1 / (gaps + root)
        step = (shares.sum(-1, keepdim=True) - 1) / shares.square().sum(-1, keepdim=True)
        root = root + step
        if not bool((step > 1e-15 * root).any()):
            break
    shares = 1 / (gaps + root)
    return (shares / shares.sum(-1, keepdim=True)).to(widen(cum_loss).dtype)


def _rates(argument: str, value: float | Tensor, rows: Tensor) -> float | Tensor:
    """A number, or a tensor of one number a row with a last dimension of 1."""
    if not isinstance(value, Tensor):
        check_number(argument, value, low=0.0, open_low=True)
        return float(value)
    check_interval(argument, value, low=torch.finfo(torch.float32).tiny, what="numbers", rounding=0.0)
    return value.to(rows.device).double()[..., None]


def _of_learners(argument: str, value: float | Tensor, learners: int, zero: bool = False) -> F[Tensor, "R 1 1 1"]:
    """A number of all learners, or one of each, above 0 or also 0."""
    if isinstance(value, Tensor):
        check_tensor(argument, value, floating=True, shape=(learners,))
        low = 0.0 if zero else torch.finfo(torch.float32).tiny
        check_interval(argument, value, low=low, what="numbers", rounding=0.0)
    else:
        check_number(argument, value, low=0.0, open_low=not zero)
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1, 1)


class LogBarrierFTRL:
    r"""Online learning of probabilities: the state of :func:`log_barrier_ftrl`, a row a learner.

    Args:
        shape: of the losses, actions last.
        eta: learning rate > 0.

    Attributes:
        cum_loss: the sum of losses so far, float64.

    Raises:
        ValueError: eta not above 0, losses of another shape.

    Example:
        >>> learner = LogBarrierFTRL((3,), eta=0.5)
        >>> learner.update(torch.tensor([1.0, 0.0, 2.0]))
        >>> learner.probabilities()
        tensor([0.3273, 0.3914, 0.2813], dtype=torch.float64)

    Source: Refined Regret for Adversarial MDPs with Linear Function Approximation, arXiv:2301.12942.
    """

    def __init__(self, shape: tuple[int, ...], eta: float) -> None:
        check_number("eta", eta, low=0.0, open_low=True)
        self.eta = eta
        self.cum_loss = torch.zeros(shape, dtype=torch.float64)

    def probabilities(self) -> Tensor:
        """Of the next round."""
        return log_barrier_ftrl(self.cum_loss, self.eta)

    def update(self, loss: Tensor) -> None:
        """Learn the losses, or estimates of them, of a round."""
        check_tensor("loss", loss, floating=True, shape=tuple(self.cum_loss.shape))
        self.cum_loss = self.cum_loss + loss.detach().double()


def magnitude_reduced_estimator(
    x: F[Tensor, "*shape"],
    loss_to_go: Tensor,
    x_draws: F[Tensor, "*shape draws"],
    H: float,
    counts: F[Tensor, "*shape draws"] | None = None,
) -> F[Tensor, "*shape"]:
    r"""An estimate with the mean of the importance-weighted one, x L, whose negative part is averaged away.

    .. math::
        \hat Q = x L - H \min(x, 0) + \bar m, \qquad \bar m = \frac HM \sum_m \min(x_m, 0)

    It is never below :math:`\bar m`, of order :math:`-H / \sqrt\gamma`, where x L reaches :math:`-H / \gamma`.

    Args:
        x: :math:`\phi(s, a)^T S \phi(s_h, a_h)`, the weight of the visit.
        loss_to_go: L of the visit in [0, H]; it is broadcast to x.
        x_draws: the same weight of M further visits under the same policy, which no loss belongs to; its dimensions
            but the last are broadcast to x.
        H: bound of the loss-to-go, > 0.
        counts: how often each of ``x_draws`` came, >= 0, broadcast to it; once each by default.

    Returns:
        estimates, in float32 or wider.

    Raises:
        ValueError: a loss-to-go outside [0, H], no draws.

    Example:
        >>> magnitude_reduced_estimator(torch.tensor([-1.5, 2.0]), torch.tensor(1.0), torch.tensor([-1.2, 0.3]), H=2.0)
        tensor([0.3000, 0.8000])

    Source: Refined Regret for Adversarial MDPs with Linear Function Approximation, arXiv:2301.12942.
    """
    check_tensor("x", x, floating=True)
    check_tensor("loss_to_go", loss_to_go, floating=True)
    check_tensor("x_draws", x_draws, floating=True)
    check_number("H", H, low=0.0, open_low=True)
    check_interval("loss_to_go", loss_to_go, 0.0, H, what="losses")
    if not x_draws.ndim or not x_draws.shape[-1]:
        refuse("x_draws", "at least 1 draw in the last dimension", x_draws)
    x = widen(x)
    negative = x_draws.to(x.dtype).clamp(max=0)
    if counts is None:
        mean = negative.mean(-1)
    else:
        check_tensor("counts", counts, floating=True)
        check_interval("counts", counts, low=0.0, what="numbers")
        mean = (negative * counts).sum(-1) / counts.sum(-1)
    return x * loss_to_go - H * x.clamp(max=0) + H * mean


def dilated_bonus(
    b: F[Tensor, "*learners H S A"],
    pi: F[Tensor, "*learners H S A"],
    P: F[Tensor, "H_minus_1 S A S"],
    H: int | None = None,
) -> F[Tensor, "*learners H S A"]:
    r"""Bonuses of all steps to come, each later one dilated by a factor of 1 + 1/H.

    .. math:: B_h(s, a) = b_h(s, a) + \Bigl(1 + \frac1H\Bigr) \sum_{s'} P_h(s' | s, a) \sum_{a'} \pi_{h+1}(a' | s')
        B_{h+1}(s', a')

    Args:
        b: bonus of each step, state and action.
        pi: policy, rows of probabilities.
        P: transitions from each step to the next.
        H: of the dilation, >= 1; the number of steps by default.

    Raises:
        ValueError: shapes that don't fit, rows that are no probabilities.

    Example:
        >>> pi = torch.full((2, 1, 2), 0.5)
        >>> dilated_bonus(torch.ones(2, 1, 2), pi, torch.ones(1, 1, 2, 1))[:, 0]
        tensor([[2.5000, 2.5000],
                [1.0000, 1.0000]])

    Source: Refined Regret for Adversarial MDPs with Linear Function Approximation, arXiv:2301.12942.
    """
    check_tensor("b", b, floating=True)
    if b.ndim < 3:
        refuse("b", "shape (..., H, S, A)", b)
    steps, states, actions = b.shape[-3:]
    check_tensor("pi", pi, floating=True, shape=tuple(b.shape))
    check_tensor("P", P, floating=True, shape=(steps - 1, states, actions, states))
    check_simplex("pi", pi)
    check_simplex("P", P)
    if H is not None:
        check_number("H", H, low=1, integer=True)
    return _backward(b, pi, P, 1 + 1 / (steps if H is None else H))


def _backward(costs: Tensor, pi: Tensor, P: Tensor, factor: float) -> Tensor:
    """Costs of a step and, times a factor each step further, of those that follow under a policy."""
    sums = [costs[..., -1, :, :]]
    for h in range(costs.shape[-3] - 2, -1, -1):
        values = (pi[..., h + 1, :, :] * sums[0]).sum(-1)
        sums.insert(0, costs[..., h, :, :] + factor * torch.einsum("saz,...z->...sa", P[h], values))
    return torch.stack(torch.broadcast_tensors(*sums), -3)


@dataclass(frozen=True)
class EpisodicMDP:
    r"""A decision process of H steps with finitely many states and actions, whose losses are told from outside.

    Args:
        start: probabilities of the first state, ``[S]``.
        transitions: probabilities of the next state, from each step to the next, ``[H - 1, S, A, S]``.

    Raises:
        ValueError: shapes that don't fit, rows that are no probabilities.

    Example:
        >>> process = EpisodicMDP(torch.ones(1), torch.ones(1, 1, 2, 1))
        >>> round(process.best(torch.tensor([[[0.3, 0.1]], [[0.5, 0.9]]]))[0], 6)
        0.6

    Source: Refined Regret for Adversarial MDPs with Linear Function Approximation, arXiv:2301.12942.
    """

    start: F[Tensor, " S"]
    transitions: F[Tensor, "H_minus_1 S A S"]

    def __post_init__(self) -> None:
        check_tensor("start", self.start, ndim=1, floating=True)
        check_tensor("transitions", self.transitions, ndim=4, floating=True)
        if not len(self.start) or not self.transitions.shape[2]:
            refuse("transitions", "at least 1 state and 1 action", self.transitions)
        check_tensor("transitions", self.transitions, shape=(None, len(self.start), None, len(self.start)))
        check_simplex("start", self.start)
        check_simplex("transitions", self.transitions)
        for name in ("start", "transitions"):
            object.__setattr__(self, name, getattr(self, name).detach().double())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, states and actions."""
        steps, states, actions, _ = self.transitions.shape
        return steps + 1, states, actions

    def values(
        self, policy: F[Tensor, "*learners H S A"], losses: F[Tensor, "*learners H S A"]
    ) -> tuple[F[Tensor, "*learners H S A"], F[Tensor, "*learners"]]:
        """The expected loss-to-go of each pair under a policy, and of an episode."""
        q = _backward(losses.double(), policy, self.transitions, 1.0)
        return q, ((policy * q)[..., 0, :, :].sum(-1) * self.start).sum(-1)

    def occupancy(self, policy: F[Tensor, "*learners H S A"]) -> F[Tensor, "*learners H S A"]:
        """The probability of each pair in each step."""
        states = self.start.expand(*policy.shape[:-3], -1)
        pairs = [states[..., None] * policy[..., 0, :, :]]
        for h, transition in enumerate(self.transitions):
            states = torch.einsum("...sa,saz->...z", pairs[-1], transition)
            pairs.append(states[..., None] * policy[..., h + 1, :, :])
        return torch.stack(pairs, -3)

    def rollout(
        self, policy: F[Tensor, "learners H S A"], n: int, generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "learners n H"], Int[Tensor, "learners n H"]]:
        """States and actions of n simulated episodes of each learner."""
        learners, steps = len(policy), policy.shape[1]
        uniform = torch.rand((2 * steps, learners, n), generator=generator, dtype=torch.float64)
        rows = torch.arange(learners)[:, None]
        state = _drawn(self.start.expand(learners, n, -1), uniform[0])
        states, actions = [state], []
        for h in range(steps):
            actions.append(_drawn(policy[rows, h, state], uniform[2 * h + 1]))
            if h < steps - 1:
                state = _drawn(self.transitions[h, state, actions[-1]], uniform[2 * h + 2])
                states.append(state)
        return torch.stack(states, -1), torch.stack(actions, -1)

    def visits(
        self, policy: F[Tensor, "learners H S A"], n: int, generator: torch.Generator | None = None
    ) -> F[Tensor, "learners H S A"]:
        """How often pairs come in n simulated visits of each step, drawn step by step from the :meth:`occupancy`."""
        pairs = self.occupancy(policy).flatten(-2).flatten(0, -2)
        drawn = torch.multinomial(pairs, n, replacement=True, generator=generator)
        counts = torch.zeros_like(pairs).scatter_add(1, drawn, torch.ones_like(drawn, dtype=pairs.dtype))
        return counts.reshape(policy.shape)

    def best(self, losses: F[Tensor, "H S A"]) -> tuple[float, F[Tensor, "H S A"]]:
        """The least expected loss of an episode, and a policy that has it: the fixed one of least regret for a sum."""
        check_tensor("losses", losses, floating=True, shape=self.shape)
        ahead = losses.new_zeros(losses.shape[1], dtype=torch.float64)
        choices: list[Tensor] = []
        for h in range(len(losses) - 1, -1, -1):
            q = losses[h].double() + (self.transitions[h] @ ahead if choices else 0.0)
            ahead, action = q.min(-1)
            choices.insert(0, torch.nn.functional.one_hot(action, q.shape[1]).double())
        return float(self.start @ ahead), torch.stack(choices)


def _drawn(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """A draw from each row, by the inverse of its distribution."""
    sums: Any = probabilities.cumsum(-1)[..., :-1]
    drawn: Tensor = (uniform[..., None] >= sums).sum(-1)
    return drawn


class LinearQPolicyOptimizer:
    r"""Policy optimisation with linear Q-functions, bandit feedback, a simulator, and losses that an adversary chooses.

    In each episode k the policy :math:`\pi_k` is played once. From M simulated visits of step h,
    :math:`S = (\gamma I + \frac1M \sum_m \phi_m \phi_m^T)^{-1}`; from the episode's loss-to-go :math:`L_h`,

    .. math::
        x(s, a) = \phi(s, a)^T S \phi(s_h, a_h), \qquad \hat Q(s, a) = x(s, a) L_h, \qquad
        b(s, a) = \beta \Bigl(\|\phi(s, a)\|_S^2 + \sum_{a'} \pi_k(a' | s) \|\phi(s, a')\|_S^2\Bigr)

    and the next policy follows from the sum of :math:`\hat Q - B` over episodes, with B the :func:`dilated_bonus` of b,
    by

    - ``"log_barrier"``: :func:`log_barrier_ftrl`, which bears estimates of any sign and size;
    - ``"magnitude_reduced"``: exponential weights of the :func:`magnitude_reduced_estimator`, from M further visits;
    - ``"exponential"``: exponential weights of :math:`\hat Q` as it is, the baseline.

    The expected regret of the first two is of order :math:`\sqrt K` in K episodes, at :math:`\eta` of order
    :math:`1 / \sqrt K`. The constants of theory are far too cautious: eta, gamma and bonus are left to the user. The
    bonus is dilated by the transitions themselves; the simulator-free variant isn't here.

    Args:
        env: the process; its transitions serve the simulator and the bonus, its losses come with each episode.
        phi: features of pairs, ``[S, A, d]``, or of each step, ``[H, S, A, d]``.
        method: as above.
        eta: learning rate > 0. A tensor ``[R]``: R independent learners at once, a rate each.
        gamma: ridge of S, > 0, or ``[R]``.
        bonus: :math:`\beta` >= 0, or ``[R]``.
        draws: M, at least 1; below :math:`1 / \gamma` many directions go unseen, and regret has a heavy tail.
        generator: of the episodes and simulated visits; torch's own by default.

    Attributes:
        policy: the next episode's, ``[H, S, A]``, with R learners ``[R, H, S, A]``, float64.
        cumulative: the sum of estimates less bonuses, of the same shape.

    Raises:
        ValueError: numbers outside their range, shapes that don't fit, losses outside [0, 1].

    Example:
        >>> process = EpisodicMDP(torch.ones(1), torch.zeros(0, 1, 2, 1))
        >>> learner = LinearQPolicyOptimizer(process, torch.eye(2)[None], eta=0.2, gamma=0.01)
        >>> for _ in range(100):
        ...     suffered = learner.step(torch.tensor([[[0.0, 1.0]]]))
        >>> bool(learner.policy[0, 0, 0] > 0.8)
        True

    Source: Refined Regret for Adversarial MDPs with Linear Function Approximation, arXiv:2301.12942.
    """

    def __init__(
        self,
        env: EpisodicMDP,
        phi: Tensor,
        method: str = "log_barrier",
        eta: float | F[Tensor, " R"] = 0.1,
        gamma: float | F[Tensor, " R"] = 0.01,
        *,
        bonus: float | F[Tensor, " R"] = 0.0,
        draws: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        check_choice("method", method, METHODS)
        check_number("draws", draws, low=1, integer=True)
        check_tensor("phi", phi, ndim=(3, 4), floating=True)
        steps, states, actions = env.shape
        self.phi = phi.detach().double().expand(steps, *phi.shape[-3:]) if phi.ndim == 3 else phi.detach().double()
        check_tensor("phi", self.phi, shape=(steps, states, actions, None))
        self.env, self.method, self.draws, self.generator = env, method, draws, generator
        self._single = not isinstance(eta, Tensor)
        if isinstance(eta, Tensor):
            check_tensor("eta", eta, ndim=1, floating=True)
        rows = torch.zeros(1 if self._single else len(torch.as_tensor(eta)), steps, states, actions).double()
        self._eta = _of_learners("eta", eta, len(rows))[..., 0]
        self._gamma = _of_learners("gamma", gamma, len(rows))
        self._bonus = _of_learners("bonus", bonus, len(rows), zero=True)
        self._cumulative = rows
        self._policy = torch.full_like(rows, 1 / actions)

    @property
    def policy(self) -> Tensor:
        """The next episode's."""
        return self._policy[0] if self._single else self._policy

    @property
    def cumulative(self) -> Tensor:
        """The sum of estimates less bonuses."""
        return self._cumulative[0] if self._single else self._cumulative

    def step(self, losses: Tensor) -> Tensor:
        """Play an episode against losses, of which those of the visited pairs are seen, and learn from it.

        Args:
            losses: of the episode, in [0, 1], ``[H, S, A]``; of each learner, ``[R, H, S, A]``.

        Returns:
            the loss suffered, a scalar, or ``[R]``.
        """
        shared = not isinstance(losses, Tensor) or losses.ndim == 3
        check_tensor(
            "losses", losses, floating=True, shape=(*(() if shared else self._policy.shape[:1]), *self.env.shape)
        )
        check_interval("losses", losses, 0.0, 1.0, what="losses")
        states, actions = self.env.rollout(self._policy, 1, self.generator)
        learners, steps = torch.arange(len(self._policy))[:, None], torch.arange(self.env.shape[0])
        told = losses.detach().double().expand_as(self._policy)
        suffered = told[learners, steps, states[:, 0], actions[:, 0]]
        to_go = suffered.flip(-1).cumsum(-1).flip(-1)
        inverse = self._inverse()
        q = self._estimates(inverse, self.phi[steps, states[:, 0], actions[:, 0]], to_go)
        self._cumulative = self._cumulative + q
        if bool((self._bonus > 0).any()):
            self._cumulative = self._cumulative - self._bonuses(inverse)
        if self.method == "log_barrier":
            self._policy = log_barrier_ftrl(self._cumulative, self._eta)
        else:
            self._policy = torch.softmax(-self._eta[..., None] * self._cumulative, -1)
        return to_go[0, 0] if self._single else to_go[:, 0]

    def _visits(self) -> F[Tensor, "R H pairs"]:
        """How often each pair comes in simulated visits under the policy."""
        return self.env.visits(self._policy, self.draws, self.generator).flatten(-2)

    def _inverse(self) -> F[Tensor, "R H d d"]:
        flat = self.phi.flatten(1, 2)
        gram = flat.mT @ (self._visits()[..., None] / self.draws * flat)
        inverse: Tensor = torch.linalg.inv(gram + self._gamma * torch.eye(gram.shape[-1], dtype=gram.dtype))
        return inverse

    def _estimates(self, inverse: Tensor, visited: F[Tensor, "R H d"], to_go: F[Tensor, "R H"]) -> Tensor:
        flat = self.phi.flatten(1, 2)
        x: Tensor = (flat @ (inverse @ visited[..., None])).squeeze(-1)
        loss, steps = to_go[..., None], float(len(flat))
        if self.method == "magnitude_reduced":
            q = magnitude_reduced_estimator(x, loss, flat @ inverse @ flat.mT, steps, self._visits()[..., None, :])
        else:
            q = x * loss
        return q.unflatten(-1, self.phi.shape[1:3])  # type: ignore[no-any-return]

    def _bonuses(self, inverse: Tensor) -> Tensor:
        flat = self.phi.flatten(1, 2)
        lengths = ((flat @ inverse) * flat).sum(-1).unflatten(-1, self.phi.shape[1:3])
        own = self._bonus * (lengths + (self._policy * lengths).sum(-1, keepdim=True))
        return _backward(own, self._policy, self.env.transitions, 1 + 1 / len(self.phi))
