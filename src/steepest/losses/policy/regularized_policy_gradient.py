"""Policy gradients with a divergence from a reference, right for tokens that an older policy drew."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_number, refuse, refuse_type
from ...core.kl_estimators import kl_of_samples
from ...core.policy_loss import Mask, PolicyInputs, PolicyLoss, policy_inputs
from ...core.ratios import saturating_exp
from ...core.token_reductions import aggregate_tokens

DIVERGENCES = ("fkl", "rkl", "ufkl", "urkl")
STYLES = ("differentiable", "reinforce")
Clip = tuple[float, float] | None


def rpg_loss(
    logp: F[Tensor, "batch time"],
    old_logp: F[Tensor, "batch time"],
    advantages: Tensor,
    mask: Mask,
    kl: str = "ufkl",
    beta: float = 1e-4,
    style: str = "differentiable",
    clip: Clip = None,
    dual_clip: float | None = None,
    *,
    ref_logp: F[Tensor, "batch time"] | None = None,
    num_items: float | Tensor | None = None,
    segments: I[Tensor, "batch time"] | None = None,
) -> Tensor:
    r"""Reward less a divergence from a reference, as a loss whose gradient is that of the objective.

    With w = policy / old, v = policy / reference and u = reference / old of a token that the old policy drew, the
    objective is J = E[w A] - beta D. The mean over tokens of these losses is -J up to a constant; in the style
    "reinforce" the loss is -stop(c) logp and has the same gradient.

    ======  =============================  ===========================================  ===========================
    kl      D                              loss of a token                              c
    ======  =============================  ===========================================  ===========================
    fkl     KL(reference || policy)        -w A - beta u logp                           w A + beta u
    rkl     KL(policy || reference)        -w A + beta w log v                          w A - beta w (log v + 1)
    ufkl    the same as fkl, unnormalised  -w A + beta u (v - log v - 1)                w A + beta (u - w)
    urkl    the same as rkl, unnormalised  -w A + beta (w (log v - 1) + u)              w A - beta w log v
    ======  =============================  ===========================================  ===========================

    Without ``ref_logp`` the old policy is the reference: v = w, u = 1. The integrand of "ufkl" is then the k3 estimate
    of tokens of the old policy; that of "urkl" is the k3 estimate of tokens of the policy times w, which is the factor
    that the penalty of GRPO leaves out. A ratio above e^20 goes on along its tangent, value and gradient stay finite.
    With "fkl" the value holds a log-probability and is no divergence: log :func:`kl_estimator` beside it.

    Args:
        logp: log-probabilities of the sampled tokens ``[B, T]``.
        old_logp: under the policy that drew them.
        advantages: A, ``[B]`` or ``[B, T]``: rewards less the mean of their group.
        mask: tokens that count ``[B, T]``.
        kl: the divergence.
        beta: its weight, >= 0.
        style: "differentiable" or "reinforce".
        clip: (low, high), of "reinforce" alone: w is clipped to [1 - low, 1 + high] within c (.2 and .28 in the paper),
            and v with it where they are the same.
        dual_clip: > 1 + high, with ``clip``: the bounds act as in PPO instead, on the reward's side alone: c is 0 where
            A > 0 and w is above, where A < 0 and w is below, or, for A < 0, where w is above ``dual_clip`` (3 in the
            paper); in the divergence w is clipped.
        ref_logp: under the reference ``[B, T]``; None is the old policy.
        num_items: the number of tokens of a whole step; None is that of this batch.
        segments: which sequence of its row a token is of; the mean over tokens does not depend on it.

    Returns:
        A scalar in float32 or wider; 0 with a graph where nothing is valid.

    Raises:
        ValueError: shapes that differ, another name, a bound out of range or without the style "reinforce".

    Example:
        >>> new, old = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.2, -1.5, -0.5]])
        >>> A = torch.tensor([[1.0, -1.0, 0.5]])
        >>> rpg_loss(new, old, A, torch.ones(1, 3, dtype=torch.bool), "urkl", beta=0.1)
        tensor(-0.3679)

    Source: On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning, arXiv:2505.17508.
    """
    _check_options(kl, beta, style, clip, dual_clip)
    batch = policy_inputs(logp, old_logp, advantages, mask, ref_logp)
    log_w = batch.logp - batch.old_logp
    if style == "differentiable":
        losses = _differentiable(batch, log_w, kl, beta)
    else:
        losses = _reinforce(batch, log_w.detach(), kl, beta, clip, dual_clip)
    return aggregate_tokens(losses, batch.mask, num_items=num_items, segments=segments)


def kl_estimator(logp: F[Tensor, "*batch"], ref_logp: F[Tensor, "*batch"], kind: str = "k3") -> F[Tensor, "*batch"]:
    """Estimates of KL(policy || reference) of tokens that the policy drew, one a token.

    Value and gradient of each are those of :func:`~steepest.core.kl_estimators.kl_of_samples`: no estimate but k2 has,
    as a loss of tokens of the policy itself, the gradient of the reverse divergence.

    Args:
        logp: log-probabilities under the policy, any shape.
        ref_logp: under the reference; no gradient flows into them.
        kind: "k1" ("kl"), "k2" ("mse"), "k3" ("low_var_kl"), "abs", or one of these with "+" for the gradient of k2.

    Returns:
        Of the same shape, in float32 or wider.

    Raises:
        ValueError: another name, shapes that differ.

    Example:
        >>> kl_estimator(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]), "k2")
        tensor([0.1250, 0.5000])

    Source: On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning, arXiv:2505.17508.
    """
    return kl_of_samples(logp, ref_logp, kind)


class RPGLoss(PolicyLoss):
    """Regularised policy gradient as a module; see :func:`rpg_loss`.

    Args:
        kl: "fkl", "rkl", "ufkl" or "urkl".
        beta: weight of the divergence, >= 0.
        style: "differentiable" or "reinforce".
        clip: (low, high) of the style "reinforce", or None.
        dual_clip: > 1 + high with ``clip``, or None.

    Example:
        >>> loss = RPGLoss("rkl", beta=0.1)
        >>> new, old = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.2, -1.5, -0.5]])
        >>> loss(new, old, torch.tensor([[1.0, -1.0, 0.5]]), torch.ones(1, 3, dtype=torch.bool))
        tensor(-0.3736)
    """

    name = "rpg"
    gradient = "surrogate"
    alternatives = {"kl": "fkl", "beta": 0.5, "style": "reinforce", "clip": (0.1, 0.1), "dual_clip": 1.5}

    def __init__(
        self,
        kl: str = "ufkl",
        beta: float = 1e-4,
        style: str = "differentiable",
        clip: Clip = None,
        dual_clip: float | None = None,
    ) -> None:
        super().__init__()
        _check_options(kl, beta, style, clip, dual_clip)
        self.kl, self.beta, self.style, self.clip, self.dual_clip = kl, beta, style, clip, dual_clip

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
        return rpg_loss(
            logp, old_logp, advantages, mask, self.kl, self.beta, self.style, self.clip, self.dual_clip,
            ref_logp=ref_logp, num_items=num_items, segments=segments,
        )  # fmt: skip

    @classmethod
    def instances(cls) -> list[Self]:
        """Each divergence in both styles, and both ways to clip."""
        plain = [cls(kl, 0.3, style) for kl in DIVERGENCES for style in STYLES]
        return [*plain, cls("urkl", 0.3, "reinforce", (0.2, 0.28)), cls("rkl", 0.3, "reinforce", (0.2, 0.28), 3.0)]


def _check_options(kl: str, beta: float, style: str, clip: Clip, dual_clip: float | None) -> None:
    check_choice("kl", kl, DIVERGENCES)
    check_number("beta", beta, low=0.0)
    check_choice("style", style, STYLES)
    if clip is None:
        if dual_clip is not None:
            refuse("dual_clip", "None without clip", dual_clip)
        return
    if not isinstance(clip, (tuple, list)):
        refuse_type("clip", "a pair of numbers, or None", clip)
    if len(clip) != 2:
        refuse("clip", "a pair of numbers, or None", clip)
    if style != "reinforce":
        refuse("clip", 'None with style="differentiable"', clip)
    check_number("clip", clip[0], low=0.0, high=1.0, open_high=True)
    check_number("clip", clip[1], low=0.0)
    if dual_clip is not None:
        check_number("dual_clip", dual_clip, low=1.0 + clip[1], open_low=True)


def _reference(batch: PolicyInputs, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """log v, and u."""
    if batch.ref_logp is None:
        return log_w, torch.ones_like(log_w)
    return batch.logp - batch.ref_logp, saturating_exp(batch.ref_logp - batch.old_logp)


def _differentiable(batch: PolicyInputs, log_w: Tensor, kl: str, beta: float) -> Tensor:
    w = saturating_exp(log_w)
    log_v, u = _reference(batch, log_w)
    penalty = {
        "fkl": lambda: -u * batch.logp,
        "rkl": lambda: w * log_v,
        "ufkl": lambda: w - u * (log_v + 1.0),
        "urkl": lambda: w * (log_v - 1.0) + u,
    }[kl]()
    return beta * penalty - w * batch.advantages


def _reinforce(batch: PolicyInputs, log_w: Tensor, kl: str, beta: float, clip: Clip, dual_clip: float | None) -> Tensor:
    w = saturating_exp(log_w)
    log_v, u = (t.detach() for t in _reference(batch, log_w))
    within = w
    if clip is not None:
        within = w.clamp(1.0 - clip[0], 1.0 + clip[1])
        if batch.ref_logp is None:  # v is w, and is clipped with it
            log_v = within.log()
    penalty = {
        "fkl": lambda: u,
        "rkl": lambda: -within * (log_v + 1.0),
        "ufkl": lambda: u - within,
        "urkl": lambda: -within * log_v,
    }[kl]()
    advantages, logp = batch.advantages, batch.logp
    if clip is None or dual_clip is None:
        return -(within * advantages + beta * penalty) * logp
    bound = torch.where(advantages < 0, w.clamp(1.0 - clip[0], dual_clip), w.clamp(max=1.0 + clip[1]))
    factor = bound * advantages + beta * penalty
    return -factor * torch.where(bound != w, logp.detach(), logp)
