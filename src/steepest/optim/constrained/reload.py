"""ReLOAD: optimistic ascent-descent, whose last iterate converges, for constrained decision processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_flag, check_number, check_simplex, check_tensor
from ...core.mirror import entropy_step, optimistic
from ...core.optimizer import ListOptimizer, Share
from ...core.torch_private import foreach_add_, foreach_clamp_min_, foreach_copy_
from ...core.wrapper import Params

# ---------------------------------------------------------------------------------------------------------------- steps


def optimistic_mirror_step(
    log_pi: F[Tensor, "*states actions"],
    q: F[Tensor, "*states actions"],
    previous: F[Tensor, "*states actions"],
    eta: float,
) -> F[Tensor, "*states actions"]:
    r"""Optimistic mirror ascent of a policy.

    .. math:: \pi_{t+1}(a|s) \propto \pi_t(a|s) \exp(\eta\, (2 q_t(s, a) - q_{t-1}(s, a)))

    Action values may be advantages: what depends on the state alone changes nothing.

    Args:
        log_pi: logarithms of the policy.
        q: mixed action values under it, reward less multipliers times costs.
        previous: those of the step before; q itself makes a plain step.
        eta: >= 0.

    Returns:
        logarithms of the next policy, normalised.

    Raises:
        ValueError: another shape, eta below 0.

    Example:
        >>> q = torch.tensor([1.0, 0.0])
        >>> optimistic_mirror_step(torch.zeros(2), q, q / 2, 1.0).exp()
        tensor([0.8176, 0.1824])

    Source: ReLOAD, arXiv:2302.01275.
    """
    check_tensor("log_pi", log_pi, floating=True)
    check_tensor("q", q, shape=tuple(log_pi.shape))
    check_tensor("previous", previous, shape=tuple(log_pi.shape))
    check_number("eta", eta, low=0.0)
    return entropy_step(log_pi, optimistic([q], [previous])[0], -eta)


class OptimisticAscentDescent(ListOptimizer):
    r"""Descent in some parameters and ascent in others, along twice the gradient less the one before.

    .. math:: z \leftarrow z - \eta\, (2 F_t - F_{t-1}), \qquad F = (\nabla_x f, -\nabla_y f), \quad F_{-1} = F_0

    Plain steps circle around a saddle point, or leave it; these come to it. Both gradients must be of the same data:
    with noise, the last one doubles its variance. Call ``step()`` after backward of the Lagrangian, or with a closure.

    Args:
        params_min: x, parameters or groups, which go down.
        params_max: y, which go up; None: none.
        lr_min, lr_max: their rates >= 0.
        optimistic: False makes plain gradient descent-ascent.
        nonnegative: y is kept at 0 or above, as multipliers of inequalities are.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: a rate below 0.
        TypeError: a sparse gradient.

    Example:
        >>> x, y = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        >>> optimizer = OptimisticAscentDescent([x], [y], 0.1, 0.1)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     (x * y).sum().backward()
        ...     optimizer.step()
        >>> print(f"{float((x**2 + y**2).sqrt().detach()):.4f}")
        0.5176

    Source: ReLOAD, arXiv:2302.01275.
    """

    name = "optimistic_ascent_descent"

    def __init__(
        self,
        params_min: Params,
        params_max: Params | None = None,
        lr_min: float = 1e-2,
        lr_max: float = 1e-2,
        optimistic: bool = True,
        nonnegative: bool = False,
        *,
        foreach: bool | None = None,
    ) -> None:
        check_number("lr_max", lr_max, low=0.0)
        options = {"lr": lr_min, "optimistic": optimistic, "nonnegative": False, "maximize": False}
        super().__init__(params_min, options, foreach=foreach)
        if params_max is not None:
            rising = {"params": list(params_max), "lr": lr_max, "maximize": True, "nonnegative": nonnegative}
            self.add_param_group(rising)

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse options of a group that are out of range."""
        super().check_options(options)
        check_flag("optimistic", options["optimistic"])
        check_flag("nonnegative", options["nonnegative"])

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        if not group["optimistic"]:
            return {}
        assert parameter.grad is not None
        slope = -parameter.grad if group["maximize"] else parameter.grad.clone(memory_format=torch.preserve_format)
        return {"gradient": slope.detach()}

    def _move(self, share: Share) -> None:
        group, slopes = share.group, share.slopes
        if group["optimistic"]:
            previous = share.state("gradient")
            slopes = optimistic(share.slopes, previous)
            foreach_copy_(previous, share.slopes)
        foreach_add_(share.weights, slopes, alpha=-group["lr"])
        if group["nonnegative"]:
            foreach_clamp_min_(share.weights, 0.0)

    @classmethod
    def builders(cls) -> list[Callable[[Params], OptimisticAscentDescent]]:
        """What goes down alone, optimistic and plain."""
        return [lambda params: cls(params, lr_min=6e-4), lambda params: cls(params, lr_min=1e-3, optimistic=False)]


