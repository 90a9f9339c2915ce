"""Losses of preferences between answers, by name: formulas of log-probabilities under a policy and a reference.

Arguments stand in the order policy of the chosen answers, policy of the rejected, reference of the chosen, reference of
the rejected. All are sums over an answer's tokens; where a loss compares answers per token, their lengths are an
argument of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from .checks import check_choice, check_interval, check_number, check_tensor, refuse, values_visible
from .log_complement import log1mexp
from .loss import Loss, Sample
from .reductions import REDUCTIONS, reduce, widen
from .terms import kept_terms

MarginLoss = Callable[[Tensor, float], Tensor]
"""Losses of margins rho, and beta."""


class PreferenceLosses(NamedTuple):
    """Losses, and the rewards that the policy implies.

    Attributes:
        losses: one a pair ``[B]``; of unpaired answers one an answer, the chosen first.
        chosen_rewards, rejected_rewards: beta times the log-ratio of policy to reference (without a reference, the
            log-probability), per token where lengths are given; detached.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of chosen and rejected answers, per token where lengths are given."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None

    @property
    def chosen(self) -> Tensor:
        """Log-ratios of policy to reference; without a reference the log-probabilities."""
        return self.policy_chosen if self.ref_chosen is None else self.policy_chosen - self.ref_chosen

    @property
    def rejected(self) -> Tensor:
        """The same of the rejected answers."""
        return self.policy_rejected if self.ref_rejected is None else self.policy_rejected - self.ref_rejected

    @property
    def margin(self) -> Tensor:
        """rho, by how much the chosen answer's score is the larger one."""
        return self.chosen - self.rejected


@dataclass(frozen=True)
class PreferenceForm:
    """A named loss of preferences.

    Args:
        name: its ``loss_type``.
        function: of :class:`Scores` (of their margin alone where ``of_margin``), beta and the options.
        of_margin: whether it depends on the margin alone.
        reference: whether a reference is compared with; the others take none.
        paired: whether a chosen and a rejected answer belong together.
        per_token: whether lengths must be given; else they may be.
        options: names of further numbers, with their defaults; None has to be given.
    """

    name: str
    function: Callable[..., Tensor]
    of_margin: bool = False
    reference: bool = True
    paired: bool = True
    per_token: bool = False
    options: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def formula(self) -> str:
        """The equation, and where it is from."""
        return self.function.__doc__ or ""

    def losses(self, scores: Scores, beta: float, options: Mapping[str, Any]) -> Tensor:
        """One loss a pair."""
        return self.function(scores.margin if self.of_margin else scores, beta, **options)


_FORMS: dict[str, PreferenceForm] = {}
PREFERENCE_FORMS: Mapping[str, PreferenceForm] = MappingProxyType(_FORMS)
"""Every named loss of preferences, by its name."""

SMOOTHED: Mapping[str, float | None] = {"label_smoothing": 0.0}


