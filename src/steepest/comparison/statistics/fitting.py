"""How the resampling tests train and score a learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...core.arrays import array, labels, numbers
from ...core.checks import refuse

Predict = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, int], Predict]
Scorer = Callable[[np.ndarray, np.ndarray], float]


def as_fit(learner: Any) -> Fit:
    """A learner as ``fit(X, y, seed) -> predict``.

    Args:
        learner: such a function, or a scikit-learn estimator: each call fits a fresh clone, with the seed as its
            ``random_state`` where it has one.

    Raises:
        TypeError: neither of the two.

    >>> from sklearn.dummy import DummyClassifier
    >>> as_fit(DummyClassifier())(np.zeros((3, 1)), np.array([0, 1, 1]), 0)(np.zeros((2, 1)))
    array([1, 1])
    """
    if hasattr(learner, "fit") and hasattr(learner, "predict"):
        from sklearn.base import clone

        def fit(X: np.ndarray, y: np.ndarray, seed: int) -> Predict:
            model = clone(learner)
            if "random_state" in model.get_params(deep=False):
                model.set_params(random_state=seed)
            return model.fit(X, y).predict

        return fit
    if callable(learner):
        return learner
    raise TypeError(f"learner: expected fit(X, y, seed) -> predict or an estimator, got {type(learner).__name__}")


def derived_seed(*parts: int) -> int:
    """A 32-bit seed of its own for each sequence of non-negative integers.

    >>> derived_seed(0, 1) == derived_seed(0, 1), derived_seed(0, 1) == derived_seed(1, 0)
    (True, False)
    >>> derived_seed(1) == derived_seed(1, 0)
    False
    """
    # the length leads, because SeedSequence pads with zeros and would not tell (1,) from (1, 0)
    return int(np.random.SeedSequence([len(parts), *parts]).generate_state(1)[0])


def is_discrete(y: np.ndarray) -> bool:
    """Whether the targets are labels (integers, booleans, strings) rather than real numbers.

    >>> is_discrete(np.array([0, 1])), is_discrete(np.array([0.5, 1.0]))
    (True, False)
    """
    return np.asarray(y).dtype.kind not in "fc"


def rows_and_targets(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``[N, ...]`` of any type, which is the learner's business, and targets ``[N]``.

    Raises:
        ValueError: lengths differ, or are 0; targets that are not ``[N]``, or not finite.
        TypeError: targets that are neither labels nor numbers.
    """
    y = labels("y", y)
    return array("X", X, (len(y), ...)), y


def predictions(predict: Predict, X: np.ndarray) -> np.ndarray:
    """What a fitted learner says of rows: one entry a row.

    Raises:
        ValueError: another number of rows, or a column ``[N, 1]``, which beside ``[N]`` is spread to ``[N, N]``.
    """
    predicted = array("predictions of the learner", predict(X), (len(X), ...))
    if predicted.shape[1:] == (1,):
        refuse("predictions of the learner", f"shape ({len(X)},)", predicted)
    return predicted


def fitted_score(
    fit: Fit, scorer: Scorer, X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> float:
    """The score on the rows ``test`` of a learner fitted on the rows ``train``.

    Raises:
        ValueError: not one number, or not finite.
        TypeError: not a number.
    """
    return float(numbers("score", scorer(y[test], predictions(fit(X[train], y[train], seed), X[test])), ()))
