"""The contract of a classical baseline: fit, predict, outcome."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np

from ...core.arrays import codes, numbers, row_weights
from ...core.checks import check_choice, check_number
from ...core.search import Space
from ..metrics import Outcome


class Baseline(ABC):
    """A classical learner behind one interface, on a scikit-learn estimator.

    Inputs are taken as they come: standardise them first, inside the fold. In classification y holds codes
    0..C-1. A training part with one class only is answered by that class.

    Args:
        task: "classification" or "regression".
        seed: of whatever is random in the learner.

    Attributes:
        name: its word in tables.
        cost_s: seconds of the last fit, None before.
        rows, columns: of the last fit's inputs, 0 before.
        votes: whether its class is always the first with the largest probability.
        weighted: whether ``sample_weight`` has an effect; where not, the learner knows no weights and ignores them.
        search: the arguments that a comparison tunes, and where; nothing where it takes the defaults alone.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")
    votes: ClassVar[bool] = False
    weighted: ClassVar[bool] = True
    search: ClassVar[dict[str, Space]] = {}
    scales_target: bool = False  # regression: fit on (y - mean) / sd, for learners with a scale of their own

    def __init__(self, task: str | None = None, seed: int = 0) -> None:
        task = self.tasks[0] if task is None else task
        check_choice(f"task of {self.name}", task, self.tasks)
        check_number("seed", seed, low=0, integer=True)
        self.task, self.seed = task, seed
        self.cost_s: float | None = None
        self.num_classes = self.rows = self.columns = 0
        self._model: Any = None
        self._centre, self._scale = 0.0, 1.0

    @abstractmethod
    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""

    def again(self, **changed: Any) -> Self:
        """A fresh learner of the same task and seed, with some arguments changed."""
        return type(self)(self.task, self.seed, **changed)

    @property
    def model(self) -> Any:
        """The fitted scikit-learn estimator.

        Raises:
            ValueError: not fitted.
        """
        if self._model is None:
            raise ValueError(f"{self.name} is not fitted; call fit(X, y) first")
        return self._model

    def fit(
        self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None, *, num_classes: int | None = None
    ) -> Self:
        """Train.

        Args:
            X: [N, d] inputs, finite.
            y: [N] class codes, or real values.
            sample_weight: [N] row weights, or None.
            num_classes: C, where a class may be absent from y; by default the largest code plus one.

        Raises:
            ValueError: shapes that do not agree, numbers that are not finite, negative codes or weights.
            TypeError: inputs or targets that are not numbers, class codes that are no integers.
        """
        X = numbers("X", X, (None, None))
        self.rows, self.columns = X.shape
        sample_weight = row_weights(sample_weight, len(X), "sample_weight")
        start = time.perf_counter()
        if self.task == "classification":
            y = codes("y", y, (len(X),), classes=num_classes)
        else:
            y = numbers("y", y, (len(X),))
        model = self.estimator()
        if self.task == "classification":
            self.num_classes = int(y.max()) + 1 if num_classes is None else num_classes
            if (y == y[0]).all():
                model = self.of_one_class()
        elif self.scales_target:
            self._centre = float(np.average(y, weights=sample_weight))
            self._scale = float(np.sqrt(np.average((y - self._centre) ** 2, weights=sample_weight))) or 1.0
            y = (y - self._centre) / self._scale
        options = {} if sample_weight is None or not self.weighted else {"sample_weight": sample_weight}
        with warnings.catch_warnings():
            from sklearn.exceptions import ConvergenceWarning

            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model = self._trained(model, X, y, options)
        self.cost_s = time.perf_counter() - start
        return self

    def of_one_class(self) -> Any:
        """A fresh estimator for a training part with one class only."""
        return _constant(self.task)

    def _trained(self, model: Any, X: np.ndarray, y: np.ndarray, options: dict[str, Any]) -> Any:
        """The estimator, fitted; ``options`` hold the weights, if any."""
        return model.fit(X, y, **options)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """[N] class codes or real values."""
        predicted = self.model.predict(numbers("X", X, (None, self.columns)))
        return predicted if self.task == "classification" else predicted * self._scale + self._centre

    def outcome(self, X: np.ndarray) -> Outcome:
        """What the learner says of rows, with a column for each of the C classes.

        Probabilities are None where the estimator has none. The decision is the estimator's own where it has one,
        else p_1 - p_0 (binary) or the probabilities.
        """
        X = numbers("X", X, (None, self.columns))
        if self.task == "regression":
            return Outcome(self.predict(X))
        probabilities = decision = None
        if hasattr(self.model, "predict_proba"):
            probabilities = self._columns(self.model.predict_proba(X), 0.0)
        if self.votes and probabilities is not None:  # without asking again
            predicted = probabilities.argmax(1)
        else:
            predicted = self.predict(X)
        if hasattr(self.model, "decision_function"):
            scores = self.model.decision_function(X)
            scores = np.stack([-scores, scores], axis=1) / 2 if scores.ndim == 1 else scores
            decision = self._columns(scores, float(scores.min()) - 1.0)
        else:
            decision = probabilities
        if self.num_classes == 2:
            decision = decision[:, 1] - decision[:, 0]
        return Outcome(predicted, probabilities, decision)

    def _columns(self, seen: np.ndarray, absent: float) -> np.ndarray:
        """Columns of the classes met in training, put among all C."""
        full = np.full((len(seen), self.num_classes), absent)
        full[:, self.model.classes_.astype(int)] = seen
        return full

    def __repr__(self) -> str:
        return f"{type(self).__name__}(task={self.task!r}, seed={self.seed})"


def _constant(task: str) -> Any:
    from sklearn.dummy import DummyClassifier, DummyRegressor

    return DummyClassifier(strategy="prior") if task == "classification" else DummyRegressor()


def is_constant(model: Any) -> bool:
    """Whether an estimator is that of a training part with one class only."""
    from sklearn.dummy import DummyClassifier, DummyRegressor

    return isinstance(model, (DummyClassifier, DummyRegressor))


class ConstantBaseline(Baseline):
    """The majority class (probabilities: the class shares), or the mean.

    >>> ConstantBaseline().fit(np.zeros((3, 1)), np.array([0, 1, 1])).predict(np.zeros((2, 1)))
    array([1, 1])
    """

    name = "constant"

    def estimator(self) -> Any:
        """A fresh scikit-learn estimator."""
        return _constant(self.task)
