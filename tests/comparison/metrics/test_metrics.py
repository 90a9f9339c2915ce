import numpy as np
import pytest
from sklearn import metrics as sk

from steepest.comparison.errors import InputError
from steepest.comparison.metrics.retrieval import OF_RETRIEVAL
from steepest.comparison.metrics.several import MULTILABEL
from steepest.comparison.metrics.tables import (
    BINARY,
    METRICS,
    MULTICLASS,
    REGRESSION,
    chosen_metric,
    default_metric,
    evaluate,
    find_metric,
    per_class_recall,
)
from steepest.comparison.metrics.words import ALIASES
from steepest.comparison.scores.operating_point import tune_threshold
from steepest.comparison.scores.outcome import Outcome


def classifier(rows=200, classes=3, seed=0, dtype=np.float64):
    generator = np.random.default_rng(seed)
    y = generator.integers(classes, size=rows)
    logits = generator.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[y]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    decision = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    return y, Outcome(logits.argmax(1), probabilities.astype(dtype), decision.astype(dtype))


def naive_auroc(hits, scores, weights):
    """Weighted share of (positive, negative) pairs in the right order, ties half."""
    total = won = 0.0
    for i in np.flatnonzero(hits):
        for j in np.flatnonzero(~hits):
            total += weights[i] * weights[j]
            won += weights[i] * weights[j] * (float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]))
    return won / total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_classification_metrics_against_naive_loops(classes, weighted):
    y, outcome = classifier(60, classes)
    weights = np.random.default_rng(1).uniform(0.2, 2, 60) if weighted else np.ones(60)
    values = evaluate(y, outcome, "binary" if classes == 2 else "multiclass", classes, weights=weights)
    right = outcome.predicted == y
    assert values["accuracy"] == pytest.approx((weights * right).sum() / weights.sum())
    recalls, f1s = [], []
    for c in range(classes):
        hit = (weights * ((y == c) & right)).sum()
        recalls.append(hit / weights[y == c].sum())
        f1s.append(2 * hit / (weights[y == c].sum() + weights[outcome.predicted == c].sum()))
    assert values["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert values["macro_f1"] == pytest.approx(np.mean(f1s))
    truth = outcome.probabilities[np.arange(60), y]
    assert values["nll"] == pytest.approx((weights * -np.log(truth)).sum() / weights.sum())
    squares = ((outcome.probabilities - np.eye(classes)[y]) ** 2).sum(1)
    brier = (weights * squares).sum() / weights.sum()
    assert values["brier"] == pytest.approx(brier / 2 if classes == 2 else brier)
    if classes == 2:
        auroc = naive_auroc(y == 1, outcome.decision, weights)
    else:
        auroc = np.mean([naive_auroc(y == c, outcome.probabilities[:, c], weights) for c in range(classes)])
    assert values["auroc"] == pytest.approx(auroc)
    assert values["macro_f1_tuned"] is None
    assert values["ece_calibrated"] is None


@pytest.mark.parametrize("classes", [2, 4])
def test_classification_metrics_against_scikit_learn(classes):
    y, outcome = classifier(150, classes, dtype=np.float32)
    values = evaluate(y, outcome, "binary" if classes == 2 else "multiclass", classes)
    scores = outcome.probabilities.astype(np.float64)
    scores /= scores.sum(1, keepdims=True)
    assert values["nll"] == pytest.approx(sk.log_loss(y, scores), rel=1e-5)
    if classes == 2:
        assert values["brier"] == pytest.approx(sk.brier_score_loss(y, scores[:, 1]), rel=1e-5)
        assert values["average_precision"] == pytest.approx(sk.average_precision_score(y, outcome.decision))
    else:
        assert values["auroc"] == pytest.approx(sk.roc_auc_score(y, scores, multi_class="ovr"), rel=1e-6)
        assert values["average_precision"] == pytest.approx(sk.average_precision_score(np.eye(4)[y], scores), rel=1e-6)


def test_multiclass_ranking_falls_back_to_the_scores():
    y, outcome = classifier(80, 3)
    bare = Outcome(outcome.predicted, None, outcome.decision)
    expected = np.mean([naive_auroc(y == c, outcome.decision[:, c], np.ones(80)) for c in range(3)])
    assert evaluate(y, bare, "multiclass", 3)["auroc"] == pytest.approx(expected)


def test_what_needs_probabilities_is_none_without_them():
    y, outcome = classifier(50, 2)
    values = evaluate(y, Outcome(outcome.predicted, None, outcome.decision), "binary", 2, temperature=2.0)
    assert {name for name, value in values.items() if value is None} == {
        *("nll", "brier", "ece", "ece_calibrated", "macro_f1_tuned")
    }


@pytest.mark.parametrize("metric", MULTICLASS)
def test_metrics_of_predictions_read_nothing_beside_them(metric):
    y, predicted = np.array([0, 1, 1, 2, 0]), np.array([0, 1, 2, 2, 1])
    whole = Outcome(predicted, np.full((5, 3), 1 / 3), np.eye(3)[predicted])
    alone = MULTICLASS[metric](y, Outcome(predicted))
    if MULTICLASS[metric].of_predictions:
        assert alone == MULTICLASS[metric](y, whole)
    else:
        assert alone == MULTICLASS[metric].worst


def test_a_class_absent_from_the_test_part_leaves_ranking_undefined():
    y, outcome = classifier(60, 3)
    keep = np.flatnonzero(y != 2)
    values = evaluate(y[keep], outcome.rows(keep), "multiclass", 3)
    assert values["auroc"] is None
    assert values["average_precision"] is None
    assert values["balanced_accuracy"] == pytest.approx(
        np.mean([(outcome.predicted[y == c] == c).mean() for c in (0, 1)])
    )
    assert find_metric("auroc", "multiclass")(y[keep], outcome.rows(keep)) == -np.inf
    assert per_class_recall(y[keep], outcome.rows(keep), 3)["recall_2"] is None


def test_per_class_recall_with_weights():
    y, outcome = np.array([0, 0, 1]), Outcome(np.array([0, 1, 1]))
    assert per_class_recall(y, outcome, 2, np.array([3.0, 1.0, 1.0])) == {"recall_0": 0.75, "recall_1": 1.0}


def test_tuned_threshold_and_temperature_enter():
    y, outcome = classifier(300, 2)
    shifted = Outcome((outcome.decision > 2).astype(int), outcome.probabilities, outcome.decision - 2)
    threshold = tune_threshold(y, shifted.decision)
    values = evaluate(y, shifted, "binary", 2, threshold=threshold, temperature=1.0)
    assert values["macro_f1_tuned"] == pytest.approx(sk.f1_score(y, shifted.decision > threshold, average="macro"))
    assert values["macro_f1_tuned"] > values["macro_f1"] + 0.05
    assert values["ece_calibrated"] == pytest.approx(values["ece"], abs=1e-9)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 0.5, 1.0])])
