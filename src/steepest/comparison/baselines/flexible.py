"""Non-linear baselines: neighbours, support vectors, trees and their ensembles, a small net."""

from __future__ import annotations

from typing import Any

from ...core.checks import check_number
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
        seed: of the draws.

    >>> ForestBaseline(trees=10).fit([[0.0], [1.0]] * 5, [0, 1] * 5).predict([[0.9]])
    array([1])

    Source: Breiman 2001; arXiv:2409.02668.
    """

    name = "forest"
    votes = True

    def __init__(self, task: str | None = None, seed: int = 0, *, trees: int = 200) -> None:
        super().__init__(task, seed)
        check_number("trees", trees, low=1, integer=True)
        self.trees = trees

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        if self.task == "classification":
            return RandomForestClassifier(self.trees, random_state=self.seed, n_jobs=1)
        return RandomForestRegressor(self.trees, max_features=1 / 3, random_state=self.seed, n_jobs=1)


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


class BoostingBaseline(Baseline):
    """Gradient boosting on histogram trees: each fits the negative loss gradient, shrinkage 0.1, no early stopping.

    Args:
        rounds: how many trees (a class).
        seed: of the binning sample.

    >>> X, y = [[float(i)] for i in range(60)], [int(i > 29) for i in range(60)]
    >>> BoostingBaseline(rounds=5).fit(X, y).predict([[3.0], [50.0]])
    array([0, 1])

    Source: Friedman 2001; arXiv:2409.02668.
    """

    name = "boosting"

    def __init__(self, task: str | None = None, seed: int = 0, *, rounds: int = 100) -> None:
        super().__init__(task, seed)
        check_number("rounds", rounds, low=1, integer=True)
        self.rounds = rounds

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingClassifier if self.task == "classification" else HistGradientBoostingRegressor
        return kind(learning_rate=0.1, max_iter=self.rounds, early_stopping=False, random_state=self.seed)


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
