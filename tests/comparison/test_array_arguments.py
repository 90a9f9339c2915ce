"""Every array argument of the statistics, metrics and baselines has a checked shape and type.

One table holds a valid call of each public function and says of what kind each array is; from it follow the calls that
are refused and those that give the same with lists. A function, or an array argument, without a row fails.
"""

from __future__ import annotations

import functools
import inspect
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from steepest.comparison import baselines, metrics, scores, statistics
from steepest.comparison.baselines import Baseline
from steepest.comparison.metrics.tables import BINARY, REGRESSION
from steepest.comparison.scores import operating_point
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.statistics import PairedResult, bootstrap
from steepest.core.arrays import labels, numbers
from steepest.testing._common import refused

N = 12
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(N, 3))
Y = np.arange(N) % 2
OTHER, THIRD = np.roll(Y, 1), (np.arange(N) % 3 > 0).astype(int)
REAL = GENERATOR.normal(size=N)
WEIGHTS = GENERATOR.uniform(1, 2, N)
P = np.stack([1 - (REAL := np.clip(REAL, -2, 2)) / 5 - 0.5, REAL / 5 + 0.5], 1)
SCORES = GENERATOR.normal(size=(7, 4))
FIVE = np.array([(0.02, 0.03), (0.01, 0.04), (0, 0.02), (0.03, 0.01), (0.02, 0.02)])
RESULT = PairedResult(0.1, 0.05, 0.15, 0.01, 4, 0.01, 0.04)


def accuracy(y, predicted):
    return float((y == predicted).mean())


def weighted_accuracy(y, predicted, weights):
    return float(np.average(y == predicted, weights=weights))


@dataclass
class Call:
    """A valid call, and of what kind each array is.

    Kinds: "labels" [N] (text only beside text), "class labels" [N] of one side (text too), "codes" [N], "numbers" [N],
    "weights" [N] >= 0, "matrix" [N, d], "inputs" [N, ...] of any type; a "?" says that numbers may be not finite, a
    "~" that the length is free, a "-" that the array may be left out.
    """

    function: Any
    arguments: dict[str, Any]
    kinds: dict[str, str]
    more: tuple[Any, ...] = field(default=())

    def __call__(self, **changes):
        return self.function(*self.more, **(self.arguments | changes))


def learner(function, **extra):
    return Call(function, {"X": X, "y": Y, **extra}, {"X": "inputs", "y": "class labels"})


