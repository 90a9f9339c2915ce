import math

import pytest
from statsmodels.stats.proportion import proportion_confint, proportions_ztest

from steepest.comparison.statistics import holdout_interval, proportions_test


@pytest.mark.holds("model-evaluation", 2)
def test_holdout_interval_of_85_percent_on_200_rows():
    low, high = holdout_interval(0.85, 200)
    assert (round(low, 5), round(high, 5)) == (0.80051, 0.89949)
    assert (low, high) == pytest.approx(proportion_confint(170, 200, method="normal"), abs=1e-12)


def test_holdout_interval_is_cut_to_shares_and_widens_with_confidence():
    assert holdout_interval(0.99, 10)[1] == 1.0
    assert holdout_interval(1.0, 10) == (1.0, 1.0)
    assert holdout_interval(0.5, 50, 0.99)[0] < holdout_interval(0.5, 50, 0.9)[0]


@pytest.mark.parametrize("arguments", [(1.1, 10), (0.5, 0), (0.5, 10, 1.0), (math.nan, 10)])
def test_holdout_interval_refuses(arguments):
    with pytest.raises(ValueError, match="expected"):
        holdout_interval(*arguments)


def test_proportions_test_agrees_with_statsmodels():
    result = proportions_test(0.85, 0.75, 200)
    statistic, pvalue = proportions_ztest([170, 150], [200, 200])
    assert (result.statistic, result.pvalue) == pytest.approx((statistic, pvalue), abs=1e-12)
    assert proportions_test(1.0, 1.0, 5).pvalue == 1.0
