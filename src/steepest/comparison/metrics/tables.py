"""The metrics by task, and how a word becomes one of them; every metric of an outcome at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.arrays import codes, numbers
from ...core.checks import check_choice, refuse
from ..errors import InputError, nearest
from ..own_parts import Trust, imported
from ..scores import functions
from ..scores.operating_point import apply_temperature, negative_log_likelihood
from ..scores.outcome import Outcome
from .metric import Metric, agreeing, value_of
from .ranking import OF_LISTS, list_metric, own_list_metric
from .retrieval import OF_RETRIEVAL
from .several import MULTILABEL, multitask_metrics
from .texts import OF_ANSWERS, own_text_metric, text_metrics
from .words import ALIASES, known_as

TASKS = ("binary", "multiclass", "regression")


_SHARE = (0.0, 1.0)


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


BINARY = _by_name(
    Metric("accuracy", True, "Accuracy", functions.accuracy, "codes", _SHARE, of_predictions=True),
    Metric(
        "balanced_accuracy",
        True,
        "Balanced accuracy",
        functions.balanced_accuracy,
        "codes",
        _SHARE,
        of_predictions=True,
    ),
    Metric("f1", True, "F1", functions.f1, "codes", _SHARE, of_predictions=True),
    Metric("macro_f1", True, "Macro F1", functions.macro_f1, "codes", _SHARE, of_predictions=True),
    Metric("precision", True, "Precision", functions.precision, "codes", _SHARE, of_predictions=True),
    Metric("recall", True, "Recall", functions.recall, "codes", _SHARE, of_predictions=True),
    Metric("g_mean", True, "G-mean", functions.g_mean, "codes", _SHARE, of_predictions=True),
    Metric("mcc", True, "MCC", functions.mcc, "codes", (-1.0, 1.0), of_predictions=True),
    Metric("auroc", True, "AUROC", functions.ranking(functions.area_under_roc), "codes", _SHARE),
    Metric(
        "average_precision", True, "Average precision", functions.ranking(functions.average_precision), "codes", _SHARE
    ),
    Metric("nll", False, "Log loss", functions.of_probabilities(negative_log_likelihood), "codes", (0.0, np.inf)),
    Metric("brier", False, "Brier score", functions.of_probabilities(functions.brier), "codes", (0.0, 2.0)),
    Metric("ece", False, "Calibration error", functions.of_probabilities(functions.ece), "codes", _SHARE),
)
"""F1, precision and recall are those of the positive class."""
MULTICLASS = {
    **{name: metric for name, metric in BINARY.items() if name != "f1"},
    **_by_name(
        Metric("precision", True, "Macro precision", functions.macro_precision, "codes", _SHARE, of_predictions=True),
        Metric("recall", True, "Macro recall", functions.macro_recall, "codes", _SHARE, of_predictions=True),
    ),
}
REGRESSION = _by_name(
    Metric("rmse", False, "RMSE", functions.rmse, "numbers", (0.0, np.inf)),
    Metric("mae", False, "MAE", functions.mae, "numbers", (0.0, np.inf)),
    Metric("r2", True, "R²", functions.r2, "numbers", (-np.inf, 1.0)),
)
METRICS = {"binary": BINARY, "multiclass": MULTICLASS, "regression": REGRESSION}
"""The metrics of each task of one target."""


def _of_task(task: str) -> dict[str, Metric]:
    check_choice("task", task, TASKS)
    return METRICS[task]


def find_metric(spec: str, task: str, *, trust: Trust = False) -> Metric:
    """The metric of that name, or one of the user's own.

    Args:
        spec: a built-in name, a word of :data:`~steepest.comparison.metrics.words.ALIASES`, or ``"module:function"``
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
    fitting = f"For {task}: {', '.join(known)}" + ("" if task == "retrieval" else ", or module:function")
    elsewhere = _tasks_with(spec)
    if elsewhere:
        advice = "; --task classification makes classes of the numbers" if task == "regression" else ""
        raise InputError(f"metric {spec!r} is for {', '.join(elsewhere)}, not for {task}{advice}. {fitting}")
    words = [word for word, names in ALIASES.items() if any(name in known for name in names)]
    raise InputError(f"unknown metric {spec!r}{nearest(spec, [*known, *words]) or '.'} {fitting}")


