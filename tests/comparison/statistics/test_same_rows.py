import math

import numpy as np
import pytest
from mlxtend.evaluate import cochrans_q, mcnemar, mcnemar_table
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar

from steepest.comparison.statistics import cochran_q, mcnemar_test


def discordant(b, c, both=5):
    """Truth and two predictions where only a is right on b rows and only b on c rows."""
    y = np.ones(both + b + c, int)
    a, other = y.copy(), y.copy()
    other[:b], a[b : b + c] = 0, 0
    return y, a, other


@pytest.mark.holds("model-evaluation", 1)
def test_mcnemar_of_25_against_10():
    rows = discordant(25, 10)
    chi2, exact = mcnemar_test(*rows), mcnemar_test(*rows, exact=True)
    assert (round(chi2.statistic, 6), round(chi2.pvalue, 6), round(exact.pvalue, 6)) == (5.6, 0.017960, 0.016674)
    table = mcnemar_table(*rows)
    assert (chi2.statistic, chi2.pvalue) == pytest.approx(mcnemar(table), abs=1e-12)
    assert exact.pvalue == pytest.approx(mcnemar(table, exact=True)[1], abs=1e-12)


@pytest.mark.holds("model-evaluation", 1)
@pytest.mark.parametrize(("b", "c"), [(3, 9), (30, 12), (0, 7), (6, 6)])
def test_mcnemar_against_statsmodels_and_a_sum_of_binomials(b, c):
    result = mcnemar_test(*discordant(b, c), exact=True)
    tail = 2 * sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert result.pvalue == pytest.approx(min(1.0, tail), abs=1e-12)
    assert result.pvalue == pytest.approx(peer_mcnemar([[5, b], [c, 0]], exact=True).pvalue, abs=1e-12)


def test_mcnemar_is_exact_below_25_discordant_rows():
    assert mcnemar_test(*discordant(20, 4)).method == "exact"
    assert mcnemar_test(*discordant(20, 5)).method == "chi2"


@pytest.mark.holds("model-evaluation", 6)
@pytest.mark.parametrize("count", [10, 20])
@pytest.mark.parametrize("exact", [True, False])
def test_mcnemar_counts_an_even_split_as_no_evidence(count, exact):
    """Uncut, ten against ten have an exact p of 1.176197, and the correction makes 1/20 of nothing: .823063."""
    assert mcnemar_test(*discordant(count, count), exact=exact).pvalue == 1.0


@pytest.mark.holds("model-evaluation", 6)
@pytest.mark.parametrize("exact", [None, True, False])
def test_mcnemar_of_identical_models(exact):
    y = np.array([0, 1, 1, 0])
    result = mcnemar_test(y, y[::-1], y[::-1], exact)
    assert (result.statistic, result.pvalue) == (0.0, 1.0)


def test_mcnemar_refuses_other_lengths():
    with pytest.raises(ValueError, match=r"pred_b: expected labels or numbers of shape \(3,\)"):
        mcnemar_test(np.ones(3), np.ones(3), np.ones(2))


def models(right, rows):
    return [np.array([row in wanted for row in range(rows)], int) for wanted in right]


@pytest.mark.holds("model-evaluation", 5)
def test_cochran_of_three_models_on_eight_rows():
    y = np.ones(8, int)
    predictions = models([{0, 1, 2, 3, 4, 5}, {0, 1, 2, 5}, {2, 7}], 8)
    result = cochran_q(y, *predictions)
    assert (round(result.statistic, 6), round(result.pvalue, 6), result.df) == (4.0, 0.135335, (2,))
    assert (result.statistic, result.pvalue) == pytest.approx(cochrans_q(y, *predictions), abs=1e-12)
    assert result.pvalue == pytest.approx(math.exp(-2.0), abs=1e-12)  # chi2 with two degrees of freedom


def test_cochran_of_two_models_is_mcnemar_without_correction():
    y, a, b = discordant(25, 10)
    assert cochran_q(y, a, b).statistic == pytest.approx((25 - 10) ** 2 / 35)


@pytest.mark.holds("model-evaluation", 6)
def test_cochran_of_identical_models():
    y, a, _ = discordant(3, 4)
    assert cochran_q(y, a, a, a).pvalue == 1.0
    with pytest.raises(ValueError, match="two models"):
        cochran_q(y, a)
