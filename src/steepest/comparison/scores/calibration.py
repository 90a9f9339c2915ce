"""Probabilities from the scores of a model that gives none, fitted on rows that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_ROWS = 20
"""Held-out rows below which nothing is fitted."""
SLOPES = (1e-9, 1e9)
"""The least and the greatest slope."""


@dataclass(frozen=True)
class Calibration:
    """``sigmoid(slope * score + offset)`` of a binary score or of each label's, ``softmax(slope * scores)`` of classes.

    Attributes:
        slope: one number, or one a label; above 0, so that what is ranked higher stays more probable.
        offset: as many; none where it is a softmax.
    """

    slope: tuple[float, ...]
    offset: tuple[float, ...] = ()

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Of scores ``[N]`` two columns ``[N, 2]``, of ``[N, C]`` as many.

        >>> Calibration((2.0,), (0.0,)).probabilities(np.array([0.0])).tolist()
        [[0.5, 0.5]]
        """
        from scipy.special import expit, softmax

        scores = np.asarray(scores, dtype=np.float64)
        if not self.offset:
            shares: np.ndarray = softmax(self.slope[0] * scores, axis=1)
            return shares
        columns = scores[:, None] if scores.ndim == 1 else scores
        positive: np.ndarray = expit(np.array(self.slope) * columns + np.array(self.offset))
        return np.hstack([1 - positive, positive]) if scores.ndim == 1 else positive


def calibrate(
    scores: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None, *, offset: bool = True
) -> Calibration | str:
    """Fit on held-out rows; where that can't be, why not.

    It is Platt's scaling, with as many classes as there are: slope and offset have the least log loss to targets that
    are a little softer than the labels ((n + 1) / (n + C) for the own class of n rows), so that rows which the scores
    separate don't make it certain. Several classes share one slope, a temperature, so that the most probable one stays.

    Args:
        scores: ``[N]``, above 0 for class 1; ``[N, C]`` of C classes, the largest is predicted; ``[N, L]`` of labels.
        y: class codes ``[N]``, or 0 and 1 ``[N, L]`` of labels.
        weights: row weights ``[N]``, or None.
        offset: False fits none for a binary score: above 0 is then above one half.

    Returns:
        The calibration, or the reason as a line.

    >>> calibrate(np.arange(5.0), np.array([0, 0, 1, 1, 1]))
    '5 held-out rows are too few to calibrate its scores: 20 are needed'

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    if len(y) < LEAST_ROWS:
        return f"{len(y)} held-out rows are too few to calibrate its scores: {LEAST_ROWS} are needed"
    if not np.isfinite(scores).all():
        return "its scores on held-out rows are not finite"
    if scores.ndim == 2 and y.ndim == 1:
        slopes = _fit(scores, y, weights, False)
        fitted = Calibration(slopes[:1])
    else:
        columns = list(zip(scores.reshape(len(scores), -1).T, y.reshape(len(y), -1).T))
        if any(len(np.unique(codes)) < 2 for _, codes in columns):
            return "held-out rows of one class alone cannot calibrate its scores"
        pairs = [_fit(np.stack([np.zeros_like(own), own], 1), codes, weights, offset) for own, codes in columns]
        fitted = Calibration(tuple(slope for slope, _ in pairs), tuple(shift for _, shift in pairs))
    if not all(SLOPES[0] <= slope <= SLOPES[1] for slope in fitted.slope):
        return "its scores do not rank the held-out rows"
    return fitted


def _fit(z: np.ndarray, y: np.ndarray, weights: np.ndarray | None, offset: bool) -> tuple[float, float]:
    """Slope, and the offset of the last class, with the least log loss of ``softmax(slope z + offset)``."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows, classes = z.shape
    w = np.ones(rows) if weights is None else weights * (rows / weights.sum())
    codes = y.astype(np.int64)
    counts = np.bincount(codes, w, classes)[codes]
    target = np.repeat(1 / (counts + classes), classes).reshape(rows, classes)
    target[np.arange(rows), codes] *= counts + 1
    spread = float(z.std()) or 1.0

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        shifted = values[0] * z / spread
        if offset:
            shifted[:, -1] += values[1]
        log_p = log_softmax(shifted, axis=1)
        slope = w[:, None] * (np.exp(log_p) - target) / rows
        gradient = [float((slope * z).sum() / spread), float(slope[:, -1].sum())]
        return float(-(w * (target * log_p).sum(1)).mean()), np.array(gradient[: len(values)])

    best = minimize(loss, [1.0, 0.0] if offset else [1.0], jac=True, method="BFGS").x
    return float(best[0] / spread), float(best[1]) if offset else 0.0
