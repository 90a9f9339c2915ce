"""The rates and bounds that come with the textbook learners."""

import numpy as np
import pytest
from scipy import stats
from sklearn.mixture import GaussianMixture

from steepest.comparison.baselines import AdaBoostBaseline


@pytest.mark.holds("introduction-to-ml", 3)
@pytest.mark.parametrize("curvatures", [(1.0, 0.1, 0.01), (4.0, 0.0, 1e-4), (2.0, 2.0, 2.0)])
def test_gradient_descent_keeps_the_bound_at_every_step(curvatures):
    """f(x) = sum h_i x_i^2 / 2 with step 1/L; each coordinate is known in closed form, (1 - h_i/L)^t."""
    h = np.array(curvatures)
    start, smooth, strong = np.array([3.0, -2.0, 5.0]), h.max(), h.min()
    x = start.copy()
    for t in range(1, 300):
        x = x - h * x / smooth
        assert x == pytest.approx((1 - h / smooth) ** t * start, abs=1e-12)
        assert (h * x**2).sum() / 2 <= smooth * (start**2).sum() / (2 * t)
        assert np.linalg.norm(x) <= (1 - strong / smooth) ** t * np.linalg.norm(start) + 1e-12


@pytest.mark.holds("introduction-to-ml", 3)
def test_likelihood_never_falls_under_em():
    generator = np.random.default_rng(0)
    X = np.concatenate([generator.normal(centre, 1, size=(60, 2)) for centre in (-2, 0, 3)])
    model = GaussianMixture(3, init_params="random", random_state=0, max_iter=1, warm_start=True, reg_covar=0, tol=0)
    likelihoods = []
    for _ in range(40):
        with pytest.warns(UserWarning, match="converge"):
            model.fit(X)
        parts = zip(model.weights_, model.means_, model.covariances_)
        density = sum(weight * stats.multivariate_normal.pdf(X, mean, cov) for weight, mean, cov in parts)
        likelihoods.append(np.log(density).sum())
    assert min(np.diff(likelihoods)) >= -1e-9
    assert likelihoods[-1] > likelihoods[0] + 3


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
