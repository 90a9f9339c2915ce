"""The exact dependency against POT and closed forms; critics' estimates against loops; the penalty; refusals."""

from __future__ import annotations

import copy
import math

import numpy as np
import ot
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steepest.losses.dependence.wasserstein_dependency import (
    SeparableCritic,
    WassersteinDependencyLoss,
    WPCLoss,
    exact_wasserstein_dependency,
    lipschitz_penalty,
    predictive_coding_bound,
    wasserstein_dependency,
)

CARD = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
FAIR, BITS = np.eye(2) / 2, np.array([0.0, 1.0])


def drawn(n, m, seed, p=2, q=1):
    """A joint law with some empty cells, and its points."""
    rng = np.random.default_rng(seed)
    joint = rng.random((n, m)) * (rng.random((n, m)) > 0.3)
    return joint / joint.sum(), rng.normal(size=(n, p)), rng.normal(size=(m, q))


def by_pot(joint, x, y):
    """The whole transport problem over all pairs of cells."""
    n, m = joint.shape
    points = [[*np.ravel(x[i]), *np.ravel(y[j])] for i in range(n) for j in range(m)]
    product = [sum(joint[i]) * sum(joint[:, j]) for i in range(n) for j in range(m)]
    cost = np.array([[math.dist(a, b) for b in points] for a in points])
    return ot.emd2(joint.ravel(), np.array(product), cost)


