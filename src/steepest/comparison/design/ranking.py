"""What a comparison of rankings does otherwise: losses of lists, and of rows by themselves; whole lists in a prefix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from ...core.objective import Objective, TaskInfo
from ..read.lists import RANKING

SHORTLIST = ("listnet", "ranknet", "lambda_loss", "approx_ndcg", "listmle", "pairwise_logistic")
"""Losses of lists that are tried when none is named; from its end it is cut."""


class OfRows(Objective):
    """Makes a loss of numbers one of graded rows, whatever list they stand in: pointwise regression.

    It stands before the class of the loss, which sees a task of numbers. Its targets are standardised grades, and what
    it predicts goes back to their scale.
    """

    tasks = (RANKING,)
    pointwise = True

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """That of the loss, of a task of numbers."""
        return super().from_task(replace(info, task="regression"), **hyper)

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """That of the loss: one number a row, unless it says otherwise."""
        return super().head(feature_dim, replace(info, task="regression"))

    def predict(self, outputs: Tensor) -> Tensor:
        """Scores ``[N]``: what the loss predicts."""
        own = super().predict
        return outputs if getattr(own, "__func__", None) is Objective.predict else own(outputs)


_ROW_BY_ROW: dict[type[Objective], type[Objective]] = {}


def of_lists(cls: type[Objective]) -> type[Objective]:
    """The class as a comparison of rankings trains with it: a loss of lists as it is, one of numbers row by row."""
    if cls.fits(RANKING):
        return cls
    if cls not in _ROW_BY_ROW:
        _ROW_BY_ROW[cls] = type(cls.__name__, (OfRows, cls), {"__doc__": cls.__doc__, "__module__": cls.__module__})
    return _ROW_BY_ROW[cls]


def is_pointwise(objective: Any) -> bool:
    """Whether an objective, or its class, is of rows by themselves."""
    return bool(getattr(objective, "pointwise", False))


def graded(target: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """What metrics of lists take: grade and list of each row ``[N, 2]``."""
    return np.stack([target, queries.astype(np.float64)], 1)


def rows_of_batch(queries: np.ndarray) -> int:
    """Rows a step by default: eight lists of the usual length, in 64..1024.

    >>> rows_of_batch(np.arange(100).repeat(20))
    160
    """
    return int(np.clip(8 * np.median(np.unique(queries, return_counts=True)[1]), 64, 1024))


def scale_of(grades: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of the grades of a training part."""
    return float(grades.mean()), float(grades.std()) or 1.0


def prefix_of_lists(train: np.ndarray, queries: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """``rows`` row positions of a training part: whole lists in one random order, but for the last one.

    So fewer rows lie within more.

    >>> prefix_of_lists(np.arange(6), np.array([0, 0, 1, 1, 2, 2]), 2, 1)
    array([0, 1])
    """
    if rows >= len(train):
        return train
    own = queries[train]
    rank = np.random.default_rng(seed).permutation(int(queries.max()) + 1)
    return np.sort(train[np.argsort(rank[own], kind="stable")[:rows]])