SAME = DummyClassifier()
CALLS: dict[str, Call] = {
    "statistics.average_ranks": Call(statistics.average_ranks, {"scores": SCORES}, {"scores": "matrix~"}),
    "statistics.single_ranks": Call(statistics.single_ranks, {"scores": SCORES}, {"scores": "matrix~"}),
    "statistics.friedman": Call(statistics.friedman, {"scores": SCORES}, {"scores": "matrix~"}),
    "statistics.win_rates": Call(
        lambda scores: np.nan_to_num(statistics.win_rates(scores)), {"scores": SCORES}, {"scores": "matrix~"}
    ),
    "statistics.elo": Call(
        lambda scores: statistics.elo(scores, rounds=20), {"scores": SCORES}, {"scores": "matrix~"}
    ),
    "statistics.improvability": Call(
        statistics.improvability, {"errors": np.abs(SCORES)}, {"errors": "matrix~"}
    ),
    "statistics.bayesian_correlated_ttest": Call(
        statistics.bayesian_correlated_ttest,
        {"differences": REAL, "test_fraction": 0.2},
        {"differences": "numbers~"},
    ),
    "statistics.wilcoxon_holm": Call(statistics.wilcoxon_holm, {"scores": SCORES}, {"scores": "matrix~"}),
    "statistics.bootstrap_632": learner(statistics.bootstrap_632, fit=SAME, n_splits=2),
    "statistics.bootstrap_632_plus": learner(statistics.bootstrap_632_plus, fit=SAME, n_splits=2),
    "statistics.no_information_error": Call(
        statistics.no_information_error, {"y": Y, "predicted": OTHER}, {"y": "labels", "predicted": "labels"}
    ),
    "statistics.zero_one": Call(
        bootstrap.zero_one, {"y": Y, "predicted": OTHER}, {"y": "labels", "predicted": "labels"}
    ),
    "statistics.bootstrap_difference": Call(
        statistics.bootstrap_difference, {"a": REAL, "b": WEIGHTS, "n": 20}, {"a": "numbers", "b": "numbers"}
    ),
    "statistics.bootstrap_metric_difference": Call(
        statistics.bootstrap_metric_difference,
        {"metric": weighted_accuracy, "y": Y, "outcome_a": OTHER, "outcome_b": THIRD, "n": 20, "weights": WEIGHTS},
        {"y": "class labels", "outcome_a": "inputs", "outcome_b": "inputs", "weights": "weights"},
    ),
    "statistics.cochran_q": Call(
        lambda y, a, b: statistics.cochran_q(y, a, b), {"y": Y, "a": OTHER, "b": THIRD},
        {"y": "labels", "a": "labels", "b": "labels"},
    ),
    "statistics.mcnemar_test": Call(
        statistics.mcnemar_test, {"y": Y, "pred_a": OTHER, "pred_b": THIRD},
        {"y": "labels", "pred_a": "labels", "pred_b": "labels"},
    ),
    "statistics.combined_f_5x2": Call(statistics.combined_f_5x2, {"differences": FIVE}, {"differences": "matrix"}),
    "statistics.paired_t_5x2": Call(statistics.paired_t_5x2, {"differences": FIVE}, {"differences": "matrix"}),
    "statistics.combined_ftest_5x2cv": learner(
        statistics.combined_ftest_5x2cv, fit_a=SAME, fit_b=SAME, scorer=accuracy
    ),
    "statistics.paired_ttest_5x2cv": learner(statistics.paired_ttest_5x2cv, fit_a=SAME, fit_b=SAME, scorer=accuracy),
    "statistics.five_by_two_differences": learner(
        statistics.five_by_two_differences, fit_a=SAME, fit_b=SAME, scorer=accuracy
    ),
    "statistics.nested_cv": learner(statistics.nested_cv, candidates={"a": SAME}, scorer=accuracy, outer=2),
    "statistics.one_standard_error_rule": Call(
        statistics.one_standard_error_rule, {"scores": SCORES}, {"scores": "matrix~"}
    ),
    "statistics.corrected_resampled_ttest": Call(
        statistics.corrected_resampled_ttest, {"differences": REAL, "test_fraction": 0.2}, {"differences": "numbers~"}
    ),
    "statistics.holm": Call(statistics.holm, {"pvalues": WEIGHTS - 1}, {"pvalues": "numbers~"}),
    "statistics.tiers": Call(
        statistics.tiers, {"results": [RESULT] * N, "holm_p": WEIGHTS - 1}, {"holm_p": "numbers"}
    ),
    "scores.Outcome": Call(
        lambda predicted, probabilities, decision: [
            part.tolist() for part in vars(Outcome(predicted, probabilities, decision)).values()
        ],
        {"predicted": Y, "probabilities": P, "decision": REAL},
        {"predicted": "numbers?", "probabilities": "matrix?-", "decision": "numbers?-"},
    ),
    "metrics.default_metric": Call(
        metrics.default_metric, {"task": "multiclass", "class_counts": [4, 5, 6]}, {"class_counts": "numbers~-"}
    ),
    "metrics.evaluate": Call(
        metrics.evaluate,
        {"y": Y, "outcome": Outcome(OTHER, P, REAL), "task": "binary", "num_classes": 2, "weights": WEIGHTS},
        {"y": "codes", "weights": "weights"},
    ),
    "metrics.evaluate of numbers": Call(
        metrics.evaluate, {"y": WEIGHTS, "outcome": Outcome(REAL), "task": "regression", "weights": WEIGHTS},
        {"y": "numbers", "weights": "weights"},
    ),
    "metrics.per_class_recall": Call(
        metrics.per_class_recall, {"y": Y, "outcome": Outcome(OTHER), "num_classes": 2, "weights": WEIGHTS},
        {"y": "codes", "weights": "weights"},
    ),
    "metrics.confusion": Call(
        metrics.confusion, {"y": Y, "outcome": Outcome(OTHER), "num_classes": 2, "weights": WEIGHTS},
        {"y": "codes", "weights": "weights"},
    ),
    "scores.apply_temperature": Call(
        operating_point.apply_temperature, {"probabilities": P, "temperature": 2.0}, {"probabilities": "matrix?~"}
    ),
    "scores.fit_temperature": Call(
        operating_point.fit_temperature, {"probabilities": P, "y": Y, "weights": WEIGHTS},
        {"probabilities": "matrix?", "y": "codes", "weights": "weights"},
    ),
    "metrics.negative_log_likelihood": Call(
        operating_point.negative_log_likelihood, {"probabilities": P, "y": Y, "weights": WEIGHTS},
        {"probabilities": "matrix", "y": "codes", "weights": "weights"},
    ),
    "scores.reliability_bins": Call(
        operating_point.reliability_bins, {"probabilities": P, "y": Y}, {"probabilities": "matrix", "y": "codes"}
    ),
    "scores.tune_threshold": Call(
        operating_point.tune_threshold, {"y": Y, "decision": REAL, "weights": WEIGHTS},
        {"y": "codes", "decision": "numbers?", "weights": "weights"},
    ),
    "baselines.run_ladder": Call(
        lambda X, y: baselines.run_ladder(X, y, cv=2, budget_s=0.1).drop(columns="cost_s").to_dict(), {"X": X, "y": Y},
        {"X": "matrix", "y": "class labels"},
    ),
    "baselines.proximal_gradient": Call(
        baselines.proximal_gradient, {"gradient": lambda x: x, "start": REAL, "smoothness": 1.0, "steps": 2},
        {"start": "numbers~"},
    ),
    "baselines.gradient_descent": Call(
        baselines.gradient_descent, {"gradient": lambda x: x, "start": REAL, "smoothness": 1.0, "steps": 2},
        {"start": "numbers~"},
    ),
    "baselines.gaussian_mixture": Call(
        lambda X: [part.tolist() for part in baselines.gaussian_mixture(X, 2, steps=2)], {"X": X}, {"X": "matrix~"}
    ),
}  # fmt: skip
CALLS |= {
    f"metrics.{name}": Call(
        metric, {"y": Y, "outcome": Outcome(OTHER, P, REAL), "weights": WEIGHTS}, {"y": "codes", "weights": "weights"}
    )
    for name, metric in BINARY.items()
}
CALLS |= {
    f"metrics.{name}": Call(
        metric, {"y": WEIGHTS, "outcome": Outcome(REAL), "weights": WEIGHTS}, {"y": "numbers", "weights": "weights"}
    )
    for name, metric in REGRESSION.items()
}
SMALL = {"forest": {"trees": 2}, "adaboost": {"rounds": 2}, "boosting": {"rounds": 2}, "mlp": {"epochs": 2}}
SMALL["lightgbm"] = {"rounds": 2, "min_leaf": 2}
LEARNERS = {
    name: kind for name, kind in vars(baselines).items()
    if isinstance(kind, type) and issubclass(kind, Baseline) and kind is not Baseline
}  # fmt: skip