def _tasks_with(spec: str) -> list[str]:
    """The tasks that have a metric of this name."""
    return [
        task
        for task, known in {
            **METRICS,
            "multilabel": MULTILABEL,
            "text": OF_ANSWERS,
            "retrieval": OF_RETRIEVAL,
            "ranking": OF_LISTS,
        }.items()
        if known_as(spec, known) in known
    ]


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
        threshold: on the binary decision, from :func:`~steepest.comparison.scores.tune_threshold` on other rows; gives
            ``macro_f1_tuned``.
        temperature: from :func:`~steepest.comparison.scores.fit_temperature` on other rows; gives ``ece_calibrated``.

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
    y, weights = agreeing(y, outcome, weights, "numbers" if task == "regression" else "codes")
    probabilities = outcome.probabilities
    if task != "regression":
        if probabilities is not None and probabilities.shape != (len(y), num_classes):
            refuse("probabilities", f"shape ({len(y)}, {num_classes})", probabilities)
        if num_classes is not None:
            codes("y", y, y.shape, classes=num_classes)
    values = {name: value_of(metric.function, y, outcome, weights) for name, metric in known.items()}
    if task == "regression":
        return values
    tuned = calibrated = None
    decision = outcome.decision
    if threshold is not None and task == "binary" and decision is not None and np.isfinite(decision).all():
        tuned = value_of(functions.macro_f1, y, Outcome((decision > threshold).astype(np.int64)), weights)
    if temperature is not None and probabilities is not None and np.isfinite(probabilities).all():
        cooled = Outcome(outcome.predicted, apply_temperature(probabilities, temperature))
        calibrated = value_of(known["ece"].function, y, cooled, weights)
    return values | {"macro_f1_tuned": tuned, "ece_calibrated": calibrated}


def per_class_recall(
    y: np.ndarray, outcome: Outcome, num_classes: int, weights: np.ndarray | None = None
) -> dict[str, float | None]:
    """Recall of each class under ``recall_<code>``; None for a class absent from y.

    >>> per_class_recall(np.array([0, 0, 1]), Outcome(np.array([0, 1, 1])), 3)
    {'recall_0': 0.5, 'recall_1': 1.0, 'recall_2': None}
    """
    y, weights = agreeing(y, outcome, weights, "codes")
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
    y, weights = agreeing(y, outcome, weights, "codes")
    codes("y", y, y.shape, classes=num_classes)
    predicted = codes("predicted", outcome.predicted, y.shape, classes=num_classes)
    cells = np.bincount(y * num_classes + predicted, weights, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.float64)


def metrics_of(data: Any) -> dict[str, Metric]:
    """The metrics of the task of some data."""
    if data.task == "multitask":
        return multitask_metrics(data.parts)
    if data.task == "text":
        return text_metrics(data.answers)
    if data.task == "retrieval":
        return OF_RETRIEVAL
    if data.task == "ranking":
        return OF_LISTS
    return MULTILABEL if data.task == "multilabel" else METRICS[data.task]


def metric_of(spec: str, data: Any) -> Metric:
    """The metric that the present call names for this data, whatever its task; own code is imported.

    Raises:
        InputError: unknown, or not for this task.
    """
    if ":" in spec and data.task == "text":
        return own_text_metric(spec, imported("metric", spec, trust=True))
    if data.task == "ranking":
        if ":" in spec:
            return own_list_metric(spec, imported("metric", spec, trust=True))
        if (at := list_metric(spec)) is not None:
            return at
    if ":" in spec:
        return find_metric(spec, "multiclass", trust=True)
    return chosen_metric(spec, metrics_of(data), data.task)


def default_of(data: Any, counts: Sequence[int] | None) -> Metric:
    """The metric where the user names none: macro average precision of labels, the mean score of a mix.

    Of a text it is the cross-entropy, of answers how many are exact, of a retrieval MAP@R, of lists NDCG@10.
    """
    if data.task in ("multilabel", "multitask", "text", "retrieval", "ranking"):
        return next(iter(metrics_of(data).values()))
    return default_metric(data.task, counts)
