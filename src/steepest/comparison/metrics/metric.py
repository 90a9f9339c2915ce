"""A metric of what a fitted model says: its name, its direction, and its worst value where it has none."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...core.arrays import array, codes, numbers, row_weights
from ...core.checks import refuse
from ..scores.functions import Function
from ..scores.outcome import Outcome


@dataclass(frozen=True)
class Metric:
    """A metric of an outcome, callable as ``metric(y, outcome, weights=None) -> float``.

    Where the outcome is not finite (a diverged model), or the metric has no value (no probabilities, a class absent
    from y), the call returns ``worst``, so that selection needs no special case; :func:`evaluate` gives None there.

    Attributes:
        name: the word on the command line.
        greater_is_better: the direction.
        label: for people.
        function: ``(y, outcome, weights) -> float | None``.
        targets: "codes" (of classes) or "numbers", ``[N]``; "tokens", counts of them ``[N]``, where predictions are
            sums over the tokens of a row ``[N, 2]``; "rows", class codes ``[N]``, where predictions say how a row's
            class was ranked ``[N, 8]``; "lists", grades and lists ``[N, 2]``; "" for whatever has the shape of the
            predictions.
        bounds: the least and the greatest value there can be.
        of_predictions: whether it reads nothing of an outcome but ``predicted``.
    """

    name: str
    greater_is_better: bool
    label: str
    function: Function = field(repr=False, compare=False)
    targets: str = ""
    bounds: tuple[float, float] = (-np.inf, np.inf)
    of_predictions: bool = False

    @property
    def worst(self) -> float:
        """-inf where greater is better, else inf."""
        return -np.inf if self.greater_is_better else np.inf

    def __call__(self, y: np.ndarray, outcome: Outcome, weights: np.ndarray | None = None) -> float:
        y, weights = agreeing(y, outcome, weights, self.targets)
        value = value_of(self.function, y, outcome, weights) if outcome.finite else None
        return self.worst if value is None else value

    def better(self, a: float, b: float) -> bool:
        """Whether a is strictly better than b; NaN is worse than everything.

        >>> from steepest.comparison.metrics import find_metric
        >>> find_metric("rmse", "regression").better(0.1, 0.2)
        True
        """
        a, b = (self.worst if np.isnan(value) else value for value in (a, b))
        return bool(a > b if self.greater_is_better else a < b)


def agreeing(
    y: np.ndarray, outcome: Outcome, weights: np.ndarray | None, targets: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Targets and weights that fit an outcome row by row."""
    shape = outcome.predicted.shape
    if targets == "lists":
        return numbers("y", y, (shape[0], 2)), None
    if targets in ("tokens", "rows"):
        return numbers("y", y, shape[:1]), None
    if not targets:
        return array("y", y, shape, kinds="biufUS", what="targets"), row_weights(weights, shape[0])
    if len(shape) != 1:
        refuse("predicted", "one number a row", outcome.predicted)
    if targets == "codes":
        codes("predicted", outcome.predicted, shape)
        return codes("y", y, shape), row_weights(weights, shape[0])
    return numbers("y", y, shape), row_weights(weights, shape[0])


def value_of(function: Function, y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
    if not len(y) or (weights is not None and not np.sum(weights) > 0):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        value = function(y, outcome, weights)
    return float(value) if value is not None and np.isfinite(value) else None
