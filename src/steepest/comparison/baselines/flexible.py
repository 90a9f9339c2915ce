"""Non-linear baselines: neighbours, support vectors, trees, forests, a small net."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ...core.checks import check_choice, check_number
from ...core.search import Choice, Float, Space
from .base import Baseline


class KNNBaseline(Baseline):
    """k nearest neighbours in Euclidean distance.

    Args:
        k: neighbours; by default 5 in classification, 20 in regression. Never more than the training rows.
        seed: nothing here is random.

    >>> KNNBaseline(k=1).fit([[0.0], [1.0]], [0, 1]).predict([[0.9]])
    array([1])

    Source: Cover and Hart 1967; arXiv:2409.02668.
    """

    name = "knn"
    votes = True
    weighted = False

    def __init__(self, task: str | None = None, seed: int = 0, *, k: int | None = None) -> None:
        super().__init__(task, seed)
        if k is not None:
            check_number("k", k, low=1, integer=True)
        self.k = k if k is not None else 5 if self.task == "classification" else 20

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

        kind = KNeighborsClassifier if self.task == "classification" else KNeighborsRegressor
        return kind(n_neighbors=min(self.k, self.rows), n_jobs=1)


class SVMBaseline(Baseline):
    """Soft-margin support vector machine with an RBF kernel; in regression on standardised targets.

    It gives a decision and no probabilities.

    Args:
        C: cost of a violation, above 0; by default 10 in classification, 1 in regression.
        seed: nothing here is random.

    >>> SVMBaseline().fit([[0.0], [1.0]], [0, 1]).predict([[0.9]])
    array([1])

    Source: Cortes and Vapnik 1995; arXiv:2409.02668.
    """

    name = "svm"
    scales_target = True

    def __init__(self, task: str | None = None, seed: int = 0, *, C: float | None = None) -> None:
        super().__init__(task, seed)
        if C is not None:
            check_number("C", C, low=0.0, open_low=True)
        self.C = C if C is not None else 10.0 if self.task == "classification" else 1.0

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.svm import SVC, SVR

        return SVC(C=self.C) if self.task == "classification" else SVR(C=self.C)


class TreeBaseline(Baseline):
    """One CART tree (Gini, or squared error), grown until its leaves are pure.

    >>> TreeBaseline().fit([[0.0], [1.0]], [0, 1]).predict([[0.9]])
    array([1])

    Source: Breiman et al., "Classification and Regression Trees", 1984; arXiv:2409.02668.
    """

    name = "tree"

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

        kind = DecisionTreeClassifier if self.task == "classification" else DecisionTreeRegressor
        return kind(random_state=self.seed)


class ForestBaseline(Baseline):
    """Random forest: bootstrapped trees on sqrt(d) features a split (d / 3 in regression).

    Args:
        trees: how many.
        features: that a split may look at, as a multiple of the sqrt(d) or d / 3 above, at most d.
        min_leaf: rows of a leaf, at least.
        criterion: of a split in classification: "gini" or "entropy".
        seed: of the draws.

    >>> ForestBaseline(trees=10).fit([[0.0], [1.0]] * 5, [0, 1] * 5).predict([[0.9]])
    array([1])

    Source: Breiman 2001; arXiv:2409.02668.
    """

    name = "forest"
    votes = True
    search: ClassVar[dict[str, Space]] = {
        "features": Float(0.5, 2.5, log=True),
        "min_leaf": Choice((1, 2, 3, 5, 8)),
        "criterion": Choice(("gini", "entropy")),
    }

    def __init__(
        self,
        task: str | None = None,
        seed: int = 0,
        *,
        trees: int = 200,
        features: float = 1.0,
        min_leaf: int = 1,
        criterion: str = "gini",
    ) -> None:
        super().__init__(task, seed)
        check_number("trees", trees, low=1, integer=True)
        check_number("features", features, low=0.0, open_low=True)
        check_number("min_leaf", min_leaf, low=1, integer=True)
        check_choice("criterion", criterion, ("gini", "entropy"))
        self.trees, self.features, self.min_leaf, self.criterion = trees, features, min_leaf, criterion

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        options: dict[str, Any] = {"min_samples_leaf": self.min_leaf, "random_state": self.seed, "n_jobs": 1}
        if self.task == "classification":
            options |= {"max_features": self._looked_at("sqrt"), "criterion": self.criterion}
            return RandomForestClassifier(self.trees, **options)
        return RandomForestRegressor(self.trees, max_features=self._looked_at(1 / 3), **options)

    def _looked_at(self, usual: str | float) -> str | float | int:
        """Features a split: the usual ones, or a number of them."""
        if self.features == 1:
            return usual
        wide = max(1, self.columns)
        number = math.sqrt(wide) if isinstance(usual, str) else usual * wide
        return min(wide, max(1, round(self.features * number)))


class AdaBoostBaseline(Baseline):
    """AdaBoost on decision stumps (AdaBoost.R2 on small trees in regression).

        a = log((1 - e) / e) / 2,  w_i <- w_i exp(-a y_i h_i), renormalised

    Args:
        rounds: how many.
        seed: of the stumps.

    >>> AdaBoostBaseline(rounds=5).fit([[0.0], [1.0]] * 5, [0, 1] * 5).predict([[0.9]])
    array([1])

    Source: Freund and Schapire 1997; arXiv:2409.02668.
    """

    name = "adaboost"

    def __init__(self, task: str | None = None, seed: int = 0, *, rounds: int = 100) -> None:
        super().__init__(task, seed)
        check_number("rounds", rounds, low=1, integer=True)
        self.rounds = rounds

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.ensemble import AdaBoostClassifier, AdaBoostRegressor

        kind = AdaBoostClassifier if self.task == "classification" else AdaBoostRegressor
        return kind(n_estimators=self.rounds, random_state=self.seed)


class MLPBaseline(Baseline):
    """A ReLU net of one or two hidden layers, trained by Adam; in regression on standardised targets.

    Args:
        hidden: width of each hidden layer.
        epochs: passes over the rows, at most.
        seed: of the initial weights and the order of the rows.

    >>> X, y = [[float(i)] for i in (-2, -1, 1, 2)] * 10, [0, 0, 1, 1] * 10
    >>> MLPBaseline(hidden=(8,)).fit(X, y).predict([[-1.5], [1.5]])
    array([0, 1])

    Source: arXiv:2409.02668.
    """

    name = "mlp"
    weighted = False
    scales_target = True

    def __init__(
        self, task: str | None = None, seed: int = 0, *, hidden: tuple[int, ...] = (64,), epochs: int = 200
    ) -> None:
        super().__init__(task, seed)
        for width in hidden:
            check_number("hidden", width, low=1, integer=True)
        check_number("epochs", epochs, low=1, integer=True)
        self.hidden, self.epochs = tuple(hidden), epochs

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        kind = MLPClassifier if self.task == "classification" else MLPRegressor
        return kind(hidden_layer_sizes=self.hidden, max_iter=self.epochs, random_state=self.seed)
