"""When steps of SGD around a minimum grow: coherence, bounds and radius against dense matrices, loops and runs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import eigh, sqrtm
from scipy.optimize import brentq

from steepest.watch.curvature import (
    critical_rate,
    hessian_coherence,
    linearized_sgd_radius,
    sgd_stability_bounds,
    simulate_linear_sgd,
)

CARD = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]]).double()


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def products(factors):
    """H_i = F_i' F_i."""
    return factors.mT @ factors


def dense_map(hessians, lr, batch):
    """The map of second moments as a matrix, by a sum over all batches that can be drawn."""
    n, d = len(hessians), hessians.shape[1]
    total = np.zeros((d * d, d * d))
    for members in itertools.product((0, 1), repeat=n):
        chance = np.prod([batch / n if own else 1 - batch / n for own in members])
        step = np.eye(d) - lr / batch * sum(own * h for own, h in zip(members, hessians.numpy()))
        total += chance * np.kron(step, step)
    return total


def exact_radius(hessians, lr, batch):
    return max(abs(np.linalg.eigvals(dense_map(hessians, lr, batch))))


def rate_by_search(hessians, batch, high):
    return brentq(lambda lr: exact_radius(hessians, lr, batch) - 1, 0.05, high, xtol=1e-12)


@pytest.mark.holds("sgd-stability", 1)
def test_equal_and_orthogonal_hessians():
    v = drawn(1, 5)
    for n in (1, 3, 8):
        for hessians, factors in ((products(v[:, None]).expand(n, 5, 5), False), (v.expand(n, 5), True)):
            sigma, overlaps = hessian_coherence(hessians, factors=factors)
            assert float(sigma) == pytest.approx(n, rel=1e-12)
            torch.testing.assert_close(overlaps, (v @ v.T).expand(n, n))
    basis = torch.linalg.qr(drawn(6, 6))[0]
    for hessians, factors in ((products(2 * basis[:, None]), False), (2 * basis, True)):
        sigma, overlaps = hessian_coherence(hessians, factors=factors)
        assert float(sigma) == pytest.approx(1.0, rel=1e-6)
        torch.testing.assert_close(overlaps, 4 * torch.eye(6).double(), atol=1e-6, rtol=0)


@pytest.mark.holds("sgd-stability", 2)
def test_critical_rates_of_equal_and_of_orthogonal_hessians():
    equal, orthogonal = torch.zeros(4, 4, 4).double(), torch.zeros(4, 4, 4).double()
    equal[:, 0, 0] = 1.0
    orthogonal[range(4), range(4), range(4)] = 1.0
    assert critical_rate(equal, 1) == pytest.approx(8 / 7, rel=1e-12)
    assert sgd_stability_bounds(equal, 1.0, 1).optimal == pytest.approx(8 / 7, rel=1e-12)
    assert critical_rate(orthogonal, 1) == pytest.approx(2.0, rel=1e-12)
    for hessians, rate in ((equal, 8 / 7), (orthogonal, 2.0)):
        assert linearized_sgd_radius(hessians, rate, 1) == pytest.approx(1.0, abs=1e-12)
        assert linearized_sgd_radius(hessians, 1.01 * rate, 1) > 1.005
        assert linearized_sgd_radius(hessians, 0.99 * rate, 1) < 0.995
    for hessians in (equal, orthogonal):  # of the whole space, directions without curvature included
        for rate in (0.7, 2.5):
            own = linearized_sgd_radius(hessians, rate, 1)
            assert exact_radius(hessians, rate, 1) == pytest.approx(max(own, 1.0 if hessians is equal else 0.0))


@pytest.mark.holds("sgd-stability", 3)
def test_card_values():
    sigma, overlaps = hessian_coherence(CARD)
    root = math.sqrt(2)
    torch.testing.assert_close(overlaps, torch.tensor([[2, root, 1], [root, root, 1], [1, 1, 1]]).double())
    assert float(sigma) == pytest.approx(1.923880, abs=1e-6)
    assert critical_rate(CARD, 1) == pytest.approx(0.915464, abs=1e-6)
    assert linearized_sgd_radius(CARD, 0.915464, 1) == pytest.approx(1.0, abs=2e-6)
    assert critical_rate(CARD, 1) == pytest.approx(rate_by_search(CARD, 1, 1.5), rel=1e-9)
    bounds = sgd_stability_bounds(CARD, 1.0, 1)
    rates = bounds.gd / bounds.sharpness, bounds.noise / bounds.sharpness, bounds.per_example / bounds.largest
    assert rates == pytest.approx((1.658359, 1.128006, 1.060660), abs=1e-6)
    assert all(critical_rate(CARD, 1) < rate for rate in rates)
    for rate, unstable in ((1.05, None), (1.07, True), (2.0, True)):
        assert sgd_stability_bounds(CARD, rate, 1).unstable is unstable


