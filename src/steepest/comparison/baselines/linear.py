"""Linear baselines: ridge, lasso, logistic regression, linear discriminants."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.arrays import numbers, row_weights
from ...core.checks import check_number, refuse_type
from .base import Baseline


class RidgeBaseline(Baseline):
    """Ridge regression, the intercept unpenalised.

        w = (X_c'X_c + lam I)^-1 X_c'y_c

    Args:
        lam: penalty on the sum of squares, at least 0; 0 is least squares.
        seed: nothing here is random.

    >>> X, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 2.0, 2.0])
    >>> RidgeBaseline(lam=1.0).fit(X, y).model.coef_.round(6)
    array([0.333333])

    Source: Hoerl and Kennard 1970; arXiv:2409.02668.
    """

    name = "ridge"
    tasks = ("regression",)

    def __init__(self, task: str | None = None, seed: int = 0, *, lam: float = 1.0) -> None:
        super().__init__(task, seed)
        check_number("lam", lam, low=0.0)
        self.lam = lam

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.linear_model import LinearRegression, Ridge

        return Ridge(alpha=self.lam) if self.lam else LinearRegression()


class LassoBaseline(Baseline):
    """Lasso regression.

        min_w 1/(2n) ||y - Xw||^2 + lam ||w||_1

    Args:
        lam: penalty, above 0; by default chosen by five-fold cross-validation inside ``fit``.
        seed: of the choice of lam's folds.

    >>> X, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 2.0, 2.0])
    >>> LassoBaseline(lam=0.2).fit(X, y).model.coef_.round(6)
    array([0.2])

    Source: Tibshirani 1996; arXiv:2409.02668.
    """

    name = "lasso"
    tasks = ("regression",)

    def __init__(self, task: str | None = None, seed: int = 0, *, lam: float | None = None) -> None:
        super().__init__(task, seed)
        if lam is not None:
            check_number("lam", lam, low=0.0, open_low=True)
        self.lam = lam

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.linear_model import Lasso, LassoCV
        from sklearn.model_selection import KFold

        if self.lam is not None:
            return Lasso(alpha=self.lam)
        return LassoCV(cv=KFold(5, shuffle=True, random_state=self.seed))


class LogisticBaseline(Baseline):
    """Ridge-penalised logistic regression, softmax for more than two classes.

        min_w sum_i nll_i + lam / 2 ||w||^2

    Args:
        lam: penalty, above 0 (scikit-learn's C is 1 / lam).
        seed: nothing here is random.

    >>> X, y = np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 1])
    >>> LogisticBaseline().fit(X, y).predict(X)
    array([0, 0, 0, 1, 1, 1])

    Source: arXiv:2409.02668.
    """

    name = "logistic"
    tasks = ("classification",)

    def __init__(self, task: str | None = None, seed: int = 0, *, lam: float = 1.0) -> None:
        super().__init__(task, seed)
        check_number("lam", lam, low=0.0, open_low=True)
        self.lam = lam

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=1 / self.lam, max_iter=1000)


class LDABaseline(Baseline):
    """Linear discriminant analysis: Gaussian classes with one shared covariance S.

        score_g(x) = x'S^-1 m_g - m_g'S^-1 m_g / 2 + log pi_g

    >>> X, y = np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 1])
    >>> LDABaseline().fit(X, y).predict(X)
    array([0, 0, 0, 1, 1, 1])

    Source: Fisher 1936; arXiv:2409.02668.
    """

    name = "lda"
    tasks = ("classification",)
    weighted = False

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        return LinearDiscriminantAnalysis()


class KernelRidgeBaseline(Baseline):
    """Kernel ridge regression.

        a = (K + lam I)^-1 y,  f(x) = sum_i a_i k(x_i, x)

    On centred inputs and targets, so that a linear kernel is ridge with its unpenalised intercept (an RBF kernel looks
    at differences of inputs alone: there only the targets move); with ``centre=False`` on both as they come.

    Args:
        lam: penalty, above 0.
        kernel: "rbf" or "linear" (or another kernel of scikit-learn).
        gamma: of the RBF kernel exp(-gamma ||x - x'||^2); by default 1 / d.
        centre: whether inputs and targets are centred; False is the textbook's form, without an intercept.
        seed: nothing here is random.

    >>> X, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 2.0, 2.0])
    >>> KernelRidgeBaseline(kernel="linear").fit(X, y).predict([[1.0], [2.0]]).round(6)
    array([1.666667, 2.      ])
    >>> KernelRidgeBaseline(kernel="linear", centre=False).fit(X, y).predict(X).round(6)
    array([0., 1., 2.])

    Source: arXiv:2409.02668.
    """

    name = "kernel_ridge"
    tasks = ("regression",)

    def __init__(
        self,
        task: str | None = None,
        seed: int = 0,
        *,
        lam: float = 1.0,
        kernel: str = "rbf",
        gamma: float | None = None,
        centre: bool = True,
    ) -> None:
        super().__init__(task, seed)
        check_number("lam", lam, low=0.0, open_low=True)
        if gamma is not None:
            check_number("gamma", gamma, low=0.0, open_low=True)
        if not isinstance(centre, (bool, np.bool_)):
            refuse_type("centre", "True or False", centre)
        self.lam, self.kernel, self.gamma, self.centre = lam, kernel, gamma, bool(centre)
        self.scales_target = self.centre
        self._middle: Any = 0.0

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        from sklearn.kernel_ridge import KernelRidge

        return KernelRidge(alpha=self.lam, kernel=self.kernel, gamma=self.gamma)

    def fit(
        self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None, *, num_classes: int | None = None
    ) -> KernelRidgeBaseline:
        """Train; arguments as :meth:`Baseline.fit`."""
        X = numbers("X", X, (None, None))
        weights = row_weights(sample_weight, len(X), "sample_weight")
        self._middle = np.average(X, axis=0, weights=weights) if self.centre else 0.0
        return super().fit(X - self._middle, y, weights, num_classes=num_classes)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """[N] real values."""
        return super().predict(numbers("X", X, (None, self.columns)) - self._middle)
