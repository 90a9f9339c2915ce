"""The rates and bounds that come with the textbook learners."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Lasso
from sklearn.mixture import GaussianMixture

from steepest.comparison.baselines import AdaBoostBaseline, gaussian_mixture, gradient_descent, proximal_gradient


@pytest.mark.holds("introduction-to-ml", 3)
@pytest.mark.parametrize("curvatures", [(1.0, 0.1, 0.01), (4.0, 0.0, 1e-4), (2.0, 2.0, 2.0)])
def test_gradient_descent_keeps_the_bound_at_every_step(curvatures):
    """f(x) = sum h_i x_i^2 / 2 with step 1/L; each coordinate is known in closed form, (1 - h_i/L)^t."""
    h = np.array(curvatures)
    start, smooth, strong = np.array([3.0, -2.0, 5.0]), h.max(), h.min()
    path = gradient_descent(lambda x: h * x, start, smooth, 300)
    assert path.shape == (301, 3)
    assert path[0].tolist() == start.tolist()
    for t in range(1, 301):
        x = path[t]
        assert x == pytest.approx((1 - h / smooth) ** t * start, abs=1e-12)
        assert (h * x**2).sum() / 2 <= smooth * (start**2).sum() / (2 * t)
        assert np.linalg.norm(x) <= (1 - strong / smooth) ** t * np.linalg.norm(start) + 1e-12


def test_proximal_gradient_is_the_lasso_and_keeps_the_bound():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(40, 5))
    y = X @ np.array([1.0, -2.0, 0.0, 0.5, 3.0]) + 0.3 * generator.normal(size=40)
    X, y = X - X.mean(0), y - y.mean()
    smooth = np.linalg.norm(X, 2) ** 2 / 40
    path = proximal_gradient(lambda w: X.T @ (X @ w - y) / 40, np.zeros(5), smooth, 400, l1=0.3)
    wanted = Lasso(alpha=0.3, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, y).coef_
    assert path[-1] == pytest.approx(wanted, abs=1e-9)
    assert path[-1][2] == 0.0

    def value(w):
        return ((X @ w - y) ** 2).sum() / 80 + 0.3 * np.abs(w).sum()

    for t in range(1, 401):
        assert value(path[t]) - value(wanted) <= smooth * (wanted**2).sum() / (2 * t)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothness": 0.0}, "smoothness: expected a number > 0"),
        ({"steps": -1}, "steps: expected an integer >= 0"),
        ({"l1": -1.0}, "l1: expected a number >= 0"),
        ({"start": [[0.0], [1.0]]}, "start: expected numbers of shape"),
        ({"gradient": lambda x: x[:, None]}, "gradient: expected numbers of shape"),
    ],
)
def test_descent_refuses(change, message):
    right = {"gradient": lambda x: x, "start": [0.0, 1.0], "smoothness": 1.0, "steps": 3}
    with pytest.raises(ValueError, match=message):
        proximal_gradient(**right | change)


def three_groups():
    generator = np.random.default_rng(0)
    return np.concatenate([generator.normal(centre, 1, size=(60, 2)) for centre in (-2, 0, 3)])


@pytest.mark.holds("introduction-to-ml", 3)
@pytest.mark.parametrize("seed", range(3))
def test_likelihood_never_falls_under_em(seed):
    X = three_groups()
    weights, means, covariances, likelihood = gaussian_mixture(X, 3, steps=40, seed=seed)
    # a sum of 180 log-densities of about 4 each rounds at 180 * 720 * eps
    assert np.diff(likelihood).min() >= -180 * 720 * np.finfo(np.float64).eps
    assert likelihood[-1] > likelihood[0] + 3
    parts = zip(weights, means, covariances)
    density = sum(weight * stats.multivariate_normal.pdf(X, mean, cov) for weight, mean, cov in parts)
    assert likelihood[-1] == pytest.approx(np.log(density).sum())
    assert weights.sum() == pytest.approx(1.0)


def test_em_agrees_with_scikit_learn_from_the_same_start():
    X = three_groups()
    weights, means, covariances, likelihood = gaussian_mixture(X, 3, steps=400, seed=1)
    start = X[np.random.default_rng(1).choice(len(X), 3, replace=False)]
    whole = np.linalg.inv(np.cov(X.T, bias=True))
    peer = GaussianMixture(
        3, weights_init=np.full(3, 1 / 3), means_init=start, precisions_init=[whole] * 3, reg_covar=0, tol=1e-12,
        max_iter=1000,
    ).fit(X)  # fmt: skip
    assert likelihood[-1] / len(X) == pytest.approx(peer.score(X), abs=1e-6)
    assert means == pytest.approx(peer.means_, abs=1e-3)
    assert covariances == pytest.approx(peer.covariances_, abs=1e-3)
    assert weights == pytest.approx(peer.weights_, abs=1e-3)


def test_a_component_does_not_shrink_onto_a_row():
    X = np.concatenate([np.random.default_rng(0).normal(size=(30, 2)), [[50.0, 50.0]]])
    for seed in range(5):
        *_, covariances, likelihood = gaussian_mixture(X, 4, steps=60, seed=seed)
        assert np.isfinite(likelihood).all()
        assert np.linalg.eigvalsh(covariances).min() >= 1e-6 * np.cov(X.T, bias=True).trace() / 2
    with pytest.raises(ValueError, match="rows with spread"):
        gaussian_mixture(np.ones((5, 2)), 2)
    with pytest.raises(ValueError, match="components: expected an integer >= 1 and <= 31"):
        gaussian_mixture(X, 32)


@pytest.mark.holds("introduction-to-ml", 4)
def test_adaboost_training_error_keeps_its_bound():
    """Errors are recomputed from the stumps by the textbook reweighting, not read from the estimator."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 3))
    y = ((X**2).sum(1) + 0.3 * generator.normal(size=200) > 2.3).astype(int)
    model = AdaBoostBaseline(rounds=40).fit(X, y).model
    signs = 2 * y - 1
    weights, vote, bound, errors = np.full(200, 1 / 200), np.zeros(200), 1.0, []
    for stump in model.estimators_:
        h = 2 * stump.predict(X) - 1
        error = weights[h != signs].sum()
        a = np.log((1 - error) / error) / 2
        weights = weights * np.exp(-a * signs * h)
        weights /= weights.sum()
        vote += a * h
        bound *= 2 * np.sqrt(error * (1 - error))
        errors.append(np.mean(np.sign(vote) != signs))
        assert errors[-1] <= bound + 1e-12
    assert len(errors) == 40
    assert errors[-1] < 0.6 * errors[0]
    assert (model.predict(X) == (vote > 0)).all()


def test_hoeffding_bounds_the_tail_of_a_binomial():
    for n in (5, 20, 100):
        for share in (0.1, 0.5, 0.8):
            for gap in (0.05, 0.1, 0.2, 0.4):
                counts = np.arange(n + 1)
                far = np.abs(counts / n - share) >= gap
                assert stats.binom.pmf(counts[far], n, share).sum() <= 2 * np.exp(-2 * n * gap**2)