@pytest.mark.holds("sgd-stability", 4)
def test_a_batch_of_all_samples_scale_and_rotation():
    hessians = products(drawn(5, 2, 4))
    sharpness = float(np.linalg.eigvalsh(hessians.mean(0).numpy())[-1])
    bounds = sgd_stability_bounds(hessians, 0.3, 5)
    assert bounds[:4] == (pytest.approx(2 / 0.3), math.inf, math.inf, pytest.approx(2 / 0.3))
    assert bounds.sharpness == pytest.approx(sharpness)
    assert critical_rate(hessians, 5) == pytest.approx(2 / sharpness, rel=1e-9)
    for share, unstable in ((0.99, False), (1.01, True)):
        rate = share * 2 / sharpness
        assert sgd_stability_bounds(hessians, rate, 5).unstable is unstable
        assert (linearized_sgd_radius(hessians, rate, 5) > 1) is unstable
    rotation = torch.linalg.qr(drawn(4, 4, seed=1))[0]
    sigma = float(hessian_coherence(hessians)[0])
    for changed in (1e-9 * hessians, 1e9 * hessians, rotation.T @ hessians @ rotation):
        assert float(hessian_coherence(changed)[0]) == pytest.approx(sigma, rel=1e-10)
        assert critical_rate(changed, 2) * sgd_stability_bounds(changed, 1.0, 2).sharpness == pytest.approx(
            critical_rate(hessians, 2) * sharpness, rel=1e-8
        )


@pytest.mark.holds("sgd-stability", 5)
def test_a_negative_eigenvalue_is_refused():
    for function in (
        hessian_coherence,
        lambda h: sgd_stability_bounds(h, 0.1, 1),
        lambda h: linearized_sgd_radius(h, 0.1, 1),
        lambda h: critical_rate(h, 1),
        lambda h: simulate_linear_sgd(h, 0.1, 1, steps=1, runs=1),
    ):
        for scale in (1e-12, 1.0, 1e12):
            negative = CARD.clone()
            negative[0, 1, 1] = -4e-8  # of an eigenvalue of 2
            with pytest.raises(ValueError, match="hessians: expected eigenvalues >= 0"):
                function(scale * negative)
            negative[0, 1, 1] = -1e-8
            function(scale * negative)
    rounded = products(drawn(6, 2, 8)).float()  # eigenvalues of 0 that rounding makes negative
    hessian_coherence(rounded)


def test_overlaps_are_norms_of_products_of_roots():
    hessians = products(drawn(4, 2, 3, seed=2))
    sigma, overlaps = hessian_coherence(hessians)
    roots = [sqrtm(h.numpy()).real for h in hessians]
    loop = np.array([[np.linalg.norm(a @ b) for b in roots] for a in roots])
    np.testing.assert_allclose(overlaps.numpy(), loop, atol=1e-7)
    largest = max(np.linalg.eigvalsh(h.numpy())[-1] for h in hessians)
    assert float(sigma) == pytest.approx(np.linalg.eigvalsh(loop)[-1] / largest, rel=1e-7)


@pytest.mark.parametrize("batch", [1, 2.5, 4])
@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 2, 3), (4, 3, 2)])
def test_the_radius_is_that_of_all_batches(shape, batch):
    factors = drawn(*shape, seed=3)
    hessians = products(factors)
    for rate in (0.1, 0.4, 1.5):
        wanted = exact_radius(hessians, rate, batch)
        assert linearized_sgd_radius(hessians, rate, batch) == pytest.approx(wanted, rel=1e-9)
        assert linearized_sgd_radius(factors, rate, batch, factors=True) == pytest.approx(wanted, rel=1e-9)
    h, n = hessians.numpy(), len(hessians)
    identity, mean = np.eye(shape[2]), h.mean(0)
    a = np.kron(mean, identity) + np.kron(identity, mean)
    c = np.kron(mean, mean) + (1 - batch / n) / (n * batch) * sum(np.kron(own, own) for own in h)
    wanted = 1 / eigh(c, a, eigvals_only=True)[-1]
    assert critical_rate(hessians, batch) == pytest.approx(wanted, rel=1e-9)
    assert critical_rate(factors, batch, factors=True) == pytest.approx(wanted, rel=1e-9)
    assert exact_radius(hessians, wanted, batch) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("shape", [(6, 1, 40), (6, 4, 7), (3, 2, 6)])
