"""Gradient boosting on histogram trees, stopped where validation rows say so: LightGBM's or scikit-learn's."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np

from ...core.arrays import codes, numbers, row_weights
from ...core.checks import check_flag, check_number
from ...core.search import Choice, Float, Space
from .base import Baseline, is_constant
from .lightgbm_trees import LightGBMClassifierTrees, LightGBMRegressorTrees, lightgbm

MOST_ROUNDS = 1000
"""Rounds at most, where validation rows stop them."""
PATIENCE = 50
"""Rounds without a smaller validation loss after which boosting stops."""
LARGE = 5_000
"""Rows of a table from which trees grow larger, on all cuts."""


@cache
def has_lightgbm() -> bool:
    """Whether LightGBM can be imported (the extra ``trees``)."""
    try:
        lightgbm()
    except ImportError:
        return False
    return True


@dataclass(frozen=True)
class Validation:
    """Rows on which boosting looks when to stop: inputs, targets, weights or None."""

    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None = None


class RoundsBaseline(Baseline):
    """A learner that adds trees in rounds: a given number of them, or as many as validation rows ask for.

    Attributes:
        rounds: how many without validation rows.
        best: the rounds of the last fit: with validation rows those after which their loss was least.
    """

    def __init__(self, task: str | None = None, seed: int = 0, *, rounds: int = 100) -> None:
        super().__init__(task, seed)
        check_number("rounds", rounds, low=1, integer=True)
        self.rounds = self.best = rounds
        self._valid: Validation | None = None

    @abstractmethod
    def _stopped(self, model: Any, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, valid: Validation) -> int:
        """Fit the estimator until the loss on the validation rows does not fall any more; gives the best round."""

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        num_classes: int | None = None,
        valid: Validation | None = None,
    ) -> Self:
        """Train; arguments as :meth:`Baseline.fit`.

        Args:
            valid: rows of the same columns that stop it, after :data:`MOST_ROUNDS` rounds at most; the model is that of
                the best round. Rows of classes that y has not are left out.
        """
        self._valid, self.best = valid, self.rounds
        try:
            return super().fit(X, y, sample_weight, num_classes=num_classes)
        finally:
            self._valid = None

    def _trained(self, model: Any, X: np.ndarray, y: np.ndarray, options: dict[str, Any]) -> Any:
        valid = None if self._valid is None or is_constant(model) else self._checked(self._valid, y)
        if valid is None or not len(valid.y):
            return super()._trained(model, X, y, options)
        self.best = self._stopped(model, X, y, options.get("sample_weight"), valid)
        return model

    def _checked(self, valid: Validation, y: np.ndarray) -> Validation:
        """Its rows of known classes, the target as the learner takes it."""
        X = numbers("X of valid", valid.X, (None, self.columns))
        weight = row_weights(valid.weight, len(X), "weight of valid")
        if self.task == "classification":
            target = codes("y of valid", valid.y, (len(X),), classes=self.num_classes)
            known = np.isin(target, y)
        else:
            target = (numbers("y of valid", valid.y, (len(X),)) - self._centre) / self._scale
            known = np.ones(len(X), dtype=bool)
        if weight is not None and not weight[known].any():  # nothing counts
            known[:] = False
        return Validation(X[known], target[known], None if weight is None else weight[known])


class BoostingBaseline(RoundsBaseline):
    """Gradient boosting on scikit-learn's histogram trees: each fits the negative loss gradient, shrunk by a rate.

    Args:
        rounds: how many trees (a class), where no validation rows stop it.
        rate: the shrinkage.
        leaves: of a tree, at most.
        min_leaf: rows of a leaf, at least.
        features: share of the features that a split may look at.
        l2: penalty on the squares of a leaf's value.
        seed: of the draws of features, and of the binning sample.

    >>> X, y = [[float(i)] for i in range(60)], [int(i > 29) for i in range(60)]
    >>> BoostingBaseline(rounds=5).fit(X, y).predict([[3.0], [50.0]])
    array([0, 1])

    Source: Friedman 2001; arXiv:2409.02668.
    """

    name = "boosting"
    search: ClassVar[dict[str, Space]] = {
        "rate": Float(0.03, 0.2, log=True),
        "leaves": Choice((4, 8, 16, 31)),
        "min_leaf": Choice((5, 10, 20, 40)),
        "features": Float(0.2, 1.0),
        "l2": Float(1e-3, 10.0, log=True),
    }

    def __init__(
        self,
        task: str | None = None,
        seed: int = 0,
        *,
        rounds: int = 100,
        rate: float = 0.1,
        leaves: int = 31,
        min_leaf: int = 20,
        features: float = 1.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__(task, seed, rounds=rounds)
        check_number("rate", rate, low=0.0, open_low=True)
        check_number("leaves", leaves, low=2, integer=True)
        check_number("min_leaf", min_leaf, low=1, integer=True)
        check_number("features", features, low=0.0, high=1.0, open_low=True)
        check_number("l2", l2, low=0.0)
        self.rate, self.leaves, self.min_leaf, self.features, self.l2 = rate, leaves, min_leaf, features, l2

    def again(self, **changed: Any) -> Self:
        """A fresh learner of the same task and seed, with some arguments changed."""
        names = ("rounds", *self.search)
        return super().again(**{**{name: getattr(self, name) for name in names}, **changed})

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingClassifier if self.task == "classification" else HistGradientBoostingRegressor
        return kind(
            learning_rate=self.rate,
            max_iter=self.rounds,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=self.min_leaf,
            max_features=self.features,
            l2_regularization=self.l2,
            early_stopping=False,
            random_state=self.seed,
        )

    def _stopped(self, model: Any, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, valid: Validation) -> int:
        model.set_params(max_iter=MOST_ROUNDS, early_stopping=True, n_iter_no_change=PATIENCE)
        model.fit(X, y, weight, X_val=valid.X, y_val=valid.y, sample_weight_val=valid.weight)
        best = max(1, int(np.argmax(model.validation_score_)))  # the first of them is that of no tree
        del model._predictors[best:]
        return best


class LightGBMBaseline(RoundsBaseline):
    """Gradient boosting by LightGBM: trees grown leaf by leaf, with random cuts and features, which suits small tables.

    It needs the extra ``trees``. It runs on one thread and gives equal bits for equal seeds.

    Args:
        rounds: how many trees (a class), where no validation rows stop it.
        rate: the shrinkage; by default 0.05 for classes, 0.04 for numbers.
        leaves: of a tree, at most; by default 31, of a large table 50 for classes and 100 for numbers.
        min_leaf: rows of a leaf, at least.
        features: share of the features that a split may look at.
        rows: share of the rows that a tree is grown on.
        l2: penalty on the squares of a leaf's value.
        random_cuts: whether a split looks at one random cut of each feature instead of all; by default not of a large
            table.
        large: whether the table is large.
        seed: of the draws.

    Source: Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", 2017; Geurts et al., "Extremely
    randomized trees", 2006.
    """

    name = "lightgbm"
    votes = True
    scales_target = True  # it keeps targets in single precision
    search: ClassVar[dict[str, Space]] = {
        "rate": Float(0.02, 0.1, log=True),
        "leaves": Choice((6, 12, 24, 50)),
        "min_leaf": Choice((2, 5, 10, 20, 40)),
        "features": Float(0.2, 1.0),
        "rows": Float(0.5, 1.0),
        "l2": Float(1e-3, 10.0, log=True),
        "random_cuts": Choice((False, True)),
    }

    def __init__(
        self,
        task: str | None = None,
        seed: int = 0,
        *,
        rounds: int = 100,
        rate: float | None = None,
        leaves: int | None = None,
        min_leaf: int = 10,
        features: float = 0.5,
        rows: float = 1.0,
        l2: float = 0.0,
        random_cuts: bool | None = None,
        large: bool = False,
    ) -> None:
        super().__init__(task, seed, rounds=rounds)
        if rate is not None:
            check_number("rate", rate, low=0.0, open_low=True)
        if leaves is not None:
            check_number("leaves", leaves, low=2, integer=True)
        check_number("min_leaf", min_leaf, low=1, integer=True)
        check_number("features", features, low=0.0, high=1.0, open_low=True)
        check_number("rows", rows, low=0.0, high=1.0, open_low=True)
        check_number("l2", l2, low=0.0)
        if random_cuts is not None:
            check_flag("random_cuts", random_cuts)
        check_flag("large", large)
        self.rate, self.leaves, self.min_leaf, self.features = rate, leaves, min_leaf, features
        self.share_of_rows, self.l2, self.random_cuts, self.large = rows, l2, random_cuts, large

    def again(self, **changed: Any) -> Self:
        """A fresh learner of the same task, seed and size of table, with other arguments as given."""
        return super().again(**{"large": self.large, **changed})

    def parameters(self) -> dict[str, Any]:
        """As LightGBM calls them."""
        classes = self.task == "classification"
        leaves = (50 if classes else 100) if self.large else 31
        return {
            "learning_rate": self.rate or (0.05 if classes else 0.04),
            "num_leaves": self.leaves or leaves,
            "min_data_in_leaf": self.min_leaf,
            "feature_fraction_bynode": self.features,
            "bagging_fraction": self.share_of_rows,
            "bagging_freq": int(self.share_of_rows < 1),
            "lambda_l2": self.l2,
            "extra_trees": not self.large if self.random_cuts is None else self.random_cuts,
            "seed": self.seed % 2**31,
        }

    def estimator(self) -> LightGBMRegressorTrees:
        """A fresh model."""
        kind = LightGBMClassifierTrees if self.task == "classification" else LightGBMRegressorTrees
        return kind(self.parameters(), self.rounds)

    def of_one_class(self) -> LightGBMRegressorTrees:
        """The same: without trees it knows the class."""
        return self.estimator()

    def _stopped(self, model: Any, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, valid: Validation) -> int:
        model.rounds = MOST_ROUNDS
        model.fit(X, y, weight, valid=(valid.X, valid.y, valid.weight), patience=PATIENCE)
        return int(model.rounds)