@functools.cache
def fitted(kind, task):
    y = Y if task == "classification" else REAL
    return kind(task, **SMALL.get(kind.name, {})).fit(X, y)


for name, kind in LEARNERS.items():
    for task in kind.tasks:
        y, codes = (Y, "codes") if task == "classification" else (REAL, "numbers")
        CALLS[f"baselines.{name}.fit for {task}"] = Call(
            lambda X, y, sample_weight, kind=kind, task=task: (
                kind(task, **SMALL.get(kind.name, {})).fit(X, y, sample_weight).predict(np.zeros((2, 3))).tolist()
            ),
            {"X": X, "y": y, "sample_weight": WEIGHTS},
            {"X": "matrix", "y": codes, "sample_weight": "weights"},
        )
    CALLS[f"baselines.{name}.predict"] = Call(
        lambda X, kind=kind: fitted(kind, kind.tasks[0]).predict(X).tolist(), {"X": X}, {"X": "columns"}
    )
    CALLS[f"baselines.{name}.outcome"] = Call(
        lambda X, kind=kind: fitted(kind, kind.tasks[0]).outcome(X).predicted.tolist(), {"X": X}, {"X": "columns"}
    )

WITHOUT_ARRAYS = {
    "statistics.holdout_interval", "statistics.proportions_test", "statistics.point_632", "statistics.point_632_plus",
    "statistics.power_message", "statistics.next_look",
    "statistics.critical_difference", "statistics.practical", "metrics.find_metric", "metrics.multitask_metrics",
    "baselines.baseline_ladder", "baselines.classical_learners", "baselines.has_lightgbm", "baselines.tuned_learners",
}  # fmt: skip