def test_regression_metrics(weights):
    y, predicted = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.5, 2.0, 3.0, 5.0], dtype=np.float32)
    values = evaluate(y, Outcome(predicted), "regression", weights=weights)
    mass = np.ones(4) if weights is None else weights
    errors, mean = y - predicted, (mass * y).sum() / mass.sum()
    assert values["rmse"] == pytest.approx(((mass * errors**2).sum() / mass.sum()) ** 0.5)
    assert values["mae"] == pytest.approx((mass * abs(errors)).sum() / mass.sum())
    assert values["r2"] == pytest.approx(1 - (mass * errors**2).sum() / (mass * (y - mean) ** 2).sum())
    assert set(values) == {"rmse", "mae", "r2"}


def test_r2_of_a_constant_target_is_none():
    assert evaluate(np.ones(3), Outcome(np.zeros(3)), "regression")["r2"] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", [*BINARY.values(), *REGRESSION.values()], ids=lambda metric: metric.name)
def test_a_diverged_model_scores_worst(metric, bad):
    if metric.name in REGRESSION:
        y, outcome = np.array([1.0, 2.0]), Outcome(np.array([1.0, bad]))
        values = evaluate(y, outcome, "regression")
    else:
        y = np.array([0, 1])
        outcome = Outcome(y, np.array([[0.5, 0.5], [bad, 0.5]]), np.array([0.0, bad]))
        values = evaluate(y, outcome, "binary", 2, threshold=0.0, temperature=2.0)
        assert values["auroc"] is values["nll"] is values["ece"] is values["macro_f1_tuned"] is None
    assert all(value is None or np.isfinite(value) for value in values.values())
    assert metric(y, outcome) == metric.worst
    assert not metric.better(metric.worst, 0.5)
    assert metric.better(0.5, metric.worst)
    assert metric.better(0.5, np.nan)
    assert not metric.better(np.nan, metric.worst)


