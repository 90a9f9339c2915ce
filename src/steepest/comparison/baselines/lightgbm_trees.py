"""LightGBM's trees behind the interface of a scikit-learn estimator, and as the text that LightGBM writes."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

FIXED: dict[str, Any] = {
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "feature_pre_filter": False,
    "verbosity": -1,
}
"""Parameters of every fit: one thread, equal bits for equal seeds, nothing printed."""


def lightgbm() -> Any:
    """The package.

    Raises:
        ImportError: it is not installed, or lacks a library of the system (OpenMP's).
    """
    try:
        import lightgbm as package
    except ImportError as error:
        raise ImportError(
            "LightGBM is not installed; it comes with the extra trees: pip install 'steepest[trees]'"
        ) from error
    except OSError as error:
        raise ImportError(f"LightGBM is installed (the extra trees) and cannot be loaded: {error}") from error
    return package


class LightGBMRegressorTrees:
    """A boosted ensemble for real values, as scikit-learn's estimators are used.

    Args:
        parameters: of LightGBM.
        rounds: at most.

    Attributes:
        booster: LightGBM's.
        rounds: after a fit with validation rows those of the best one.
    """

    def __init__(self, parameters: dict[str, Any], rounds: int) -> None:
        lightgbm()
        self.parameters, self.rounds = dict(parameters), rounds
        self.booster: Any = None

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        valid: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None,
        patience: int = 0,
    ) -> Self:
        """Train.

        Args:
            X: [N, d] inputs.
            y: [N] targets.
            sample_weight: [N], or None.
            valid: the same of rows of known classes that stop it.
            patience: rounds without a smaller loss on them after which it stops.
        """
        package, options = lightgbm(), {**FIXED, **self.parameters, **self._objective(y)}
        rows = package.Dataset(X, self._labels(y), weight=sample_weight)
        others = []
        if valid is not None:
            options["early_stopping_round"] = patience
            others = [package.Dataset(valid[0], self._labels(valid[1]), weight=valid[2], reference=rows)]
        booster = package.train(options, rows, self.rounds, valid_sets=others)
        self.rounds = max(1, booster.best_iteration if others else self.rounds)
        self.booster = booster
        return self

    def _objective(self, y: np.ndarray) -> dict[str, Any]:
        return {"objective": "regression"}

    def _labels(self, y: np.ndarray) -> np.ndarray:
        return y

    def predict(self, X: np.ndarray) -> np.ndarray:
        """[N] real values."""
        return np.asarray(self.booster.predict(X, num_iteration=self.rounds, num_threads=1))


class LightGBMClassifierTrees(LightGBMRegressorTrees):
    """The same for classes.

    Attributes:
        classes_: codes met in training, in order; where that is one alone there is no booster.
    """

    def __init__(self, parameters: dict[str, Any], rounds: int) -> None:
        super().__init__(parameters, rounds)
        self.classes_: np.ndarray = np.zeros(0, dtype=np.int64)

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        valid: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None,
        patience: int = 0,
    ) -> Self:
        """Train; arguments as for real values, targets are codes."""
        self.classes_ = np.unique(y)
        if len(self.classes_) == 1:
            self.rounds = 1
            return self
        return super().fit(X, y, sample_weight, valid=valid, patience=patience)

    def _objective(self, y: np.ndarray) -> dict[str, Any]:
        count = len(self.classes_)
        return {"objective": "binary"} if count == 2 else {"objective": "multiclass", "num_class": count}

    def _labels(self, y: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.classes_, y)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """[N, C] of the classes met in training."""
        if self.booster is None:
            return np.ones((len(X), 1))
        shares = super().predict(X)
        return np.stack([1 - shares, shares], 1) if shares.ndim == 1 else shares

    def predict(self, X: np.ndarray) -> np.ndarray:
        """[N] the most probable class."""
        classes: np.ndarray = self.classes_[self.predict_proba(X).argmax(1)]
        return classes
