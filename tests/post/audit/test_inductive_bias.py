"""Probabilities of non-central chi-squares at any depth, their fit, and hypotheses that go through training labels."""

from __future__ import annotations

import copy
import itertools
import math
import sys

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import ncx2, norm
from torch import nn

from steepest.post.audit import (
    InductiveBias,
    fit_loss_distribution,
    gp_hypotheses,
    gp_posterior,
    inductive_bias,
    isotropic_loss_distribution,
    trained_hypotheses,
)
from steepest.post.audit.inductive_bias import _log_density, _sankaran

module = sys.modules["steepest.post.audit.inductive_bias"]
ONE, NONE = torch.ones(1, 1), torch.zeros(1, 1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.holds("inductive-bias", 1)
def test_the_numbers_of_the_card():
    assert inductive_bias((4.0, 0.0, 1.0), 0.5) == pytest.approx(3.630647, abs=5e-7)
    assert inductive_bias((4.0, 0.0, 1.0), 0.5, unit="bits") == pytest.approx(5.237917, abs=5e-7)
    assert inductive_bias((4.0, 2.0, 1.0), 0.5) == pytest.approx(4.549872, abs=5e-7)
    assert inductive_bias((4.0, 2.0, 0.1), 0.05) == pytest.approx(4.549872, abs=5e-7)


@pytest.mark.holds("inductive-bias", 2)
def test_outputs_with_one_variance():
    distribution = isotropic_loss_distribution(0.04, torch.tensor([0.3, -0.4]))
    assert distribution == pytest.approx((2, 6.25, 0.02))
    assert inductive_bias(distribution, 0.01) == pytest.approx(4.279332, abs=5e-7)
    errors = (0.2 * normal(100_000, 2) + torch.tensor([0.3, -0.4])).square().mean(1)
    share = float((errors <= 0.1).double().mean())
    assert math.exp(-inductive_bias(distribution, 0.1)) == pytest.approx(share, rel=0.02), "4 deviations of the share"


@pytest.mark.holds("inductive-bias", 3)
def test_a_process_through_one_point():
    mean, covariance = gp_posterior(NONE, torch.ones(1), ONE, jitter=0.0)
    assert float(mean) == pytest.approx(math.exp(-0.5), rel=1e-12)
    assert float(covariance) == pytest.approx(1 - math.exp(-1), rel=1e-12)
    exact = isotropic_loss_distribution(float(covariance), mean - 1)
    assert inductive_bias(exact, 0.01) == pytest.approx(2.423488, abs=5e-7)
    drawn = gp_hypotheses(NONE, torch.ones(1), ONE, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (10_000, 1)
    errors = (drawn[:3000] - 1).square().mean(1)
    sampled = inductive_bias(errors, 0.01)
    assert sampled == pytest.approx(2.423488, rel=0.05)
    assert sampled.least_error == float(errors.min())
    assert not sampled.extrapolated


@pytest.mark.holds("inductive-bias", 4)
@pytest.mark.parametrize(
    "parameters",
    [(4.0, 0.0, 1.0), (0.5, 3.0, 2.0), (1.0, 900.0, 0.01), (13000.0, 400.0, 1e-4), (2e6, 1e5, 1e-6), (1e3, 5e6, 1.0)],
)
def test_less_error_takes_more_information(parameters):
    df, nc, scale = parameters
    mean = scale * (df + nc)
    eps = [mean * 10 ** (k / 8) for k in range(-80, 20)]
    values = [inductive_bias(parameters, e) for e in eps]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values)), "sums of a hundred terms are rounded"
    assert min(values) >= 0
    assert values[-1] < 1e-9
    assert values[0] > (df / 2) * 20
    assert inductive_bias(parameters, 0.0) == math.inf
    assert inductive_bias(parameters, math.inf) == 0


@pytest.mark.holds("inductive-bias", 5)
@pytest.mark.parametrize(("df", "nc", "scale"), [(1.0, 0.5, 0.1), (6.0, 30.0, 1.0), (2e4, 5e3, 5e-5)])
def test_a_fit_finds_the_probability_again(df, nc, scale):
    draws = torch.as_tensor(ncx2.rvs(df, nc, scale=scale, size=10_000, random_state=3))
    eps = ncx2.ppf(0.01, df, nc, scale=scale)
    assert inductive_bias(draws, eps) == pytest.approx(-math.log(0.01), rel=0.05)


