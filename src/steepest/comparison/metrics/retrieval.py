"""Metrics of a retrieval: whether rows of a class are each other's nearest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..scores.outcome import Outcome
from ..scores.retrieval import AVERAGE_PRECISION, FIRST, R_PRECISION
from .metric import Metric


def queries_of(outcome: Outcome) -> np.ndarray:
    """What is kept of the rows that have others of their class, ``[Q, 8]``."""
    queries: np.ndarray = outcome.predicted[outcome.predicted[:, FIRST] > 0]
    return queries


def map_at_r(_: np.ndarray, outcome: Outcome, __: np.ndarray | None) -> float | None:
    """The mean of AP@R over all queries.

    >>> map_at_r(np.zeros(2), Outcome(np.array([[0.5, 0.6, 1.0], [0.0, 0.0, 0.0]])), None)
    0.5
    """
    queries = queries_of(outcome)
    return float(queries[:, AVERAGE_PRECISION].mean()) if len(queries) else None


def r_precision(_: np.ndarray, outcome: Outcome, __: np.ndarray | None) -> float | None:
    """The mean share of a query's class among its R nearest, R the other rows of the class."""
    queries = queries_of(outcome)
    return float(queries[:, R_PRECISION].mean()) if len(queries) else None


def recall_at(k: int) -> Callable[[np.ndarray, Outcome, np.ndarray | None], float | None]:
    """The share of queries with one of their class among their k nearest.

    >>> recall_at(5)(np.zeros(2), Outcome(np.array([[0.5, 0.6, 1.0], [0.1, 0.1, 9.0]])), None)
    0.5
    """

    def recall(_: np.ndarray, outcome: Outcome, __: np.ndarray | None) -> float | None:
        queries = queries_of(outcome)
        return float((queries[:, FIRST] <= k).mean()) if len(queries) else None

    return recall


_SHARE = (0.0, 1.0)
OF_RETRIEVAL: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("map_at_r", True, "MAP@R", map_at_r, "rows", _SHARE),
        Metric("r_precision", True, "R-precision", r_precision, "rows", _SHARE),
        Metric("recall_at_1", True, "Recall@1", recall_at(1), "rows", _SHARE),
        Metric("recall_at_5", True, "Recall@5", recall_at(5), "rows", _SHARE),
        Metric("recall_at_10", True, "Recall@10", recall_at(10), "rows", _SHARE),
    )
}
"""The default first."""
