"""Profit-driven churn prevention: losses whose size is the profit that a campaign's induced decisions miss."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float as F
from numpy.typing import ArrayLike
from scipy.stats import beta as beta_law
from torch import Tensor

from ...core.checks import check_binary, check_choice, check_number, check_tensor, refuse, values_visible
from ...core.loss import Loss, Sample
from ...core.reductions import REDUCTIONS, reduce, widen


def _campaign(gamma: float, d: float, f: float) -> None:
    check_number("gamma", gamma, low=0.0, high=1.0)
    check_number("d", d, low=0.0)
    check_number("f", f, low=0.0)


def _values(clv: object) -> Tensor:
    check_tensor("clv", clv, ndim=1, floating=True)
    assert isinstance(clv, Tensor)
    if clv.numel() and values_visible(clv) and bool((clv < 0).any()):
        refuse("clv", "values >= 0", float(clv.min()))
    return widen(clv)


def _costs(pred_cost: object, true_cost: object, budget: int | None, reduction: str) -> tuple[Tensor, Tensor]:
    check_choice("reduction", reduction, REDUCTIONS)
    check_tensor("pred_cost", pred_cost, ndim=1, floating=True)
    assert isinstance(pred_cost, Tensor)
    check_tensor("true_cost", true_cost, floating=True, shape=tuple(pred_cost.shape))
    assert isinstance(true_cost, Tensor)
    return widen(pred_cost), widen(true_cost)


def contact_cost(
    y: F[Tensor, " batch"], clv: F[Tensor, " batch"], *, gamma: float = 0.3, d: float = 10.0, f: float = 1.0
) -> Tensor:
    r"""Cost of contacting each customer, minus the profit; not contacting costs 0.

    .. math:: c_i = f - \gamma (V_i - d) \text{ for a churner}, \qquad c_i = d + f \text{ for one who stays}

    Args:
        y: churn labels in {0, 1}, ``[N]``.
        clv: lifetime values V >= 0, ``[N]``, in the unit of ``d`` and ``f``.
        gamma: share of churners who accept the offer, in [0, 1].
        d: cost of the offer, >= 0, which every customer who stays takes.
        f: cost of a contact, >= 0.

    Returns:
        ``[N]`` in float32 or wider.

    Raises:
        ValueError: a negative lifetime value, ``gamma`` outside [0, 1], labels other than 0 and 1.

    Example:
        >>> contact_cost(torch.tensor([1, 0]), torch.tensor([200.0, 500.0]), gamma=0.5)
        tensor([-94.,  11.])

    Source: A predict-and-optimize approach to profit-driven churn prevention, arXiv:2310.07047.
    """
    _campaign(gamma, d, f)
    values = _values(clv)
    check_binary(y, values, argument="y")
    return torch.where(y.bool(), f - gamma * (values - d), torch.full_like(values, d + f))


def campaign_profit(
    y: F[Tensor, " batch"],
    clv: F[Tensor, " batch"],
    contact: Tensor,
    *,
    gamma: float = 0.3,
    d: float = 10.0,
    f: float = 1.0,
) -> Tensor:
    """Profit of each customer in a campaign: minus :func:`contact_cost` where contacted, else 0.

    Args:
        y, clv, gamma, d, f: see :func:`contact_cost`.
        contact: decisions in {0, 1}, ``[N]``.

    Returns:
        ``[N]``; its mean is the average profit of the campaign.

    Raises:
        ValueError: as :func:`contact_cost`.

    Example:
        >>> y, clv = torch.tensor([1, 0, 1]), torch.tensor([200.0, 500.0, 20.0])
        >>> campaign_profit(y, clv, torch.tensor([1, 1, 0]), gamma=0.5)
        tensor([ 94., -11.,   0.])
    """
    cost = contact_cost(y, clv, gamma=gamma, d=d, f=f)
    check_binary(contact, cost, argument="contact")
    return torch.where(contact.bool(), -cost, 0.0)


def break_even_probability(clv: F[Tensor, " batch"], *, gamma: float = 0.3, d: float = 10.0, f: float = 1.0) -> Tensor:
    r"""Churn probability above which contacting a customer pays, infinite where it never does.

    .. math:: p^*_i = \frac{d + f}{\gamma (V_i - d) + d}

    Args:
        clv, gamma, d, f: see :func:`contact_cost`, also for what is refused.

    Returns:
        ``[N]``, > 1 where even a sure churner is not worth it.

    Example:
        >>> break_even_probability(torch.tensor([50.0, 200.0]))
        tensor([0.5000, 0.1642])
    """
    _campaign(gamma, d, f)
    gain = gamma * (_values(clv) - d) + d
    pays = gain > 0
    return torch.where(pays, (d + f) / torch.where(pays, gain, 1.0), torch.inf)


def contact_decision(cost: F[Tensor, " batch"], budget: int | None = None) -> Tensor:
    """Whom to contact: every negative cost, or with a budget at most so many of the smallest.

    Args:
        cost: ``[N]``; a cost of 0 is not contacted.
        budget: most contacts, >= 0, or None for any number.

    Returns:
        Booleans ``[N]``.

    Raises:
        ValueError: a negative budget.

    Example:
        >>> contact_decision(torch.tensor([-3.0, 1.0, -5.0]), budget=1).tolist()
        [False, False, True]
    """
    check_tensor("cost", cost, ndim=1, floating=True)
    if budget is None:
        return cost < 0
    check_number("budget", budget, low=0, integer=True)
    first = torch.zeros_like(cost, dtype=torch.bool)
    first[cost.detach().topk(min(budget, cost.shape[0]), largest=False).indices] = True
    return first & (cost < 0)


def profit_regret(
    pred_cost: F[Tensor, " batch"],
    true_cost: F[Tensor, " batch"],
    *,
    budget: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Profit that the decisions of predicted costs miss; its gradient in the prediction is zero where it exists.

    .. math:: r_i = c_i\, (z_i(\hat c) - z_i(c)), \qquad \sum_i r_i \ge 0

    Args:
        pred_cost: predicted costs of a contact, ``[N]``.
        true_cost: costs, ``[N]``.
        budget: most contacts, or None; see :func:`contact_decision`.
        reduction: ``"none"``, ``"mean"`` (over customers) or ``"sum"``.

    Raises:
        ValueError: a negative budget, wrong shapes.

    Example:
        >>> cost, predicted = torch.tensor([-56.0, 11.0, -2.0]), torch.tensor([-20.0, -5.0, 3.0])
        >>> profit_regret(predicted, cost, reduction="sum")
        tensor(13.)
    """
    predicted, cost = _costs(pred_cost, true_cost, budget, reduction)
    decided, best = (contact_decision(c, budget).to(cost.dtype) for c in (predicted, cost))
    return reduce(cost * (decided - best), reduction)


