"""Probabilities of scores: in Platt's own form, better than a softmax of the scores on real data, or a reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale
from sklearn.svm import SVC

from steepest.comparison.scores.calibration import LEAST_ROWS, Calibration, calibrate
from steepest.comparison.scores.operating_point import bin_sums, negative_log_likelihood
from steepest.integrations.sklearn import ObjectiveClassifier


def error(p: np.ndarray, y: np.ndarray) -> float:
    """The expected calibration error in ten bins."""
    _, confidence, right = bin_sums(p, y, 10, None)
    return float(np.abs(confidence - right).sum() / len(y))


def fitted(offset: bool, rows: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, Calibration]:
    rng = np.random.default_rng(0)
    scores, weights = 3 * rng.normal(size=rows), rng.uniform(0.5, 2, rows)
    y = (rng.random(rows) < expit(0.7 * scores - 1)).astype(int)
    found = calibrate(scores, y, weights, offset=offset)
    assert isinstance(found, Calibration)
    return scores, y, weights / weights.mean(), found


@pytest.mark.parametrize("offset", [True, False])
def test_two_classes_are_platts_scaling(offset: bool) -> None:
    scores, y, w, found = fitted(offset)
    positive, negative = w[y == 1].sum(), w[y == 0].sum()
    target = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(values: np.ndarray) -> float:
        p = expit(values[0] * scores + (values[1] if offset else 0.0))
        return float(-(w * (target * np.log(p) + (1 - target) * np.log1p(-p))).sum())

    best = minimize(loss, [0.5, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}).x
    np.testing.assert_allclose(found.slope, best[:1], rtol=1e-4)
    np.testing.assert_allclose(found.offset, best[1:] if offset else [0.0], rtol=1e-4)


def test_integer_weights_are_repeated_rows_up_to_their_mean() -> None:
    rng = np.random.default_rng(1)
    scores, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    twice = calibrate(scores, y, np.full(40, 2.0))
    assert twice == calibrate(scores, y)


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
@pytest.mark.parametrize("model", ["squared error", "svm"])
def test_they_are_calibrated_better_than_a_softmax_of_the_scores(load: Callable, model: str) -> None:
    x, y = load(return_X_y=True)
    x, x_test, y, y_test = train_test_split(scale(x), y, test_size=0.5, stratify=y, random_state=0)
    if model == "svm":
        x, x_held, y, y_held = train_test_split(x, y, test_size=0.4, stratify=y, random_state=0)
        machine = SVC(C=10.0).fit(x, y)
        found = calibrate(machine.decision_function(x_held), y_held)
        assert isinstance(found, Calibration)
        scores = machine.decision_function(x_test)
        p = found.probabilities(scores)
    else:
        network = ObjectiveClassifier(
            "squared_error", epochs=15, lr=0.01, validation_fraction=0.4, patience=None, random_state=0
        ).fit(x, y)
        scores, p = network.decision_function(x_test), network.predict_proba(x_test)
        assert (p.argmax(1) == network.predict(x_test)).all()
    raw = softmax(np.stack([-scores / 2, scores / 2], 1) if scores.ndim == 1 else scores, axis=1)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    assert error(p, y_test) < error(raw, y_test)
    assert negative_log_likelihood(y_test, p) < negative_log_likelihood(y_test, raw)


def test_scores_that_separate_all_rows_do_not_make_it_certain() -> None:
    scores = np.repeat([-1.0, 1.0], 30)
    found = calibrate(scores, (scores > 0).astype(int))
    assert isinstance(found, Calibration)
    np.testing.assert_allclose(found.probabilities(scores)[-1, 1], 31 / 32, rtol=1e-4)
    several = calibrate(np.eye(3).repeat(20, 0), np.arange(3).repeat(20))
    assert isinstance(several, Calibration)
    np.testing.assert_allclose(several.probabilities(np.eye(3))[0, 0], 21 / 23, rtol=1e-4)


def test_labels_are_calibrated_one_by_one() -> None:
    scores, y, _, _ = fitted(True)
    both = calibrate(np.stack([scores, -2 * scores], 1), np.stack([y, 1 - y], 1))
    alone = calibrate(scores, y)
    assert isinstance(both, Calibration)
    assert isinstance(alone, Calibration)
    np.testing.assert_allclose(both.slope, [alone.slope[0], alone.slope[0] / 2], rtol=1e-4)
    np.testing.assert_allclose(both.offset, [alone.offset[0], -alone.offset[0]], rtol=1e-3)
    assert both.probabilities(np.zeros((4, 2))).shape == (4, 2)


def test_what_cannot_be_calibrated_says_why() -> None:
    few, enough = np.arange(LEAST_ROWS - 1.0), np.arange(float(LEAST_ROWS))
    y = np.arange(LEAST_ROWS) % 2
    assert calibrate(few, y[:-1]) == "19 held-out rows are too few to calibrate its scores: 20 are needed"
    assert calibrate(enough * np.nan, y) == "its scores on held-out rows are not finite"
    assert calibrate(enough, 0 * y) == "held-out rows of one class alone cannot calibrate its scores"
    assert calibrate(-enough, (enough > 9).astype(int)) == "its scores do not rank the held-out rows"


def test_the_estimator_has_probabilities_where_outputs_can_be_calibrated() -> None:
    x, y = load_wine(return_X_y=True)
    options = {"epochs": 1, "random_state": 0}
    assert hasattr(ObjectiveClassifier("squared_error", validation_fraction=0.2), "predict_proba")
    without = ObjectiveClassifier("squared_error", **options).fit(x, y)
    with pytest.raises(AttributeError, match="predict_proba") as refused:
        without.predict_proba(x)
    assert "set validation_fraction" in str(refused.value.__cause__)
    small = ObjectiveClassifier("squared_error", validation_fraction=0.1, **options).fit(x, y)
    with pytest.raises(AttributeError) as refused:
        small.predict_proba(x)
    assert "18 held-out rows are too few" in str(refused.value.__cause__)
    given = ObjectiveClassifier("cross_entropy", validation_fraction=0.1, **options).fit(x, y)
    assert given.calibration_ is None
    assert given.predict_proba(x).shape == (178, 3)
