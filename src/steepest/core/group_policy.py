"""Clipped policy gradients of groups of answers: one loss, and the names under which its forms are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from .checks import check_choice, check_flag, check_number, refuse
from .kl_estimators import KINDS, kl_of_samples
from .policy_loss import Mask, PolicyLoss, policy_inputs, spread
from .ratios import saturating_exp
from .token_reductions import aggregate_tokens, sequence_sums


@dataclass(frozen=True)
class PolicyForm:
    """What makes a named loss.

    Args:
        level: of the ratio: "token", or "sequence" for the geometric mean over the tokens of an answer.
        clip: "ratio": the smaller of the clipped and the unclipped term; "weight": the clipped ratio, without a
            gradient, weighs the log-probability.
        mode: of :func:`~steepest.core.token_reductions.aggregate_tokens`.
        epsilon_high: default of the upper bound; None is that of the lower.
        counts: whether the divisor may be that of a whole step (``num_items``).
    """

    level: str
    clip: str
    mode: str
    epsilon_high: float | None = None
    counts: bool = True


FORMS = {
    "grpo": PolicyForm("token", "ratio", "sequence_mean_token_mean"),
    "bnpo": PolicyForm("token", "ratio", "token_mean", counts=False),
    "dapo": PolicyForm("token", "ratio", "token_mean", epsilon_high=0.28),
    "dr_grpo": PolicyForm("token", "ratio", "constant"),
    "gspo": PolicyForm("sequence", "ratio", "sequence_mean_token_mean"),
    "cispo": PolicyForm("token", "weight", "token_mean", epsilon_high=0.28),
}
"""The registry: each name is a level of the ratio, a way to clip and an aggregation."""


def log_ratios(
    logp: Tensor, old_logp: Tensor, mask: Tensor, level: str = "token", segments: Tensor | None = None
) -> Tensor:
    """Log-ratios ``[B, T]`` of what :func:`policy_inputs` gave: a token's, or for all of an answer their mean.

    >>> new, old, mask = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.1]]), torch.ones(1, 2, dtype=torch.bool)
    >>> log_ratios(new, old, mask, "sequence")
    tensor([[0.3000, 0.3000]])
    """
    difference = logp - old_logp
    if level == "token":
        return difference
    sums, counts = sequence_sums(difference, mask, segments)
    return spread(sums / counts.clamp_min(1.0), mask, segments)


def clipped_surrogate(
    log_ratio: Tensor,
    logp: Tensor,
    advantages: Tensor,
    *,
    clip: str = "ratio",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """Losses of single tokens; see :func:`clipped_policy_loss`."""
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = saturating_exp(log_ratio)
    bounded = ratio.clamp(1.0 - epsilon, 1.0 + high)
    if clip == "weight":
        return -bounded.detach() * advantages * logp
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return -torch.minimum(ratio * advantages, bounded * advantages)


def clipped_policy_loss(
    logp: F[Tensor, "batch time"],
    old_logp: F[Tensor, "batch time"],
    advantages: Tensor,
    mask: Mask,
    form: str = "dapo",
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    kl: str = "k3",
    weighted_kl: bool = False,
    length: float | None = None,
    ref_logp: F[Tensor, "batch time"] | None = None,
    num_items: float | Tensor | None = None,
    segments: I[Tensor, "batch time"] | None = None,
) -> Tensor:
    r"""The clipped surrogate of a policy gradient, under its usual names.

    .. math:: \ell_t = -\min\bigl(w_t A_t,\ \mathrm{clip}(w_t, 1 - \epsilon, 1 + \epsilon_h) A_t\bigr)
        + \beta\, \mathrm{kl}_t, \qquad w_t = e^{\log \pi_t - \log \pi^{old}_t}

    - "grpo": mean over sequences of the mean over their tokens;
    - "bnpo": mean over the tokens of the batch; "dapo": over those of the step, with an upper bound of 1.28;
    - "dr_grpo": mean over sequences of their sums over a constant ``length``;
    - "gspo": w is the geometric mean over a sequence;
    - "cispo": -stop(clip(w)) A log pi, mean over the tokens of the step.

    A ratio above e^20 goes on along its tangent, so that value and gradient stay finite.

    Args:
        logp: log-probabilities of the sampled tokens ``[B, T]`` under the policy.
        old_logp: under the policy that drew them.
        advantages: ``[B]`` or ``[B, T]``; see :func:`~steepest.core.group_advantages.group_advantages`.
        mask: tokens that count ``[B, T]``.
        form: one of the names.
        epsilon: lower bound 1 - epsilon of the ratio, in [0, 1].
        epsilon_high: upper bound 1 + epsilon_high; None is .28 with "dapo" and "cispo", else ``epsilon``.
        delta: a bound of the ratio for negative advantages too, > 1 + epsilon_high; None for none. Not with "cispo".
        beta: weight of the divergence from the reference, >= 0.
        kl: its estimate; see :func:`~steepest.core.kl_estimators.kl_of_samples`.
        weighted_kl: multiply the estimate by the token's ratio, with which its gradient is that of the divergence.
        length: of "dr_grpo", > 0.
        ref_logp: under the reference ``[B, T]``, where ``beta`` > 0.
        num_items: tokens ("dapo", "cispo") or sequences (the others) of a whole step; "bnpo" takes none.
        segments: which sequence of its row a token is of, in packed rows ``[B, T]``.

    Returns:
        A scalar in float32 or wider; 0 with a graph where nothing is valid.

    Raises:
        ValueError: another name, shapes that differ, a bound out of range, an option that the form doesn't have.

    >>> new, old = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.1]])
    >>> clipped_policy_loss(new, old, torch.tensor([1.0]), torch.ones(1, 2, dtype=torch.bool), "dapo")
    tensor(-1.1926)
    """
    own = FORMS[checked_form(form, epsilon, epsilon_high, delta, beta, kl, weighted_kl)]
    if beta > 0 and ref_logp is None:
        refuse("ref_logp", "log-probabilities of the reference where beta > 0", None)
    if num_items is not None and not own.counts:
        refuse("num_items", f'None with form="{form}", which divides by the tokens of its batch', num_items)
    batch = policy_inputs(logp, old_logp, advantages, mask, ref_logp)
    ratio = log_ratios(batch.logp, batch.old_logp, batch.mask, own.level, segments)
    losses = clipped_surrogate(
        ratio,
        batch.logp,
        batch.advantages,
        clip=own.clip,
        epsilon=epsilon,
        epsilon_high=own.epsilon_high if epsilon_high is None else epsilon_high,
        delta=delta,
    )
    if beta > 0 and batch.ref_logp is not None:
        drawn_from = batch.old_logp if weighted_kl else None
        losses = losses + beta * kl_of_samples(batch.logp, batch.ref_logp, kl, drawn_from)
    return aggregate_tokens(losses, batch.mask, own.mode, num_items=num_items, length=length, segments=segments)


def checked_form(
    form: str,
    epsilon: float,
    epsilon_high: float | None,
    delta: float | None,
    beta: float,
    kl: str,
    weighted_kl: bool,
) -> str:
    """The name, once its options are known to belong together."""
    check_choice("form", form, FORMS)
    check_number("epsilon", epsilon, low=0.0, high=1.0)
    high = FORMS[form].epsilon_high if epsilon_high is None else epsilon_high
    high = epsilon if high is None else high
    check_number("epsilon_high", high, low=0.0)
    check_number("beta", beta, low=0.0)
    check_choice("kl", kl, KINDS)
    check_flag("weighted_kl", weighted_kl)
    if delta is not None:
        if FORMS[form].clip == "weight":
            refuse("delta", f'None with form="{form}"', delta)
        check_number("delta", delta, low=1.0 + high, open_low=True)
    return form


class GroupPolicyLoss(PolicyLoss):
    """The clipped surrogate as a module; see :func:`clipped_policy_loss`.

    Args:
        form: "grpo", "bnpo", "dapo", "dr_grpo", "gspo" or "cispo".
        epsilon, epsilon_high, delta: bounds of the ratio.
        beta, kl, weighted_kl: the divergence from the reference.
        length: of "dr_grpo", > 0.

    Example:
        >>> loss = GroupPolicyLoss("grpo")
        >>> new, old = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.1]])
        >>> loss(new, old, torch.tensor([1.0]), torch.ones(1, 2, dtype=torch.bool))
        tensor(-1.1526)
    """

    name = "group_policy"
    gradient = "surrogate"
    alternatives = {
        "form": "grpo",
        "epsilon": 0.05,
        "epsilon_high": 0.03,
        "delta": 1.4,
        "beta": 0.5,
        "kl": "k1",
        "weighted_kl": True,
        "length": 3.0,
    }

    def __init__(
        self,
        form: str = "dapo",
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        delta: float | None = None,
        beta: float = 0.0,
        kl: str = "k3",
        weighted_kl: bool = False,
        length: float | None = None,
    ) -> None:
        super().__init__()
        self.form = checked_form(form, epsilon, epsilon_high, delta, beta, kl, weighted_kl)
        self.mode = FORMS[form].mode
        if (length is None) == (self.mode == "constant"):
            refuse("length", 'a number with form="dr_grpo" and with no other', length)
        if length is not None:
            check_number("length", length, low=0.0, open_low=True)
        self.epsilon, self.epsilon_high, self.delta = epsilon, epsilon_high, delta
        self.beta, self.kl, self.weighted_kl, self.length = beta, kl, weighted_kl, length

    def forward(
        self,
        logp: F[Tensor, "batch time"],
        old_logp: F[Tensor, "batch time"],
        advantages: Tensor,
        mask: Mask,
        *,
        ref_logp: F[Tensor, "batch time"] | None = None,
        num_items: float | Tensor | None = None,
        segments: I[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        """The loss of log-probabilities, advantages and a mask."""
        return clipped_policy_loss(
            logp, old_logp, advantages, mask, self.form,
            epsilon=self.epsilon, epsilon_high=self.epsilon_high, delta=self.delta,
            beta=self.beta, kl=self.kl, weighted_kl=self.weighted_kl, length=self.length,
            ref_logp=ref_logp, num_items=num_items, segments=segments,
        )  # fmt: skip

    @classmethod
    def instances(cls) -> list[Self]:
        """Each form, two with a divergence."""
        plain = [cls(form, length=4.0 if form == "dr_grpo" else None) for form in FORMS]
        return [*plain, cls("dapo", beta=0.3, weighted_kl=True), cls("grpo", delta=1.5, beta=0.1, kl="k3+")]