def public():
    """Functions by name, and the classes that take arrays."""
    found = {f"statistics.{name}": getattr(statistics, name) for name in statistics.__all__}
    found |= {f"scores.{name}": getattr(scores, name) for name in scores.__all__}
    found |= {f"metrics.{name}": getattr(metrics, name) for name in metrics.__all__ if name != "Outcome"}
    found |= {f"baselines.{name}": getattr(baselines, name) for name in baselines.__all__}
    return {name: value for name, value in found.items() if isinstance(value, types.FunctionType) or value is Outcome}


def test_every_public_function_has_a_row():
    assert set(public()) - set(CALLS) - WITHOUT_ARRAYS == set()
    assert set(LEARNERS) == {name for name in baselines.__all__ if name.endswith("Baseline")} - {"Baseline"}


@pytest.mark.parametrize("name", sorted(public()))
def test_every_array_argument_has_a_kind(name):
    """Arrays are what is annotated as such."""
    given = {p.name: str(p.annotation) for p in inspect.signature(public()[name]).parameters.values()}
    arrays = {
        argument for argument, kind in given.items()
        if any(word in kind for word in ("ndarray", "[float]", "[int]")) and "Callable" not in kind
    }  # fmt: skip
    if name in WITHOUT_ARRAYS:
        assert not arrays
    elif name != "statistics.cochran_q":  # its predictions are positional
        assert arrays <= set(CALLS[name].kinds)


def wrong(kind, value):
    """What is not of the kind, by name."""
    value = np.asarray(value)
    free, infinite, absent, kind = "~" in kind, "?" in kind, "-" in kind, kind.strip("~?-")
    yield "nothing", "no array" if absent or kind == "weights" else None
    yield "a dict", {"a": 1}
    if kind in ("labels", "class labels", "codes", "numbers", "weights"):
        yield "a column", value[:, None]
        yield "a row", value[None]
        yield "one number", value[0]
    else:
        yield "one number", value.flat[0]
    if kind in ("matrix", "columns"):
        yield "flat", value.ravel()
        yield "three dimensions", value[..., None]
    if kind == "inputs" and value.ndim == 1:
        yield "a column", value[:, None]
    if kind == "columns":
        yield "one column less", value[:, :-1]
    elif not free:
        yield "one row less", value[:-1]
        yield "one row more", np.concatenate([value, value[:1]])
    if kind != "inputs":
        yield "objects", np.full(value.shape, None, dtype=object)
        yield "complex numbers", value.astype(complex)
        yield "dates", np.full(value.shape, np.datetime64("2020-01-01"))
        yield "unequal lengths", [[1.0], [1.0, 2.0]]
        if not infinite:
            for bad in (np.nan, np.inf):
                holes = value.astype(float)
                holes.flat[1] = bad
                yield f"with {bad}", holes
        if kind != "class labels":
            yield "text", value.astype(str)
            yield "text of pandas", value.astype(str).astype(object)
    if kind == "weights":
        yield "negative", -value
    if kind == "codes":
        yield "negative", value - 1
        yield "real numbers", value + 0.5


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_such_array_is_refused(name):
    call = CALLS[name]
    call()
    for argument, kind in call.kinds.items():
        for what, bad in wrong(kind, call.arguments[argument]):
            refused(f"{argument}: {what}", lambda bad=bad, argument=argument: call(**{argument: bad}))


