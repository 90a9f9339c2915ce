"""Estimators of scikit-learn that train a small network with any objective that takes class indices or real targets.

>>> from sklearn.datasets import load_iris
>>> from sklearn.model_selection import cross_val_score
>>> x, y = load_iris(return_X_y=True)
>>> model = ObjectiveClassifier("squentropy", epochs=5, lr=0.01, random_state=0)
>>> bool(cross_val_score(model, x, y, cv=3).mean() > 0.8)
True
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from ..comparison.design.context import Split
from ..comparison.scores.calibration import Calibration, calibrate
from ..core.objective import TaskInfo
from ._estimator import ObjectiveEstimator

__all__ = ["ObjectiveClassifier", "ObjectiveRegressor"]


def _gives_probabilities(model: ObjectiveClassifier) -> bool:
    """Whether the objective gives probabilities, or validation rows calibrate its outputs.

    A fitted objective is asked; before that one for a small task, and whether there will be validation rows.
    """
    if hasattr(model, "network_"):
        if isinstance(model.calibration_, str):
            raise AttributeError(f"{model.objective_.name} gives no probabilities: {model.calibration_}")
        return True
    if model.validation_fraction is not None:
        return True
    try:
        tasks = model._objective_class().tasks
        task = "binary" if "binary" in tasks else "multiclass"
        classes = 2 if task == "binary" else 3
        counts = (2,) * classes
        info = TaskInfo(task, num_samples=2 * classes, num_classes=classes, class_counts=counts, feature_dim=1, seed=0)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            objective = model._objective_for(info).eval()
            return objective.probabilities(objective.head(1, info).eval()(torch.zeros(1, 1))) is not None
    except (ValueError, TypeError):  # what is wrong with the parameters, fit says
        return False


class ObjectiveClassifier(ClassifierMixin, ObjectiveEstimator):
    """A small network that goes down a classification objective, as a scikit-learn classifier.

    The objective is made from the facts of the training rows (:meth:`~steepest.core.objective.Objective.from_task`)
    and brings its own output layer; AdamW trains both. Rows of weight zero are left out before anything is drawn. With
    ``batch_size`` of at least the number of rows, integer weights equal repeated rows up to rounding; with smaller
    batches they don't, because batches are drawn by row, nor for objectives made of class counts (``ldam``), because
    those count rows.

    Args:
        objective: a name of ``steepest systems``, ``"module:Class"``, or a class of
            :class:`~steepest.core.objective.Objective`; None is cross-entropy.
        objective_params: hyper-parameters of the objective, by name.
        model: ``"plain"``, ``"residual"``, ``"module:function"``, or a function from the number of features to a module
            ``[B, features] -> [B, any width]``.
        width, depth: of the named models, >= 1; a function gets the number of features alone.
        epochs: passes over the rows, >= 1; the most, where early stopping is on.
        batch_size: rows a step, >= 1, cut to the number of rows.
        lr: AdamW's learning rate, > 0.
        weight_decay: AdamW's, >= 0.
        validation_fraction: share of the rows, in (0, 1), kept for early stopping (stratified by class); None trains
            on all rows for all epochs. The best epoch's network is kept.
        patience: epochs without improvement before training stops, >= 1; None never stops, and keeps the best epoch.
        metric: what early stopping looks at, a name that ``compare`` knows; None takes its default for the task.
        standardise: whether numbers get mean 0 and deviation 1 of the training rows (with their weights).
        random_state: seed of split, initial weights, batches and whatever the objective draws.
        device: where training runs. The fitted network is on the CPU, in float64.
        dtype: ``"float32"`` or ``"float64"``, of the training.

    Attributes:
        classes_: labels ``[C]``, sorted.
        n_features_in_, feature_names_in_: of the rows it was fitted on.
        n_iter_: epochs that ran. best_epoch_: the one whose network was kept.
        loss_curve_: mean training loss of each epoch.
        validation_curve_: the metric after each epoch, or None.
        calibration_: what makes probabilities of outputs whose objective gives none, or why it could not be fitted.
        objective_, network_: the objective and the :class:`~steepest.nn.networks.Network`.
        preprocessor_: the :class:`steepest.Preprocessor` of the rows: numbers, categories, dates and text of a frame,
            missing ones too.

    Raises:
        ValueError: the objective doesn't fit the number of classes, or takes no sample weights; bad parameters or data.

    Example:
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], ["no", "no", "yes", "yes"]
        >>> model = ObjectiveClassifier("comp_sum", width=8, epochs=200, lr=0.01, random_state=0).fit(x, y)
        >>> model.predict([[-1.0], [4.0]]).tolist(), model.decision_function([[4.0]]).shape
        (['no', 'yes'], (1,))
        >>> hasattr(ObjectiveClassifier("squared_error"), "predict_proba")
        False
    """

    usual_objective = "cross_entropy"
    classes_: np.ndarray

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on rows ``[N, features]``, labels ``[N]`` of two or more classes, and weights ``[N]`` >= 0 or None."""
        self._check_parameters()
        X, y = self._checked_with_target(X, y)
        check_classification_targets(y)
        X, y, weight = self._positive(X, y, sample_weight)
        self.classes_, codes = np.unique(y, return_inverse=True)
        classes = len(self.classes_)
        if classes < 2:
            raise ValueError(f"y: expected at least two classes among rows of positive weight, got 1 class: {y[0]!r}")
        task = "binary" if classes == 2 else "multiclass"
        self._check_fits(task, weight is not None)
        self._train(X, codes, weight, task, classes)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The label of each row ``[N]``."""
        outputs = self._outputs(X)
        with torch.no_grad():
            labels: np.ndarray = self.classes_[self.objective_.predict(outputs).numpy()]
        return labels

    @available_if(_gives_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities ``[N, C]`` in the order of ``classes_``.

        Those that the objective gives; where it gives none, outputs are calibrated on the validation rows. Without
        either there is no such method.
        """
        outputs = self._outputs(X)
        if isinstance(self.calibration_, Calibration):
            with torch.no_grad():
                return self.calibration_.probabilities(self.objective_.decision(outputs).numpy())
        given = self._probabilities(outputs)
        assert given is not None
        probabilities: np.ndarray = given.numpy()
        return probabilities

    def decision_function(self, X: Any) -> np.ndarray:
        """Two classes: ``[N]``, above 0 means ``classes_[1]``; more: ``[N, C]``, the largest is predicted."""
        outputs = self._outputs(X)
        with torch.no_grad():
            decision: np.ndarray = self.objective_.decision(outputs).numpy()
        return decision

    def _calibrate(self, split: Split) -> None:
        self.calibration_: Calibration | str | None = None
        with torch.no_grad():
            few = self.network_(split.inputs[:1].double().cpu())
            if self._probabilities(few) is not None:
                return
            if not len(split.other_target):
                self.calibration_ = "set validation_fraction, and its outputs are calibrated on those rows"
                return
            outputs = torch.cat([self.network_(chunk.double()) for chunk in split.other_inputs.cpu().split(4096)])
            scores = self.objective_.decision(outputs).numpy()
        # without an offset the most probable class is the one that is predicted
        self.calibration_ = calibrate(scores, split.other_target, split.other_weight, offset=False)

    def _probabilities(self, outputs: Tensor) -> Tensor | None:
        with torch.no_grad():
            probabilities = self.objective_.probabilities(outputs)
        return None if probabilities is None else probabilities.double()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        with suppress(ValueError, TypeError):  # an unknown objective; fit says so
            tags.classifier_tags.multi_class = "multiclass" in self._objective_class().tasks
        return tags


