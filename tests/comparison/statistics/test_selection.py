import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from steepest.comparison.statistics import nested_cv, one_standard_error_rule


def accuracy(y, predicted):
    return float((y == predicted).mean())


def test_one_standard_error_rule_by_hand():
    scores = [[0.70, 0.74, 0.72], [0.79, 0.83, 0.81], [0.80, 0.84, 0.82], [0.78, 0.82, 0.80]]
    # best mean 0.82, sd 0.02, standard error 0.02 / sqrt(3) = 0.01155: 0.81 is within it, 0.72 isn't
    assert one_standard_error_rule(scores) == 1
    assert one_standard_error_rule(-np.array(scores), greater_is_better=False) == 1
    assert one_standard_error_rule([[0.5, 0.5], [0.5, 0.5]]) == 0
    assert one_standard_error_rule([[0.5, 0.5], [0.6, 0.6]]) == 1
    with pytest.raises(ValueError, match="2 folds"):
        one_standard_error_rule([[0.5]])


@pytest.mark.parametrize("errors", [0.99, 1.01, 1.5, 2.01])
@pytest.mark.parametrize("folds", [3, 10])
def test_one_standard_error_is_one(errors, folds):
    """A simpler model so many standard errors below the best, whatever its own spread."""
    best = np.random.default_rng(0).normal(size=folds)
    error = (sum((best - best.mean()) ** 2) / (folds - 1)) ** 0.5 / folds**0.5
    simple = best.mean() - errors * error + 5 * (np.arange(folds) - (folds - 1) / 2)
    assert one_standard_error_rule([simple, best]) == (0 if errors < 1 else 1)


def test_nested_cv_chooses_inside_and_scores_outside():
    """A memoriser is best on its own rows; only rows never seen in fitting or choosing may score it."""
    X = np.arange(50.0)[:, None]
    y = np.arange(50) % 2
    fitted, seeds = [], []

    def memoriser(X, y, seed):
        fitted.append(frozenset(X[:, 0]))
        seeds.append(seed)
        table = dict(zip(X[:, 0], y))
        return lambda X: np.array([table.get(value, -1) for value in X[:, 0]])

    result = nested_cv({"memoriser": memoriser}, X, y, accuracy, outer=5, inner=2)
    assert result.scores == (0.0,) * 5
    assert len(set(seeds)) == 15
    assert [len(rows) for rows in fitted] == [20, 20, 40] * 5
    assert len({frozenset(X[:, 0]) - rows for rows in fitted[2::3]}) == 5


def test_nested_cv_prefers_the_better_setting_and_repeats():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(120, 2))
    y = (X[:, 0] + 0.8 * generator.normal(size=120) > 0).astype(int)
    settings = {"1": KNeighborsClassifier(1), "15": KNeighborsClassifier(15)}
    result = nested_cv(settings, X, y, accuracy, seed=1)
    assert result.chosen.count("15") >= 4
    assert all(means[name] == max(means.values()) for name, means in zip(result.chosen, result.inner_means))
    assert result.mean == pytest.approx(np.mean(result.scores))
    assert result.standard_error == pytest.approx(np.std(result.scores, ddof=1) / 5**0.5)
    assert result == nested_cv(settings, X, y, accuracy, seed=1)
    assert result != nested_cv(settings, X, y, accuracy, seed=2)


def test_nested_cv_of_an_error_takes_the_smallest():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, 3))
    y = X[:, 0] + 0.1 * generator.normal(size=60)
    settings = {"strong": Ridge(1e4), "weak": Ridge(1e-3)}

    def error(y, predicted):
        return float(((y - predicted) ** 2).mean())

    result = nested_cv(settings, X, y, error, greater_is_better=False)
    assert result.chosen == ("weak",) * 5
    with pytest.raises(ValueError, match="at least one learner"):
        nested_cv({}, X, y, error)
