import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from steepest.comparison.baselines import (
    AdaBoostBaseline,
    BoostingBaseline,
    ConstantBaseline,
    ForestBaseline,
    KernelRidgeBaseline,
    KNNBaseline,
    LassoBaseline,
    LDABaseline,
    LightGBMBaseline,
    LogisticBaseline,
    MLPBaseline,
    RidgeBaseline,
    SVMBaseline,
    baseline_ladder,
    classical_learners,
    run_ladder,
)

X3, Y3 = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 2.0, 2.0])
QUICK = [
    *baseline_ladder(budget_s=0.95),
    AdaBoostBaseline(rounds=10),
    ForestBaseline(trees=10),
    MLPBaseline(epochs=20),
    BoostingBaseline(rounds=10),
    LightGBMBaseline(rounds=10),
]


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(40, 5))
    return X, X @ np.array([1.0, -2.0, 0.0, 0.5, 3.0]) + 0.3 * generator.normal(size=40) + 4


def proximal_gradient(X, y, lam, steps=5000):
    """Lasso on centred columns: w <- S(w - s X'(Xw - y)/n, s lam), s = n / ||X||^2."""
    X, y = X - X.mean(0), y - y.mean()
    n, w = len(y), np.zeros(X.shape[1])
    s = n / np.linalg.norm(X, 2) ** 2
    for _ in range(steps):
        moved = w - s * X.T @ (X @ w - y) / n
        w = np.sign(moved) * np.maximum(abs(moved) - s * lam, 0)
    return w


@pytest.mark.holds("introduction-to-ml", 1)
def test_slopes_of_three_points():
    least_squares = RidgeBaseline(lam=0).fit(X3, Y3).model
    assert least_squares.intercept_ == pytest.approx(1.166667, abs=1e-6)
    assert least_squares.coef_ == pytest.approx([0.5])
    assert RidgeBaseline(lam=1).fit(X3, Y3).model.coef_ == pytest.approx([1 / 3])
    assert LassoBaseline(lam=0.2).fit(X3, Y3).model.coef_ == pytest.approx([0.2])


@pytest.mark.holds("introduction-to-ml", 1)
def test_linear_members_against_their_closed_forms(table):
    X, y = table
    centred, target = X - X.mean(0), y - y.mean()
    for lam in (0.0, 0.5, 10.0):
        expected = np.linalg.solve(centred.T @ centred + lam * np.eye(5), centred.T @ target)
        assert RidgeBaseline(lam=lam).fit(X, y).model.coef_ == pytest.approx(expected)
    assert LassoBaseline(lam=0.3).fit(X, y).model.coef_ == pytest.approx(proximal_gradient(X, y, 0.3), abs=1e-3)


