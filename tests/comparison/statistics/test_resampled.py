import numpy as np
import pytest
from scipy import integrate, stats

from steepest.comparison.statistics import corrected_resampled_ttest

DIFFERENCES = [0.013, -0.004, 0.021, 0.008, 0.017, 0.002, 0.011]


def test_against_the_formula_and_an_integrated_t_density():
    result = corrected_resampled_ttest(DIFFERENCES, n_train=800, n_test=200)
    count = len(DIFFERENCES)
    mean = sum(DIFFERENCES) / count
    variance = sum((value - mean) ** 2 for value in DIFFERENCES) / (count - 1)
    error = ((1 / count + 200 / 800) * variance) ** 0.5
    tail = integrate.quad(lambda value: stats.t.pdf(value, count - 1), mean / error, np.inf)[0]
    assert (result.mean, result.standard_error, result.pvalue) == pytest.approx((mean, error, 2 * tail), abs=1e-10)
    assert result.df == count - 1
    assert result.high - result.mean == pytest.approx(stats.t.ppf(0.975, count - 1) * error)
    assert result.mean - result.low == pytest.approx(result.high - result.mean)
    assert not result.degenerate


def test_without_a_test_part_it_is_the_ordinary_paired_t_test():
    result = corrected_resampled_ttest(DIFFERENCES, test_fraction=1e-12)
    plain = stats.ttest_1samp(DIFFERENCES, 0)
    interval = plain.confidence_interval()
    assert (result.pvalue, result.low, result.high) == pytest.approx((plain.pvalue, interval.low, interval.high))


@pytest.mark.holds("model-evaluation", 7)
def test_corrected_t_of_the_card():
    differences = [0.01, 0.03, 0.02, 0.04, 0.0]
    result = corrected_resampled_ttest(differences, n_train=4, n_test=1)
    assert round(result.mean / result.standard_error, 6) == 1.885618
    assert round(result.pvalue, 6) == 0.132419
    plain = stats.ttest_1samp(differences, 0)
    assert (round(plain.statistic, 6), round(plain.pvalue, 6)) == (2.828427, 0.047421)


def test_share_and_sizes_say_the_same():
    by_share = corrected_resampled_ttest(DIFFERENCES, test_fraction=0.2)
    assert by_share.standard_error == pytest.approx(
        corrected_resampled_ttest(DIFFERENCES, n_train=80, n_test=20).standard_error
    )


def test_interval_excludes_zero_exactly_where_p_is_below_the_level():
    generator = np.random.default_rng(0)
    for _ in range(50):
        result = corrected_resampled_ttest(generator.normal(0.7, 1, size=6), test_fraction=0.2)
        assert (result.low > 0 or result.high < 0) == (result.pvalue < 0.05)


def test_a_true_difference_of_the_detectable_size_is_found_about_four_times_in_five():
    generator = np.random.default_rng(1)
    splits, fraction = 10, 1e-9
    error = (1 / splits) ** 0.5  # independent unit-variance differences: the standard error is known
    size = (stats.t.ppf(0.975, splits - 1) + stats.t.ppf(0.8, splits - 1)) * error
    found = [
        corrected_resampled_ttest(generator.normal(size, 1, splits), test_fraction=fraction).pvalue < 0.05
        for _ in range(1000)
    ]
    assert 0.75 < np.mean(found) < 0.86
    result = corrected_resampled_ttest(DIFFERENCES, test_fraction=0.2)
    assert result.detectable == pytest.approx((stats.t.ppf(0.975, 6) + stats.t.ppf(0.8, 6)) * result.standard_error)


def test_correction_keeps_the_false_alarm_rate_of_overlapping_splits():
    """Two equally good 'learners' that are means of noisy rows: the uncorrected test cries wolf."""
    generator = np.random.default_rng(2)
    corrected, naive = [], []
    for _ in range(300):
        values = generator.normal(size=100)
        differences = []
        for _ in range(15):
            order = generator.permutation(100)
            train, test = values[order[:80]], values[order[80:]]
            differences.append(test.mean() + train.mean())
        corrected.append(corrected_resampled_ttest(differences, test_fraction=0.2).pvalue < 0.05)
        naive.append(stats.ttest_1samp(differences, 0).pvalue < 0.05)
    assert np.mean(naive) > 0.3
    assert np.mean(corrected) < 0.6 * np.mean(naive)


@pytest.mark.holds("model-evaluation", 6)
def test_identical_models_have_p_one_and_no_nan():
    result = corrected_resampled_ttest(np.zeros(5), test_fraction=0.2)
    assert (result.mean, result.low, result.high, result.pvalue) == (0, 0, 0, 1)
    assert result.degenerate


@pytest.mark.parametrize("values", [np.full(5, 0.5), np.array([0.9 - 0.8, 0.85 - 0.75] * 2 + [0.1])])
def test_equal_differences_are_marked_and_get_the_sign_flip_p(values):
    result = corrected_resampled_ttest(values, test_fraction=0.2)
    assert result.degenerate
    assert result.pvalue == 2 / 2**5  # two of the 2^5 sign patterns are as one-sided
    assert result.low == result.high == result.mean


@pytest.mark.parametrize(
    ("differences", "options"),
    [
        ([0.1], {"test_fraction": 0.2}),
        ([0.1, np.nan], {"test_fraction": 0.2}),
        ([0.1, 0.2], {}),
        ([0.1, 0.2], {"test_fraction": 0.2, "n_train": 4, "n_test": 1}),
        ([0.1, 0.2], {"n_train": 4}),
        ([0.1, 0.2], {"test_fraction": 1.0}),
        ([0.1, 0.2], {"n_train": 0, "n_test": 1}),
        ([0.1, 0.2], {"test_fraction": 0.2, "confidence": 1.0}),
    ],
)
def test_refusals(differences, options):
    with pytest.raises(ValueError, match="expected"):
        corrected_resampled_ttest(differences, **options)