def test_a_fit_is_the_likeliest_by_scipy():
    draws = ncx2.rvs(5.0, 3.0, scale=0.2, size=400, random_state=1)
    fitted = fit_loss_distribution(torch.as_tensor(draws))

    def likelihood(df, nc, scale):
        return ncx2.logpdf(draws, df, nc, scale=scale).sum()

    best = likelihood(*fitted)
    assert best >= likelihood(5.0, 3.0, 0.2)
    for k in range(3):
        for factor in (0.8, 0.97, 1.03, 1.25):
            moved = [value * (factor if k == j else 1.0) for j, value in enumerate(fitted)]
            assert best > likelihood(*moved)
    df, nc, _, scale = ncx2.fit(draws, floc=0)
    assert best >= likelihood(df, nc, scale) - 1e-3


def test_a_fit_goes_with_the_unit():
    draws = torch.as_tensor(ncx2.rvs(9.0, 3.0, size=500, random_state=2))
    df, nc, scale = fit_loss_distribution(draws)
    large = fit_loss_distribution(1e5 * draws)
    assert large == pytest.approx((df, nc, 1e5 * scale), rel=1e-3)
    assert inductive_bias(draws.float(), 4.0) == pytest.approx(inductive_bias(draws, 4.0), rel=1e-4)


@pytest.mark.parametrize("df", [0.3, 2.0, 5.5, 60.0, 3000.0])
@pytest.mark.parametrize("nc", [0.01, 2.0, 700.0])
def test_densities_are_those_of_scipy(df, nc):
    x = (df + nc) * np.array([0.5, 0.9, 1.0, 1.3, 2.0])
    wanted = ncx2.logpdf(x, df, nc)
    usable = np.isfinite(wanted)  # scipy's Bessel functions underflow at high orders
    assert usable.any() or df == 3000.0
    np.testing.assert_allclose(_log_density(x, df, nc)[usable], wanted[usable], rtol=1e-9, atol=1e-6)


def by_mpmath(x, df, nc):
    """The logarithm of the mixture of regularised gamma functions, to 30 digits."""
    with mpmath.workdps(30):
        weight, total, j = mpmath.exp(-mpmath.mpf(nc) / 2), mpmath.mpf(0), 0
        while True:
            term = weight * mpmath.gammainc(mpmath.mpf(df) / 2 + j, 0, mpmath.mpf(x) / 2, regularized=True)
            total += term
            j += 1
            weight *= mpmath.mpf(nc) / 2 / j
            if term < total * mpmath.mpf(10) ** -20 and (j > nc / 2 or term < total * mpmath.mpf(10) ** -25):
                return float(mpmath.log(total))