def test_huge_finite_predictions_score_worst_without_a_warning(recwarn):
    metric = find_metric("rmse", "regression")
    assert metric(np.array([1.0, 2.0]), Outcome(np.array([1e200, 0.0]))) == np.inf
    assert not recwarn.list


def test_no_weight_at_all_has_no_value():
    assert evaluate(np.ones(2), Outcome(np.ones(2)), "regression", weights=np.zeros(2))["mae"] is None


def test_default_metric():
    assert default_metric("binary", [99, 1]).name == "auroc"
    assert default_metric("multiclass", [45, 45, 10]).name == "accuracy"
    assert default_metric("multiclass", [46, 45, 9]).name == "balanced_accuracy"
    assert default_metric("regression").name == "rmse"
    with pytest.raises(ValueError, match="'binary', 'multiclass', 'regression'"):
        default_metric("ranking")


def test_find_metric_says_what_fits():
    for task, known in METRICS.items():
        assert [find_metric(name, task) for name in known] == list(known.values())
    with pytest.raises(InputError, match=r"unknown metric 'acuracy'; did you mean 'accuracy'\? For binary: accuracy,"):
        find_metric("acuracy", "binary")
    with pytest.raises(InputError, match=r"metric 'rmse' is for regression, not for binary. For binary: accuracy,"):
        find_metric("rmse", "binary")
    with pytest.raises(
        InputError,
        match=r"'mcc' is for binary, multiclass, not for regression; --task classification makes classes of the ",
    ):
        find_metric("mcc", "regression")
    with pytest.raises(InputError, match=r"'exact_match' is for multilabel, text, not for binary\. For binary"):
        find_metric("exact_match", "binary")
    with pytest.raises(InputError, match=r"unknown metric 'zzz'\. For regression: rmse, mae, r2"):
        find_metric("zzz", "regression")


@pytest.mark.parametrize(
    ("word", "task", "name"),
    [
        ("f1_macro", "binary", "macro_f1"),
        ("f1", "binary", "f1"),
        ("f1", "multiclass", "macro_f1"),
        ("f1_score", "multilabel", "macro_f1"),
        ("balanced-accuracy", "multiclass", "balanced_accuracy"),
        ("Balanced Accuracy", "binary", "balanced_accuracy"),
        ("roc_auc", "binary", "auroc"),
        ("AUC", "multilabel", "auroc"),
        ("matthews", "multiclass", "mcc"),
        ("G-mean", "binary", "g_mean"),
        ("RMSE", "regression", "rmse"),
    ],
)
def test_words_of_others_are_understood(word, task, name):
    assert chosen_metric(word, {**METRICS, "multilabel": MULTILABEL}[task], task).name == name


def test_every_alias_means_a_metric_and_none_hides_one():
    names = {name for known in (*METRICS.values(), MULTILABEL, OF_RETRIEVAL) for name in known}
    assert {name for meant in ALIASES.values() for name in meant} <= names
    assert {word for word in ALIASES if word in names} == {"f1"}  # in a task that has it, it is itself


