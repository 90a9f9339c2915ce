"""The Bayesian correlated t test against baycomp, a sum over the density, and the corrected test."""

import math

import baycomp
import numpy as np
import pytest

from steepest.comparison.statistics import bayesian_correlated_ttest, corrected_resampled_ttest, practical

DIFFERENCES = [0.01, 0.03, 0.02, 0.04, 0.00]


def test_the_published_example():
    found = bayesian_correlated_ttest(DIFFERENCES, rope=0.01, n_train=4, n_test=1)
    assert [round(p, 4) for p in (found.better, found.same, found.worse)] == [0.8004, 0.1759, 0.0237]
    assert round(bayesian_correlated_ttest(DIFFERENCES, n_train=4, n_test=1).better, 4) == 0.9338


@pytest.mark.parametrize("rope", [0.0, 0.004, 0.05])
@pytest.mark.parametrize(("repeats", "folds"), [(1, 5), (3, 5), (2, 10)])
def test_the_probabilities_are_baycomps(rope, repeats, folds):
    random = np.random.default_rng(repeats * folds)
    first, second = random.normal(0.8, 0.03, (2, repeats * folds))
    found = bayesian_correlated_ttest(first - second, rope=rope, n_train=folds - 1, n_test=1)
    theirs = baycomp.two_on_single(second, first, rope=rope, runs=repeats)
    own = (found.worse, found.same, found.better) if rope else (found.worse, found.better)
    assert own == pytest.approx(tuple(theirs), abs=1e-12)


def test_they_are_the_area_under_the_posterior():
    mean, error, df, rope = 0.013, 0.02, 6, 0.01
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    step, better, same, worse = 1e-3, 0.0, 0.0, 0.0
    for k in range(-200_000, 200_000):  # to 200 standard errors: beyond lie 3e-11 of it
        x = (k + 0.5) * step
        mass = step * math.exp(log_scale - 0.5 * (df + 1) * math.log1p(x * x / df))
        difference = mean + error * x
        if difference > rope:
            better += mass
        elif difference < -rope:
            worse += mass
        else:
            same += mass
    found = practical(mean, error, df, rope)
    assert (found.better, found.same, found.worse) == pytest.approx((better, same, worse), abs=0.4 * step)


def test_without_a_region_worse_is_the_one_sided_p():
    tested = corrected_resampled_ttest(DIFFERENCES, test_fraction=0.2)
    found = bayesian_correlated_ttest(DIFFERENCES, test_fraction=0.2)
    assert found.worse == pytest.approx(tested.pvalue / 2)
    assert (found.same, found.better) == pytest.approx((0.0, 1 - tested.pvalue / 2))


def test_equal_differences_are_a_point_mass():
    for size, expected in ((0.02, (1, 0, 0)), (0.005, (0, 1, 0)), (-0.02, (0, 0, 1)), (0.0, (0, 1, 0))):
        found = bayesian_correlated_ttest([size] * 5, rope=0.01, test_fraction=0.2)
        assert (found.better, found.same, found.worse) == expected


def test_turned_is_the_other_direction():
    found = bayesian_correlated_ttest(DIFFERENCES, rope=0.01, test_fraction=0.2)
    other = bayesian_correlated_ttest([-d for d in DIFFERENCES], rope=0.01, test_fraction=0.2)
    assert (found.turned.better, found.turned.worse) == pytest.approx((other.better, other.worse))


def test_far_out_the_small_probability_keeps_its_digits():
    found = practical(1.0, 0.01, 0, 0.01)
    assert found.worse == pytest.approx(math.erfc(101 / math.sqrt(2)) / 2, rel=1e-9, abs=0)
    assert found.better == 1
    assert found.same >= 0


@pytest.mark.parametrize("rope", [-0.01, float("nan"), float("inf")])
def test_a_region_that_is_none_is_refused(rope):
    with pytest.raises(ValueError, match="rope"):
        bayesian_correlated_ttest(DIFFERENCES, rope=rope, test_fraction=0.2)
