"""Choosing among models: nested cross-validation and the one-standard-error rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.arrays import numbers
from ...core.checks import check_number, refuse
from .fitting import Scorer, as_fit, derived_seed, fitted_score, is_discrete, rows_and_targets


@dataclass(frozen=True)
class NestedResult:
    """Scores of a learner whose setting is chosen inside each outer fold.

    Attributes:
        mean: of the outer scores.
        standard_error: sd / sqrt(outer), ddof 1; outer scores share training rows, so it is on the small side.
        scores: [outer] score of each outer test part.
        chosen: [outer] name of the setting chosen there.
        inner_means: [outer] mean inner score of every setting.
    """

    mean: float
    standard_error: float
    scores: tuple[float, ...]
    chosen: tuple[str, ...]
    inner_means: tuple[dict[str, float], ...]


def nested_cv(
    candidates: Mapping[str, Any],
    X: np.ndarray,
    y: np.ndarray,
    scorer: Scorer,
    seed: int = 0,
    *,
    outer: int = 5,
    inner: int = 2,
    greater_is_better: bool = True,
) -> NestedResult:
    """Nested cross-validation: the inner folds choose a setting, the outer fold scores the choice.

    Args:
        candidates: name to learner, ``fit(X, y, seed) -> predict`` or a scikit-learn estimator; the first wins ties.
        X: [N, ...] inputs.
        y: [N] targets; folds are stratified where they are labels.
        scorer: ``scorer(y, predicted) -> float``.
        seed: of the splits and the learners, at least 0.
        outer, inner: numbers of folds, at least 2 each.
        greater_is_better: whether a larger score is the better one.

    Raises:
        ValueError: no candidate, or lengths differ.

    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> X = np.arange(40.0)[:, None]
    >>> settings = {str(k): KNeighborsClassifier(k) for k in (1, 9)}
    >>> len(nested_cv(settings, X, (X[:, 0] > 20).astype(int), lambda y, p: (y == p).mean()).chosen)
    5

    Source: Varma and Simon 2006; arXiv:1811.12808.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    X, y = rows_and_targets(X, y)
    check_number("seed", seed, low=0, integer=True)
    check_number("outer", outer, low=2, integer=True)
    check_number("inner", inner, low=2, integer=True)
    if not candidates:
        refuse("candidates", "at least one learner", candidates)
    learners = {name: as_fit(learner) for name, learner in candidates.items()}
    splitter = StratifiedKFold if is_discrete(y) else KFold
    sign = 1.0 if greater_is_better else -1.0
    scores, chosen, inner_means = [], [], []
    outer_folds = splitter(outer, shuffle=True, random_state=derived_seed(seed)).split(X, y)
    for fold, (rest, test) in enumerate(outer_folds):
        inner_splitter = splitter(inner, shuffle=True, random_state=derived_seed(seed, fold))
        pairs = [(rest[train], rest[held]) for train, held in inner_splitter.split(X[rest], y[rest])]
        means = {}
        for number, (name, fit) in enumerate(learners.items()):
            inner_scores = [
                fitted_score(fit, scorer, X, y, train, held, derived_seed(seed, fold, inner_split, number))
                for inner_split, (train, held) in enumerate(pairs)
            ]
            means[name] = float(np.mean(inner_scores))
        best = max(means, key=lambda name: sign * means[name])
        own = derived_seed(seed, fold, inner, len(learners))
        scores.append(fitted_score(learners[best], scorer, X, y, rest, test, own))
        chosen.append(best)
        inner_means.append(means)
    error = float(np.std(scores, ddof=1) / np.sqrt(outer))
    return NestedResult(float(np.mean(scores)), error, tuple(scores), tuple(chosen), tuple(inner_means))


def one_standard_error_rule(scores: np.ndarray, greater_is_better: bool = True) -> int:
    """The simplest model whose mean score is within one standard error of the best.

    Args:
        scores: [models, folds], models from simplest to most complex, at least 2 folds; finite.
        greater_is_better: whether a larger score is the better one.

    Returns:
        Its row. The standard error is the best model's: sd / sqrt(folds), ddof 1.

    Raises:
        ValueError: another shape, or values that are not finite.

    >>> one_standard_error_rule([[0.70, 0.72, 0.71], [0.80, 0.84, 0.82], [0.81, 0.85, 0.83]])
    1

    Source: Breiman et al., "Classification and Regression Trees", 1984; arXiv:1811.12808.
    """
    table = numbers("scores", scores, (None, None))
    if table.shape[1] < 2:
        refuse("scores", "at least 2 folds in dimension 1", table)
    if not greater_is_better:
        table = -table
    means = table.mean(1)
    best = int(means.argmax())
    error = table[best].std(ddof=1) / np.sqrt(table.shape[1])
    return int(np.argmax(means >= means[best] - error))
