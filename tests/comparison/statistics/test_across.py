import itertools

import numpy as np
import pytest
from scipy import stats

from steepest.comparison.statistics import average_ranks, friedman, holm, power_message, wilcoxon_holm


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(size=(8, 4)) + np.array([0, 0.5, 1, 0])


def test_friedman_statistic_by_its_formula(scores):
    result = friedman(scores)
    datasets, methods = scores.shape
    ranks = [[1 + sum(other > value for other in row) for value in row] for row in scores.tolist()]
    means = np.mean(ranks, axis=0)
    statistic = 12 * datasets / (methods * (methods + 1)) * (sum(means**2) - methods * (methods + 1) ** 2 / 4)
    assert result.statistic == pytest.approx(statistic)
    assert result.pvalue == pytest.approx(stats.chi2.sf(statistic, methods - 1))
    assert result.ranks == pytest.approx(means)
    assert result.message == ""


def test_direction_reverses_ranks_and_keeps_the_statistic(scores):
    up, down = friedman(scores), friedman(scores, greater_is_better=False)
    assert up.statistic == pytest.approx(down.statistic)
    assert np.add(up.ranks, down.ranks) == pytest.approx(np.full(4, 5.0))


def test_all_tied_is_p_one_not_nan():
    result = friedman(np.ones((6, 3)))
    assert (result.statistic, result.pvalue, result.ranks) == (0.0, 1.0, (2.0, 2.0, 2.0))
    assert wilcoxon_holm(np.ones((6, 3))).adjusted == (1.0, 1.0)


def exact_signed_rank(gains):
    """Two-sided p over all sign patterns."""
    ranks = stats.rankdata(np.abs(gains))
    observed = abs(sum(ranks * np.sign(gains)))
    patterns = [abs(np.dot(ranks, signs)) >= observed for signs in itertools.product((-1, 1), repeat=len(ranks))]
    return np.mean(patterns)


def test_wilcoxon_by_enumeration_of_all_signs(scores):
    result = wilcoxon_holm(scores, baseline=1)
    assert result.methods == (0, 2, 3)
    expected = [exact_signed_rank(scores[:, method] - scores[:, 1]) for method in result.methods]
    assert result.pvalues == pytest.approx(expected)
    assert result.adjusted == pytest.approx(holm(expected))
    assert result.has_power


def test_median_is_the_advantage_whatever_the_direction(scores):
    up, down = wilcoxon_holm(scores), wilcoxon_holm(-scores, greater_is_better=False)
    assert up.medians == pytest.approx(down.medians)
    assert up.medians[1] == pytest.approx(np.median(scores[:, 2] - scores[:, 0]))


@pytest.mark.parametrize("datasets", [1, 2, 5, 6, 7])
def test_fewer_than_six_data_sets_cannot_reject_and_say_so(datasets):
    best_case = np.stack([np.zeros(datasets), np.arange(1.0, datasets + 1)], axis=1)
    result = wilcoxon_holm(best_case)
    assert result.has_power == (result.pvalues[0] < 0.05) == (datasets >= 6)
    assert ("no power" in result.message) == (datasets < 6)


def test_holm_over_many_methods_takes_the_power_of_few_data_sets():
    assert "after Holm" in power_message(6, tests=2)
    assert power_message(8, tests=2) == ""


def test_refusals():
    with pytest.raises(ValueError, match="3 methods"):
        friedman(np.ones((5, 2)))
    with pytest.raises(ValueError, match="finite"):
        average_ranks([[1.0, np.nan]])
    with pytest.raises(ValueError, match="baseline"):
        wilcoxon_holm(np.ones((5, 2)), baseline=2)
