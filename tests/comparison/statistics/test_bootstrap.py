import numpy as np
import pytest
from mlxtend.evaluate import bootstrap_point632_score
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from steepest.comparison.statistics import (
    bootstrap_632,
    bootstrap_632_plus,
    no_information_error,
    point_632,
    point_632_plus,
)
from steepest.comparison.statistics.bootstrap import bootstrap_splits


@pytest.fixture
def data():
    generator = np.random.default_rng(1)
    X = generator.normal(size=(50, 3))
    return X, (X[:, 0] + 0.7 * generator.normal(size=50) > 0).astype(int)


@pytest.mark.holds("model-evaluation", 3)
def test_estimates_of_the_card():
    assert round(point_632(0.10, 0.25), 4) == 0.1948
    assert round(point_632_plus(0.10, 0.25, 0.5), 6) == 0.209977
    rate = (0.25 - 0.10) / (0.5 - 0.10)
    assert rate == pytest.approx(0.375)
    assert point_632_plus(0, 1, 1 / rate) == pytest.approx(0.733179, abs=1e-6)  # the weight itself, at the same R


@pytest.mark.holds("model-evaluation", 3)
@pytest.mark.parametrize(("name", "ours"), [(".632", bootstrap_632), (".632+", bootstrap_632_plus)])
def test_rounds_agree_with_mlxtend_on_our_splits(name, ours, data, monkeypatch):
    X, y = data

    class Splits:
        def __init__(self, n_splits, random_seed):
            self.n_splits, self.seed = n_splits, random_seed

        def split(self, X):
            return bootstrap_splits(len(X), self.n_splits, self.seed)

    monkeypatch.setattr("mlxtend.evaluate.bootstrap_point632.BootstrapOutOfBag", Splits)
    model = LogisticRegression()
    accuracies = bootstrap_point632_score(model, X, y, n_splits=25, method=name, random_seed=5)
    rounds = np.array(ours(model, X, y, 25, 5).rounds)
    kept = np.ones(25, bool)
    if name == ".632+":  # mlxtend doesn't clip R: keep the rounds where clipping changes nothing
        kept = np.array([0 <= _rate(*parts) <= 1 for parts in _rounds(model, X, y)])
    assert kept.sum() > 15
    assert rounds[kept] == pytest.approx(1 - accuracies[kept], abs=1e-12)


def _rate(resub, oob, gamma):
    return (oob - resub) / (gamma - resub)


def _rounds(model, X, y):
    """resub, oob and gamma of each round, by the definition."""
    for drawn, left in bootstrap_splits(len(y), 25, 5):
        predicted = model.fit(X[drawn], y[drawn]).predict(X)
        pairs = [target != output for target in y for output in predicted]
        yield (predicted != y).mean(), (predicted[left] != y[left]).mean(), sum(pairs) / len(pairs)


@pytest.mark.holds("model-evaluation", 3)
def test_plus_estimate_is_the_mean_of_its_rounds(data):
    X, y = data
    result = bootstrap_632_plus(LogisticRegression(), X, y, 25, 5)
    assert result.rounds == pytest.approx([point_632_plus(*parts) for parts in _rounds(LogisticRegression(), X, y)])
    assert result.error == pytest.approx(np.mean(result.rounds))
    assert result.low < result.error < result.high


@pytest.mark.parametrize(
    ("parts", "expected"),
    [((0.2, 0.1, 0.5), 0.368 * 0.2 + 0.632 * 0.1), ((0.0, 0.6, 0.5), 0.6), ((0.5, 0.6, 0.4), 0.5632)],
)
def test_rate_of_overfitting_is_clipped(parts, expected):
    assert point_632_plus(*parts) == pytest.approx(expected)


def test_no_information_error_of_real_targets_is_the_mean_over_pairs():
    y, predicted = np.array([0.0, 1.0, 1.0]), np.array([0.5, 2.0, 2.0])
    expected = np.mean([(a - b) ** 2 for a in y for b in predicted])
    assert no_information_error(y, predicted, lambda a, b: (a - b) ** 2) == pytest.approx(expected)


def test_overfitted_tree_on_noise_is_told_by_the_plus_estimate():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(80, 4)), generator.integers(2, size=80)
    tree = DecisionTreeClassifier()
    assert bootstrap_632(tree, X, y, 30).error < 0.45 < bootstrap_632_plus(tree, X, y, 30).error + 0.05


def test_regression_loss_and_same_seed_same_numbers(data):
    X, _ = data

    def square(y, predicted):
        return (y - predicted) ** 2

    first, second, other = (
        bootstrap_632(DecisionTreeRegressor(max_features=1), X[:, 1:], X[:, 0], 5, seed, loss=square)
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_distinct_share_and_left_out_rows_complement():
    shares = []
    for drawn, left in bootstrap_splits(400, 50, 0):
        assert len(set(drawn)) + len(left) == 400
        shares.append(len(set(drawn)) / 400)
    assert np.mean(shares) == pytest.approx(1 - np.exp(-1), abs=0.01)
    assert all(len(left) for _, left in bootstrap_splits(2, 50, 0))


def test_refusals(data):
    with pytest.raises(ValueError, match=r"X: expected an array of shape \(49, ...\)"):
        bootstrap_632(LogisticRegression(), data[0], data[1][:-1])
    with pytest.raises(TypeError, match="learner"):
        bootstrap_632("tree", *data)
    with pytest.raises(ValueError, match="n_splits: expected an integer >= 1, got 0"):
        bootstrap_632(LogisticRegression(), *data, n_splits=0)
    with pytest.raises(ValueError, match="number of rows: expected an integer >= 2, got 1"):
        bootstrap_632(LogisticRegression(), data[0][:1], data[1][:1])