# -------------------------------------------------------------------------------------------------- decision processes


class Optimum(NamedTuple):
    """What the linear program of occupancies says.

    Args:
        value: of the best policy that keeps the constraints.
        policy: it, ``[S, A]``.
        multipliers: the dual of the constraints, ``[N]``.
    """

    value: float
    policy: Tensor
    multipliers: Tensor


@dataclass(frozen=True)
class ConstrainedMDP:
    r"""A finite decision process with a reward to maximise and costs that must stay below thresholds.

    .. math:: \max_\pi v_0(\pi) \quad \text{subject to } v_n(\pi) \le \theta_n, \qquad
        v_n(\pi) = (1 - \gamma) E\Big[\sum_t \gamma^t r_n(s_t, a_t)\Big]

    Values are per step, so that rates don't depend on the discount. Everything is held in float64.

    Args:
        transitions: P(s' | s, a), ``[S, A, S]``.
        reward: ``[S, A]``.
        costs: ``[N, S, A]``.
        thresholds: theta, ``[N]``.
        start: distribution of the first state, ``[S]``.
        discount: gamma in [0, 1).

    Raises:
        ValueError: shapes that don't belong together, rows that are no probabilities, a discount outside its range.

    Example:
        >>> bandit = ConstrainedMDP(
        ...     torch.ones(1, 2, 1), torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0]]]), torch.tensor([0.4]),
        ...     torch.ones(1), 0.0,
        ... )
        >>> print(f"{bandit.optimum().value:.4f}", bandit.optimum().multipliers)
        0.4000 tensor([1.], dtype=torch.float64)

    Source: ReLOAD, arXiv:2302.01275.
    """

    transitions: F[Tensor, "S A S"]
    reward: F[Tensor, "S A"]
    costs: F[Tensor, "N S A"]
    thresholds: F[Tensor, " N"]
    start: F[Tensor, " S"]
    discount: float

    def __post_init__(self) -> None:
        check_tensor("transitions", self.transitions, ndim=3, floating=True)
        states, actions, _ = self.transitions.shape
        check_tensor("transitions", self.transitions, shape=(states, actions, states))
        check_tensor("reward", self.reward, floating=True, shape=(states, actions))
        check_tensor("costs", self.costs, floating=True, shape=(None, states, actions))
        check_tensor("thresholds", self.thresholds, floating=True, shape=(len(self.costs),))
        check_tensor("start", self.start, floating=True, shape=(states,))
        check_number("discount", self.discount, low=0.0, high=1.0, open_high=True)
        check_simplex("transitions", self.transitions)
        check_simplex("start", self.start)
        for name in ("transitions", "reward", "costs", "thresholds", "start"):
            object.__setattr__(self, name, getattr(self, name).detach().double())

    def values(self, pi: F[Tensor, "S A"]) -> tuple[F[Tensor, "K S A"], F[Tensor, " K"]]:
        """Action values and the value from the start of the reward and of each cost, in this order, per step.

        Raises:
            ValueError: another shape, or rows that are no probabilities.
        """
        check_tensor("pi", pi, floating=True, shape=tuple(self.reward.shape))
        check_simplex("pi", pi)
        return self._values(pi.double(), torch.cat([self.reward[None], self.costs]))

    def _values(self, pi: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
        moves = (pi[:, :, None] * self.transitions).sum(1)
        gained = (1 - self.discount) * (rewards * pi).sum(-1)
        eye = torch.eye(len(pi), dtype=torch.float64)
        of_state = torch.linalg.solve(eye - self.discount * moves, gained.T)
        q = (1 - self.discount) * rewards + self.discount * (self.transitions @ of_state).permute(2, 0, 1)
        return q, self.start @ of_state

    def optimum(self) -> Optimum | None:
        """The exact solution by linear programming over occupancies; None where no policy keeps the constraints."""
        from scipy.optimize import linprog

        states, actions = self.reward.shape
        flow = np.repeat(np.eye(states), actions, axis=1)
        flow = flow - self.discount * self.transitions.numpy().reshape(states * actions, states).T
        costs = self.costs.numpy().reshape(len(self.costs), -1)
        end = linprog(
            -self.reward.numpy().reshape(-1),
            A_ub=costs if len(costs) else None,
            b_ub=self.thresholds.numpy() if len(costs) else None,
            A_eq=flow,
            b_eq=(1 - self.discount) * self.start.numpy(),
            method="highs",
        )
        if end.status == 2:
            return None
        occupancy = torch.as_tensor(end.x).reshape(states, actions).clamp(min=0.0)
        total = occupancy.sum(1, keepdim=True)
        policy = torch.where(total > 0, occupancy / total.clamp(min=1e-300), torch.full_like(occupancy, 1 / actions))
        dual = -torch.as_tensor(end.ineqlin.marginals) if len(costs) else torch.zeros(0)
        return Optimum(-float(end.fun), policy, dual.double())


class Iterates(NamedTuple):
    """What each policy on the way was worth.

    Args:
        values: of the reward, ``[T]``.
        gaps: values of the costs less the thresholds, ``[T, N]``; above 0 a constraint is broken.
        multipliers: ``[T, N]``.
        policy: the last one, ``[S, A]``.
        last_multipliers: those after the last step, ``[N]``.
    """

    values: Tensor
    gaps: Tensor
    multipliers: Tensor
    policy: Tensor
    last_multipliers: Tensor


class ReLOAD:
    r"""Optimistic ascent-descent of a policy and its multipliers with exact action values.

    .. math:: q_t = q_0 - \sum_n \mu_{t,n} q_n, \qquad
        \pi_{t+1} \propto \pi_t \exp(\eta\, (2 q_t - q_{t-1})), \qquad
        \mu_{t+1} = \max(0, \mu_t + \eta_\mu (2 c_t - c_{t-1})), \quad c_t = v(\pi_t) - \theta

    from the uniform policy and multipliers 0, the first step plain. Too large rates diverge.

    Args:
        mdp: the process.
        eta: of the policy, > 0.
        eta_mu: of the multipliers, > 0.
        optimistic: False makes plain steps, whose policies circle.

    Raises:
        ValueError: a rate that is not above 0.

    Example:
        >>> bandit = ConstrainedMDP(
        ...     torch.ones(1, 2, 1), torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0]]]), torch.tensor([0.4]),
        ...     torch.ones(1), 0.0,
        ... )
        >>> end = ReLOAD(bandit, 0.1, 0.1).run(5000)
        >>> print(f"{float(end.values[-1]):.4f} {float(end.last_multipliers):.4f}")
        0.3992 1.0023

    Source: ReLOAD, arXiv:2302.01275.
    """

    def __init__(self, mdp: ConstrainedMDP, eta: float, eta_mu: float, optimistic: bool = True) -> None:
        check_number("eta", eta, low=0.0, open_low=True)
        check_number("eta_mu", eta_mu, low=0.0, open_low=True)
        check_flag("optimistic", optimistic)
        self.mdp, self.eta, self.eta_mu, self.optimistic = mdp, eta, eta_mu, optimistic

    def run(self, T: int) -> Iterates:
        """So many steps; warns where no policy keeps the constraints, because multipliers then grow without bound.

        Raises:
            ValueError: T below 1.
        """
        check_number("T", T, low=1, integer=True)
        mdp = self.mdp
        if mdp.optimum() is None:
            warnings.warn("no policy keeps the constraints: multipliers grow without bound", stacklevel=2)
        log_pi = torch.full_like(mdp.reward, 1 / mdp.reward.shape[1]).log()
        mu = torch.zeros_like(mdp.thresholds)
        rewards = torch.cat([mdp.reward[None], mdp.costs])
        values, gaps, multipliers = [], [], []
        last_q: Tensor | None = None
        last_c = mu
        for _ in range(T):
            q_of, v = mdp._values(log_pi.exp(), rewards)
            q, c = q_of[0] - (mu[:, None, None] * q_of[1:]).sum(0), v[1:] - mdp.thresholds
            values.append(v[0])
            gaps.append(c)
            multipliers.append(mu)
            if last_q is None or not self.optimistic:
                last_q, last_c = q, c
            log_pi = optimistic_mirror_step(log_pi, q, last_q, self.eta)
            mu = (mu + self.eta_mu * optimistic([c], [last_c])[0]).clamp(min=0.0)
            last_q, last_c = q, c
        return Iterates(torch.stack(values), torch.stack(gaps), torch.stack(multipliers), log_pi.exp(), mu)
