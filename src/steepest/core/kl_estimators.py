"""Estimates of the divergence of a policy from a reference: of sampled tokens, and of whole vocabularies.

What an estimate's value is in expectation says nothing about the expectation of its gradient. With tokens drawn from
the policy itself and logits of (.9, .1) against (.5, .5), the reverse divergence has the gradient (.1978, -.1978); k2
has that one, k3 has (.4, -.4), which is the forward divergence's, and k1 has 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float as F
from torch import Tensor

from .checks import check_choice, check_flag, check_tensor
from .ratios import saturating_exp, saturating_expm1
from .reductions import widen

NAMES = {"k1": "k1", "kl": "k1", "k2": "k2", "mse": "k2", "k3": "k3", "low_var_kl": "k3", "abs": "abs"}
"""What each name estimates by."""
KINDS = (*NAMES, *(f"{name}+" for name in NAMES))
DIRECTIONS = ("reverse", "forward")


def kl_of_samples(
    logp: F[Tensor, "*batch"],
    ref_logp: F[Tensor, "*batch"],
    kind: str = "k3",
    old_logp: F[Tensor, "*batch"] | None = None,
) -> F[Tensor, "*batch"]:
    r"""Estimates of KL(policy || reference) of sampled tokens, one a token.

    With d = logp - ref_logp of tokens that the policy drew:

    - "k1" or "kl": d. Its mean is the reverse divergence; the mean of its gradient is 0.
    - "k2" or "mse": d^2 / 2. Its mean is not the divergence; the mean of its gradient is the reverse divergence's.
    - "k3" or "low_var_kl": e^-d + d - 1 >= 0. Its mean is the reverse divergence; the mean of its gradient is that of
      the forward divergence KL(reference || policy).
    - "abs": \|d\|. Neither; its gradient is the sign of d.
    - a name with "+", as "k3+": its own value with the gradient of "k2".

    With ``old_logp`` the tokens were drawn from another policy: the estimate is multiplied by the ratio
    exp(logp - old_logp), which carries a gradient. Then the mean of k1 and of k3 is the reverse divergence and the mean
    of their gradients is its gradient; without the ratio it is not.

    Args:
        logp: log-probabilities of the policy, any shape.
        ref_logp: of the reference, of the same shape; no gradient flows into them.
        kind: one of these names.
        old_logp: of the policy that drew the tokens, or None if it is this one; no gradient flows into them.

    Returns:
        Of the same shape, in float32 or wider. Ratios above e^20 go on along their tangent, so all is finite.

    Raises:
        ValueError: another name, shapes that differ.

    >>> kl_of_samples(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]), "k3")
    tensor([0.1065, 0.7183])
    """
    check_choice("kind", kind, KINDS)
    check_tensor("logp", logp, floating=True)
    check_tensor("ref_logp", ref_logp, floating=True, shape=tuple(logp.shape))
    policy = widen(logp)
    d = policy - ref_logp.detach().to(policy)
    name = NAMES[kind.removesuffix("+")]
    estimate = _ESTIMATES[name](d)
    if kind.endswith("+"):
        square = _half_square(d)
        estimate = estimate.detach() + (square - square.detach())
    if old_logp is None:
        return estimate
    check_tensor("old_logp", old_logp, floating=True, shape=tuple(logp.shape))
    return saturating_exp(policy - old_logp.detach().to(policy)) * estimate


def _low_variance(d: Tensor) -> Tensor:
    return saturating_expm1(-d) + d


def _half_square(d: Tensor) -> Tensor:
    return 0.5 * d.square()


_ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": torch.positive,
    "k2": _half_square,
    "k3": _low_variance,
    "abs": torch.abs,
}


def at_least_zero(divergence: Tensor) -> Tensor:
    """What rounding left below 0 as 0, with the gradient that it had.

    >>> at_least_zero(torch.tensor([-1e-9, 0.5]))
    tensor([0.0000, 0.5000])
    """
    return divergence + divergence.detach().clamp(max=0.0).neg()


def kl_of_logits(
    logits: F[Tensor, "*batch classes"],
    ref_logits: F[Tensor, "*batch classes"],
    direction: str = "reverse",
    *,
    stop_reference: bool = True,
) -> F[Tensor, "*batch"]:
    r"""The divergence over the whole vocabulary, with its exact gradient.

    .. math:: \mathrm{reverse} = \sum_v \pi_v \log \frac{\pi_v}{\rho_v}, \qquad
        \mathrm{forward} = \sum_v \rho_v \log \frac{\rho_v}{\pi_v}

    Args:
        logits: of the policy ``[..., V]``.
        ref_logits: of the reference ``[..., V]``. Classes of probability 0 under the first distribution of the
            divergence add nothing.
        direction: "reverse" or "forward".
        stop_reference: whether the reference gets no gradient.

    Returns:
        ``[...]`` in float32 or wider, >= 0.

    Raises:
        ValueError: another direction, shapes that differ.

    >>> policy, reference = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> kl_of_logits(policy, reference), kl_of_logits(policy, reference, "forward")
    (tensor(0.3681), tensor(0.5108))
    """
    check_choice("direction", direction, DIRECTIONS)
    check_flag("stop_reference", stop_reference)
    check_tensor("logits", logits, floating=True)
    check_tensor("ref_logits", ref_logits, floating=True, shape=tuple(logits.shape))
    log_p = widen(logits).log_softmax(-1)
    log_r = (ref_logits.detach() if stop_reference else ref_logits).to(log_p).log_softmax(-1)
    own, against = (log_p, log_r) if direction == "reverse" else (log_r, log_p)
    p = own.exp()
    # a class that is ruled out must not meet an infinite logarithm
    return at_least_zero((p * torch.where(p == 0, 0.0, own - against)).sum(-1))