class ObjectiveRegressor(RegressorMixin, ObjectiveEstimator):
    """A small network that goes down a regression objective, as a scikit-learn regressor.

    The target is standardised for training with the mean and deviation of the training rows (with their weights), so
    an objective's hyper-parameters (the ``delta`` of Huber's loss) are in deviations of the target.

    Args:
        objective: a name of ``steepest systems``, ``"module:Class"``, or a class of
            :class:`~steepest.core.objective.Objective`; None is the squared error.

    The other parameters, and the attributes but ``classes_``, are those of :class:`ObjectiveClassifier`.

    Attributes:
        target_mean_, target_scale_: of the target.

    Raises:
        ValueError: the objective is not for regression, or takes no sample weights; bad parameters or data.

    Example:
        >>> x = np.linspace(-1, 1, 64)[:, None]
        >>> model = ObjectiveRegressor("huber", objective_params={"delta": 0.5}, lr=0.01, random_state=0)
        >>> bool(model.fit(x, 100 + 20 * x[:, 0] ** 2).score(x, 100 + 20 * x[:, 0] ** 2) > 0.95)
        True
    """

    usual_objective = "squared_error"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on rows ``[N, features]``, real targets ``[N]``, and weights ``[N]`` >= 0 or None."""
        self._check_parameters()
        X, y = self._checked_with_target(X, y, numeric=True)
        X, y, weight = self._positive(X, y, sample_weight)
        self._check_fits("regression", weight is not None)
        self._train(X, np.asarray(y, dtype=np.float64), weight, "regression", 1)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The prediction for each row ``[N]``, in the target's own units."""
        outputs = self._outputs(X)
        with torch.no_grad():
            standardised: np.ndarray = self.objective_.predict(outputs).numpy()
        return standardised * self.target_scale_ + self.target_mean_