def alike(found, wanted):
    if isinstance(wanted, (tuple, list)):
        return len(found) == len(wanted) and all(map(alike, found, wanted))
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(alike(found[k], wanted[k]) for k in wanted)
    return np.array_equal(found, wanted) if isinstance(wanted, np.ndarray) else found == wanted


@pytest.mark.parametrize("name", CALLS)
def test_lists_and_tensors_give_the_same(name):
    call = CALLS[name]
    wanted = call()
    for form in (lambda value: np.asarray(value).tolist(), lambda value: torch.as_tensor(np.asarray(value))):
        assert alike(call(**{argument: form(call.arguments[argument]) for argument in call.kinds}), wanted)


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if "labels" in call.kinds.values()])
def test_text_labels_give_what_codes_give(name):
    call = CALLS[name]
    for form in (lambda value: np.array(["a", "b"])[value], lambda value: np.array(["a", "b"], dtype=object)[value]):
        text = {argument: form(call.arguments[argument]) for argument, kind in call.kinds.items() if kind != "weights"}
        assert alike(call(**text), call())


def test_a_column_was_spread_to_a_square():
    """What the checks are for: these were numbers."""
    y, a, b = np.ones(20, int), np.ones(20, int), np.ones(20, int)
    a[:4], b[4:6] = 0, 0
    assert statistics.mcnemar_test(y, a, b).pvalue == pytest.approx(0.6875)
    for column in ((y[:, None], a, b), (y, a[:, None], b), (y[:, None], a[:, None], b[:, None])):
        with pytest.raises(ValueError, match=r"expected labels or numbers of shape"):
            statistics.mcnemar_test(*column)
    with pytest.raises(ValueError, match="y: expected labels or numbers of shape"):
        statistics.cochran_q(y[:, None], a, b)


def test_predictions_of_a_learner_that_are_a_column_are_refused():
    def column(X, y, seed):
        return lambda X: np.zeros((len(X), 1))

    for call in (
        lambda: statistics.bootstrap_632(column, X, Y, 2),
        lambda: statistics.five_by_two_differences(column, column, X, Y, accuracy),
        lambda: statistics.nested_cv({"a": column}, X, Y, accuracy),
        lambda: statistics.bootstrap_632(lambda X, y, seed: lambda X: np.zeros(3), X, Y, 2),
    ):
        with pytest.raises(ValueError, match="predictions of the learner: expected"):
            call()
    with pytest.raises(ValueError, match="loss: expected numbers of shape"):
        statistics.bootstrap_632(SAME, X, Y, 2, loss=lambda y, p: np.zeros((len(y), 1)))
    with pytest.raises(ValueError, match="score: expected"):
        statistics.nested_cv({"a": SAME}, X, Y, lambda y, p: float("nan"))
    with pytest.raises(ValueError, match="score: expected"):
        statistics.five_by_two_differences(SAME, SAME, X, Y, lambda y, p: y == p)


def test_logits_are_no_probabilities():
    for call in (
        lambda p: Outcome(Y, p),
        lambda p: operating_point.negative_log_likelihood(Y, p),
        lambda p: operating_point.reliability_bins(p, Y),
        lambda p: operating_point.apply_temperature(p, 2.0),
        lambda p: operating_point.fit_temperature(p, Y),
    ):
        for logits in (np.log(P), P + 1):
            with pytest.raises(ValueError, match=r"probabilities: expected probabilities in 0\.\.1"):
                call(logits)
        call(np.where(P > 0.5, 1 + 1e-4, P))


def test_the_checks_themselves():
    assert numbers("a", [], (0,)).shape == (0,)
    with pytest.raises(ValueError, match=r"a: expected numbers of shape \(\*,\)"):
        numbers("a", [])
    with pytest.raises(ValueError, match=r"a: expected numbers in 0\.\.1, got -0\.1"):
        numbers("a", [0.5, -0.1, 2.0], low=0, high=1)
    assert labels("a", np.array(["x", "y"], dtype=object)).dtype.kind == "U"
    with pytest.raises(ValueError, match="a: expected numbers"):
        numbers("a", torch.ones(2, requires_grad=True))
    same = np.arange(3.0)
    assert numbers("a", same) is same
