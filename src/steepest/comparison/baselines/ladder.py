"""Sets of baselines, and the table of one run over folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.arrays import labels as check_labels
from ...core.arrays import numbers
from ...core.checks import check_choice, check_number, refuse
from ..statistics import corrected_resampled_ttest
from ..statistics.fitting import is_discrete
from .base import Baseline, ConstantBaseline
from .boosting import LARGE, BoostingBaseline, LightGBMBaseline, has_lightgbm
from .flexible import (
    AdaBoostBaseline,
    ForestBaseline,
    KNNBaseline,
    MLPBaseline,
    SVMBaseline,
    TreeBaseline,
)
from .linear import KernelRidgeBaseline, LassoBaseline, LDABaseline, LogisticBaseline, RidgeBaseline

if TYPE_CHECKING:
    import pandas as pd

# From cheap to dear, with the seconds that five folds of 1,800 rows and 64 columns take on one core.
_LADDERS: dict[str, tuple[tuple[type[Baseline], float], ...]] = {
    "classification": (
        (ConstantBaseline, 0.1),
        (KNNBaseline, 0.1),
        (LDABaseline, 0.1),
        (TreeBaseline, 0.1),
        (LogisticBaseline, 0.2),
        (SVMBaseline, 0.3),
        (AdaBoostBaseline, 2.0),
        (ForestBaseline, 3.0),
        (MLPBaseline, 4.0),
        (BoostingBaseline, 12.0),
    ),
    "regression": (
        (ConstantBaseline, 0.1),
        (KNNBaseline, 0.1),
        (RidgeBaseline, 0.1),
        (LassoBaseline, 0.3),
        (TreeBaseline, 0.1),
        (SVMBaseline, 0.3),
        (KernelRidgeBaseline, 0.5),
        (BoostingBaseline, 1.5),
        (AdaBoostBaseline, 2.5),
        (MLPBaseline, 3.0),
        (ForestBaseline, 4.0),
    ),
}


def baseline_ladder(task: str = "classification", seed: int = 0, budget_s: float = 60) -> list[Baseline]:
    """Baselines from the constant upward, from cheap to dear.

    Args:
        task: "classification" or "regression".
        seed: of each learner.
        budget_s: rungs are taken while their summed nominal cost, that of five folds of 1,800 rows and 64 columns on
            one core, stays within it; the constant always is. The choice doesn't depend on the machine.

    Raises:
        ValueError: another task.

    >>> [baseline.name for baseline in baseline_ladder(budget_s=0.7)]
    ['constant', 'knn', 'lda', 'tree', 'logistic']

    Source: "An Introduction to Machine Learning", arXiv:2409.02668.
    """
    check_choice("task", task, tuple(_LADDERS))
    check_number("budget_s", budget_s, low=0.0)
    rungs = _LADDERS[task]
    spent = np.cumsum([cost for _, cost in rungs])
    return [kind(task, seed) for (kind, _), total in zip(rungs, spent) if kind is ConstantBaseline or total <= budget_s]


def tuned_learners() -> frozenset[str]:
    """Names of classical learners that a comparison gives as many trials as its objectives.

    >>> sorted(tuned_learners())
    ['boosting', 'forest', 'lightgbm']
    """
    return frozenset(kind.name for kind in (ForestBaseline, BoostingBaseline, LightGBMBaseline) if kind.search)


def classical_learners(task: str, num_rows: int, seed: int = 0, *, boosting: str | None = None) -> list[Baseline]:
    """The classical learners that a comparison runs beside the objectives.

    Args:
        task: "binary", "multiclass" or "classification", else "regression".
        num_rows: training rows: the SVM is left out above 10,000, kernel ridge, whose matrix fills memory first,
            above 5,000.
        seed: of each learner.
        boosting: whose gradient boosting: "lightgbm" or "boosting", which is scikit-learn's; by default LightGBM's
            where it is installed.

    Raises:
        ValueError: another task.

    >>> [learner.name for learner in classical_learners("binary", 20_000, boosting="boosting")]
    ['constant', 'knn', 'logistic', 'lda', 'forest', 'boosting']
    """
    check_number("num_rows", num_rows, low=0, integer=True)
    boosting = boosting or (LightGBMBaseline if has_lightgbm() else BoostingBaseline).name
    check_choice("boosting", boosting, (LightGBMBaseline.name, BoostingBaseline.name))
    boosted = LightGBMBaseline if boosting == LightGBMBaseline.name else BoostingBaseline
    if task == "regression":
        kinds: tuple[type[Baseline], ...] = (
            *(ConstantBaseline, KNNBaseline, RidgeBaseline, LassoBaseline, SVMBaseline),
            *(KernelRidgeBaseline, ForestBaseline, boosted),
        )
    elif task in ("binary", "multiclass", "classification"):
        task = "classification"
        kinds = (
            *(ConstantBaseline, KNNBaseline, LogisticBaseline, LDABaseline, SVMBaseline),
            *(ForestBaseline, boosted),
        )
    else:
        refuse("task", "binary, multiclass, classification or regression", task)
    most_rows = {SVMBaseline: 10_000, KernelRidgeBaseline: 5_000}
    learners = [kind(task, seed) for kind in kinds if num_rows <= most_rows.get(kind, num_rows)]
    recipes: dict[str, dict[str, Any]] = {
        LightGBMBaseline.name: {"large": num_rows >= LARGE},
        BoostingBaseline.name: {"rate": 0.05, "min_leaf": 10, "features": 0.5},
    }
    return [learner.again(**recipes[learner.name]) if learner.name in recipes else learner for learner in learners]


def run_ladder(
    X: np.ndarray,
    y: np.ndarray,
    cv: int = 5,
    *,
    baselines: Sequence[Baseline] | None = None,
    seed: int = 0,
    budget_s: float = 60,
) -> pd.DataFrame:
    """Cross-validated scores of the baselines, standardised inside each fold.

    Args:
        X: [N, d] inputs, finite.
        y: [N] labels (folds are stratified, the score is accuracy) or floating-point targets (the score is R²);
            ``baselines`` of the other task overrule what y looks like.
        cv: number of folds, at least 2.
        baselines: what to run; by default :func:`baseline_ladder` of the task that y shows.
        seed: of the folds and the default baselines.
        budget_s: as in :func:`baseline_ladder`.

    Returns:
        A row each, best first: ``name``, ``mean``, ``low`` and ``high`` (95% t interval, its variance corrected for
        overlapping training sets, cut at 1), ``standard_error`` (uncorrected, sd / sqrt(cv)), ``cost_s`` (mean fit).

    >>> X = np.arange(30.0)[:, None]
    >>> table = run_ladder(X, (X[:, 0] > 14).astype(int), budget_s=0.35)
    >>> table["name"].tolist(), float(table["mean"].iloc[-1])
    (['lda', 'knn', 'constant'], 0.5)
    """
    import pandas as pd
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.model_selection import KFold, StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    y = check_labels("y", y)
    X = numbers("X", X, (len(y), None))
    check_number("cv", cv, low=2, integer=True)
    labels = is_discrete(y) if baselines is None else baselines[0].task == "classification"
    if labels:
        y = np.unique(y, return_inverse=True)[1]
    if baselines is None:
        baselines = baseline_ladder("classification" if labels else "regression", seed, budget_s)
    score = accuracy_score if labels else r2_score
    splitter = StratifiedKFold if labels else KFold
    scores = np.empty((len(baselines), cv))
    costs = np.empty_like(scores)
    for fold, (train, test) in enumerate(splitter(cv, shuffle=True, random_state=seed).split(X, y)):
        scaler = StandardScaler().fit(X[train])
        X_train, X_test = scaler.transform(X[train]), scaler.transform(X[test])
        for row, baseline in enumerate(baselines):
            scores[row, fold] = score(y[test], baseline.fit(X_train, y[train]).predict(X_test))
            costs[row, fold] = baseline.cost_s
    rows = []
    for baseline, values, cost in zip(baselines, scores, costs):
        result = corrected_resampled_ttest(values, test_fraction=1 / cv)
        error = float(values.std(ddof=1) / np.sqrt(cv))
        rows.append((baseline.name, result.mean, result.low, min(result.high, 1.0), error, cost.mean()))
    table = pd.DataFrame(rows, columns=["name", "mean", "low", "high", "standard_error", "cost_s"])
    return table.sort_values("mean", ascending=False, kind="stable", ignore_index=True)