def spo_plus(
    pred_cost: F[Tensor, " batch"],
    true_cost: F[Tensor, " batch"],
    *,
    budget: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The SPO+ surrogate of the targeting problem: convex in the prediction, never below the regret.

    .. math:: \max_z\, (c - 2 \hat c)^\top z + 2 \hat c^\top z(c) - c^\top z(c), \qquad
        \partial = 2\, (z(c) - z(2 \hat c - c))

    Without a budget it is :math:`\max(0, c - 2 \hat c) + (2 \hat c - c)\, z(c)` for each customer.

    Args:
        pred_cost, true_cost, budget, reduction: see :func:`profit_regret`.

    Raises:
        ValueError: a negative budget, wrong shapes.

    Example:
        >>> cost, predicted = torch.tensor([-56.0, 11.0, -2.0]), torch.tensor([-20.0, -5.0, 3.0])
        >>> spo_plus(predicted, cost, reduction="none").tolist()
        [16.0, 21.0, 8.0]

    Source: Smart "Predict, then Optimize", arXiv:1710.08005.
    """
    predicted, cost = _costs(pred_cost, true_cost, budget, reduction)
    turned = 2.0 * predicted - cost
    worst, best = (contact_decision(c, budget).to(cost.dtype) for c in (turned.detach(), cost))
    return reduce(turned * (best - worst), reduction)


def smooth_profit_regret(
    probability: F[Tensor, " batch"],
    y: F[Tensor, " batch"],
    clv: F[Tensor, " batch"],
    *,
    gamma: float = 0.3,
    d: float = 10.0,
    f: float = 1.0,
    slope: float = 10.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Regret of the decision by each customer's own break-even probability, with the step made smooth.

    .. math:: c_i\, \bigl(\sigma(k\, (p_i - p^*_i)) - [c_i < 0]\bigr) \ge 0

    It is not convex. The published code lets the best decision contact every churner: a constant less or more.

    Args:
        probability: churn probabilities p, ``[N]``.
        y, clv, gamma, d, f: see :func:`contact_cost`; p* is :func:`break_even_probability`.
        slope: k > 0 of the smooth step.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: as :func:`contact_cost`; ``slope`` <= 0.

    Example:
        >>> p, y = torch.tensor([0.9, 0.1]), torch.tensor([1, 0])
        >>> smooth_profit_regret(p, y, torch.tensor([200.0, 200.0]), reduction="none")
        tensor([0.0357, 3.7933])

    Source: A predict-and-optimize approach to profit-driven churn prevention, arXiv:2310.07047.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_number("slope", slope, low=0.0, open_low=True)
    check_tensor("probability", probability, ndim=1, floating=True)
    cost = contact_cost(y, clv, gamma=gamma, d=d, f=f)
    if cost.shape != probability.shape:
        refuse("clv", f"{probability.shape[0]} values, as probabilities", clv)
    step = slope * (widen(probability) - break_even_probability(clv, gamma=gamma, d=d, f=f))
    # c (s - 1) for c < 0 and c s otherwise, each by the sigmoid that keeps its digits
    return reduce(cost.abs() * torch.sigmoid(torch.where(cost < 0, -step, step)), reduction)


class ProfitRegretLoss(Loss):
    """The smooth regret over logits of churn, the loss of the paper.

    Args:
        gamma, d, f, slope: see :func:`smooth_profit_regret`, also for what is refused.

    Example:
        >>> ProfitRegretLoss()(torch.tensor([2.0]), torch.tensor([1]), torch.tensor([200.0]))
        tensor(0.0432)
    """

    name = "profit_regret"

    def __init__(self, gamma: float = 0.3, d: float = 10.0, f: float = 1.0, slope: float = 10.0) -> None:
        super().__init__()
        _campaign(gamma, d, f)
        check_number("slope", slope, low=0.0, open_low=True)
        self.gamma, self.d, self.f, self.slope = gamma, d, f, slope

    def forward(self, logits: F[Tensor, " batch"], y: Tensor, clv: F[Tensor, " batch"]) -> Tensor:
        """The mean over logits of churn, labels in {0, 1} and lifetime values, all ``[N]``."""
        check_tensor("logits", logits, ndim=1, floating=True)
        p = torch.sigmoid(widen(logits))
        return smooth_profit_regret(p, y, clv, gamma=self.gamma, d=self.d, f=self.f, slope=self.slope)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Nine customers."""
        logits = torch.randn(9, generator=generator, dtype=torch.float64).to(device, dtype)
        clv = (300 * torch.rand(9, generator=generator, dtype=torch.float64)).to(device, dtype)
        y = (torch.arange(9) % 2).to(device)
        return [(cls(), ((logits, y, clv), {})), (cls(gamma=0.8, d=2.0, f=0.0, slope=3.0), ((logits, y, clv), {}))]


class SPOPlusTargetingLoss(Loss):
    """The SPO+ surrogate of the targeting problem as a module; see :func:`spo_plus`.

    The largest lifetime values dominate it: divide costs by their mean before training.

    Args:
        budget: most contacts in a call, or None; a negative one is refused.

    Example:
        >>> SPOPlusTargetingLoss()(torch.tensor([-20.0, -5.0, 3.0]), torch.tensor([-56.0, 11.0, -2.0]))
        tensor(15.)
    """

    name = "spo_plus_targeting"

    def __init__(self, budget: int | None = None) -> None:
        super().__init__()
        if budget is not None:
            check_number("budget", budget, low=0, integer=True)
        self.budget = budget

    def forward(self, pred_cost: F[Tensor, " batch"], true_cost: F[Tensor, " batch"]) -> Tensor:
        """The mean over customers of predicted and true costs of a contact, ``[N]``."""
        return spo_plus(pred_cost, true_cost, budget=self.budget)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Nine customers, with and without a budget."""
        pair = torch.randn(2, 9, generator=generator, dtype=torch.float64).to(device, dtype)
        return [(cls(budget), ((pair[0], pair[1]), {})) for budget in (None, 3)]


class EMP(NamedTuple):
    """The expected maximum profit of a customer, and the expected share of customers contacted."""

    profit: float
    fraction: float


def emp_churn(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    clv: float = 200.0,
    alpha: float = 6.0,
    beta: float = 14.0,
    d: float = 10.0,
    f: float = 1.0,
) -> EMP:
    r"""Expected maximum profit of a ranking for churn, with an acceptance rate of law Beta(alpha, beta).

    .. math:: \int_0^1 \max_t \tfrac1N \sum_{s_i \ge t}
        \bigl(y_i (\gamma (V - d) - f) - (1 - y_i)(d + f)\bigr)\, h(\gamma)\, d\gamma

    The best threshold lies on the convex hull of the ROC curve, whose pieces isotonic regression finds: a piece with
    churn rate rho is contacted where :math:`\gamma \ge (f + (d + f)(1 - \rho) / \rho) / (V - d)`.

    Args:
        y: churn labels in {0, 1}, ``[N]``.
        scores: the larger, the more likely to churn, ``[N]``.
        clv: one lifetime value V >= 0 for all.
        alpha, beta: > 0, of the acceptance rate.
        d, f: costs of offer and contact, >= 0.

    Returns:
        ``(profit, fraction)``; 0 where contacting never pays.

    Raises:
        ValueError: no customers, labels other than 0 and 1, scores that are not finite, a parameter out of range.

    Example:
        >>> round(emp_churn([1, 1, 0, 0], [0.9, 0.8, 0.3, 0.1]).profit, 6)
        28.0

    Source: Verbraken et al., A Novel Profit Maximizing Metric for ... Customer Churn Prediction Models (2013).
    """
    from sklearn.isotonic import isotonic_regression

    _campaign(0.5, d, f)
    check_number("clv", clv, low=0.0)
    check_number("alpha", alpha, low=0.0, open_low=True)
    check_number("beta", beta, low=0.0, open_low=True)
    label, score = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape or not label.size:
        refuse("y, scores", "two series of one length >= 1", (label.shape, score.shape))
    if not np.isin(label, (0.0, 1.0)).all():
        refuse("y", "labels in {0, 1}", np.unique(label)[:5].tolist())
    if not np.isfinite(score).all():
        refuse("scores", "finite values", "NaN or infinity")
    if clv <= d:
        return EMP(0.0, 0.0)
    _, place = np.unique(-score, return_inverse=True)
    customers = np.bincount(place).astype(np.float64)
    churners = np.bincount(place, weights=label)
    rate = isotonic_regression(churners / customers, sample_weight=customers, increasing=False)
    with np.errstate(divide="ignore"):
        odds = np.where(rate > 0, (1.0 - rate) / rate, np.inf)
    least = np.clip((f + ((d + f) * odds if d + f > 0 else 0.0)) / (clv - d), 0.0, 1.0)
    taken = beta_law.sf(least, alpha, beta)
    accepted = alpha / (alpha + beta) * beta_law.sf(least, alpha + 1.0, beta)
    gain = churners * ((clv - d) * accepted - f * taken) - (customers - churners) * (d + f) * taken
    return EMP(float(gain.sum() / label.size), float((customers * taken).sum() / label.size))