GRID = [
    # targets, predictions
    ([0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 1, 1]),
    ([0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 1]),  # no positive in the test part
    ([1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 1]),
    ([0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]),  # all predicted one class
    ([0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]),
    ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
    ([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
    ([1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]),
    ([0, 1, 2, 0, 1, 2], [0, 2, 2, 1, 1, 0]),
    ([0, 1, 1, 0, 1, 0], [0, 2, 2, 1, 1, 0]),  # a class that only the predictions have
    ([0, 1, 2, 3, 1, 2], [0, 0, 1, 1, 0, 0]),  # classes that are never predicted
    ([2, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2]),
    ([0, 3, 3, 0, 3, 0], [0, 3, 0, 0, 3, 3]),  # codes with a gap
]
WEIGHTS = [None, [1.0, 2.0, 0.5, 0.25, 3.0, 0.1], [0.0, 1.0, 0.0, 2.0, 0.7, 0.3]]


def with_scikit_learn(task, y, predicted, weights):
    """The values that scikit-learn gives, with 0 for a division by 0; the G-mean is that of imbalanced-learn."""
    how = {"zero_division": 0, "sample_weight": weights}
    recalls = sk.recall_score(y, predicted, average=None, **how)
    average = "binary" if task == "binary" else "macro"
    values = {
        "precision": sk.precision_score(y, predicted, average=average, **how),
        "recall": sk.recall_score(y, predicted, average=average, **how),
        "macro_f1": sk.f1_score(y, predicted, average="macro", **how),
        "g_mean": np.prod(recalls) ** (1 / len(recalls)),
    }
    if task == "binary":
        values["f1"] = sk.f1_score(y, predicted, **how)
    return values


@pytest.mark.parametrize("weights", WEIGHTS, ids=["plain", "weighted", "some 0"])
@pytest.mark.parametrize(("y", "predicted"), GRID)
def test_class_metrics_are_those_of_scikit_learn(y, predicted, weights, recwarn):
    y, outcome = np.array(y), Outcome(np.array(predicted))
    weights = None if weights is None else np.array(weights)
    for task in ("binary", "multiclass") if max(*y, *predicted) < 2 else ("multiclass",):
        found = evaluate(y, outcome, task, 4, weights=weights)
        expected = with_scikit_learn(task, y, outcome.predicted, weights)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        assert all(found[name] == find_metric(name, task)(y, outcome, weights) for name in expected)
    assert not recwarn.list
    weight = np.ones(len(y)) if weights is None else weights
    seen = [np.unique(part[weight > 0]) for part in (y, outcome.predicted)]
    correlation = 0.0 if min(map(len, seen)) < 2 else sk.matthews_corrcoef(y, outcome.predicted, sample_weight=weights)
    assert found["mcc"] == pytest.approx(correlation, abs=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS, ids=["plain", "weighted", "some 0"])
def test_label_metrics_are_those_of_scikit_learn(weights, recwarn):
    rng = np.random.default_rng(0)
    y, predicted = rng.integers(0, 2, (6, 4)), rng.integers(0, 2, (6, 4))
    y[:, 1] = predicted[:, 2] = y[:, 3] = predicted[:, 3] = 0  # no positive, none predicted, neither
    weights = None if weights is None else np.array(weights)
    found = {n: MULTILABEL[n](y, Outcome(predicted), weights) for n in ("macro_f1", "precision", "recall")}
    assert not recwarn.list
    how = {"average": "macro", "zero_division": 0, "sample_weight": weights}
    scorers = {"macro_f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
    assert found == pytest.approx({n: scorer(y, predicted, **how) for n, scorer in scorers.items()}, abs=1e-12)


def test_two_classes_score_the_positive_one():
    y, outcome = np.array([0, 0, 0, 1]), Outcome(np.array([0, 0, 1, 1]))
    assert [BINARY[name](y, outcome) for name in ("precision", "recall")] == [0.5, 1.0]
    assert [MULTICLASS[name](y, outcome) for name in ("precision", "recall")] == pytest.approx([0.75, 5 / 6])


def test_values_stay_within_their_bounds():
    for known in (*METRICS.values(), MULTILABEL):
        for metric in known.values():
            low, high = metric.bounds
            assert (high if metric.greater_is_better else low) in (0.0, 1.0), metric.name


def test_own_metric(tmp_path, monkeypatch):
    (tmp_path / "my_own_metrics.py").write_text(
        "import numpy as np\n"
        "def hits(y_true, y_pred):\n    return (y_true == y_pred).sum()\n"
        "def misses(y_true, y_pred):\n    return (y_true != y_pred).sum()\n"
        "misses.greater_is_better = False\n"
        "def broken(y_true, y_pred):\n    raise KeyError('x')\n"
    )
    monkeypatch.chdir(tmp_path)
    y, outcome = np.array([0, 1, 1]), Outcome(np.array([0, 1, 0]))
    hits, misses = (find_metric(f"my_own_metrics:{name}", "binary", trust=True) for name in ("hits", "misses"))
    assert (hits(y, outcome), hits.greater_is_better) == (2.0, True)
    assert (misses(y, outcome), misses.greater_is_better) == (1.0, False)
    assert hits.name == "my_own_metrics:hits"
    with pytest.raises(InputError, match="did you mean 'hits'"):
        find_metric("my_own_metrics:hit", "binary", trust=True)
    with pytest.raises(InputError, match="cannot import 'no_such_module'"):
        find_metric("no_such_module:hits", "binary", trust=True)
    with pytest.raises(InputError, match="failed"):
        find_metric("my_own_metrics:broken", "binary", trust=True)(y, outcome)


def test_shapes_that_do_not_agree_are_refused():
    y, outcome = classifier(10, 3)
    with pytest.raises(ValueError, match=r"y: expected class codes \(integers\) of shape \(10,\)"):
        evaluate(y[:-1], outcome, "multiclass", 3)
    with pytest.raises(ValueError, match=r"probabilities: expected shape \(10, 4\), got an array"):
        evaluate(y, outcome, "multiclass", 4)
