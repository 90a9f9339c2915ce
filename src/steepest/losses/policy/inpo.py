"""INPO: a policy that plays against itself approaches the Nash policy of general preferences."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_simplex, check_tensor, refuse, refuse_type, values_visible
from ...core.loss import Sample
from ...core.mirror import entropy_step
from ...core.preference import (
    LogProbabilityLoss,
    PreferenceLosses,
    check_log_probabilities,
    log_probability_samples,
    preference_loss,
    preference_terms,
    reduce_pairs,
)
from ...core.reductions import REDUCTIONS, widen

LogProbabilities = Callable[[Any, Any], Tensor]
"""Log-probabilities ``[B]`` of answers under a policy, from the policy and whatever holds the answers."""


def inpo_loss(
    policy_chosen: F[Tensor, " pairs"],
    policy_rejected: F[Tensor, " pairs"],
    ref_chosen: F[Tensor, " pairs"],
    ref_rejected: F[Tensor, " pairs"],
    prev_chosen: F[Tensor, " pairs"],
    prev_rejected: F[Tensor, " pairs"],
    eta: float,
    tau: float,
    *,
    reduction: str = "mean",
) -> Tensor:
    r"""The squared loss of labelled pairs whose minimiser is one step of mirror descent toward the Nash policy.

    .. math:: h = \log\frac{\pi(y_w)}{\pi(y_l)} - \frac\tau\eta \log\frac{\pi_{ref}(y_w)}{\pi_{ref}(y_l)}
        - \frac{\eta - \tau}\eta \log\frac{\pi_t(y_w)}{\pi_t(y_l)}, \qquad L = \Bigl(h - \frac1{2 \eta}\Bigr)^2

    Both answers are drawn from :math:`\pi_t`, the policy of the round before. It is IPO with a reference between
    :math:`\pi_{ref}` and :math:`\pi_t`, and with :math:`\pi_{ref}` for :math:`\tau = \eta`.

    Args:
        policy_chosen: log-probability of each preferred answer under the policy, summed over its tokens ``[B]``.
        policy_rejected: the same of the other answers ``[B]``.
        ref_chosen, ref_rejected: under the reference of the game ``[B]``; no gradient flows into them.
        prev_chosen, prev_rejected: under the policy of the round before ``[B]``; no gradient flows into them.
        eta: > 0, the inverse of the step of mirror descent.
        tau: in [0, eta], the weight of the divergence from the reference in the game.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: shapes that differ, ``tau`` below 0 or above ``eta``.

    Example:
        >>> logps = [torch.tensor([v]) for v in (-3.0, -4.0, -3.5, -3.8, -3.2, -3.9)]
        >>> inpo_loss(*logps, eta=0.5, tau=0.2)
        tensor(0.2916)

    Source: Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning,
    arXiv:2407.00617.
    """
    pairs = (policy_chosen, policy_rejected, ref_chosen, ref_rejected, prev_chosen, prev_rejected)
    return reduce_pairs(_losses(pairs, eta, tau).losses, reduction)


class INPOLoss(LogProbabilityLoss):
    """INPO as a module; see :func:`inpo_loss`.

    Args:
        eta: > 0; the publication takes values near 0.005 for sums over many tokens.
        tau: in [0, eta].
        reduction: ``"mean"`` over pairs, ``"sum"`` or ``"none"``.

    ``terms`` has mean rewards, eta times the log-ratios to the mixed reference, their margin and the share of pairs in
    order, as those of ``PreferenceLoss``.

    Example:
        >>> loss = INPOLoss(eta=0.5, tau=0.2)
        >>> loss(*(torch.tensor([v]) for v in (-3.0, -4.0, -3.5, -3.8, -3.2, -3.9)))
        tensor(0.2916)
    """

    name = "inpo"

    def __init__(self, eta: float, tau: float, reduction: str = "mean") -> None:
        super().__init__()
        check_rates(eta, tau)
        check_choice("reduction", reduction, REDUCTIONS)
        self.eta, self.tau, self.reduction = eta, tau, reduction

    def forward(
        self,
        policy_chosen: F[Tensor, " pairs"],
        policy_rejected: F[Tensor, " pairs"],
        ref_chosen: F[Tensor, " pairs"],
        ref_rejected: F[Tensor, " pairs"],
        prev_chosen: F[Tensor, " pairs"],
        prev_rejected: F[Tensor, " pairs"],
    ) -> Tensor:
        """The loss of log-probabilities under policy, reference and the policy of the round before."""
        pairs = (policy_chosen, policy_rejected, ref_chosen, ref_rejected, prev_chosen, prev_rejected)
        losses, chosen, rejected = _losses(pairs, self.eta, self.tau)
        self.terms = preference_terms(chosen, rejected)
        return reduce_pairs(losses, self.reduction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[INPOLoss, Sample]]:
        scores = tuple(log_probability_samples(6, generator, dtype, device))
        return [(cls(0.5, 0.2), (scores, {})), (cls(0.3, 0.24, "sum"), (scores, {}))]


def nash_iteration(
    preference: F[Tensor, "actions actions"],
    pi_ref: F[Tensor, " actions"],
    eta: float,
    tau: float,
    steps: int,
    *,
    pi_start: F[Tensor, " actions"] | None = None,
) -> F[Tensor, " actions"]:
    r"""The exact iterates of INPO in a game with a table of preferences.

    .. math:: \pi_{t+1}(y) \propto \exp\Bigl(\frac{P(y \succ \pi_t)}\eta\Bigr)\,
        \pi_{ref}(y)^{\tau / \eta}\, \pi_t(y)^{1 - \tau / \eta}

    Its fixed point is the Nash policy :math:`\pi^* \propto \pi_{ref} \exp(P(\cdot \succ \pi^*) / \tau)`. It is reached
    where eta is large enough; a step that is too long cycles.

    Args:
        preference: P ``[A, A]``, the probability that the answer of the row is preferred to that of the column, in
            [0, 1] with P + P^T = 1.
        pi_ref: the reference ``[A]``, all > 0.
        eta: > 0, the inverse of the step.
        tau: in [0, eta].
        steps: >= 0.
        pi_start: the first policy ``[A]``, all > 0; None is the reference.

    Returns:
        The policy after the steps ``[A]``, in float32 or wider.

    Raises:
        ValueError: wrong shapes, no probabilities, preferences that don't add up to 1, ``tau`` outside [0, eta].

    Example:
        >>> game = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
        >>> nash_iteration(game, torch.full((3,), 1 / 3), eta=5.0, tau=0.05, steps=3000)
        tensor([0.3157, 0.2887, 0.3955])

    Source: Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning,
    arXiv:2407.00617.
    """
    check_tensor("preference", preference, ndim=2, floating=True)
    check_tensor("preference", preference, shape=(preference.shape[0], preference.shape[0]))
    check_rates(eta, tau)
    check_number("steps", steps, low=0, integer=True)
    game = widen(preference)
    if values_visible(game) and not bool(((game + game.mT - 1).abs() < 1e-4).all() & (game >= 0).all()):
        refuse("preference", "probabilities with P + P^T = 1", preference.tolist())
    log_ref = _log_policy("pi_ref", pi_ref, game)
    log_p = log_ref if pi_start is None else _log_policy("pi_start", pi_start, game)
    share = tau / eta
    for _ in range(steps):
        log_p = entropy_step(share * log_ref + (1 - share) * log_p, -(game @ log_p.exp()), 1 / eta)
    return log_p.exp()


class IterativeNash:
    """The rounds of INPO on a policy that is trained in place.

    The reference is a frozen copy of the policy as it is given. Each round starts with labelled pairs of answers that
    the policy has drawn; their log-probabilities under the reference and under the policy of that moment are computed
    once, in eval mode and without gradients, so that a step costs nothing beyond its own forward pass.

    Args:
        policy: the model.
        log_prob: ``log_prob(policy, answers)`` gives ``[B]``, sums over each answer's tokens.
        eta: > 0.
        tau: in [0, eta].

    Example:
        >>> policy = nn.Linear(1, 3, bias=False)
        >>> nash = IterativeNash(policy, lambda p, y: p.weight.flatten().log_softmax(0)[y], eta=1.0, tau=0.3)
        >>> loss = nash.round(chosen=torch.tensor([0, 2]), rejected=torch.tensor([1, 1]))
        >>> loss()
        tensor(0.2500, grad_fn=<MeanBackward0>)
        >>> loss(torch.tensor([1])).shape
        torch.Size([])

    Source: Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning,
    arXiv:2407.00617.
    """

    def __init__(self, policy: nn.Module, log_prob: LogProbabilities, eta: float, tau: float) -> None:
        if not isinstance(policy, nn.Module):
            refuse_type("policy", "a module", policy)
        if not callable(log_prob):
            refuse_type("log_prob", "a function of a policy and answers", log_prob)
        self.loss = INPOLoss(eta, tau)
        self.policy, self.log_prob = policy, log_prob
        self.reference = copy.deepcopy(policy).eval().requires_grad_(False)
        self.rounds = 0

    def round(self, chosen: Any, rejected: Any) -> Callable[..., Tensor]:
        """The loss of a round, a function of the rows of a batch (None for all).

        Args:
            chosen, rejected: the preferred and the other answer of each pair, as ``log_prob`` takes them; rows are
                taken by indexing, of each entry where they are a mapping.
        """
        modes = [(module, module.training) for module in self.policy.modules()]
        self.policy.eval()
        try:
            with torch.no_grad():
                fixed = [
                    self.log_prob(m, answers) for m in (self.reference, self.policy) for answers in (chosen, rejected)
                ]
        finally:
            for module, training in modes:
                module.training = training
        self.rounds += 1

        def loss(rows: Tensor | None = None) -> Tensor:
            own = [self.log_prob(self.policy, _rows(answers, rows)) for answers in (chosen, rejected)]
            value: Tensor = self.loss(*own, *(_rows(values, rows) for values in fixed))
            return value

        return loss

    def run(
        self,
        label: Callable[[nn.Module], tuple[Any, Any]],
        train: Callable[[Callable[..., Tensor]], Any],
        rounds: int = 3,
    ) -> nn.Module:
        """Several rounds.

        Args:
            label: draws answers from the policy and gives the chosen and the rejected ones.
            train: trains the policy with the loss of a round.
            rounds: >= 0.

        Returns:
            The policy.
        """
        check_number("rounds", rounds, low=0, integer=True)
        for _ in range(rounds):
            train(self.round(*label(self.policy)))
        return self.policy


def check_rates(eta: float, tau: float) -> None:
    """Check eta > 0 and tau in [0, eta]."""
    check_number("eta", eta, low=0.0, high=math.inf, open_low=True, open_high=True)
    check_number("tau", tau, low=0.0, high=eta)


def _losses(pairs: tuple[Tensor, ...], eta: float, tau: float) -> PreferenceLosses:
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected", "prev_chosen", "prev_rejected")
    check_log_probabilities(dict(zip(names, pairs)))
    check_rates(eta, tau)
    chosen, rejected = (_mixed(pairs[2 + side], pairs[4 + side], tau / eta) for side in (0, 1))
    return preference_loss(pairs[0], pairs[1], chosen, rejected, "ipo", beta=eta)


def _mixed(ref: Tensor, previous: Tensor, share: float) -> Tensor:
    """Between the reference and the policy of the round before; what has no weight may be anything."""
    if share in (0.0, 1.0):
        return ref if share else previous
    return share * widen(ref) + (1 - share) * widen(previous)


def _log_policy(argument: str, policy: object, game: Tensor) -> Tensor:
    check_tensor(argument, policy, floating=True, shape=(game.shape[0],))
    assert isinstance(policy, Tensor)
    check_simplex(argument, policy)
    if values_visible(policy) and not bool((policy > 0).all()):
        refuse(argument, "probabilities > 0", policy.tolist())
    return policy.to(game).log()


def _rows(answers: Any, rows: Tensor | None) -> Any:
    if rows is None:
        return answers
    if isinstance(answers, Mapping):
        return {name: value[rows] for name, value in answers.items()}
    return answers[rows]