def _form(name: str, **facts: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _FORMS[name] = PreferenceForm(name, function, **facts)
        return function

    return register


def _logistic(x: Tensor, label_smoothing: float) -> Tensor:
    """The negative log-likelihood of a preference whose label is wrong with a probability."""
    if not label_smoothing:
        return -logsigmoid(x)
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


# ----------------------------------------------------------------------------------------- of the margin, x = beta rho


@_form("sigmoid", of_margin=True, options=SMOOTHED)
def _sigmoid(rho: Tensor, beta: float, label_smoothing: float) -> Tensor:
    r""":math:`-(1 - \epsilon) \log\sigma(x) - \epsilon \log\sigma(-x)`: DPO, arXiv:2305.18290; conservative for
    :math:`\epsilon > 0`."""
    return _logistic(beta * rho, label_smoothing)


@_form("sigmoid_norm", of_margin=True, per_token=True, options=SMOOTHED)
def _sigmoid_norm(rho: Tensor, beta: float, label_smoothing: float) -> Tensor:
    r""":math:`-(1 - \epsilon) \log\sigma(x) - \epsilon \log\sigma(-x)` of log-ratios per token: DPO normalised by
    length."""
    return _logistic(beta * rho, label_smoothing)


@_form("hinge", of_margin=True)
def _hinge(rho: Tensor, beta: float) -> Tensor:
    r""":math:`\max(0, 1 - x)`: SLiC with a reference, RSO, arXiv:2309.06657."""
    return torch.relu(1 - beta * rho)


@_form("ipo", of_margin=True)
def _ipo(rho: Tensor, beta: float) -> Tensor:
    r""":math:`(\rho - 1 / (2 \beta))^2`: IPO, arXiv:2310.12036; the publication's numbers are of log-ratios per
    token."""
    return (rho - 1 / (2 * beta)).square()


@_form("exponential", of_margin=True)
def _exponential(rho: Tensor, beta: float) -> Tensor:
    r""":math:`e^{-x}`: GPO with the exponential loss, arXiv:2402.05749; inf in float32 for :math:`x < -88`."""
    return torch.exp(-beta * rho)


@_form("kto_pair", of_margin=True)
def _kto_pair(rho: Tensor, beta: float) -> Tensor:
    r""":math:`1 - \sigma(x)`: the value function of KTO on a pair."""
    return torch.sigmoid(-beta * rho)


@_form("discopop", of_margin=True, options={"tau": 0.05})
def _discopop(rho: Tensor, beta: float, tau: float) -> Tensor:
    r""":math:`(1 - g) \log(1 + e^{-x}) + g e^{-x}` with :math:`g = \sigma(x / \tau)`: DiscoPOP, arXiv:2406.08414."""
    x = beta * rho
    # the weight of the exponential underflows where it overflows: their logarithms are added first
    return torch.sigmoid(-x / tau) * softplus(-x) + torch.exp(logsigmoid(x / tau) - x)


@_form("exo_pair", of_margin=True, options={"label_smoothing": None})
def _exo_pair(rho: Tensor, beta: float, label_smoothing: float) -> Tensor:
    r""":math:`\sigma(x) \log\frac{\sigma(x)}{1 - \epsilon} + \sigma(-x) \log\frac{\sigma(-x)}{\epsilon}`: EXO,
    arXiv:2402.00856; a reverse divergence, which needs :math:`\epsilon > 0`."""
    x = beta * rho
    right = torch.sigmoid(x) * (logsigmoid(x) - math.log1p(-label_smoothing))
    return right + torch.sigmoid(-x) * (logsigmoid(-x) - math.log(label_smoothing))


@_form("robust", of_margin=True, options=SMOOTHED)
def _robust(rho: Tensor, beta: float, label_smoothing: float) -> Tensor:
    r""":math:`\frac{-(1 - \epsilon) \log\sigma(x) + \epsilon \log\sigma(-x)}{1 - 2 \epsilon}`: unbiased where a share
    :math:`\epsilon` of the labels is flipped, arXiv:2403.00409."""
    x = beta * rho
    noisy = (1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)
    return -noisy / (1 - 2 * label_smoothing)


# ----------------------------------------------------------------- of both scores, c and r, or of the batch, in order


@_form("nca_pair")
def _nca_pair(scores: Scores, beta: float) -> Tensor:
    r""":math:`-\log\sigma(\beta c) - \frac12 \log\sigma(-\beta c) - \frac12 \log\sigma(-\beta r)`: NCA,
    arXiv:2402.05369."""
    chosen, rejected = beta * scores.chosen, beta * scores.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


@_form("bco_pair")
def _bco_pair(scores: Scores, beta: float) -> Tensor:
    r""":math:`-\log\sigma(\beta c) - \log\sigma(-\beta r)`: BCO without a shift of rewards, arXiv:2404.04656."""
    return -logsigmoid(beta * scores.chosen) - logsigmoid(-beta * scores.rejected)


@_form("sppo_hard")
def _sppo_hard(scores: Scores, beta: float) -> Tensor:
    r""":math:`(c - 1 / (2 \beta))^2 + (r + 1 / (2 \beta))^2`: SPPO with win rates of 1 and 0, arXiv:2405.00675."""
    return (scores.chosen - 0.5 / beta).square() + (scores.rejected + 0.5 / beta).square()


@_form("apo_zero")
def _apo_zero(scores: Scores, beta: float) -> Tensor:
    r""":math:`\sigma(-\beta c) + \sigma(\beta r)`: APO-zero, arXiv:2408.06266; the chosen answers are better than the
    model's own."""
    return torch.sigmoid(-beta * scores.chosen) + torch.sigmoid(beta * scores.rejected)


@_form("apo_down")
def _apo_down(scores: Scores, beta: float) -> Tensor:
    r""":math:`\sigma(\beta c) + \sigma(-\beta \rho)`: APO-down, arXiv:2408.06266; the chosen answers are worse than
    the model's own."""
    return torch.sigmoid(beta * scores.chosen) + torch.sigmoid(-beta * scores.margin)


@_form("aot", options=SMOOTHED)
def _aot(scores: Scores, beta: float, label_smoothing: float) -> Tensor:
    r"""The logistic loss of :math:`\beta (u_{(i)} - v_{(i)})`, the i-th smallest margins of policy and reference in the
    batch: AOT, arXiv:2406.05882; one loss a rank."""
    assert scores.ref_chosen is not None
    assert scores.ref_rejected is not None
    policy = (scores.policy_chosen - scores.policy_rejected).sort().values
    return _logistic(beta * (policy - (scores.ref_chosen - scores.ref_rejected).sort().values), label_smoothing)


@_form("aot_unpaired", options=SMOOTHED)
def _aot_unpaired(scores: Scores, beta: float, label_smoothing: float) -> Tensor:
    r"""The logistic loss of :math:`\beta (c_{(i)} - r_{(i)})`, the i-th smallest scores in the batch: AOT,
    arXiv:2406.05882; one loss a rank, and no pairs."""
    margin = scores.chosen.sort().values - scores.rejected.sort().values
    return _logistic(beta * margin, label_smoothing)


# --------------------------------------------------------------------------------------------- without a reference


@_form("cpo", reference=False, options={**SMOOTHED, "nll_weight": 1.0})
def _cpo(scores: Scores, beta: float, label_smoothing: float, nll_weight: float) -> Tensor:
    r""":math:`-(1 - \epsilon) \log\sigma(x) - \epsilon \log\sigma(-x) - \lambda \log\pi(y_w)`: CPO,
    arXiv:2401.08417."""
    return _logistic(beta * scores.margin, label_smoothing) - nll_weight * scores.chosen


@_form("slic", reference=False, options={"nll_weight": 1.0})
def _slic(scores: Scores, beta: float, nll_weight: float) -> Tensor:
    r""":math:`\max(0, 1 - x) - \lambda \log\pi(y_w)`: SLiC-HF, arXiv:2305.10425."""
    return torch.relu(1 - beta * scores.margin) - nll_weight * scores.chosen


@_form("simpo", of_margin=True, reference=False, per_token=True, options={**SMOOTHED, "gamma": 0.5})
def _simpo(rho: Tensor, beta: float, label_smoothing: float, gamma: float) -> Tensor:
    r""":math:`-(1 - \epsilon) \log\sigma(x - \gamma) - \epsilon \log\sigma(\gamma - x)` of log-probabilities per token:
    SimPO, arXiv:2405.14734."""
    return _logistic(beta * rho - gamma, label_smoothing)


@_form("orpo", reference=False, per_token=True)
def _orpo(scores: Scores, beta: float) -> Tensor:
    r""":math:`-\log p_w - \beta \log\sigma\bigl(\log\frac{p_w}{1 - p_w} - \log\frac{p_l}{1 - p_l}\bigr)` with p the
    geometric mean of an answer's token probabilities: ORPO, arXiv:2403.07691."""
    for name, value in (("policy_chosen", scores.policy_chosen), ("policy_rejected", scores.policy_rejected)):
        check_interval(name, value, high=0.0, what="log-probabilities")
    return -scores.chosen + beta * _log_one_plus_odds_ratio(scores.rejected, scores.chosen)


# ---------------------------------------------------------------------------------------------------------- unpaired


@_form(
    "kto", paired=False, options={"kl": None, "desirable_weight": 1.0, "undesirable_weight": 1.0},
)  # fmt: skip
def _kto(scores: Scores, beta: float, kl: float | Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    r""":math:`\lambda_D\, \sigma(\beta (z - c))` of desirable and :math:`\lambda_U\, \sigma(\beta (r - z))` of
    undesirable answers, with the divergence z from the reference: KTO, arXiv:2402.01306."""
    z = kl.detach().to(scores.chosen) if isinstance(kl, Tensor) else kl
    desirable = desirable_weight * torch.sigmoid(beta * (z - scores.chosen))
    return torch.cat([desirable, undesirable_weight * torch.sigmoid(beta * (scores.rejected - z))])


@_form("apo_zero_unpaired", paired=False, options={"desirable_weight": 1.0, "undesirable_weight": 1.0})
def _apo_zero_unpaired(scores: Scores, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    r""":math:`\lambda_D\, \sigma(-\beta c)` and :math:`\lambda_U\, \sigma(\beta r)`: APO-zero of answers by themselves,
    arXiv:2408.06266."""
    desirable = desirable_weight * torch.sigmoid(-beta * scores.chosen)
    return torch.cat([desirable, undesirable_weight * torch.sigmoid(beta * scores.rejected)])


def _log_one_plus_odds_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``log(1 + odds(p) / odds(q))``, with a slope also where q is 1 and its odds are infinite."""
    odds = log_p - log1mexp(log_p)
    certain = (log_q > -1.0) & (odds < 60.0)
    inverse = torch.expm1(-torch.where(certain, log_q, -1.0))  # (1 - q) / q
    near = torch.log1p(torch.where(certain, odds, 0.0).exp() * inverse)
    far = torch.where(certain, -1.0, log_q)
    return torch.where(certain, near, softplus(odds - far + log1mexp(far)))


# ------------------------------------------------------------------------------------------------------------- calls

_RANGES: dict[str, dict[str, Any]] = {
    "label_smoothing": {"low": 0.0, "high": 0.5, "open_high": True},
    "tau": {"low": 0.0, "open_low": True},
    "gamma": {"open_low": True, "open_high": True},
    "nll_weight": {"low": 0.0, "high": math.inf, "open_high": True},
    "kl": {"open_low": True, "open_high": True},
    "desirable_weight": {"low": 0.0, "high": math.inf, "open_high": True},
    "undesirable_weight": {"low": 0.0, "high": math.inf, "open_high": True},
}


def check_preference_options(loss_type: str, beta: float, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a named loss with its defaults in place; what it doesn't have is refused.

    Args:
        loss_type: its name.
        beta: > 0.
        given: options; None, and a smoothing of 0, were not given.

    Raises:
        ValueError: a name that is unknown, an option that would do nothing, one that is missing or out of range.

    >>> check_preference_options("discopop", 0.1, {"label_smoothing": 0.0, "tau": None})
    {'tau': 0.05}
    >>> check_preference_options("hinge", 0.1, {"label_smoothing": 0.1})
    Traceback (most recent call last):
    ValueError: label_smoothing: expected none with loss_type='hinge', where it does nothing, got 0.1
    """
    check_choice("loss_type", loss_type, tuple(_FORMS))
    check_number("beta", beta, low=0.0, high=math.inf, open_low=True, open_high=True)
    form = _FORMS[loss_type]
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            check_number(name, value, **_RANGES[name])
        elif name == "kl":
            check_tensor("kl", value, floating=True, shape=())
        else:
            check_number(name, value)
        if name not in form.options and not (name == "label_smoothing" and value == 0):
            refuse(name, f"none with loss_type={loss_type!r}, where it does nothing", value)
    options = {name: default if given.get(name) is None else given[name] for name, default in form.options.items()}
    for name, value in options.items():
        if value is None or (form.options[name] is None and name == "label_smoothing" and value == 0):
            refuse(name, f"a number{' > 0' if name == 'label_smoothing' else ''} with loss_type={loss_type!r}", value)
    return options


def preference_loss(
    policy_chosen: F[Tensor, " pairs"],
    policy_rejected: F[Tensor, " pairs"],
    ref_chosen: F[Tensor, " pairs"] | None = None,
    ref_rejected: F[Tensor, " pairs"] | None = None,
    loss_type: str = "sigmoid",
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
    tau: float | None = None,
    gamma: float | None = None,
    nll_weight: float | None = None,
    kl: float | F[Tensor, ""] | None = None,
    desirable_weight: float | None = None,
    undesirable_weight: float | None = None,
) -> PreferenceLosses:
    r"""A named loss of preferences between answers, and the rewards that the policy implies.

    With the scores :math:`c = \log\pi(y_w) - \log\pi_{ref}(y_w)` of the chosen and r of the rejected answers, divided
    by the number of an answer's tokens where lengths are given, the margin :math:`\rho = c - r` and
    :math:`x = \beta\rho`; losses without a reference take log-probabilities for scores. ``PREFERENCE_FORMS`` has the
    formula of each name:

    - of the margin: ``sigmoid`` (DPO), ``sigmoid_norm``, ``hinge``, ``ipo``, ``exponential``, ``kto_pair``,
      ``discopop``, ``exo_pair``, ``robust``;
    - of both scores: ``nca_pair``, ``bco_pair``, ``sppo_hard``, ``apo_zero``, ``apo_down``; of scores in order of
      size: ``aot``, ``aot_unpaired``;
    - without a reference: ``cpo``, ``slic``, ``simpo``, ``orpo``;
    - of answers that form no pairs: ``kto``, ``apo_zero_unpaired``.

    Args:
        policy_chosen: log-probability of each chosen answer under the policy, summed over its tokens ``[B]``.
        policy_rejected: the same of the rejected answers ``[B]``; unpaired ones may be another number.
        ref_chosen, ref_rejected: under the reference; no gradient flows into them. None for losses without one.
        loss_type: one of the names.
        beta: > 0, the strength of the reference; of ``orpo`` the weight of the odds ratio.
        label_smoothing: share of labels that are wrong, in [0, 0.5); > 0 for ``exo_pair``.
        chosen_length, rejected_length: tokens of each answer ``[B]``, >= 1: scores per token. ``sigmoid_norm``,
            ``simpo`` and ``orpo`` need them; ``ipo`` of TRL divides by them.
        tau: of ``discopop``, > 0; 0.05 by default.
        gamma: of ``simpo``, the margin that is aimed at; 0.5 by default.
        nll_weight: of ``cpo`` and ``slic``, weight >= 0 of the chosen answer's likelihood; 1 by default.
        kl: of ``kto``, the divergence of policy from reference: a number or a scalar, which gets no gradient.
        desirable_weight, undesirable_weight: of the unpaired losses, >= 0; 1 by default.

    Returns:
        losses ``[B]`` and detached rewards, in float32 or wider.

    Raises:
        ValueError: an unknown name, shapes that differ, a reference or lengths that are missing or not used, an option
            that the named loss doesn't have.

    Example:
        >>> chosen, rejected, zero = torch.tensor([-4.0]), torch.tensor([-10.0]), torch.tensor([0.0])
        >>> preference_loss(chosen, rejected, zero, zero).losses
        tensor([0.4375])
        >>> preference_loss(chosen, rejected, zero, zero, "ipo").losses
        tensor([1.])
    """
    given = {
        "label_smoothing": label_smoothing,
        "tau": tau,
        "gamma": gamma,
        "nll_weight": nll_weight,
        "kl": kl,
        "desirable_weight": desirable_weight,
        "undesirable_weight": undesirable_weight,
    }
    options = check_preference_options(loss_type, beta, given)
    form = _FORMS[loss_type]
    check_log_probabilities({"policy_chosen": policy_chosen, "policy_rejected": policy_rejected}, form.paired)
    references = {"ref_chosen": (ref_chosen, policy_chosen), "ref_rejected": (ref_rejected, policy_rejected)}
    for name, (value, policy) in references.items():
        if form.reference:
            check_tensor(name, value, floating=True, shape=tuple(policy.shape))
        elif value is not None:
            refuse(name, f"None with loss_type={loss_type!r}, which has no reference", value)
    chosen = _per_token("chosen_length", chosen_length, form, policy_chosen, ref_chosen)
    rejected = _per_token("rejected_length", rejected_length, form, policy_rejected, ref_rejected)
    if (chosen_length is None) != (rejected_length is None):
        refuse("rejected_length", "lengths of both answers, or of none", rejected_length)
    scores = Scores(chosen[0], rejected[0], chosen[1], rejected[1])
    losses = form.losses(scores, beta, options)
    return PreferenceLosses(losses, (beta * scores.chosen).detach(), (beta * scores.rejected).detach())


def margin_losses() -> dict[str, MarginLoss]:
    """The named losses that need nothing but the margin and beta.

    >>> sorted(margin_losses())
    ['discopop', 'exponential', 'hinge', 'ipo', 'kto_pair', 'robust', 'sigmoid']
    >>> margin_losses()["hinge"](torch.tensor([6.0]), 0.1)
    tensor([0.4000])
    """

    def bind(form: PreferenceForm) -> MarginLoss:
        def losses(rho: Tensor, beta: float) -> Tensor:
            check_tensor("rho", rho, floating=True)
            check_number("beta", beta, low=0.0, high=math.inf, open_low=True, open_high=True)
            return form.function(widen(rho), beta, **form.options)

        losses.__doc__ = form.formula
        return losses

    return {
        name: bind(form)
        for name, form in _FORMS.items()
        if form.of_margin and form.reference and not form.per_token and None not in form.options.values()
    }


def check_log_probabilities(values: Mapping[str, object], paired: bool = True) -> None:
    """Check log-probabilities ``[B]`` by their names; of pairs all of one length.

    Raises:
        ValueError: another number of dimensions, another length.
        TypeError: no floating tensor.

    >>> check_log_probabilities({"a": torch.zeros(2), "b": torch.zeros(3)})
    Traceback (most recent call last):
    ValueError: b: expected shape (2), got a float32 tensor of shape (3,)
    """
    length = None
    for name, value in values.items():
        check_tensor(name, value, ndim=1, floating=True)
        check_tensor(name, value, shape=(length,))
        if paired and length is None and isinstance(value, Tensor):
            length = value.shape[0]


def _per_token(
    argument: str, length: Tensor | None, form: PreferenceForm, policy: Tensor, ref: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Scores under policy and reference, widened, by lengths where there are some; the reference gets no gradient."""
    policy = widen(policy)
    ref = None if ref is None else ref.detach().to(policy)
    if length is None:
        if form.per_token:
            refuse(argument, f"numbers of tokens with loss_type={form.name!r}", None)
        return policy, ref
    check_tensor(argument, length, shape=tuple(policy.shape))
    if length.numel() and values_visible(length) and not bool((length >= 1).all()):
        refuse(argument, "numbers of tokens >= 1", length.tolist())
    count = length.detach().to(policy)
    return policy / count, None if ref is None else ref / count


class LogProbabilityLoss(Loss):
    """A loss of log-probabilities of whole answers ``[B]``, those of the policy first.

    Class attributes:
        differentiable: what is the policy's; everything else gets no gradient.
    """

    differentiable: ClassVar[tuple[int | str, ...]] = (0, 1)


class PreferenceLoss(LogProbabilityLoss):
    """A named loss of preferences as a module; see :func:`preference_loss`.

    A step in several micro-batches, or on several ranks, needs ``reduction="sum"`` and the number of all its pairs.

    Args:
        loss_type: the name of the loss.
        beta: > 0.
        label_smoothing: in [0, 0.5).
        tau, gamma, nll_weight, desirable_weight, undesirable_weight: of the losses that have them; None is the default.
        reduction: ``"mean"`` over pairs, ``"sum"`` or ``"none"``.

    ``terms`` has the mean rewards ``chosen_reward`` and ``rejected_reward``, their ``margin``, and of pairs the
    ``accuracy``: the share whose chosen answer has the larger reward.

    Example:
        >>> loss = PreferenceLoss("hinge", beta=0.5)
        >>> chosen, rejected = torch.tensor([-2.0, -5.0]), torch.tensor([-3.0, -4.0])
        >>> loss(chosen, rejected, torch.tensor([-2.0, -4.0]), torch.tensor([-2.0, -4.0]))
        tensor(1.)
        >>> loss.terms["accuracy"]
        tensor(0.5000)
    """

    name = "preference"

    def __init__(
        self,
        loss_type: str = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        *,
        tau: float | None = None,
        gamma: float | None = None,
        nll_weight: float | None = None,
        desirable_weight: float | None = None,
        undesirable_weight: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.loss_type, self.beta, self.label_smoothing = loss_type, beta, label_smoothing
        self.tau, self.gamma, self.nll_weight = tau, gamma, nll_weight
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight
        self.reduction = reduction
        at_call = {"kl": 0.0} if "kl" in getattr(PREFERENCE_FORMS.get(str(loss_type)), "options", {}) else {}
        check_preference_options(loss_type, beta, {**self._options(), **at_call})

    def _options(self) -> dict[str, Any]:
        return {
            "label_smoothing": self.label_smoothing,
            "tau": self.tau,
            "gamma": self.gamma,
            "nll_weight": self.nll_weight,
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
        }

    def forward(
        self,
        policy_chosen: F[Tensor, " pairs"],
        policy_rejected: F[Tensor, " pairs"],
        ref_chosen: F[Tensor, " pairs"] | None = None,
        ref_rejected: F[Tensor, " pairs"] | None = None,
        *,
        chosen_length: Tensor | None = None,
        rejected_length: Tensor | None = None,
        kl: float | F[Tensor, ""] | None = None,
    ) -> Tensor:
        """The loss of log-probabilities, with lengths and the divergence where the named loss takes them."""
        losses, chosen, rejected = preference_loss(
            policy_chosen,
            policy_rejected,
            ref_chosen,
            ref_rejected,
            self.loss_type,
            beta=self.beta,
            chosen_length=chosen_length,
            rejected_length=rejected_length,
            kl=kl,
            **self._options(),
        )
        self.terms = preference_terms(chosen, rejected, PREFERENCE_FORMS[self.loss_type].paired)
        return reduce_pairs(losses, self.reduction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[PreferenceLoss, Sample]]:
        scores = log_probability_samples(4, generator, dtype, device)
        lengths = [torch.tensor(counts, device=device) for counts in ([7, 2, 5], [4, 6, 3])]
        cases: list[tuple[PreferenceLoss, Sample]] = []
        for form in PREFERENCE_FORMS.values():
            options: dict[str, Any] = {name: 0.2 for name in form.options if name in ("label_smoothing", "tau")}
            args = tuple(scores) if form.reference else tuple(scores[:2])
            if not form.paired:
                args = (args[0], args[1][:2], args[2], args[3][:2])
            named: dict[str, Any] = {}
            if form.per_token or form.name == "ipo":
                named = {"chosen_length": lengths[0], "rejected_length": lengths[1]}
            if "kl" in form.options:
                named["kl"] = 0.3
            cases.append((cls(form.name, 0.4, **options), (args, named)))
        return cases


def reduce_pairs(losses: Tensor, reduction: str) -> Tensor:
    """Losses ``[B]`` by "none", "mean" or "sum"; of no pair the mean is 0, with a graph.

    >>> reduce_pairs(torch.zeros(0), "mean")
    tensor(0.)
    """
    return reduce(losses, reduction, empty="zero")


def preference_terms(chosen_rewards: Tensor, rejected_rewards: Tensor, paired: bool = True) -> dict[str, Tensor]:
    """The named parts that a loss of preferences keeps: mean rewards, their difference, the share of pairs in order."""
    chosen, rejected = chosen_rewards.mean(), rejected_rewards.mean()
    terms = {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected}
    if paired:
        terms["accuracy"] = (chosen_rewards > rejected_rewards).to(chosen_rewards.dtype).mean()
    return kept_terms(terms)


def log_probability_samples(
    count: int, generator: torch.Generator, dtype: torch.dtype, device: str | torch.device
) -> list[Tensor]:
    """Log-probabilities of three answers, for the conformance suite; the first two are the policy's."""
    return [(-3 * torch.rand(3, generator=generator) - 0.5).to(device, dtype) for _ in range(count)]
