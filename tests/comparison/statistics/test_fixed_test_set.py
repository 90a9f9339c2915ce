import numpy as np
import pytest
from scipy import stats

from steepest.comparison.metrics.tables import find_metric
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.statistics import bootstrap_difference, bootstrap_metric_difference


@pytest.mark.parametrize("discrete", [True, False])
def test_interval_and_p_near_their_normal_limit(discrete):
    generator = np.random.default_rng(0)
    if discrete:
        a, b = (generator.random((2, 400)) < np.array([[0.85], [0.7]])).astype(float)
    else:
        a, b = generator.normal(size=(2, 400)) + np.array([[0.12], [0.0]])
    result = bootstrap_difference(a, b, seed=1, n=8000)
    gaps = a - b
    error = gaps.std() / 20
    assert result.difference == pytest.approx(gaps.mean())
    assert result.low == pytest.approx(gaps.mean() - 1.96 * error, abs=0.12 * error)
    assert result.high == pytest.approx(gaps.mean() + 1.96 * error, abs=0.12 * error)
    assert result.pvalue == pytest.approx(2 * stats.norm.sf(abs(gaps.mean()) / error), abs=0.02)


def test_drawing_counts_equals_drawing_rows_on_the_exact_distribution():
    """Two rows, gaps 1 and 0: the resampled mean is 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    result = bootstrap_difference([1.0, 1.0], [0.0, 1.0], n=20_000)
    assert result.pvalue == pytest.approx(2 * 0.25, abs=0.02)
    assert (result.low, result.high) == (0.0, 1.0)


def test_pairing_matters():
    generator = np.random.default_rng(0)
    hard = generator.normal(size=300) * 5
    result = bootstrap_difference(hard + 0.1 + 0.1 * generator.normal(size=300), hard, n=500)
    assert result.low > 0


@pytest.mark.parametrize("values", [np.ones(10), np.linspace(0, 1, 50)])
def test_identical_models_have_p_one(values):
    result = bootstrap_difference(values, values, n=100)
    assert (result.difference, result.low, result.high, result.pvalue) == (0, 0, 0, 1)


def test_p_never_reaches_zero_and_seeds_repeat():
    sure = bootstrap_difference(np.ones(50), np.zeros(50), n=99)
    assert sure.pvalue == pytest.approx(2 / 100)
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    assert bootstrap_difference(a, b, seed=3, n=50) == bootstrap_difference(a, b, seed=3, n=50)
    assert bootstrap_difference(a, b, seed=3, n=50) != bootstrap_difference(a, b, seed=4, n=50)


def test_metric_difference_of_accuracy_is_the_mean_difference():
    generator = np.random.default_rng(0)
    y = generator.integers(2, size=200)
    a, b = (np.where(generator.random(200) < share, y, 1 - y) for share in (0.9, 0.8))
    metric = find_metric("accuracy", "binary")
    result = bootstrap_metric_difference(metric, y, Outcome(a), Outcome(b), n=400)
    plain = bootstrap_difference(a == y, b == y, n=4000)
    assert result.difference == pytest.approx(plain.difference)
    assert (result.low, result.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    assert result.rounds == 400


def test_metric_difference_draws_weights_with_their_rows():
    y, weights = np.array([0, 1, 1]), np.array([8.0, 1.0, 1.0])
    a, b = Outcome(np.array([0, 0, 0])), Outcome(np.array([1, 1, 1]))
    result = bootstrap_metric_difference(find_metric("accuracy", "binary"), y, a, b, n=300, weights=weights)
    assert result.difference == pytest.approx(0.6)
    # with k of three draws on the heavy row the difference is (8 k - (3 - k)) / (8 k + 3 - k)
    assert (result.low, result.high) == pytest.approx((-1.0, 1.0))
    assert result.pvalue == pytest.approx(2 * (2 / 3) ** 3, abs=0.12)


def test_metric_difference_leaves_out_resamples_of_one_class():
    y = np.array([0, 0, 1, 1])
    good, bad = (Outcome(y, decision=np.array(scores)) for scores in ([0.1, 0.2, 0.8, 0.9], [0.9, 0.2, 0.8, 0.1]))
    result = bootstrap_metric_difference(find_metric("auroc", "binary"), y, good, bad, n=200)
    assert result.rounds == pytest.approx(200 * (1 - 2 / 16), abs=20)
    assert result.difference == 0.75  # bad orders one of the four pairs rightly


@pytest.mark.parametrize("finite", [10, 5, 4])
def test_metric_difference_asks_for_half_of_the_resamples(finite):
    calls = []

    def metric(y, outcome):
        calls.append(outcome)
        resample = (len(calls) - 1) // 2  # two models each; the first are the rows as they are
        return 1.0 if resample <= finite else np.nan

    def found():
        return bootstrap_metric_difference(metric, np.arange(4), np.arange(4), np.arange(4), n=10)

    if finite < 5:
        with pytest.raises(ValueError, match="a finite difference on half of the 10 resamples, got '4"):
            found()
    else:
        assert found().rounds == finite


def test_refusals():
    with pytest.raises(ValueError, match=r"b: expected numbers of shape \(1,\)"):
        bootstrap_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        bootstrap_difference([np.inf], [1.0])
    with pytest.raises(ValueError, match="n: expected an integer >= 1, got 0"):
        bootstrap_difference([1.0], [1.0], n=0)
    y, outcome = np.zeros(3, int), Outcome(np.zeros(3, int), decision=np.arange(3.0))
    with pytest.raises(ValueError, match="metric: expected a finite difference on all 3 rows"):
        bootstrap_metric_difference(find_metric("auroc", "binary"), y, outcome, outcome, n=5)
