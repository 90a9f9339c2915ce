"""Private sums through a shuffler: numbers of the card, distributions by convolution, and what the noise guarantees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from steepest.optim.private import ShuffleSGD, ShuffleVectorSum, shuffle_randomizer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(n, d=1, **arguments):
    """Four levels and eight noisy bits: nothing private, but counts that can be enumerated."""
    return ShuffleVectorSum(n, d, 1.0, 1e-6, levels=4, noise_bits=8, **arguments)


@pytest.mark.holds("shuffle-private-sco", 1)
def test_the_numbers_of_levels_and_bits():
    protocol = ShuffleVectorSum(1000, 10, 1.0, 1e-6)
    assert (protocol.g, protocol.b) == (64, 386050164)
    assert [ShuffleVectorSum(n, d, 1.0, 0.1).g for n, d in ((1, 1), (4, 1), (5, 1), (100, 7), (100, 33))] == [
        4,
        4,
        5,
        20,
        33,
    ]


def message_probabilities(share):
    """Of 2 + Ber(share) + Bin(8, 1/4)."""
    noise = stats.binom.pmf(np.arange(9), 8, 0.25)
    return np.convolve([0, 0, 1 - share, share], noise)


@pytest.mark.holds("shuffle-private-sco", 2)
def test_a_message_and_an_estimate():
    draws = 200_000
    x = torch.full((draws, 1), 0.3, dtype=torch.float64)
    counts = shuffle_randomizer(x, 1.0, 4, 8, generator=generator())[:, 0].double()
    fourth = float(((counts - 4.6) ** 4).mean())
    assert abs(float(counts.mean()) - 4.6) <= 4 * (1.74 / draws) ** 0.5
    assert abs(float((counts - 4.6).square().mean()) - 1.74) <= 4 * ((fourth - 1.74**2) / draws) ** 0.5
    expected = draws * message_probabilities(0.6)
    seen = torch.bincount(counts.long(), minlength=len(expected)).numpy()
    likely = expected > 5
    chi = ((seen - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi < stats.chi2.isf(1e-5, likely.sum() - 1)
    assert small(3).aggregate(torch.tensor([17])).tolist() == [2.5]


@pytest.mark.holds("shuffle-private-sco", 3)
@pytest.mark.parametrize("n", [1000, 10_000, 10_000_000])
def test_noise_does_not_grow_with_the_users(n):
    for d, eps, bound in ((10, 1.0, 1.0), (3, 2.0, 5.0)):
        protocol = ShuffleVectorSum(n, d, eps, 1e-6, bound)
        wanted = math.sqrt(4 * 24e4 * 3 / 16) * bound * math.log(4 * (d * d + 1) / 1e-6) / eps
        assert protocol.noise_std() == pytest.approx(wanted, rel=1e-6)
        assert wanted == pytest.approx(424 * bound * math.log(4 * (d * d + 1) / 1e-6) / eps, rel=1e-3)
    assert round(ShuffleVectorSum(1000, 10, 1.0, 1e-6).noise_std()) == 8408


def vectors(n=40, d=3):
    x = torch.randn(n, d, generator=generator(1), dtype=torch.float64)
    return 2 * x / x.norm(dim=1, keepdim=True).clamp(min=1.0)


@pytest.mark.holds("shuffle-private-sco", 4)
@pytest.mark.parametrize("scale", ["2L", "L"])
@pytest.mark.parametrize("way", ["sum", "messages"])
def test_sums_are_unbiased_with_the_stated_variance(scale, way):
    x, repeats, stream = vectors(), 1500, generator(2)
    protocol = ShuffleVectorSum(40, 3, 15.0, 0.4, 2.0, scale=scale, noise_bits=20)
    if way == "sum":
        sums = torch.stack([protocol.sum(x, stream) for _ in range(repeats)])
    else:
        messages = protocol.randomize(x.expand(repeats, 40, 3), stream)
        sums = torch.stack([protocol.aggregate(counts) for counts in messages])
    step = (4.0 if scale == "2L" else 2.0) / protocol.g
    share = ((x + 2) / step) % 1
    variance = step**2 * (40 * 20 * 3 / 16 + (share * (1 - share)).sum(0))
    assert bool(((sums.mean(0) - x.sum(0)).abs() <= 3 * (variance / repeats).sqrt()).all())
    spread = (sums - x.sum(0)).square().mean(0) / variance  # the variance of this is nearly that of a chi-square
    assert bool(((spread - 1).abs() <= 4 * (2 / repeats) ** 0.5).all())


@pytest.mark.holds("shuffle-private-sco", 5)
def test_a_vector_beyond_the_bound_is_refused_or_cut():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    with pytest.raises(ValueError, match=r"x: expected vectors of length at most 1 \(clip=True"):
        small(2, 2).sum(x)
    with pytest.raises(ValueError, match="x: expected vectors of length at most 1"):
        small(2, 2).randomize(x)
    with pytest.raises(ValueError, match="x: expected coordinates of at most 1"):
        shuffle_randomizer(x, 1.0, 4, 8)
    cut = torch.tensor([[0.6, 0.8], [0.3, 0.4]], dtype=torch.float64)
    assert torch.equal(small(2, 2, clip=True).sum(x.double(), generator(3)), small(2, 2).sum(cut, generator(3)))
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="x: expected finite"):
            small(2, 2, clip=True).sum(torch.tensor([[0.0, wrong], [0.0, 0.0]]))


@pytest.mark.holds("shuffle-private-sco", 6)
def test_the_release_is_a_function_of_whole_counts():
    x = vectors()
    protocol = ShuffleVectorSum(40, 3, 1.0, 1e-6, 2.0)
    messages = protocol.randomize(x, generator(4))
    assert messages.dtype == torch.int64
    assert bool((messages >= 0).all())
    assert bool((messages <= protocol.g + protocol.b).all())
    release = protocol.aggregate(messages)
    for seed in range(3):
        order = torch.randperm(40, generator=generator(seed))
        assert torch.equal(protocol.aggregate(messages[order]), release)
    assert torch.equal(protocol.aggregate(messages.sum(0)), release)
    for value in (release, protocol.sum(x, generator(5))):
        ones = (value + 40 * 2.0) * protocol.g / 4 + 40 * protocol.b / 4
        assert bool(((ones - ones.round()).abs() <= 1e-3).all())
    assert not torch.equal(protocol.sum(x, generator(5)), protocol.sum(x, generator(6)))
    assert torch.equal(protocol.sum(x, generator(5)), protocol.sum(x, generator(5)))


def binomial_delta(trials, shift):
    """The hockey-stick divergence between Bin(trials, 1/4) and the same with a shift, of eps, by summation."""
    centre, width = trials // 4, 9 * math.sqrt(trials * 3 / 16) + shift
    k = np.arange(int(centre - width), int(centre + width))
    here, there = stats.binom.logpmf(k, trials, 0.25), stats.binom.logpmf(k - shift, trials, 0.25)
    return lambda eps: float(np.clip(np.exp(here) - np.exp(eps + there), 0, None).sum())


def gaussian_delta(ratio, eps):
    """Of the Gaussian mechanism with a sensitivity of ``ratio`` standard deviations, in closed form."""
    return float(stats.norm.cdf(ratio / 2 - eps / ratio) - math.exp(eps) * stats.norm.cdf(-ratio / 2 - eps / ratio))


def eps_of(delta_at, delta):
    """The least eps with that delta, by bisection."""
    low, high = 0.0, 0.1
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def test_the_noise_guarantees_more_than_is_claimed():
    """One coordinate that moves from -L to L, by all probabilities; all coordinates, as a Gaussian mechanism."""
    eps, delta, d = 15.0, 1e-6, 10
    protocol = ShuffleVectorSum(1000, d, eps, delta)
    trials = protocol.n * protocol.b
    exact = eps_of(binomial_delta(trials, protocol.g), delta)
    deviation = math.sqrt(trials * 3 / 16)
    closed = eps_of(lambda value: gaussian_delta(protocol.g / deviation, value), delta)
    assert exact == pytest.approx(closed, rel=1e-3)
    together = eps_of(lambda value: gaussian_delta((protocol.g + math.sqrt(d)) / deviation, value), delta)
    assert exact < together < eps / 500
    little = protocol.n * (protocol.b // 1_000_000)
    assert binomial_delta(little, protocol.g)(eps) > delta, "a millionth of the bits would not do"


def test_counts_are_exact_far_beyond_single_precision():
    n = 10_000_000
    protocol = ShuffleVectorSum(n, 2, 1.0, 1e-6)
    quarter = n * protocol.b // 4
    values = protocol.aggregate(torch.tensor([quarter, quarter + 1]))
    assert quarter > 2**49
    assert float(values[1] - values[0]) == pytest.approx(2 / protocol.g, abs=4e-9), "two roundings at 1e7"
    with pytest.raises(ValueError, match="eps: expected one at which 10000000 users"):
        ShuffleVectorSum(n, 2, 0.1, 1e-6)


def test_descent_is_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(ShuffleVectorSum, "sum", lambda self, x, generator: x.sum(0))
    x, y = vectors(23, 2), torch.linspace(-1, 1, 23, dtype=torch.float64)
    batches = []

    def gradients(theta, rows, targets, ids):
        batches.append(ids.tolist())
        return (rows @ theta - targets)[:, None] * rows

    sgd = ShuffleSGD(0.2, 1.0, 1e-6, batch=5, lr=0.7, bound=10.0, generator=generator(7))
    sgd.fit(gradients, x, y, torch.arange(23), d=2)
    seen = [place for ids in batches for place in ids]
    assert [len(ids) for ids in batches] == [5] * 4
    assert len(set(seen)) == 20
    assert seen != sorted(seen)
    theta, path, held = np.zeros(2), [], 0
    for ids in batches:
        slope = sum((x[i].numpy() @ theta - float(y[i])) * x[i].numpy() for i in ids) / 5
        theta = theta - 0.7 * slope
        if np.linalg.norm(theta) > 0.2:
            theta, held = theta * 0.2 / np.linalg.norm(theta), held + 1
        path.append(theta)
    assert 0 < held < 4, "the ball binds at some steps"
    np.testing.assert_allclose(sgd.path.numpy(), path, rtol=1e-12)
    np.testing.assert_allclose(sgd.average.numpy(), np.mean(path, axis=0), rtol=1e-12)


def test_descent_has_the_noise_of_a_batch():
    """The mean of one coordinate: a step of rate 1 is the private mean of the batch."""
    users, batch = 60_000, 20_000
    x = torch.full((users, 1), 0.5, dtype=torch.float64)
    ends = []
    for seed in range(30):
        sgd = ShuffleSGD(1e9, 1.0, 1e-6, batch, 1.0, bound=1e3, clip=True, generator=generator(seed))
        path = sgd.fit(lambda theta, rows: theta - rows, x, d=1).path[:, 0]
        assert len(path) == 3
        ends += path.tolist()
    deviation = ShuffleVectorSum(batch, 1, 1.0, 1e-6, 1e3).noise_std() / batch
    errors = (torch.tensor(ends) - 0.5) / deviation
    assert abs(float(errors.mean())) <= 4 / 90**0.5
    assert abs(float(errors.square().mean()) - 1) <= 4 * (2 / 90) ** 0.5


def test_what_it_refuses():
    for arguments, message in (
        ({"eps": 0.0}, "eps: expected a number > 0 and <= 15"),
        ({"eps": 15.1}, "eps: expected a number > 0 and <= 15"),
        ({"delta": 0.5}, "delta: expected a number > 0 and < 0.5"),
        ({"bound": 0.0}, "bound: expected a number > 0"),
        ({"n": 0}, "n: expected an integer >= 1"),
        ({"scale": "3L"}, "scale: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ShuffleVectorSum(**({"n": 5, "d": 2, "eps": 1.0, "delta": 0.1} | arguments))
    with pytest.raises(ValueError, match="bound: expected a finite number > 0, got inf"):
        shuffle_randomizer(torch.zeros(2), math.inf, 4, 8)
    protocol = small(2, 2)
    with pytest.raises(ValueError, match="x: expected shape"):
        protocol.sum(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="x: expected vectors of 2 coordinates"):
        protocol.randomize(torch.zeros(3))
    with pytest.raises(ValueError, match="counts: expected shape"):
        protocol.aggregate(torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="counts: expected an integer tensor"):
        protocol.aggregate(torch.zeros(2))
    sgd = ShuffleSGD(1.0, 1.0, 0.1, batch=4, lr=0.1)
    with pytest.raises(ValueError, match="batch: expected at most 3"):
        sgd.fit(lambda theta, rows: rows, torch.zeros(3, 2), d=2)
    with pytest.raises(ValueError, match="gradients: expected shape"):
        sgd.fit(lambda theta, rows: rows.sum(0), torch.zeros(4, 2), d=2)
    with pytest.raises(ValueError, match="data: expected 4 rows"):
        sgd.fit(lambda theta, rows, more: rows, torch.zeros(4, 2), torch.zeros(3), d=2)
    with pytest.raises(ValueError, match="data: expected at least one tensor"):
        sgd.fit(lambda theta: theta, d=2)
    with pytest.raises(ValueError, match="delta: expected"):
        ShuffleSGD(1.0, 1.0, 0.7, batch=4, lr=0.1)