def test_factors_say_what_their_matrices_say(shape):
    """More parameters than rows, fewer, and as many."""
    factors = drawn(*shape, seed=4)
    hessians = products(factors)
    (sigma, overlaps), (dense_sigma, dense_overlaps) = (
        hessian_coherence(factors, factors=True),
        hessian_coherence(hessians),
    )
    torch.testing.assert_close(overlaps, dense_overlaps)
    torch.testing.assert_close(sigma, dense_sigma)
    bounds, dense = (sgd_stability_bounds(x, 0.1, 2, factors=x is factors) for x in (factors, hessians))
    assert bounds[:7] == pytest.approx(dense[:7], rel=1e-9)
    for rate in (0.01, 1.0):
        own, wanted = (linearized_sgd_radius(x, rate, 2, factors=x is factors) for x in (factors, hessians))
        assert own == pytest.approx(wanted, rel=1e-8)
    rates = [critical_rate(x, 2, factors=x is factors) for x in (factors, hessians)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-8)


def test_bounds_hold_for_random_hessians():
    """Each sufficient bound lies above the exact rate, and the sharper one below the other."""
    for seed in range(12):
        n, k, d = 3 + seed % 4, 1 + seed % 3, 2 + seed % 5
        factors = drawn(n, k, d, seed=seed) * drawn(n, 1, 1, seed=seed + 50).exp()
        for batch in (0.5, 1, n - 1):
            bounds = sgd_stability_bounds(factors, 1.0, batch, factors=True)
            exact = critical_rate(factors, batch, factors=True)
            assert exact <= bounds.per_example / bounds.largest * (1 + 1e-9)
            assert bounds.per_example / bounds.largest <= bounds.noise / bounds.sharpness * (1 + 1e-9)
            assert exact <= bounds.gd / bounds.sharpness * (1 + 1e-9)
            root = math.sqrt(n / batch - 1)
            assert bounds[:4] == pytest.approx(
                (2.0, bounds.sigma / root, n / root, 2 * bounds.sigma / (bounds.sigma + n / batch - 1))
            )
            half = sgd_stability_bounds(factors, 0.5, batch, factors=True)
            assert half[:4] == pytest.approx([2 * value for value in bounds[:4]])


def test_unstable_by_one_bound_alone():
    """Equal Hessians by their mean, an outlier among many by itself."""
    equal = torch.full((4, 1), 2.0).double()  # sharpness and largest 4
    outlier = torch.cat([torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]]).expand(9, 2)]).double()
    for factors, batch, rate in ((equal, 3, 0.5), (outlier, 1, 10 / 9 / 3)):
        above, below = (sgd_stability_bounds(factors, s * rate, batch, factors=True) for s in (1.001, 0.999))
        assert (above.unstable, below.unstable) == (True, None)
        assert (above.sharpness > above.gd) is (factors is equal)
        assert (above.largest > above.per_example) is (factors is outlier)
        assert linearized_sgd_radius(factors, 1.001 * rate, batch, factors=True) > 1


