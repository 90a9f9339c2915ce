"""How probable it is that a difference matters: the region of practical equivalence, and what lies outside."""

from __future__ import annotations

import math
from typing import Any

from ..metrics.metric import Metric
from ..statistics import PROBABILITIES, PairedResult, practical

DEFAULT_ROPE = 0.01
"""Half the region of practical equivalence of a metric that ends at 1; of others, the share of the baseline's value."""


def rope_of(metric: Metric, baseline: float, asked: float | None = None) -> float:
    """Half the width of the region of practical equivalence, in the units of the metric.

    Args:
        metric: of the comparison.
        baseline: its mean over folds.
        asked: what the user wants; None is .01 where the metric ends at 1 (shares, AUROC, R2), else 1% of the
            baseline's value.

    >>> from steepest.comparison.metrics import find_metric
    >>> rope_of(find_metric("accuracy", "binary"), 0.8), rope_of(find_metric("rmse", "regression"), 52.0)
    (0.01, 0.52)
    """
    if asked is not None:
        return float(asked)
    if metric.bounds[1] <= 1:
        return DEFAULT_ROPE
    return DEFAULT_ROPE * abs(baseline) if math.isfinite(baseline) else 0.0


def rope_words(metric: Metric, rope: float, asked: float | None) -> str:
    """The region for the report, and where it comes from.

    >>> from steepest.comparison.metrics import find_metric
    >>> rope_words(find_metric("rmse", "regression"), 0.52, None)
    "differences in RMSE up to 0.52 (1% of the baseline's; --rope changes it)"
    """
    where = "as asked" if asked is not None else "--rope changes it"
    share = "1% of the baseline's; " if asked is None and metric.bounds[1] > 1 else ""
    return f"differences in {metric.label} up to {rope:.4g} ({share}{where})"


def probabilities(result: PairedResult | None, rope: float, greater_is_better: bool) -> dict[str, Any]:
    """P(better), P(practically the same), P(worse) of a tested difference to the baseline; None where there is no test.

    The posterior is the t distribution of the Bayesian correlated t test; on a fixed test set the normal one with the
    standard error of the bootstrap.
    """
    if result is None or math.isnan(result.pvalue):
        return dict.fromkeys(PROBABILITIES)
    posterior = practical(result.mean, result.standard_error, result.df, rope)
    posterior = posterior if greater_is_better else posterior.turned
    return dict(zip(PROBABILITIES, (posterior.better, posterior.same, posterior.worse)))