@pytest.mark.parametrize(
    ("x", "df", "nc"),
    [(0.3, 4.0, 0.01),
     (3.0, 5.0, 2.0), (40.0, 7.0, 20.0), (1e-200, 4.0, 3.0), (1e-5, 0.4, 80.0), (20.0, 500.0, 60.0), (3.0, 2.0, 4000.0),
     (1300.0, 900.0, 400.0), (1e-3, 2000.0, 0.0)],
)  # fmt: skip
def test_probabilities_at_any_depth(x, df, nc):
    assert -inductive_bias((df, nc, 1.0), x) == pytest.approx(by_mpmath(x, df, nc), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_approximations_of_large_sums(share, monkeypatch):
    total = 60_000.0
    df, nc = total * (1 - share), total * share
    spread = math.sqrt(2 * (df + 2 * nc))
    near, far = [total + k * spread for k in (-6, -3, 0, 2)], [0.05 * total, 0.5 * total]
    exact = [inductive_bias((df, nc, 1.0), x) for x in near + far]
    monkeypatch.setattr(module, "SUMMED", 0.0)
    approximate = [inductive_bias((df, nc, 1.0), x) for x in near + far]
    assert approximate[:4] == pytest.approx(exact[:4], rel=2e-3)
    assert approximate[4:] == pytest.approx(exact[4:], rel=2e-3)


@pytest.mark.parametrize(("x", "df", "nc"), [(3.0, 5.0, 2.0), (0.2, 1.5, 0.5), (30.0, 4.0, 20.0), (1.0, 2.0, 0.0)])
def test_sankarans_variable_by_hand(x, df, nc):
    """Small numbers, of which the terms of higher order take a part."""
    h = 1 - 2 / 3 * (df + nc) * (df + 3 * nc) / (df + 2 * nc) ** 2
    p, m = (df + 2 * nc) / (df + nc) ** 2, (h - 1) * (1 - 3 * h)
    mean = 1 + h * p * (h - 1 - 0.5 * (2 - h) * m * p)
    z = ((x / (df + nc)) ** h - mean) / (h * math.sqrt(2 * p) * (1 + 0.5 * m * p))
    assert _sankaran(x, df, nc) == pytest.approx(norm.logcdf(z), rel=1e-12)
    assert _sankaran(x, df, nc) == pytest.approx(ncx2.logcdf(x, df, nc), abs=0.1)


def test_what_a_bias_knows():
    errors = torch.tensor([0.3, 0.4, 0.5, 0.35]).double()
    far, near = inductive_bias(errors, 0.1), inductive_bias(errors, 0.31)
    assert (far.extrapolated, near.extrapolated) == (True, False)
    assert far.least_error == pytest.approx(0.3, rel=1e-6)
    assert far.eps == 0.1
    assert not inductive_bias(errors, float(errors.min())).extrapolated
    assert isinstance(far - near, float)
    given = inductive_bias((4.0, 0.0, 1.0), 0.5)
    assert not given.extrapolated
    assert math.isnan(given.least_error)
    copied = copy.deepcopy(far)
    assert (copied, copied.eps, copied.least_error) == (far, far.eps, far.least_error)
    assert isinstance(copied, InductiveBias)


def test_a_process_by_inverse_matrices():
    x, y, xt = normal(12, 3).numpy(), normal(12, 2, seed=1).numpy(), normal(5, 3, seed=2).numpy()

    def rbf(a, b):
        return np.array([[math.exp(-((p - q) ** 2).sum() / 2) for q in b] for p in a])

    inverse, across = np.linalg.inv(rbf(x, x) + 1e-3 * np.eye(12)), rbf(x, xt)
    mean, covariance = across.T @ inverse @ y, rbf(xt, xt) - across.T @ inverse @ across
    tensors = [torch.as_tensor(value) for value in (x, y, xt)]
    got = gp_posterior(*tensors, jitter=1e-3)
    np.testing.assert_allclose(got[0], mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got[1], covariance, rtol=1e-9, atol=1e-12)
    wide = gp_posterior(*tensors, lambda a, b: torch.exp(-torch.cdist(a, b).square() / 8), jitter=1e-3)
    half = gp_posterior(tensors[0] / 2, tensors[1], tensors[2] / 2, jitter=1e-3)
    torch.testing.assert_close(wide, half)
    drawn = gp_hypotheses(*tensors, n=10_000, jitter=1e-3, generator=torch.Generator().manual_seed(5))
    assert drawn.shape == (10_000, 5, 2)
    error = 5 / math.sqrt(10_000)  # five deviations, of numbers of variance at most 1
    np.testing.assert_allclose(drawn.mean(0), mean, atol=error)
    for output in range(2):
        np.testing.assert_allclose(np.cov(drawn[..., output].T), covariance, atol=1.5 * error)
    assert abs(np.corrcoef(drawn[:, 0, 0], drawn[:, 0, 1])[0, 1]) < error, "outputs are independent"


def test_hypotheses_fit_the_labels():
    x, y = normal(30, 4).float(), nn.functional.one_hot(torch.arange(30) % 3, 3).float()
    drawn = gp_hypotheses(x, y, x, n=50, generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float64
    assert float((drawn - y).abs().max()) < 0.01
    assert float((drawn - y).abs().max()) > 0
    again = gp_hypotheses(x, y, x, n=50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def network():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize(("classes", "alone"), [(True, False), (False, False), (True, True)])
def test_networks_are_trained_by_adam(classes, alone):
    x, y = normal(20, 3).float(), normal(20, 2, seed=1).float()
    labels = y.argmax(1) if classes else y
    target = nn.functional.one_hot(labels, 2).float() if classes else y
    xt = normal(6, 3, seed=2).float()

    def make():
        return nn.Sequential(*network(), nn.Dropout(0.0)) if alone else network()

    state = torch.get_rng_state()
    got = trained_hypotheses(make, (x, labels), 3, xt, epochs=15, lr=0.01, batch_size=100, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    for outputs, word in zip(got, np.random.SeedSequence(7).generate_state(6, np.uint32)):
        torch.manual_seed(int(word))
        model = network()
        parameters = list(model.parameters())
        first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        for step in range(1, 16):  # one batch of all rows an epoch
            slopes = torch.autograd.grad((model(x) - target).square().mean(), parameters)
            for p, g, m, v in zip(parameters, slopes, first, second):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                p.data -= 0.01 * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(outputs, model(xt).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("alone", [True, False])
def test_each_network_has_an_order_of_its_own(alone):
    def make():
        layers = [nn.Linear(3, 1), *([nn.Dropout(0.0)] if alone else [])]
        model = nn.Sequential(*layers)
        nn.init.zeros_(model[0].weight)
        nn.init.zeros_(model[0].bias)
        return model

    x = normal(20, 3).float()
    train = x, x.sum(1, keepdim=True)
    small = trained_hypotheses(make, train, 2, x, epochs=1, batch_size=5)
    assert float((small[0] - small[1]).abs().max()) > 1e-5
    assert torch.equal(small, trained_hypotheses(make, train, 2, x, epochs=1, batch_size=5))
    assert not torch.equal(small, trained_hypotheses(make, train, 2, x, epochs=1, batch_size=5, seed=1))
    assert not torch.equal(small, trained_hypotheses(make, train, 2, x, epochs=2, batch_size=5))


def test_dropout_is_off_in_outputs():
    def make():
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    x = normal(1, 3).float().expand(8, 3)
    outputs = trained_hypotheses(make, (x, x[:, :1]), 2, x, epochs=1)
    assert float((outputs - outputs[:, :1]).abs().max()) < 1e-6


def test_what_it_refuses():
    refused = {"df": [(0.0, 1.0, 1.0), (math.inf, 1.0, 1.0)], "nc": [(1.0, -1.0, 1.0), (1.0, math.nan, 1.0)],
               "scale": [(1.0, 1.0, 0.0)], "errors": [(1.0, 1.0), [[1.0, 2.0, 3.0]]]}  # fmt: skip
    for wrong, text in ((value, text) for text, values in refused.items() for value in values):
        with pytest.raises(ValueError, match=f"^{text}: expected"):
            inductive_bias(wrong, 0.5)
    with pytest.raises(ValueError, match="eps: expected a number >= 0"):
        inductive_bias((1.0, 1.0, 1.0), -0.1)
    with pytest.raises(ValueError, match="unit: expected one of 'nats', 'bits'"):
        inductive_bias((1.0, 1.0, 1.0), 0.1, unit="bit")
    for errors in ([1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, math.inf], [1.0, 2.0, math.nan], [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match=r"^errors: expected"):
            fit_loss_distribution(torch.tensor(errors))
    with pytest.raises(ValueError, match="errors: expected 1 dimensions"):
        fit_loss_distribution(torch.ones(3, 3))
    with pytest.raises(ValueError, match="variance: expected a number > 0"):
        isotropic_loss_distribution(0.0, torch.ones(2))
    with pytest.raises(ValueError, match="bias: expected at least one"):
        isotropic_loss_distribution(1.0, torch.ones(0))
    x, y = torch.ones(3, 2), torch.ones(3)
    with pytest.raises(ValueError, match="kernel: expected a positive definite"):
        gp_posterior(x, y, x, jitter=0.0)
    with pytest.raises(ValueError, match="kernel: expected values of shape"):
        gp_posterior(x, y, x, lambda a, b: torch.ones(2, 2))
    with pytest.raises(ValueError, match="jitter: expected a number >= 0"):
        gp_posterior(x, y, x, jitter=-1.0)
    with pytest.raises(ValueError, match="y: expected 3 rows"):
        gp_posterior(x, y[:2], x)
    with pytest.raises(ValueError, match=r"xt: expected shape \(\*, 2\)"):
        gp_posterior(x, y, x[:, :1])
    with pytest.raises(ValueError, match="n: expected an integer >= 1"):
        gp_hypotheses(x, y, x, n=0)
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="make_model: expected a new module"):
        trained_hypotheses(lambda: model, (x, y[:, None]), 2, x)
    with pytest.raises(ValueError, match="train: expected inputs and targets of one length"):
        trained_hypotheses(lambda: nn.Linear(2, 1), (x, y[:2]), 2, x)
    for name, wrong in (("n", 0), ("epochs", 0), ("lr", 0.0), ("batch_size", 0), ("seed", -1)):
        options = {"n": 2, name: wrong}
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            trained_hypotheses(lambda: nn.Linear(2, 1), (x, y[:, None]), xt=x, **options)