@pytest.mark.parametrize("factors", [False, True])
def test_runs_have_the_second_moment_of_the_map(factors):
    rows = drawn(4, 2, 3, seed=5)
    hessians = products(rows)
    rate, batch, runs = 0.3, 1.5, 20_000
    distance = simulate_linear_sgd(
        rows if factors else hessians, rate, batch, steps=3, runs=runs, factors=factors,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert distance.shape == (4, runs)
    assert (distance[0] == 0).all()
    moment = np.eye(3).reshape(-1) / 3
    for squares in (2 * distance[1:]).exp():
        moment = dense_map(hessians, rate, batch) @ moment
        error = float(squares.std()) / math.sqrt(runs)
        assert abs(float(squares.mean()) - np.trace(moment.reshape(3, 3))) < 4.5 * error


def test_a_sample_is_drawn_with_all_of_its_factors():
    rows = drawn(4, 2, 3, seed=5)
    by_factors, by_matrices = (
        simulate_linear_sgd(
            x, 0.3, 1.5, steps=5, runs=50, factors=x is rows, generator=torch.Generator().manual_seed(0)
        )
        for x in (rows, products(rows))
    )
    torch.testing.assert_close(by_factors, by_matrices)


@pytest.mark.parametrize("steps", [1, 6])
def test_populations_have_the_second_moment_too(steps):
    """Against the map, over many populations of few runs, whose means of squares are unbiased."""
    rows, rate, batch, size, populations = drawn(4, 3, seed=6), 0.4, 1.0, 8, 3000
    distance = simulate_linear_sgd(
        rows, rate, batch, steps=steps, runs=size * populations, resample=size, factors=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    moment = np.eye(3).reshape(-1) / 3
    for _ in range(steps):
        moment = dense_map(products(rows[:, None]), rate, batch) @ moment
    means = (2 * distance[-1]).exp().view(populations, size).mean(1)
    error = float(means.std()) / math.sqrt(populations)
    assert abs(float(means.mean()) - np.trace(moment.reshape(3, 3))) < 4.5 * error


def test_populations_see_a_growth_that_single_runs_miss():
    """Ones, batches of 10 of 100, 10% beyond the exact rate: by closed form the mean square grows 1.4 times a step."""
    ones, steps = torch.ones(100, 1, dtype=torch.float64), 600
    rate = 1.1 * critical_rate(ones, 10, factors=True)
    factor = (1 - rate) ** 2 + 0.09 * rate**2
    assert factor == pytest.approx(linearized_sgd_radius(ones, rate, 10, factors=True))
    for resample, grows in ((1, False), (64, True)):
        distance = simulate_linear_sgd(
            ones, rate, 10, steps=steps, runs=64, resample=resample, factors=True,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        growth = float((2 * distance[-1]).logsumexp(0) - math.log(64)) / steps
        assert (growth > 0) is grows
    assert growth == pytest.approx(math.log(factor), abs=4 * math.sqrt(2 / 64 / steps))
    gone = simulate_linear_sgd(torch.ones(4, 1), 1.0, 4, steps=3, runs=4, resample=2, factors=True)
    assert (gone[1:] == -math.inf).all()


def test_each_run_has_its_rate_and_batch():
    rates, sizes = torch.tensor([0.1, 0.5, 2.5]), torch.tensor([4.0, 4.0, 4.0])
    distance = simulate_linear_sgd(torch.ones(4, 1), rates, sizes, steps=2, runs=3, factors=True)
    torch.testing.assert_close(distance[2].exp(), torch.tensor([0.81, 0.25, 2.25]))
    still = simulate_linear_sgd(torch.ones(50, 1), 0.1, torch.tensor([1e-9, 50.0]), steps=1, runs=2, factors=True)
    torch.testing.assert_close(still[1].exp(), torch.tensor([1.0, 0.9]))
    gone = simulate_linear_sgd(torch.ones(4, 1), 1.0, 4, steps=2, runs=2, factors=True)
    assert (gone[1:] == -math.inf).all()
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    same = [simulate_linear_sgd(CARD, 0.5, 1, steps=4, runs=3, generator=g) for g in generators]
    assert torch.equal(*same)
    long = simulate_linear_sgd(torch.ones(4, 1), 1e3, 1, steps=300, runs=2, factors=True)
    assert long.isfinite().all()
    assert (long[-1] > 500).all()


def test_what_is_not_finite_or_nothing():
    for value in (math.nan, math.inf):
        wrong = CARD.clone()
        wrong[1, 0, 0] = value
        sigma, overlaps = hessian_coherence(wrong)
        assert math.isnan(sigma)
        assert overlaps.isnan().all()
        assert sgd_stability_bounds(wrong, 0.1, 1).unstable is None
        assert sgd_stability_bounds(wrong, 0.1, 3).unstable is None
        assert math.isnan(linearized_sgd_radius(wrong, 0.1, 1))
        assert math.isnan(critical_rate(wrong, 1))
        assert simulate_linear_sgd(wrong, 0.1, 1, steps=2, runs=2).isnan().all()
    for nothing, factors in ((torch.zeros(3, 2, 2), False), (torch.zeros(3, 2), True)):
        assert math.isnan(hessian_coherence(nothing, factors=factors)[0])
        assert linearized_sgd_radius(nothing, 0.1, 1, factors=factors) == 1.0
        assert critical_rate(nothing, 1, factors=factors) == math.inf
        assert (simulate_linear_sgd(nothing, 0.1, 1, steps=2, runs=2, factors=factors) == 0).all()
        assert sgd_stability_bounds(nothing, 0.1, 3, factors=factors).unstable is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(dtype):
    factors = drawn(4, 3, dtype=dtype)
    sigma, overlaps = hessian_coherence(factors, factors=True)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert sigma.dtype == overlaps.dtype == wanted
    loop = (factors.double() @ factors.double().T).abs()
    torch.testing.assert_close(overlaps.double(), loop, rtol=1e-6, atol=1e-6)
    assert simulate_linear_sgd(factors, 0.1, 1, steps=1, runs=2, factors=True).dtype == wanted


def test_a_search_that_has_not_converged_warns(monkeypatch):
    monkeypatch.setattr("steepest.watch.curvature.sgd_stability.PRODUCTS", 2)
    with pytest.warns(UserWarning, match="not converged after 2 products; residual"):
        linearized_sgd_radius(products(drawn(5, 1, 4)), 0.5, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: hessian_coherence(torch.ones(2, 2)), "hessians: expected 3 dimensions"),
        (lambda: hessian_coherence(torch.ones(2), factors=True), "hessians: expected 2 or 3 dimensions"),
        (lambda: hessian_coherence(torch.ones(2, 1, 3)), "hessians: expected square matrices"),
        (lambda: hessian_coherence(torch.ones(0, 3, 3)), "hessians: expected one sample"),
        (lambda: hessian_coherence(torch.ones(2, 0), factors=True), "hessians: expected one sample"),
        (lambda: hessian_coherence(torch.tensor([[[1.0, 1e-2], [0.0, 1.0]]])), "hessians: expected symmetric"),
        (lambda: sgd_stability_bounds(CARD, 0.0, 1), "lr: expected a number > 0"),
        (lambda: sgd_stability_bounds(CARD, 0.1, 0), "batch: expected a number > 0 and <= 3"),
        (lambda: sgd_stability_bounds(CARD, 0.1, 4), "batch: expected a number > 0 and <= 3"),
        (lambda: linearized_sgd_radius(CARD, -1.0, 1), "lr: expected a number > 0"),
        (lambda: linearized_sgd_radius(CARD, 0.1, 4), "batch: expected a number > 0 and <= 3"),
        (lambda: critical_rate(CARD, 4), "batch: expected a number > 0 and <= 3"),
        (lambda: simulate_linear_sgd(CARD, 0.1, 4), "batch: expected a number > 0 and <= 3"),
        (lambda: simulate_linear_sgd(CARD, math.inf, 1), "lr: expected a finite number > 0"),
        (lambda: simulate_linear_sgd(CARD, torch.tensor([0.1, 0.0]), 1, runs=2), "lr: expected finite numbers > 0"),
        (lambda: simulate_linear_sgd(CARD, torch.tensor([0.1, math.inf]), 1, runs=2), "lr: expected finite numbers"),
        (lambda: simulate_linear_sgd(CARD, 0.1, torch.tensor([1.0, 4.0]), runs=2), "batch: expected numbers > 0"),
        (lambda: simulate_linear_sgd(CARD, 0.1, torch.ones(3), runs=2), r"batch: expected shape \(2\)"),
        (lambda: simulate_linear_sgd(CARD, 0.1, 1, steps=-1), "steps: expected an integer >= 0"),
        (lambda: simulate_linear_sgd(CARD, 0.1, 1, runs=0), "runs: expected an integer >= 1"),
        (lambda: simulate_linear_sgd(CARD, 0.1, 1, runs=4, resample=3), "resample: expected a divisor of 4 runs"),
        (lambda: simulate_linear_sgd(CARD, 0.1, 1, runs=4, resample=0), "resample: expected an integer >= 1"),
    ],
)  # fmt: skip
def test_what_it_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_mirror_is_missed_by_rounding_only_whatever_the_scale(scale):
    uneven = torch.tensor([[[1.0, 1e-2], [0.0, 1.0]]])
    with pytest.raises(ValueError, match="hessians: expected symmetric matrices"):
        hessian_coherence(scale * uneven)
    uneven[0, 0, 1] = 1e-5
    hessian_coherence(scale * uneven)


def test_kinds_that_it_refuses():
    with pytest.raises(TypeError, match="hessians: expected a floating tensor"):
        hessian_coherence(torch.ones(2, 2, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="factors: expected True or False"):
        hessian_coherence(CARD, factors=1)
    with pytest.raises(TypeError, match="lr: expected a floating tensor"):
        simulate_linear_sgd(CARD, torch.ones(2, dtype=torch.long), 1, runs=2)
