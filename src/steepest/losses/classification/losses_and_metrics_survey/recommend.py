"""Which loss for which task, by what strains the data."""

from __future__ import annotations

from dataclasses import dataclass

from ....core.checks import check_choice, check_number
from .cards import LOSSES

STRONG_IMBALANCE = 3.0
"""Largest class over smallest from which a loss should answer to imbalance."""
MANY_OUTLIERS = 0.01
"""Share of wrong regression targets from which a loss should be robust."""
MANY_WRONG_LABELS = 0.1
"""The same of class labels, whose harm is bounded."""


@dataclass(frozen=True)
class Recommendation:
    """One loss and the reason for its place.

    Args:
        name: key of the catalogue.
        reason: one sentence.
    """

    name: str
    reason: str


Ranked = tuple[tuple[str, str], ...]

_REGRESSION = (
    ("mse", "least variance where the errors are Gaussian"),
    ("huber", "close to squared error, and bounded in its slope should a target be wrong"),
    ("log_cosh", "as Huber's loss, smooth throughout"),
    ("mae", "the median: safe, but less efficient on clean data"),
)
_REGRESSION_OUTLIERS = (
    ("mae", "the median does not move with how far a wrong target lies"),
    ("huber", "bounded slope for far targets, efficient for near ones"),
    ("log_cosh", "bounded slope, smooth throughout"),
    ("quantile", "at q = 0.5 half the absolute error"),
    ("mse", "a far target counts by its square"),
)
_BINARY = (
    ("bce", "probabilities, and least loss on clean, balanced labels"),
    ("squared_hinge", "a margin with a smooth slope"),
    ("hinge", "a margin: no probabilities"),
    ("focal", "its weights for hard rows are of no use where nothing is rare"),
)
_BINARY_IMBALANCE = (
    ("weighted_bce", "positives weighted by negatives over positives count as much as the negatives"),
    ("focal", "easy rows of the frequent class hardly count"),
    ("squared_hinge", "rows beyond the margin don't count"),
    ("bce", "the frequent class outweighs the rare one at a threshold of 1/2"),
)
_BINARY_NOISE = (
    ("hinge", "rows beyond the margin don't count, and a wrong label counts linearly"),
    ("bce", "probabilities; wrong labels only flatten them while the network is small"),
    ("squared_hinge", "a wrong label counts by its square"),
)
_MULTICLASS = (
    ("sparse_cross_entropy", "least loss on clean, balanced labels"),
    ("smoothed_cross_entropy", "as cross-entropy, less sure of itself"),
    ("poly", "cross-entropy with a stronger pull at the end"),
    ("generalized_cross_entropy", "gives up hard rows, which clean data do not ask for"),
)
_MULTICLASS_NOISE = (
    ("generalized_cross_entropy", "rows that contradict the rest lose their weight"),
    ("probability_mae", "symmetric: uniform label noise does not move its minimiser, but it trains slowly"),
    ("smoothed_cross_entropy", "smoothing bounds what a wrong label can ask for"),
    ("sparse_cross_entropy", "learns wrong labels by heart"),
)


def recommend_loss(task: str, imbalance: float | None = None, outliers: float | None = None) -> list[Recommendation]:
    """Losses for a task, best first, by the stressor of the data.

    Args:
        task: a task of :func:`loss_catalogue`.
        imbalance: size of the largest class over the smallest, >= 1; None if it is not known or has no meaning.
        outliers: share of wrong targets in [0, 1]: spikes in regression, wrong labels in classification; None for none.

    Returns:
        Recommendations. For tasks without a rule of their own, those losses of the catalogue that answer to the
        stressor come first.

    Raises:
        ValueError: an unknown task, an ``imbalance`` below 1, a share outside [0, 1].

    Example:
        >>> [r.name for r in recommend_loss("regression", outliers=0.05)][:2]
        ['mae', 'huber']
        >>> recommend_loss("binary", imbalance=50)[0].name
        'weighted_bce'

    Source: Loss Functions and Metrics in Deep Learning, arXiv:2307.02694.
    """
    check_choice("task", task, list(dict.fromkeys(card.task for card in LOSSES.values())))
    if imbalance is not None:
        check_number("imbalance", imbalance, low=1.0)
    if outliers is not None:
        check_number("outliers", outliers, low=0.0, high=1.0)
    rare, wrong = (imbalance or 1.0) >= STRONG_IMBALANCE, outliers or 0.0
    ranked: Ranked
    if task == "regression":
        ranked = _REGRESSION_OUTLIERS if wrong >= MANY_OUTLIERS else _REGRESSION
    elif task == "binary":
        ranked = _BINARY_IMBALANCE if rare else _BINARY_NOISE if wrong >= MANY_WRONG_LABELS else _BINARY
    elif task == "multiclass":
        ranked = _MULTICLASS_NOISE if wrong >= MANY_WRONG_LABELS else _MULTICLASS
    else:
        own = {name: card for name, card in LOSSES.items() if card.task == task}

        def fits(name: str) -> bool:
            return (rare and own[name].imbalance) or (wrong >= MANY_OUTLIERS and own[name].outliers)

        order = sorted(own, key=lambda name: not fits(name))  # stable: else the catalogue's order
        ranked = tuple((n, "answers to the stressor" if fits(n) else f"minimiser: {own[n].minimiser}") for n in order)
    return [Recommendation(name, reason) for name, reason in ranked]
