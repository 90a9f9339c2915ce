"""Metrics of label sets, and of mixes of targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..scores import functions
from ..scores.functions import Function
from ..scores.operating_point import negative_log_likelihood
from ..scores.outcome import Outcome
from .metric import Metric

if TYPE_CHECKING:
    from ..parts import Part


def _labels(function: Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]) -> Function:
    """A metric of hits and predictions ``[N, L]``."""
    return lambda y, outcome, weights: float(function(y, outcome.predicted, weights))


def _ranked(score: Callable[..., np.ndarray]) -> Function:
    """Mean of a ranking metric over the labels that have both values here; None where no label has."""

    def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
        if outcome.decision is None or not np.isfinite(outcome.decision).all():
            return None
        hits = y == 1
        both = hits.any(0) & ~hits.all(0)
        return float(np.mean(score(hits[:, both], outcome.decision[:, both], weights))) if both.any() else None

    return function


def _macro(denominator: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Function:
    """Mean over labels of 2 TP / ``denominator`` of the weights of positives and predictions; 0 where that is 0."""

    def score(y: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None) -> float:
        both = 2 * np.average(y * predicted, axis=0, weights=weights)
        whole = denominator(np.average(y, axis=0, weights=weights), np.average(predicted, axis=0, weights=weights))
        return float(np.mean(np.divide(both, whole, out=np.zeros_like(both), where=whole > 0)))

    return _labels(score)


def _log_loss(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
    if outcome.probabilities is None:
        return None
    p = outcome.probabilities
    columns = [
        negative_log_likelihood(y[:, k], np.stack([1 - p[:, k], p[:, k]], 1), weights) for k in range(y.shape[1])
    ]
    return float(np.mean(columns))


_SHARE = (0.0, 1.0)
MULTILABEL: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("average_precision", True, "Average precision", _ranked(functions.average_precision), bounds=_SHARE),
        Metric("auroc", True, "AUROC", _ranked(functions.area_under_roc), bounds=_SHARE),
        Metric("macro_f1", True, "Macro F1", _macro(lambda actual, predicted: actual + predicted), bounds=_SHARE),
        Metric("precision", True, "Macro precision", _macro(lambda actual, predicted: 2 * predicted), bounds=_SHARE),
        Metric("recall", True, "Macro recall", _macro(lambda actual, predicted: 2 * actual), bounds=_SHARE),
        Metric(
            "label_accuracy",
            True,
            "Label accuracy",
            _labels(lambda y, p, w: np.average((y == p).mean(1), weights=w)),
            bounds=_SHARE,
        ),
        Metric(
            "exact_match",
            True,
            "Exact match",
            _labels(lambda y, p, w: np.average((y == p).all(1), weights=w)),
            bounds=_SHARE,
        ),
        Metric("nll", False, "Log loss", _log_loss, bounds=(0.0, np.inf)),
    )
}


def multitask_metrics(parts: Sequence[Part]) -> dict[str, Metric]:
    """The mean over targets of accuracy (classes) and R² (numbers), and each target's own.

    >>> from steepest.comparison.parts import Part
    >>> list(multitask_metrics([Part("a", "regression"), Part("b", "binary", ("0", "1"))]))
    ['mean_score', 'r2 of a', 'accuracy of b']
    """

    def own(place: int, target: Part) -> Function:
        single = functions.r2 if target.task == "regression" else functions.accuracy

        def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
            return single(y[:, place], Outcome(outcome.predicted[:, place]), weights)

        return function

    by_target = [own(place, target) for place, target in enumerate(parts)]

    def mean(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
        values = [function(y, outcome, weights) for function in by_target]
        return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))

    metrics = [Metric("mean_score", True, "Mean score", mean)]
    for target, function in zip(parts, by_target):
        kind = "r2" if target.task == "regression" else "accuracy"
        metrics.append(
            Metric(
                f"{kind} of {target.name}", True, f"{'R²' if kind == 'r2' else 'Accuracy'} of {target.name}", function
            )
        )
    return {metric.name: metric for metric in metrics}
