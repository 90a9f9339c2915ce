"""Spectral risks: the numbers of the card, brute force over the permutahedron, SAGA in NumPy, the correction's mean."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from steepest.optim.optimizers import Prospect, SpectralRisk, esrm, extremile, spectral_risk_weights, superquantile

LOSSES = torch.tensor([1.0, 3.0, 2.0, 5.0], dtype=torch.float64)
SPECTRA = [superquantile(5, 0.5), extremile(5, 3.0), esrm(5, 2.0)]


def close(got, *wanted, tolerance=5e-7):
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=0.0, atol=tolerance)


@pytest.mark.holds("prospect", 1)
def test_spectra():
    close(superquantile(4, 0.5), 0.0, 0.0, 0.5, 0.5)
    close(extremile(4, 2), 0.0625, 0.1875, 0.3125, 0.4375)
    close(esrm(4, 1.0), 0.165296, 0.212244, 0.272527, 0.349932)
    close(superquantile(5, 0.5), 0.0, 0.0, 0.2, 0.4, 0.4)
    assert torch.equal(superquantile(3, 0.0), torch.full((3,), 1 / 3, dtype=torch.float64))
    for spectrum in (superquantile(7, 0.3), extremile(7, 1.5), esrm(7, 1e-6), esrm(7, 300.0)):
        assert float(spectrum.sum()) == pytest.approx(1.0)
        assert bool((spectrum.diff() >= -1e-15).all())


@pytest.mark.holds("prospect", 2)
def test_weights_of_the_card():
    q = spectral_risk_weights(LOSSES, extremile(4, 2), nu=1.0)
    close(q, 0.0625, 0.3125, 0.1875, 0.4375)
    assert float(SpectralRisk(extremile(4, 2), nu=1.0)(LOSSES)) == pytest.approx(3.40625)
    close(spectral_risk_weights(LOSSES, extremile(4, 2), nu=10.0), 0.20625, 0.25625, 0.23125, 0.30625)
    assert torch.equal(spectral_risk_weights(LOSSES, extremile(4, 2)), extremile(4, 2)[[0, 2, 1, 3]])


def subsets(n):
    return [list(chosen) for size in range(1, n) for chosen in combinations(range(n), size)]


@pytest.mark.holds("prospect", 3)
@pytest.mark.parametrize("divergence", ["chi2", "kl"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_weights_lie_in_the_permutahedron_and_approach_the_uniform_ones(spectrum, divergence):
    generator = torch.Generator().manual_seed(0)
    least = spectrum.cumsum(0)
    for nu in (0.0, 1e-3, 0.3, 3.0):
        losses = torch.randn(5, generator=generator, dtype=torch.float64)
        q = spectral_risk_weights(losses, spectrum, nu, divergence)
        assert float(q.sum()) == pytest.approx(1.0)
        assert all(q[chosen].sum() >= least[len(chosen) - 1] - 1e-12 for chosen in subsets(5))
    even = torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(spectral_risk_weights(losses, even, 0.5, divergence), even)
    torch.testing.assert_close(spectral_risk_weights(losses, spectrum, 1e12, divergence), even)


@pytest.mark.parametrize("divergence", ["chi2", "kl"])
@pytest.mark.parametrize("nu", [0.1, 1.0])
def test_brute_force_over_the_permutahedron(nu, divergence):
    rng, n = np.random.default_rng(3), 4
    for spectrum in (superquantile(4, 0.4), extremile(4, 2.5)):
        losses, least = rng.normal(size=n), spectrum.cumsum(0).numpy()

        def risk(q, losses=losses):
            away = n / 2 * ((q - 1 / n) ** 2).sum() if divergence == "chi2" else (q * np.log(n * q)).sum()
            return nu * away - q @ losses

        sides = [
            {"type": "ineq", "fun": lambda q, c=chosen, least=least: q[c].sum() - least[len(c) - 1]}
            for chosen in subsets(n)
        ]
        sides.append({"type": "eq", "fun": lambda q: q.sum() - 1})
        best = minimize(risk, np.full(n, 1 / n), bounds=[(1e-12, 1)] * n, constraints=sides, options={"ftol": 1e-15})
        values = torch.tensor(losses)
        got = spectral_risk_weights(values, spectrum, nu, divergence)
        np.testing.assert_allclose(got.numpy(), best.x, atol=1e-6)
        np.testing.assert_allclose(float(SpectralRisk(spectrum, nu, divergence)(values)), -best.fun, atol=1e-9)


def test_losses_far_apart_and_equal_ones():
    far = torch.tensor([-1e4, 1e4, 0.0, 0.0, 3.0], dtype=torch.float64)
    for divergence in ("chi2", "kl"):
        q = spectral_risk_weights(far, extremile(5, 2), 1e-2, divergence)
        order = far.argsort(stable=True)
        torch.testing.assert_close(q[order[[0, 3, 4]]], extremile(5, 2)[[0, 3, 4]])
        torch.testing.assert_close(q[2], q[3])
    assert spectral_risk_weights(far.half().float(), extremile(5, 2)).dtype == torch.float32


def test_the_gradient_of_the_risk_is_the_worst_weights():
    losses = LOSSES.clone().requires_grad_()
    risk = SpectralRisk(superquantile(4, 0.25), nu=2.0)
    (slope,) = torch.autograd.grad(risk(losses), losses)
    torch.testing.assert_close(slope, spectral_risk_weights(LOSSES, superquantile(4, 0.25), 2.0))
    torch.autograd.gradcheck(risk, losses)
    assert repr(risk).startswith("SpectralRisk(")


def table(n=12, d=3):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, d))
    return x, x @ rng.normal(size=d) + 0.3 * rng.normal(size=n)


def squared(w, x, y):
    return 0.5 * (x @ w - y) ** 2


@pytest.mark.holds("prospect", 4)
def test_a_uniform_spectrum_is_saga():
    x, y = table()
    order = np.random.default_rng(2).integers(len(x), size=60)
    method = Prospect(squared, (torch.tensor(x), torch.tensor(y)), superquantile(12, 0.0), nu=1.0, mu=0.1, lr=0.05)
    w = np.zeros(3)
    gradients = (x @ w - y)[:, None] * x
    for i in order:
        method.step(int(i))
        fresh = (x[i] @ w - y[i]) * x[i]
        w = (w - 0.05 * (fresh - gradients[i] + gradients.mean(0))) / (1 + 0.05 * 0.1)
        gradients[i] = fresh
    np.testing.assert_allclose(method.w.numpy(), w, rtol=1e-10)


@pytest.mark.holds("prospect", 5)
@pytest.mark.parametrize("divergence", ["chi2", "kl"])
def test_the_mean_direction_has_the_worst_weights_for_any_table(divergence):
    x, y = (torch.tensor(value) for value in table())
    generator = torch.Generator().manual_seed(0)
    method = Prospect(
        squared, (x, y), extremile(12, 2), nu=0.5, lr=0.1, divergence=divergence, generator=generator
    )  # fmt: skip
    method.run(17)
    mean = torch.stack([method.direction(i) for i in range(12)]).mean(0)
    torch.testing.assert_close(mean, (method.q * (x @ method.w - y)) @ x)
    torch.testing.assert_close(method.mean_gradient, method.table_weights @ method.gradients)
    assert not torch.allclose(method.table_weights, method.q)


def test_it_comes_to_the_minimum():
    x, y = (torch.tensor(value) for value in table())
    seeded = torch.Generator().manual_seed(0)
    method = Prospect(squared, (x, y), superquantile(12, 0.5), 1.0, 0.5, 0.02, generator=seeded)
    w = method.run(2500)
    q = method.q
    torch.testing.assert_close((q * (x @ w - y)) @ x + 0.5 * w, torch.zeros(3).double(), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(method.losses, 0.5 * (x @ w - y) ** 2)


def test_a_formula_does_what_autograd_does_and_the_seed_fixes_the_order():
    x, y = (torch.tensor(value) for value in table())

    def formula(w, x, y):
        residual = x @ w - y
        return 0.5 * residual**2, residual * x

    ends = []
    for given in (None, formula):
        generator = torch.Generator().manual_seed(4)
        method = Prospect(
            squared, (x, y), esrm(12), nu=1.0, lr=0.05, start=torch.ones(3), value_and_gradient=given,
            generator=generator,
        )  # fmt: skip
        ends.append(method.run(20))
    torch.testing.assert_close(*ends)
    assert float(method.objective()) < float(Prospect(squared, (x, y), esrm(12), start=torch.ones(3)).objective())


def test_what_it_refuses():
    x, y = (torch.tensor(value) for value in table())
    with pytest.raises(ValueError, match="sigma: expected shape"):
        spectral_risk_weights(LOSSES, superquantile(5))
    for wrong in (torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.full((4,), 0.3), torch.tensor([-0.1, 0.1, 0.4, 0.6])):
        with pytest.raises(ValueError, match="sigma: expected values >= 0 in rising order of sum 1"):
            spectral_risk_weights(LOSSES, wrong)
    with pytest.raises(ValueError, match="losses: expected finite values"):
        spectral_risk_weights(LOSSES * math.inf, superquantile(4))
    with pytest.raises(ValueError, match="nu: expected a number >= 0"):
        SpectralRisk(superquantile(4), nu=-1.0)
    with pytest.raises(ValueError, match="divergence: expected one of"):
        SpectralRisk(superquantile(4), divergence="tv")
    with pytest.raises(ValueError, match="a: expected a number >= 0 and < 1"):
        superquantile(4, 1.0)
    with pytest.raises(ValueError, match="data: expected tensors of as many rows"):
        Prospect(squared, (x, y[:3]), superquantile(12))
    with pytest.raises(ValueError, match="start: expected weights"):
        Prospect(squared, (y, y), superquantile(12))
    with pytest.raises(ValueError, match="lr: expected a number > 0"):
        Prospect(squared, (x, y), superquantile(12), lr=0.0)
    with pytest.raises(ValueError, match="i: expected an integer >= 0 and <= 11"):
        Prospect(squared, (x, y), superquantile(12)).step(12)