@pytest.mark.holds("introduction-to-ml", 2)
def test_ridge_goes_to_least_squares(table):
    X, y = table
    expected = LinearRegression().fit(X, y).coef_
    gaps = [np.abs(RidgeBaseline(lam=lam).fit(X, y).model.coef_ - expected).max() for lam in (1, 1e-3, 1e-9)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-9


@pytest.mark.holds("introduction-to-ml", 2)
@pytest.mark.parametrize("weighted", [False, True])
def test_linear_kernel_ridge_is_ridge(table, weighted):
    X, y = table
    weights = np.random.default_rng(1).uniform(0.5, 2, 40) if weighted else None
    kernel = KernelRidgeBaseline(kernel="linear", lam=2.0).fit(X + 5, y, weights)
    ridge = RidgeBaseline(lam=2.0).fit(X + 5, y, weights)
    assert kernel.predict(X) == pytest.approx(ridge.predict(X))


@pytest.mark.holds("introduction-to-ml", 2)
def test_kernel_ridge_with_and_without_an_intercept():
    with_one = KernelRidgeBaseline(kernel="linear").fit(X3, Y3).predict(X3)
    assert np.diff(with_one) == pytest.approx([1 / 3, 1 / 3])
    assert with_one == pytest.approx(RidgeBaseline(lam=1).fit(X3, Y3).predict(X3))
    assert KernelRidgeBaseline(kernel="linear", centre=False).fit(X3, Y3).predict(X3) == pytest.approx([0, 1, 2])


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("weighted", [False, True])
def test_kernel_ridge_without_centring_is_scikit_learns(table, kernel, weighted):
    X, y = table
    weights = np.random.default_rng(1).uniform(0.5, 2, 40) if weighted else None
    ours = KernelRidgeBaseline(kernel=kernel, lam=0.7, gamma=0.3, centre=False).fit(X + 1, y, weights)
    peer = KernelRidge(alpha=0.7, kernel=kernel, gamma=0.3).fit(X + 1, y, sample_weight=weights)
    assert ours.predict(X) == pytest.approx(peer.predict(X))
    solved = KernelRidgeBaseline(kernel="rbf", lam=0.7, gamma=0.3, centre=False).fit(X, y).model.dual_coef_
    near = np.exp(-0.3 * ((X[:, None] - X) ** 2).sum(2))
    assert solved == pytest.approx(np.linalg.solve(near + 0.7 * np.eye(40), y))


def test_the_centred_rbf_kernel_moves_the_targets_alone(table):
    X, y = table
    ours = KernelRidgeBaseline(lam=0.7, gamma=0.3).fit(X + 5, y + 100)
    peer = KernelRidge(alpha=0.7, kernel="rbf", gamma=0.3).fit(X, y - y.mean())
    assert ours.predict(X + 5) == pytest.approx(peer.predict(X) + y.mean() + 100)


def test_logistic_is_at_the_minimum_of_its_objective(table):
    X, y = table
    y = (y > 4).astype(int)
    model = LogisticBaseline(lam=0.7).fit(X, y).model
    probability = 1 / (1 + np.exp(-(X @ model.coef_[0] + model.intercept_)))
    assert X.T @ (probability - y) + 0.7 * model.coef_[0] == pytest.approx(np.zeros(5), abs=5e-3)
    assert (probability - y).sum() == pytest.approx(0, abs=5e-3)


def test_lda_scores_by_the_formula(table):
    X, y = table
    y = np.digitize(y, [2, 6])
    means = np.stack([X[y == g].mean(0) for g in range(3)])
    shares = np.bincount(y) / 40
    covariance = sum((X[y == g] - means[g]).T @ (X[y == g] - means[g]) for g in range(3)) / 40
    inverse = np.linalg.inv(covariance)
    scores = X @ inverse @ means.T - np.einsum("gi,ij,gj->g", means, inverse, means) / 2 + np.log(shares)
    posterior = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    # scikit-learn divides the covariance by N - C; undo it by comparing the order of classes
    outcome = LDABaseline().fit(X, y).outcome(X)
    assert (outcome.predicted == posterior.argmax(1)).mean() > 0.95
    assert outcome.decision.shape == outcome.probabilities.shape == (40, 3)


@pytest.mark.parametrize("baseline", classical_learners("regression", 100), ids=lambda baseline: baseline.name)
def test_regressors_are_equivariant_to_the_scale_of_the_target(baseline, table):
    X, y = table
    plain = baseline.fit(X, y).predict(X)
    scaled = baseline.fit(X, 1000 * y - 7).predict(X)
    assert scaled == pytest.approx(1000 * plain - 7, rel=1e-2, abs=5)
    assert baseline.outcome(X).probabilities is None
    assert baseline.cost_s > 0


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("baseline", QUICK, ids=lambda baseline: baseline.name)
def test_outcomes_of_classifiers(baseline, classes):
    generator = np.random.default_rng(0)
    y = np.arange(60) % classes
    X = generator.normal(size=(60, 4)) + 2 * np.eye(4)[y]
    outcome = baseline.fit(X, y).outcome(X)
    assert outcome.finite
    assert outcome.predicted.shape == (60,)
    assert outcome.decision.shape == ((60,) if classes == 2 else (60, 3))
    if classes == 2 and baseline.name != "constant":
        assert ((outcome.decision > 0) == (outcome.predicted == 1)).all()
    if baseline.name == "svm":
        assert outcome.probabilities is None
    else:
        assert outcome.probabilities.sum(1) == pytest.approx(np.ones(60))


@pytest.mark.parametrize("baseline", QUICK, ids=lambda baseline: baseline.name)
@pytest.mark.parametrize("seen", [(0,), (0, 2), (1, 2, 3)])
def test_a_class_absent_from_training_keeps_its_column(baseline, seen):
    generator = np.random.default_rng(0)
    y = np.array(seen)[np.arange(40) % len(seen)]
    X = generator.normal(size=(40, 4)) + 3 * np.eye(4)[y]
    outcome = baseline.fit(X, y, num_classes=4).outcome(X)
    missing = [c for c in range(4) if c not in seen]
    assert outcome.decision.shape == (40, 4)
    assert not np.isin(outcome.predicted, missing).any()
    assert not np.isin(outcome.decision.argmax(1), missing).any()
    if outcome.probabilities is not None:
        assert (outcome.probabilities[:, missing] == 0).all()


@pytest.mark.parametrize(
    "kind",
    [
        *(ConstantBaseline, LogisticBaseline, SVMBaseline, ForestBaseline, BoostingBaseline, LightGBMBaseline),
        *(KNNBaseline, LDABaseline),
    ],
)
def test_weights_count_exactly_where_declared(kind):
    """At each of two points a third of the rows are ones: heavier, they win where weights are known."""
    X, y = np.repeat([[0.0], [1.0]], [31, 29], axis=0), np.tile([0, 0, 1], 20)
    weights = np.where(y == 1, 9.0, 1.0)
    predicted = kind().fit(X, y, weights).predict(X)
    assert (predicted == (1 if kind.weighted else 0)).all()


def test_constant_is_the_majority_and_the_mean():
    y = np.array([0, 2, 2, 1])
    outcome = ConstantBaseline().fit(np.zeros((4, 1)), y).outcome(np.zeros((2, 1)))
    assert outcome.predicted.tolist() == [2, 2]
    assert outcome.probabilities.tolist() == [[0.25, 0.25, 0.5]] * 2
    assert ConstantBaseline("regression").fit(np.zeros((4, 1)), y * 1.0).predict([[0.0]]) == pytest.approx([1.25])


def test_forest_probabilities_are_usable_by_log_loss():
    X, y = load_wine(return_X_y=True)
    outcome = ForestBaseline(trees=20).fit(X[::2], y[::2]).outcome(X[1::2])
    assert log_loss(y[1::2], outcome.probabilities) < 0.3


def test_knn_takes_no_more_neighbours_than_rows():
    assert KNNBaseline("regression").fit(X3, Y3).predict(X3) == pytest.approx(np.full(3, 5 / 3))


def test_large_tables_leave_out_the_kernel_machines():
    def names(task, rows):
        return {learner.name for learner in classical_learners(task, rows)}

    assert names("multiclass", 10_000) - names("multiclass", 10_001) == {"svm"}
    assert names("regression", 5_000) - names("regression", 10_001) == {"svm", "kernel_ridge"}
    with pytest.raises(ValueError, match="expected binary"):
        classical_learners("ranking", 10)


def test_ladder_grows_with_its_budget():
    for task in ("classification", "regression"):
        sizes = [len(baseline_ladder(task, budget_s=budget)) for budget in (0, 1, 8, 60)]
        assert sizes[0] == 1
        assert sizes == sorted(set(sizes))
    with pytest.raises(ValueError, match="one of 'classification', 'regression'"):
        baseline_ladder("binary")
    with pytest.raises(ValueError, match="task of ridge: expected one of 'regression'"):
        RidgeBaseline("classification")
    with pytest.raises(ValueError, match="not fitted"):
        RidgeBaseline().predict(X3)


def test_ladder_standardises_inside_the_fold():
    """Columns of wildly different units: neighbours on raw columns would see only the noise."""
    generator = np.random.default_rng(0)
    y = np.arange(120) % 2
    X = np.stack([y + 0.1 * generator.normal(size=120), 1e6 * generator.normal(size=120)], axis=1)
    result = run_ladder(X, y, baselines=[KNNBaseline(k=5)])
    assert result["mean"][0] > 0.95
    assert result["low"][0] <= result["mean"][0] <= result["high"][0] <= 1


@pytest.mark.holds("introduction-to-ml", 5)
@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_cheap_baselines_beat_the_constant_and_repeat(load):
    X, y = load(return_X_y=True)
    result, again = (run_ladder(X, y, budget_s=0.95) for _ in range(2))
    assert len(result) == 6
    assert result["name"].iloc[-1] == "constant"
    assert result["low"].iloc[:-1].min() > result["mean"].iloc[-1]
    assert result["mean"].is_monotonic_decreasing
    assert result.drop(columns="cost_s").equals(again.drop(columns="cost_s"))


@pytest.mark.slow
@pytest.mark.holds("introduction-to-ml", 5)
@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
def test_every_baseline_beats_the_constant(load):
    result = run_ladder(*load(return_X_y=True))
    assert len(result) == 10
    assert result["name"].iloc[-1] == "constant"
    assert result["low"].iloc[:-1].min() > result["mean"].iloc[-1] + 0.1


@pytest.mark.slow
def test_every_regressor_but_the_lone_tree_beats_the_mean():
    result = run_ladder(*load_diabetes(return_X_y=True)).set_index("name")["mean"]
    assert (result.drop(["tree", "constant"]) > 0.3).all()


@pytest.mark.holds("introduction-to-ml", 5)
@pytest.mark.parametrize("kind", [ForestBaseline, MLPBaseline, BoostingBaseline])
def test_same_seed_same_numbers(kind):
    X, y = load_wine(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    size = {"epochs": 20} if kind is MLPBaseline else {"trees": 20} if kind is ForestBaseline else {"rounds": 20}
    first, second = (kind(seed=3, **size).fit(X[::2], y[::2]).outcome(X).probabilities for _ in range(2))
    assert (first == second).all()
    if kind is not BoostingBaseline:  # boosting draws nothing on so few rows
        assert (first != kind(seed=4, **size).fit(X[::2], y[::2]).outcome(X).probabilities).any()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [KNNBaseline, ForestBaseline])
def test_neighbours_and_forests_are_asked_once(kind, classes, monkeypatch):
    """Their class is the first with the largest share of votes, also where votes tie; class 1 was never met."""
    generator = np.random.default_rng(0)
    X, other = generator.normal(size=(60, 3)), generator.normal(size=(200, 3))
    y = generator.integers(0, classes, 60) * 2
    baseline = (kind(k=4) if kind is KNNBaseline else kind(trees=4)).fit(X, y, num_classes=2 * classes)
    expected = baseline.predict(other)
    monkeypatch.setattr(type(baseline.model), "predict", lambda *_: pytest.fail("asked again"))
    found = baseline.outcome(other)
    tied = (found.probabilities == found.probabilities.max(1, keepdims=True)).sum(1) > 1
    assert tied.any()
    assert np.array_equal(found.predicted, expected)
