import numpy as np
import pytest
from mlxtend.evaluate import combined_ftest_5x2cv as peer_f
from mlxtend.evaluate import paired_ttest_5x2cv as peer_t
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.neighbors import KNeighborsClassifier

from steepest.comparison.statistics import (
    combined_f_5x2,
    combined_ftest_5x2cv,
    five_by_two_differences,
    paired_t_5x2,
    paired_ttest_5x2cv,
)

CARD = [(0.02, 0.03), (0.01, 0.04), (0, 0.02), (0.03, 0.01), (0.02, 0.02)]


def accuracy(y, predicted):
    return float((y == predicted).mean())


@pytest.fixture
def data():
    generator = np.random.default_rng(3)
    X = generator.normal(size=(60, 2))
    return X, (X[:, 0] + generator.normal(size=60) > 0).astype(int)


def naive(differences):
    """t and F of Dietterich and Alpaydin, term by term."""
    variances = []
    for first, second in differences:
        mean = (first + second) / 2
        variances.append((first - mean) ** 2 + (second - mean) ** 2)
    squares = sum(value**2 for pair in differences for value in pair)
    return differences[0][0] / (sum(variances) / 5) ** 0.5, squares / (2 * sum(variances))


@pytest.mark.holds("model-evaluation", 4)
def test_ready_differences_of_the_card():
    t, f = paired_t_5x2(CARD), combined_f_5x2(CARD)
    assert (round(t.statistic, 6), round(t.pvalue, 5)) == (1.490712, 0.19623)
    assert (round(f.statistic, 6), round(f.pvalue, 5)) == (2.888889, 0.12660)


@pytest.mark.holds("model-evaluation", 4)
def test_random_differences_against_a_naive_loop():
    differences = np.random.default_rng(0).normal(size=(5, 2))
    t, f = naive(differences.tolist())
    assert paired_t_5x2(differences).statistic == pytest.approx(t, abs=1e-12)
    assert combined_f_5x2(differences).statistic == pytest.approx(f, abs=1e-12)
    assert paired_t_5x2(differences).pvalue == pytest.approx(2 * (1 - stats.t.cdf(abs(t), 5)), abs=1e-12)
    assert combined_f_5x2(differences).pvalue == pytest.approx(1 - stats.f.cdf(f, 10, 5), abs=1e-12)


@pytest.mark.holds("model-evaluation", 4)
def test_statistics_agree_with_mlxtend_on_its_own_splits(data):
    """mlxtend scores through a callable: record what it sees and give the same ten differences to ours."""
    X, y = data
    for peer, ours in ((peer_t, paired_t_5x2), (peer_f, combined_f_5x2)):
        scores = []

        def scorer(estimator, X, y, scores=scores):
            scores.append(estimator.score(X, y))
            return scores[-1]

        statistic, pvalue = peer(KNeighborsClassifier(1), KNeighborsClassifier(9), X, y, scoring=scorer, random_seed=1)
        differences = np.subtract(scores[0::2], scores[1::2]).reshape(5, 2)
        result = ours(differences)
        assert (abs(result.statistic), result.pvalue) == pytest.approx((abs(statistic), pvalue), abs=1e-9)


@pytest.mark.holds("model-evaluation", 6)
@pytest.mark.parametrize("test", [paired_ttest_5x2cv, combined_ftest_5x2cv])
def test_identical_models_have_p_one(test, data):
    result = test(KNeighborsClassifier(3), KNeighborsClassifier(3), *data, accuracy)
    assert (result.statistic, result.pvalue) == (0.0, 1.0)


@pytest.mark.holds("model-evaluation", 6)
@pytest.mark.parametrize("test", [paired_t_5x2, combined_f_5x2])
@pytest.mark.parametrize("gap", [0.1, np.array([[0.9 - 0.8, 0.85 - 0.75]] * 5)])
def test_differences_without_spread_are_refused(test, gap):
    with pytest.raises(ValueError, match="expected spread between the two folds"):
        test(np.full((5, 2), gap))


@pytest.mark.parametrize("bad", [np.zeros((2, 5)), np.full((5, 2), np.nan)])
def test_other_shapes_and_nan_are_refused(bad):
    with pytest.raises(ValueError, match="differences: expected"):
        paired_t_5x2(bad)


def test_each_fit_has_its_own_seed_and_the_halves_are_stratified(data):
    X, y = data
    seen, sizes = [], []

    def fit(X, y, seed):
        seen.append(seed)
        sizes.append(int(y.sum()))
        return DummyClassifier().fit(X, y).predict

    first = five_by_two_differences(fit, fit, X, y, accuracy, seed=4)
    assert len(set(seen)) == 20
    assert max(sizes) - min(sizes) <= 1
    five_by_two_differences(fit, fit, X, y, accuracy, seed=4)
    assert seen[:20] == seen[20:]
    assert not first.any()
    one, again, other = (
        five_by_two_differences(fit, KNeighborsClassifier(1), X, y, accuracy, seed=seed) for seed in (4, 4, 5)
    )
    assert (one == again).all()
    assert (one != other).any()


def test_a_clear_winner_is_found(data):
    X, _ = data
    y = (X[:, 0] > 0).astype(int)
    result = combined_ftest_5x2cv(KNeighborsClassifier(3), DummyClassifier(), X, y, accuracy)
    assert result.pvalue < 0.01
