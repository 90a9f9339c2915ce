import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import multiclass_calibration_error

from steepest.comparison.metrics.tables import evaluate
from steepest.comparison.scores.operating_point import (
    apply_temperature,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
    tune_threshold,
)
from steepest.comparison.scores.outcome import Outcome


def sampled(rows, classes, sharpness=1.0, seed=0):
    """Labels drawn from softmax(logits), and the probabilities of sharpness * logits."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(rows, classes))
    y = (softmax(logits, axis=1).cumsum(1) < generator.random((rows, 1))).sum(1)
    return y, softmax(sharpness * logits, axis=1)


@pytest.mark.parametrize("classes", [2, 5])
def test_ece_agrees_with_torchmetrics(classes):
    y, probabilities = sampled(400, classes, sharpness=2.0)
    name = "binary" if classes == 2 else "multiclass"
    ours = evaluate(y, Outcome(probabilities.argmax(1), probabilities), name, classes)["ece"]
    peer = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(y), classes, n_bins=15)
    assert ours == pytest.approx(float(peer), abs=1e-6)


def test_weighted_ece_is_that_of_repeated_rows():
    y, probabilities = sampled(60, 3)
    times = np.random.default_rng(1).integers(1, 4, 60)
    twice = np.repeat(np.arange(60), times)
    outcome = Outcome(probabilities.argmax(1), probabilities)
    weighted = evaluate(y, outcome, "multiclass", 3, weights=times)["ece"]
    assert weighted == pytest.approx(evaluate(y[twice], outcome.rows(twice), "multiclass", 3)["ece"])


def test_reliability_bins_by_a_loop():
    y, probabilities = sampled(300, 4)
    table = reliability_bins(probabilities, y, bins=10)
    for k in range(10):
        top = probabilities.max(1)
        inside = (top > k / 10) & (top <= (k + 1) / 10)
        assert table["count"][k] == inside.sum()
        if inside.any():
            assert table["confidence"][k] == pytest.approx(top[inside].mean())
            assert table["accuracy"][k] == pytest.approx((probabilities.argmax(1) == y)[inside].mean())
        else:
            assert table["confidence"][k] is None
    assert sum(table["count"]) == 300
    assert reliability_bins(np.eye(2), np.array([0, 0]))["count"][-1] == 2


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_known_sharpness(sharpness):
    y, probabilities = sampled(20_000, 4, sharpness)
    assert fit_temperature(probabilities, y) == pytest.approx(sharpness, rel=0.03)


def test_temperature_is_the_minimum_of_a_grid_and_takes_weights():
    y, probabilities = sampled(300, 3, 2.0)
    for weights in (None, np.random.default_rng(0).uniform(0, 2, 300)):
        grid = np.geomspace(0.05, 20, 4001)
        losses = [negative_log_likelihood(y, softmax(np.log(probabilities) / t, axis=1), weights) for t in grid]
        assert fit_temperature(probabilities, y, weights) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_temperature_stays_in_bounds_and_survives_zeros():
    sure = np.array([[1.0, 0.0], [0.6, 0.4]])
    assert fit_temperature(sure, np.array([0, 0])) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(sure, np.array([1, 1])) == pytest.approx(20, rel=1e-3)
    assert fit_temperature(np.array([[np.nan, 0.5]]), np.array([0])) == 1.0
    assert fit_temperature(np.empty((0, 2)), np.empty(0, int)) == 1.0


def test_apply_temperature_keeps_rows_stochastic_and_the_order():
    _, probabilities = sampled(50, 4)
    assert apply_temperature(probabilities, 1.0) == pytest.approx(probabilities)
    for temperature in (0.05, 3.0, 20.0):
        cooled = apply_temperature(probabilities, temperature)
        assert cooled.sum(1) == pytest.approx(np.ones(50))
        assert (cooled.argmax(1) == probabilities.argmax(1)).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weighted", [False, True])
def test_threshold_is_the_best_of_all_cuts(seed, weighted):
    generator = np.random.default_rng(seed)
    y = (generator.random(40) < 0.25).astype(int)
    decision = np.round(generator.normal(size=40) + y - 1.5, 1)  # ties in it
    weights = generator.exponential(size=40) ** 2 if weighted else None

    def score(threshold):
        return f1_score(y, decision > threshold, average="macro", sample_weight=weights, zero_division=0)

    chosen = tune_threshold(y, decision, weights=weights)
    cuts = [decision.min() - 1, *np.unique(decision)]
    assert score(chosen) == pytest.approx(max(score(cut) for cut in cuts))


def test_threshold_stays_at_the_default_where_that_is_as_good():
    y = np.array([0, 0, 1, 1])
    assert tune_threshold(y, np.array([-2.0, -1.0, 3.0, 4.0])) == 0.0
    assert tune_threshold(y, np.array([0.1, 0.2, 0.8, 0.9]), default=0.5) == 0.5
    assert tune_threshold(y, np.array([-4.0, -3.0, -2.0, -1.0])) == -2.5
    assert tune_threshold(np.ones(3, int), np.arange(3.0)) == 0.0
    assert tune_threshold(y, np.array([0.0, np.nan, 1.0, 2.0])) == 0.0


def test_threshold_takes_the_tie_nearest_to_the_default():
    y, decision = np.array([0, 1, 0, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    # cutting after 1 or after 3 both give macro F1 11/15
    assert tune_threshold(y, decision) == 1.5
    assert tune_threshold(y, decision, default=9.0) == 3.5