class Linear(nn.Module):
    """f(x, y) = a.x + b.y, whose slope is |(a, b)| everywhere."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def forward(self, x, y):
        return x @ self.a + y @ self.b


class OnPair(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, x, y):
        return self.net(torch.cat([x, y], 1))


def pairs(n=6, p=3, q=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (p, q))


def two_encoders(p=3, q=2, seed=0):
    torch.manual_seed(seed)
    return SeparableCritic(
        nn.Sequential(nn.Linear(p, 4), nn.Tanh(), nn.Linear(4, 3)).double(), nn.Linear(q, 3).double()
    )


@pytest.mark.holds("wasserstein-dependency", 1)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_bits(scale):
    assert exact_wasserstein_dependency(FAIR, scale * BITS, scale * BITS) == pytest.approx(0.5 * scale, abs=1e-9)
    assert by_pot(FAIR, scale * BITS, scale * BITS) == pytest.approx(0.5 * scale, abs=1e-9)
    for q in (0.7, 0.5, 0.1):
        joint = np.array([[q, 1 - q], [1 - q, q]]) / 2
        found = exact_wasserstein_dependency(joint, scale * BITS, scale * BITS)
        assert found == pytest.approx(scale * abs(q - 0.5), abs=1e-9)


@pytest.mark.holds("wasserstein-dependency", 2)
@pytest.mark.parametrize(("k", "card"), [(3, 0.942809), (4, 1.060660), (7, None)])
def test_one_hot_points(k, card):
    found = exact_wasserstein_dependency(np.eye(k) / k, np.eye(k), np.eye(k))
    assert found == pytest.approx(math.sqrt(2) * (1 - 1 / k), abs=1e-9)
    assert card is None or found == pytest.approx(card, abs=5e-7)
    assert by_pot(np.eye(k) / k, np.eye(k), np.eye(k)) == pytest.approx(found, abs=1e-9)


@pytest.mark.holds("wasserstein-dependency", 2, 3)
@pytest.mark.parametrize("shape", [(2, 3), (4, 3), (5, 5), (1, 4)])
def test_exact_value_agrees_with_pot_is_symmetric_and_scales(shape):
    joint, x, y = drawn(*shape, seed=sum(shape))
    found = exact_wasserstein_dependency(joint, x, y)
    assert found == pytest.approx(by_pot(joint, x, y), abs=1e-9)
    assert exact_wasserstein_dependency(joint.T, y, x) == pytest.approx(found, abs=1e-9)
    assert exact_wasserstein_dependency(joint, -2.5 * x + 1, 2.5 * y) == pytest.approx(2.5 * found, abs=1e-8)
    assert (found > 0.01) == (min(shape) > 1)  # one row alone is independent


@pytest.mark.holds("wasserstein-dependency", 3)
def test_independence_is_zero():
    rng = np.random.default_rng(0)
    for shape in ((2, 2), (4, 3), (1, 5)):
        a, b = (rng.dirichlet(np.ones(k)) for k in shape)
        assert exact_wasserstein_dependency(np.outer(a, b), rng.normal(size=shape[0]), rng.normal(size=shape[1])) < 1e-9
    # all points in one place are no dependence to a distance
    assert exact_wasserstein_dependency(FAIR, np.ones(2), np.ones(2)) == pytest.approx(0.0, abs=1e-12)


def test_tensors_are_laws_too_and_small_points_keep_their_digits():
    found = exact_wasserstein_dependency(torch.eye(2) / 2, torch.tensor([0.0, 1e-9]), torch.tensor([0.0, 1e-9]))
    assert found == pytest.approx(0.5e-9, rel=1e-6)


def test_wrong_laws_are_refused():
    for joint, x, y, message in (
        (FAIR * 2, BITS, BITS, "P: expected probabilities >= 0 of sum 1"),
        ([[1.5, -0.5], [0, 0]], BITS, BITS, "P: expected probabilities >= 0"),
        ([[math.nan, 0.5], [0, 0.5]], BITS, BITS, "P: expected probabilities >= 0"),
        ([0.5, 0.5], BITS, BITS, r"P: expected a matrix \[n, m\]"),
        (FAIR, np.zeros(3), BITS, r"X: expected points of shape \(2,\)"),
        (FAIR, BITS, [0.0, math.inf], "Y: expected finite numbers, got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            exact_wasserstein_dependency(joint, x, y)


@pytest.mark.holds("wasserstein-dependency", 4)
def test_predictive_coding_term():
    assert predictive_coding_bound(CARD).item() == pytest.approx(0.473052, abs=5e-7)
    by_hand = ((2 - math.log((math.exp(2) + 1) / 2)) + (1 - math.log((1 + math.e) / 2))) / 2
    assert predictive_coding_bound(CARD).item() == pytest.approx(by_hand, abs=1e-12)
    for n, seed in ((2, 0), (7, 1), (40, 2)):
        scores = 20 * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        naive = sum(scores[i, i].item() - math.log(sum(math.exp(v) for v in scores[i].tolist()) / n) for i in range(n))
        assert predictive_coding_bound(scores).item() == pytest.approx(naive / n, abs=1e-10)
        for best in (scores, scores + 1e4 * torch.eye(n)):
            assert predictive_coding_bound(best).item() <= math.log(n) + 1e-9
    assert predictive_coding_bound(1e4 * torch.eye(5)).item() == pytest.approx(math.log(5))


def test_dependency_of_scores_against_a_loop():
    assert wasserstein_dependency(CARD).item() == pytest.approx(1.5, abs=1e-12)
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint = sum(scores[i, i].item() for i in range(6)) / 6
    apart = sum(scores[i, j].item() for i in range(6) for j in range(6) if i != j) / 30
    for moved in (0.0, 1e6):  # a constant of the critic doesn't count
        assert wasserstein_dependency(scores + moved).item() == pytest.approx(joint - apart, abs=1e-8)


@pytest.mark.holds("wasserstein-dependency", 1)
def test_lipschitz_critic_stays_below_the_exact_value_and_reaches_it():
    """f = |x + y - 1| / 2 is 1-Lipschitz (slope 1/sqrt 2): its expectations are those of the law of equal bits."""
    x = torch.tensor([0.0, 1.0] * 500, dtype=torch.float64)
    value = wasserstein_dependency((x[:, None] + x - 1).abs() / 2).item()
    assert value == pytest.approx(0.25, abs=1e-3)
    # minus the distance to the nearest point of the joint law, at the four corners: the best critic there is
    value = wasserstein_dependency(-(x[:, None] - x).abs()).item()
    assert value == pytest.approx(exact_wasserstein_dependency(FAIR, BITS, BITS), abs=1e-3)


@pytest.mark.holds("wasserstein-dependency", 5)
def test_without_penalty_it_is_infonce():
    x, y = pairs(8)
    for critic in (two_encoders(), OnPair()):
        scores = torch.stack([torch.stack([critic(x[[i]], y[[j]]).sum() for j in range(8)]) for i in range(8)])
        loss = WPCLoss(critic, penalty=0)
        wanted = cross_entropy(scores, torch.arange(8)) - math.log(8)
        assert loss(x, y).item() == pytest.approx(wanted.item(), abs=1e-12)
        found, peer = (torch.autograd.grad(v, list(critic.parameters())) for v in (loss(x, y), wanted))
        for a, b in zip(found, peer):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert set(loss.terms) == {"bound"}
        assert loss.terms["bound"].item() == pytest.approx(-wanted.item(), abs=1e-12)


@pytest.mark.parametrize("kind", [WPCLoss, WassersteinDependencyLoss])
@pytest.mark.parametrize(("slope", "two", "one"), [(0.4, 0.36, 0.0), (1.0, 0.0, 0.0), (2.5, 2.25, 2.25)])
def test_penalty_is_of_the_joint_slope(kind, slope, two, one):
    """A linear critic with |a| = 0.6 s and |b| = 0.8 s has the joint slope s, whatever the points."""
    x, y = pairs()
    critic = Linear([0.6 * slope, 0.0, 0.0], [0.0, -0.8 * slope])
    for one_sided, wanted in ((False, two), (True, one)):
        loss = kind(critic, penalty=4.0, one_sided=one_sided)
        value = loss(x, y).item()
        assert loss.terms["penalty"].item() == pytest.approx(wanted, abs=1e-12)
        assert value == pytest.approx(4 * wanted - loss.terms["bound"].item(), abs=1e-12)
        assert not any(term.requires_grad for term in loss.terms.values())


def test_penalty_points_lie_between_a_joint_and_a_product_sample():
    """The critic keeps the points it is asked at: one t a pair for x and y both, and a is never b."""
    x, y = pairs(7, seed=3)
    seen = []

    class Watching(OnPair):
        def forward(self, u, v):
            seen.append((u, v))
            return super().forward(u, v)

    critic = Watching()
    found = lipschitz_penalty(critic, x, y, generator=torch.Generator().manual_seed(5)).item()
    (u, v) = (torch.func.debug_unwrap(z).detach() for z in seen[0])
    starts, shares = set(), set()
    for i in range(7):
        fits = []
        for a in range(7):
            for b in range(7):
                ends = torch.cat([x[a], y[b]])
                joint, point = torch.cat([x[i], y[i]]), torch.cat([u[i], v[i]])
                t = ((point - ends) @ (joint - ends) / (joint - ends).square().sum().clamp_min(1e-30)).item()
                if torch.allclose(t * joint + (1 - t) * ends, point, atol=1e-10) and 0 <= t <= 1:
                    fits.append((a, b, round(t, 6)))
        assert len(fits) == 1
        assert fits[0][0] != fits[0][1]
        starts.add(fits[0][0])
        shares.add(fits[0][2])
    assert len(starts) == len(shares) == 7
    # slopes by differences of the critic at these points
    step, norms = 1e-6, []
    for i in range(7):
        point = torch.cat([u[i], v[i]])
        slope = []
        for k in range(5):
            move = step * torch.eye(5, dtype=torch.float64)[k]
            up, down = (critic.net(point + s * move).item() for s in (1, -1))
            slope.append((up - down) / (2 * step))
        norms.append(math.hypot(*slope))
    assert found == pytest.approx(sum((s - 1) ** 2 for s in norms) / 7, abs=1e-7)


def test_points_are_spread_evenly():
    """t is uniform and every ordered pair of others comes up."""
    x = torch.eye(4, dtype=torch.float64)
    seen = []

    class Watching(nn.Module):
        def forward(self, u, v):
            seen.append(torch.func.debug_unwrap(torch.cat([u, v], 1)))
            return u.sum(1) + v.sum(1)

    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        lipschitz_penalty(Watching(), x, x, generator=generator)
    shares = torch.stack(seen).mean(0)
    # row i: half of its own pair, and 1/4 of each x_a, each y_b for the other half
    wanted = 0.5 * torch.cat([x, x], 1) + 0.125
    torch.testing.assert_close(shares, wanted, atol=0.04, rtol=0)


@pytest.mark.parametrize("kind", [WPCLoss, WassersteinDependencyLoss])
def test_gradient_of_the_critic_against_differences(kind):
    x, y = pairs(5, seed=2)
    loss = kind(two_encoders(), penalty=3.0)
    values = [p.detach().clone().requires_grad_() for p in loss.parameters()]
    names = [name for name, _ in loss.named_parameters()]

    def value(*parameters):
        generator = torch.Generator().manual_seed(0)
        return torch.func.functional_call(loss, dict(zip(names, parameters)), (x, y), {"generator": generator})

    assert torch.autograd.gradcheck(value, values, atol=1e-6)


def test_flat_critic_has_a_finite_gradient():
    x, y = pairs()
    critic = two_encoders()
    for p in critic.parameters():
        nn.init.zeros_(p)
    value = WPCLoss(critic)(x, y)
    assert value.item() == pytest.approx(10.0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, list(critic.parameters())))


def test_training_reaches_the_exact_value_of_equal_bits():
    """With its penalty the critic's estimate settles near W1 = 1/2; without, it grows past every bound."""
    torch.manual_seed(0)
    found = {}
    for penalty in (10.0, 0.0):
        net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        loss = WassersteinDependencyLoss(_Both(net), penalty, one_sided=True)
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        for _ in range(150):
            x = torch.randint(2, (32, 1)).float()
            optimizer.zero_grad()
            loss(x, x).backward()
            optimizer.step()
        even = torch.tensor([0.0, 1.0] * 50)[:, None]
        loss(even, even)
        found[penalty] = loss.terms["bound"].item()
    assert found[10.0] == pytest.approx(0.5, abs=0.1)
    assert found[0.0] > 10


