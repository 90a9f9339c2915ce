"""What a fitted model says about rows, and the metrics of it that select, compare and describe models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core.arrays import array, codes, numbers, outcome_part, row_weights
from ..core.checks import check_choice, refuse
from . import scores
from .errors import InputError, nearest
from .metric_words import ALIASES, known_as
from .operating_point import (
    apply_temperature,
    fit_temperature,
    in_range,
    negative_log_likelihood,
    reliability_bins,
    tune_threshold,
)
from .own_parts import Trust, imported

__all__ = [
    "BINARY",
    "METRICS",
    "MULTICLASS",
    "REGRESSION",
    "Metric",
    "Outcome",
    "apply_temperature",
    "confusion",
    "default_metric",
    "evaluate",
    "find_metric",
    "fit_temperature",
    "per_class_recall",
    "reliability_bins",
    "tune_threshold",
]

TASKS = ("binary", "multiclass", "regression")


@dataclass(frozen=True)
class Outcome:
    """What a fitted model says about N rows.

    Attributes:
        predicted: [N] class codes, or real values.
        probabilities: [N, C], or None where the model gives none, and in regression.
        decision: binary [N], larger means class 1 and 0 is the boundary that ``predicted`` uses; multiclass [N, C]
            scores; None in regression.

    With several targets a column each. Numbers that are not finite say that the model diverged.

    Raises:
        ValueError: lengths differ, a column ``[N, 1]``, finite probabilities outside 0..1.
        TypeError: not numbers.
    """

    predicted: np.ndarray
    probabilities: np.ndarray | None = None
    decision: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows: int | None = None
        for name in ("predicted", "probabilities", "decision"):
            value = getattr(self, name)
            if value is not None or name == "predicted":
                value = outcome_part(name, value, rows)
                rows = len(value)
                object.__setattr__(self, name, value)
        if self.probabilities is not None:
            if self.probabilities.ndim == 1:
                refuse("probabilities", "a column for each class", self.probabilities)
            in_range("probabilities", self.probabilities)

    def rows(self, index: np.ndarray) -> Outcome:
        """The same of some rows.

        >>> Outcome(np.array([3, 4, 5])).rows(np.array([2, 0])).predicted
        array([5, 3])
        """
        parts = (self.predicted, self.probabilities, self.decision)
        return Outcome(*(None if part is None else part[index] for part in parts))

    @property
    def finite(self) -> bool:
        """Whether every number is finite; a diverged model's are not."""
        parts = (self.predicted, self.probabilities, self.decision)
        return all(part is None or bool(np.isfinite(part).all()) for part in parts)


Function = Callable[[np.ndarray, Outcome, "np.ndarray | None"], "float | None"]


@dataclass(frozen=True)
class Metric:
    """A metric of an outcome, callable as ``metric(y, outcome, weights=None) -> float``.

    Where the outcome is not finite (a diverged model), or the metric has no value (no probabilities, a class absent
    from y), the call returns ``worst``, so that selection needs no special case; :func:`evaluate` gives None there.

    Attributes:
        name: the word on the command line.
        greater_is_better: the direction.
        label: for people.
        function: ``(y, outcome, weights) -> float | None``.
        targets: "codes" (of classes) or "numbers", ``[N]``; "" for whatever has the shape of the predictions.
        bounds: the least and the greatest value there can be.
    """

    name: str
    greater_is_better: bool
    label: str
    function: Function = field(repr=False, compare=False)
    targets: str = ""
    bounds: tuple[float, float] = (-np.inf, np.inf)

    @property
    def worst(self) -> float:
        """-inf where greater is better, else inf."""
        return -np.inf if self.greater_is_better else np.inf

    def __call__(self, y: np.ndarray, outcome: Outcome, weights: np.ndarray | None = None) -> float:
        y, weights = _agreeing(y, outcome, weights, self.targets)
        value = _value(self.function, y, outcome, weights) if outcome.finite else None
        return self.worst if value is None else value

    def better(self, a: float, b: float) -> bool:
        """Whether a is strictly better than b; NaN is worse than everything.

        >>> find_metric("rmse", "regression").better(0.1, 0.2)
        True
        """
        a, b = (self.worst if np.isnan(value) else value for value in (a, b))
        return bool(a > b if self.greater_is_better else a < b)


def _agreeing(
    y: np.ndarray, outcome: Outcome, weights: np.ndarray | None, targets: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Targets and weights that fit an outcome row by row."""
    shape = outcome.predicted.shape
    if not targets:
        return array("y", y, shape, kinds="biufUS", what="targets"), row_weights(weights, shape[0])
    if len(shape) != 1:
        refuse("predicted", "one number a row", outcome.predicted)
    if targets == "codes":
        codes("predicted", outcome.predicted, shape)
        return codes("y", y, shape), row_weights(weights, shape[0])
    return numbers("y", y, shape), row_weights(weights, shape[0])


def _value(function: Function, y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
    if not len(y) or (weights is not None and not np.sum(weights) > 0):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        value = function(y, outcome, weights)
    return float(value) if value is not None and np.isfinite(value) else None


_SHARE = (0.0, 1.0)


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


BINARY = _by_name(
    Metric("accuracy", True, "Accuracy", scores.accuracy, "codes", _SHARE),
    Metric("balanced_accuracy", True, "Balanced accuracy", scores.balanced_accuracy, "codes", _SHARE),
    Metric("f1", True, "F1", scores.f1, "codes", _SHARE),
    Metric("macro_f1", True, "Macro F1", scores.macro_f1, "codes", _SHARE),
    Metric("precision", True, "Precision", scores.precision, "codes", _SHARE),
    Metric("recall", True, "Recall", scores.recall, "codes", _SHARE),
    Metric("g_mean", True, "G-mean", scores.g_mean, "codes", _SHARE),
    Metric("mcc", True, "MCC", scores.mcc, "codes", (-1.0, 1.0)),
    Metric("auroc", True, "AUROC", scores.ranking(scores.area_under_roc), "codes", _SHARE),
    Metric("average_precision", True, "Average precision", scores.ranking(scores.average_precision), "codes", _SHARE),
    Metric("nll", False, "Log loss", scores.of_probabilities(negative_log_likelihood), "codes", (0.0, np.inf)),
    Metric("brier", False, "Brier score", scores.of_probabilities(scores.brier), "codes", (0.0, 2.0)),
    Metric("ece", False, "Calibration error", scores.of_probabilities(scores.ece), "codes", _SHARE),
)
"""F1, precision and recall are those of the positive class."""
MULTICLASS = {
    **{name: metric for name, metric in BINARY.items() if name != "f1"},
    **_by_name(
        Metric("precision", True, "Macro precision", scores.macro_precision, "codes", _SHARE),
        Metric("recall", True, "Macro recall", scores.macro_recall, "codes", _SHARE),
    ),
}
REGRESSION = _by_name(
    Metric("rmse", False, "RMSE", scores.rmse, "numbers", (0.0, np.inf)),
    Metric("mae", False, "MAE", scores.mae, "numbers", (0.0, np.inf)),
    Metric("r2", True, "R²", scores.r2, "numbers", (-np.inf, 1.0)),
)
METRICS = {"binary": BINARY, "multiclass": MULTICLASS, "regression": REGRESSION}
"""The metrics of each task of one target."""


def _of_task(task: str) -> dict[str, Metric]:
    check_choice("task", task, TASKS)
    return METRICS[task]


def find_metric(spec: str, task: str, *, trust: Trust = False) -> Metric:
    """The metric of that name, or one of the user's own.

    Args:
        spec: a built-in name, a word of :data:`~steepest.comparison.metric_words.ALIASES`, or ``"module:function"``
            with ``function(y_true, y_pred) -> float`` of class codes or real values; larger is better unless the
            function has an attribute ``greater_is_better = False``. Modules in the current directory are found.
        task: "binary", "multiclass" or "regression".
        trust: whether a ``module:function`` may be imported, see :data:`~steepest.comparison.own_parts.Trust`.

    Raises:
        InputError: unknown, own code that is not trusted, or not for this task.

    >>> find_metric("auroc", "binary").label
    'AUROC'
    >>> find_metric("acuracy", "binary")
    Traceback (most recent call last):
    ...
    steepest.core.errors.InputError: unknown metric 'acuracy'; did you mean 'accuracy'? For binary: accuracy, ...
    """
    known = _of_task(task)
    return _own_metric(spec, trust) if ":" in spec else chosen_metric(spec, known, task)


def chosen_metric(spec: str, known: Mapping[str, Metric], task: str) -> Metric:
    """One of the metrics of a task, by name or alias.

    Raises:
        InputError: unknown, or for other tasks; it says which the task has.
    """
    name = known_as(spec, known)
    if name in known:
        return known[name]
    fitting = f"For {task}: {', '.join(known)}, or module:function"
    elsewhere = _tasks_with(spec)
    if elsewhere:
        advice = "; --task classification makes classes of the numbers" if task == "regression" else ""
        raise InputError(f"metric {spec!r} is for {', '.join(elsewhere)}, not for {task}{advice}. {fitting}")
    words = [word for word, names in ALIASES.items() if any(name in known for name in names)]
    raise InputError(f"unknown metric {spec!r}{nearest(spec, [*known, *words]) or '.'} {fitting}")


def _tasks_with(spec: str) -> list[str]:
    """The tasks that have a metric of this name."""
    from .several import MULTILABEL  # it is built on this module

    return [task for task, known in {**METRICS, "multilabel": MULTILABEL}.items() if known_as(spec, known) in known]


def _own_metric(spec: str, trust: Trust) -> Metric:
    scorer = imported("metric", spec, trust=trust)
    if not callable(scorer):
        raise InputError(f"metric {spec!r}: expected a function of (y, predicted), got {type(scorer).__name__}")

    def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float:
        try:
            return float(scorer(y, outcome.predicted))
        except Exception as error:
            raise InputError(f"metric {spec!r} failed: {error}") from error

    return Metric(spec, bool(getattr(scorer, "greater_is_better", True)), spec.partition(":")[2], function)


def default_metric(task: str, class_counts: Sequence[int] | None = None) -> Metric:
    """The metric where the user names none.

    Args:
        task: "binary" (AUROC), "regression" (RMSE), or "multiclass": accuracy, or balanced accuracy where the rarest
            class has under 10% of the rows.
        class_counts: [C] rows of each class; only multiclass looks at it.

    >>> default_metric("multiclass", [50, 50, 5]).name
    'balanced_accuracy'
    """
    known = _of_task(task)
    if task == "multiclass":
        counts = numbers("class_counts", class_counts if class_counts is not None else [1], low=0.0)
        return known["balanced_accuracy" if counts.min() < 0.1 * counts.sum() else "accuracy"]
    return known["rmse" if task == "regression" else "auroc"]


def evaluate(
    y: np.ndarray,
    outcome: Outcome,
    task: str,
    num_classes: int | None = None,
    *,
    weights: np.ndarray | None = None,
    threshold: float | None = None,
    temperature: float | None = None,
) -> dict[str, float | None]:
    """Every built-in metric of an outcome.

    Args:
        y: [N] class codes or real values.
        outcome: what the model says of the N rows.
        task: "binary", "multiclass" or "regression".
        num_classes: C; not used in regression.
        weights: [N] row weights, or None.
        threshold: on the binary decision, from :func:`tune_threshold` on other rows; gives ``macro_f1_tuned``.
        temperature: from :func:`fit_temperature` on other rows; gives ``ece_calibrated``.

    Returns:
        Name to value. F1, precision and recall are of class 1 in a binary task, else means over the classes in y or
        predicted, as macro F1 is; balanced accuracy averages over the classes in y. What has no row counts 0. AUROC
        and average precision of more than two classes are one against the rest, from probabilities where there are
        any; the binary Brier score is (p_1 - y)^2, that of more classes the sum over them; ECE has 15 bins.
        None, never NaN or inf, where the metric has no value: no probabilities, a class absent from y for the ranking
        metrics, a constant y for r2, a field of the outcome that is not finite.

    Raises:
        ValueError: lengths or the number of columns do not agree.

    >>> evaluate(np.array([1.0, 2.0]), Outcome(np.array([1.0, 4.0])), "regression")["mae"]
    1.0
    """
    known = _of_task(task)
    y, weights = _agreeing(y, outcome, weights, "numbers" if task == "regression" else "codes")
    probabilities = outcome.probabilities
    if task != "regression":
        if probabilities is not None and probabilities.shape != (len(y), num_classes):
            refuse("probabilities", f"shape ({len(y)}, {num_classes})", probabilities)
        if num_classes is not None:
            codes("y", y, y.shape, classes=num_classes)
    values = {name: _value(metric.function, y, outcome, weights) for name, metric in known.items()}
    if task == "regression":
        return values
    tuned = calibrated = None
    decision = outcome.decision
    if threshold is not None and task == "binary" and decision is not None and np.isfinite(decision).all():
        tuned = _value(scores.macro_f1, y, Outcome((decision > threshold).astype(np.int64)), weights)
    if temperature is not None and probabilities is not None and np.isfinite(probabilities).all():
        cooled = Outcome(outcome.predicted, apply_temperature(probabilities, temperature))
        calibrated = _value(known["ece"].function, y, cooled, weights)
    return values | {"macro_f1_tuned": tuned, "ece_calibrated": calibrated}


def per_class_recall(
    y: np.ndarray, outcome: Outcome, num_classes: int, weights: np.ndarray | None = None
) -> dict[str, float | None]:
    """Recall of each class under ``recall_<code>``; None for a class absent from y.

    >>> per_class_recall(np.array([0, 0, 1]), Outcome(np.array([0, 1, 1])), 3)
    {'recall_0': 0.5, 'recall_1': 1.0, 'recall_2': None}
    """
    y, weights = _agreeing(y, outcome, weights, "codes")
    codes("y", y, y.shape, classes=num_classes)
    codes("predicted", outcome.predicted, y.shape, classes=num_classes)
    weights = np.ones(len(y)) if weights is None else weights
    mass = np.bincount(y, weights, minlength=num_classes)
    right = np.bincount(y, weights * (outcome.predicted == y), minlength=num_classes)
    return {f"recall_{c}": float(right[c] / mass[c]) if mass[c] > 0 else None for c in range(num_classes)}


def confusion(y: np.ndarray, outcome: Outcome, num_classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """``[C, C]`` weight of the rows of class i that were predicted as j.

    >>> confusion(np.array([0, 0, 1]), Outcome(np.array([0, 1, 1])), 2)
    array([[1., 1.],
           [0., 1.]])
    """
    y, weights = _agreeing(y, outcome, weights, "codes")
    codes("y", y, y.shape, classes=num_classes)
    predicted = codes("predicted", outcome.predicted, y.shape, classes=num_classes)
    cells = np.bincount(y * num_classes + predicted, weights, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.float64)