class _Both(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y):
        return self.net(torch.cat([x, y], 1)).squeeze(1)


def test_eval_without_grad_gives_the_same_number():
    x, y = pairs()
    loss = WPCLoss(OnPair())
    with_grad = loss(x, y, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        without = loss.eval()(x, y, generator=torch.Generator().manual_seed(1))
    assert with_grad.requires_grad
    assert not without.requires_grad
    assert with_grad.item() == without.item()


def test_images_and_a_half_critic():
    images = [torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]

    def encoder():
        return nn.Sequential(nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Flatten())

    loss = WPCLoss(SeparableCritic(encoder(), encoder()))
    low = copy.deepcopy(loss).bfloat16()
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    full, half = (each(*images, generator=g) for each, g in zip((loss, low), generators))
    assert full.dtype == half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.05)


@pytest.mark.holds("wasserstein-dependency", 6)
def test_one_pair_is_refused():
    x, y = pairs(1)
    for call in (
        lambda: WPCLoss(OnPair())(x, y),
        lambda: WassersteinDependencyLoss(two_encoders(), penalty=0)(x, y),
        lambda: lipschitz_penalty(OnPair(), x, y),
    ):
        with pytest.raises(ValueError, match="x: expected at least two rows"):
            call()
    for call in (wasserstein_dependency, predictive_coding_bound):
        with pytest.raises(ValueError, match=r"scores: expected a square matrix \[N, N\] with N >= 2"):
            call(torch.zeros(1, 1))


def test_refusals():
    x, y = pairs()
    with pytest.raises(ValueError, match="y: expected 6 rows, as x"):
        WPCLoss(OnPair())(x, y[:4])
    with pytest.raises(ValueError, match="scores: expected a square matrix"):
        predictive_coding_bound(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="penalty: expected a number >= 0"):
        WPCLoss(OnPair(), penalty=-1.0)
    with pytest.raises(TypeError, match="critic: expected a module"):
        WPCLoss(lambda x, y: x)
    normed = SeparableCritic(nn.BatchNorm1d(3), nn.Identity())
    with pytest.raises(ValueError, match="critic: expected no batch normalisation"):
        WPCLoss(normed)
    WPCLoss(normed, penalty=0)
    for penalty in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"critic: expected scores of shape \(36,\)"):
            WPCLoss(_Wide(), penalty)(x, y)


class _Wide(nn.Module):
    def forward(self, x, y):
        return torch.cat([x, y], 1)
