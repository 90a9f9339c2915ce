"""Distance covariance against naive loops and dcor; intersectional penalties; the strength's table."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from steepest.core.objective import WithPenalty
from steepest.losses.classification.binary_cross_entropy import BinaryCrossEntropyLoss
from steepest.losses.dependence.distance_covariance_fairness import (
    CCdCovPenalty,
    DistanceCovariancePenalty,
    JdCovPenalty,
    _centred,
    _distances,
    calibrate_fairness_strength,
    distance_covariance,
    group_divergence,
    joint_distance_covariance,
)

X, S1, S2 = (
    torch.tensor(v, dtype=torch.float64) for v in ((1, 2, 3, 4, 6), (0, 0, 1, 1, 1), (0, 1, 0, 1, 1))
)  # fmt: skip
BOTH = torch.stack([S1, S2], 1)


def centred(x):
    """U of the definition, element by element."""
    rows = x.reshape(len(x), -1).tolist()
    n = len(rows)
    a = [[math.dist(p, q) for q in rows] for p in rows]
    total = sum(map(sum, a))
    return [
        [
            0.0 if i == j else sum(a[i]) / (n - 2) + sum(a[j]) / (n - 2) - a[i][j] - total / ((n - 1) * (n - 2))
            for j in range(n)
        ]
        for i in range(n)
    ]


def naive(*variables, c=1.0):
    """The card's form of the joint measure, diagonal included."""
    us, n, m = [centred(v) for v in variables], len(variables[0]), len(variables)
    cells = sum(math.prod(u[i][j] + c for u in us) for i in range(n) for j in range(n))
    return cells / (n * (n - 3)) - n * c**m / (n - 3)


def draws(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.holds("distance-covariance-fairness", 1)
def test_card_values():
    assert distance_covariance(X, S1).item() == pytest.approx(0.533333, abs=5e-7)
    assert distance_covariance(S1, S2).item() == pytest.approx(-0.133333, abs=5e-7)
    assert CCdCovPenalty()(X, BOTH).item() == pytest.approx(0.3771, abs=5e-5)
    assert JdCovPenalty()(X, BOTH).item() == pytest.approx(0.3407, abs=5e-5)
    assert distance_covariance(X, S1, unbiased=False).item() == pytest.approx(0.4416, abs=5e-5)


@pytest.mark.holds("distance-covariance-fairness", 1)
@pytest.mark.slow  # dcor compiles as it is imported
@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 3)])
def test_agrees_with_dcor(shape):
    import dcor

    x, y = draws(shape, (9, 2))
    for u, v in ((X, S1), (X, S2), (S1, S2), (X, BOTH), (x, y)):
        a, b = u.numpy(), v.numpy()
        assert distance_covariance(u, v).item() == pytest.approx(
            dcor.u_distance_covariance_sqr(a, b, method="naive"), abs=1e-12
        )
        biased = distance_covariance(u, v, unbiased=False).item()
        assert biased == pytest.approx(dcor.distance_covariance_sqr(a, b, method="naive"), abs=1e-12)


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_joint_measure_against_a_naive_loop(c):
    x, y, s = draws((7,), (7, 2), (7,))
    for variables in ((x, y), (x, y, s), (x, s, s, y)):
        found = joint_distance_covariance(*variables, c=c).item()
        assert found == pytest.approx(naive(*variables, c=c), abs=1e-12)
    # the V-statistic of two variables is that of distance_covariance
    biased = joint_distance_covariance(x, y, c=c, unbiased=False).item()
    assert biased == pytest.approx(distance_covariance(x, y, unbiased=False).item(), abs=1e-12)


@pytest.mark.holds("distance-covariance-fairness", 2)
def test_of_two_variables_and_rows_of_u():
    x, y = draws((8,), (8, 3), seed=1)
    for c in (0.5, 1.0, 3.0):
        joint = joint_distance_covariance(x, y, c=c).item()
        assert joint == pytest.approx(distance_covariance(x, y).item(), abs=1e-12)
    u = _centred(_distances(x), True)
    assert torch.allclose(u, torch.tensor(centred(x), dtype=torch.float64), atol=1e-12)
    assert u.sum(1).abs().max() < 1e-12


@pytest.mark.holds("distance-covariance-fairness", 3)
def test_exclusive_or():
    """Fair and independent bits, as equal cells: the population's value up to 1/n."""
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=torch.float64).repeat(375, 1)
    exclusive = (bits[:, 0] != bits[:, 1]).double()
    for k in (0, 1):
        assert abs(distance_covariance(exclusive, bits[:, k]).item()) < 0.002
    assert abs(DistanceCovariancePenalty()(exclusive, bits).item()) < 0.004
    # composite: distances 0, 1, 1, sqrt 2 between cells; joint: E[(1/2)^3 signs] = 1/8
    assert CCdCovPenalty()(exclusive, bits).item() == pytest.approx((2 - math.sqrt(2)) / 8, abs=1e-3)
    assert JdCovPenalty()(exclusive, bits).item() == pytest.approx(0.125, abs=2e-3)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(2, (1500, 2), generator=generator).double()
    exclusive = (drawn[:, 0] != drawn[:, 1]).double()
    assert max(abs(distance_covariance(exclusive, drawn[:, k]).item()) for k in (0, 1)) < 0.002
    assert CCdCovPenalty()(exclusive, drawn).item() == pytest.approx(0.073, abs=0.005)
    assert JdCovPenalty()(exclusive, drawn).item() == pytest.approx(0.125, abs=0.01)


@pytest.mark.holds("distance-covariance-fairness", 4)
@pytest.mark.parametrize("unbiased", [True, False])
def test_moved_and_scaled(unbiased):
    x, y = draws((9, 2), (9,), seed=2)
    plain = distance_covariance(x, y, unbiased=unbiased).item()
    moved = distance_covariance(x + torch.tensor([3.0, -7.0]), y - 2, unbiased=unbiased).item()
    assert moved == pytest.approx(plain, abs=1e-12)
    for b in (-3.0, 0.5):
        assert distance_covariance(b * x, y, unbiased=unbiased).item() == pytest.approx(abs(b) * plain, abs=1e-12)


@pytest.mark.holds("distance-covariance-fairness", 5)
def test_constant_predictions_and_few_rows():
    constant = torch.full((5,), 0.3, dtype=torch.float64)
    for penalty in (DistanceCovariancePenalty(), CCdCovPenalty(), DistanceCovariancePenalty(unbiased=False)):
        assert penalty(constant, BOTH).item() == 0.0
    assert JdCovPenalty()(constant, S1).item() == pytest.approx(0.0, abs=1e-15)
    # with two attributes their own dependence is left, times c
    left = JdCovPenalty(c=2.0)(constant, BOTH).item()
    assert left == pytest.approx(2 * distance_covariance(S1, S2).item(), abs=1e-12)
    for call in (
        lambda: distance_covariance(X[:3], S1[:3]),
        lambda: joint_distance_covariance(X[:3], S1[:3]),
        lambda: CCdCovPenalty()(X[:3], BOTH[:3]),
    ):
        with pytest.raises(ValueError, match="expected at least 4 rows"):
            call()


def test_the_sum_over_attributes():
    wanted = distance_covariance(X, S1).item() + distance_covariance(X, S2).item()
    assert DistanceCovariancePenalty()(X, BOTH).item() == pytest.approx(wanted, abs=1e-12)
    assert DistanceCovariancePenalty()(X, [S1, S2.int()]).item() == pytest.approx(wanted, abs=1e-12)


def test_widths_make_attributes_of_columns():
    age = draws((5,))[0]
    table = torch.cat([BOTH, age[:, None]], 1)
    for kind in ("dcov", "jdcov"):
        wide = DistanceCovariancePenalty(kind, widths=(2, 1))(X, table).item()
        assert wide == pytest.approx(DistanceCovariancePenalty(kind)(X, (BOTH, age)).item(), abs=1e-12)
        assert wide != pytest.approx(DistanceCovariancePenalty(kind)(X, table).item(), abs=1e-3)
    assert CCdCovPenalty(widths=(2, 1))(X, table).item() == pytest.approx(CCdCovPenalty()(X, table).item(), abs=1e-12)
    with pytest.raises(ValueError, match="attributes: expected 4 columns"):
        DistanceCovariancePenalty(widths=(2, 2))(X, table)
    with pytest.raises(ValueError, match="attributes: expected one tensor"):
        DistanceCovariancePenalty(widths=(2, 1))(X, [BOTH, age])


def test_rows_that_coincide_give_finite_gradients():
    outputs = torch.tensor([[0.5, 1.0]] * 3 + [[2.0, -1.0]] * 2, dtype=torch.float64, requires_grad=True)
    for link in ("identity", "softmax"):
        for kind in ("dcov", "ccdcov", "jdcov"):
            (slope,) = torch.autograd.grad(DistanceCovariancePenalty(kind, link=link)(outputs, BOTH), outputs)
            assert slope.isfinite().all()
            assert slope.abs().sum() > 0


def test_links():
    logits = draws((5, 2))[0]
    wanted = distance_covariance(logits.softmax(1), S1).item()
    assert DistanceCovariancePenalty(link="softmax")(logits, S1).item() == pytest.approx(wanted, abs=1e-12)
    wanted = distance_covariance(X.sigmoid(), S1).item()
    assert CCdCovPenalty(link="sigmoid")(X, S1).item() == pytest.approx(wanted, abs=1e-12)
    for name, wrong in (("link", "probit"), ("kind", "dcor")):
        with pytest.raises(ValueError, match=f"{name}: expected one of"):
            DistanceCovariancePenalty(**{name: wrong})
    with pytest.raises(ValueError, match="c: expected a number > 0"):
        JdCovPenalty(c=0.0)


def test_joins_an_objective():
    logits, target = draws((5, 2))[0], torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])
    joined = WithPenalty(BinaryCrossEntropyLoss(), CCdCovPenalty(link="sigmoid"), 3.0)
    assert joined.needs == ("attributes",)
    found = joined(logits, target, attributes=BOTH).item()
    wanted = binary_cross_entropy_with_logits(logits, target.double())
    wanted = wanted + 3 * distance_covariance(logits.sigmoid(), BOTH)
    assert found == pytest.approx(wanted.item(), abs=1e-12)


def test_divergence_of_groups():
    rng = np.random.default_rng(0)
    apart = np.concatenate([rng.normal(0, 0.1, 30), rng.normal(50, 0.1, 10)])
    groups = np.array(["a"] * 30 + ["b"] * 10)
    shares = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert group_divergence(apart, groups, bandwidth=0.3) == pytest.approx(shares, abs=1e-6)
    assert group_divergence([0.1, 0.4, 0.1, 0.4], [0, 0, 1, 1]) == pytest.approx(0.0, abs=1e-12)
    assert group_divergence(np.full(6, 0.5), [0, 0, 1, 1, 2, 2]) == 0.0
    # two normal densities one bandwidth apart, by a fine sum of their own
    z = np.linspace(-8, 9, 20001)
    p, q = (np.exp(-((z - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (0, 1))
    mixed = (p + q) / 2
    wanted = sum(0.5 * np.sum(f * np.log2(f / mixed)) * (z[1] - z[0]) for f in (p, q))
    assert group_divergence([0.0, 1.0], [0, 1], bandwidth=1.0) == pytest.approx(wanted, abs=2e-3)
    with pytest.raises(ValueError, match="groups: expected one group for each"):
        group_divergence([0.0, 1.0], [0])
    with pytest.raises(ValueError, match="predictions: expected finite numbers"):
        group_divergence([0.0, math.nan], [0, 1])


@pytest.mark.parametrize("missing", [math.nan, None])
def test_rows_without_a_group_have_no_divergence(missing):
    """Such a group holds no row, and would read as no difference at all."""
    groups = np.array([0.0, 0.0, missing, missing], dtype=float if missing else object)
    with pytest.raises(ValueError, match="groups: expected a group for each row"):
        group_divergence([0.0, 0.1, 9.0, 9.1], groups, bandwidth=0.5)


def test_predictions_that_differ_by_rounding_alone():
    value = np.full(1001, 0.1)
    assert value.std() > 0  # by rounding
    groups = np.arange(1001) % 2
    assert group_divergence(value, groups) == 0.0
    value[::2] = np.nextafter(0.1, 1.0)
    assert group_divergence(value, groups, bandwidth=1e-19) == pytest.approx(1.0, abs=1e-3)


def test_a_strength_whose_loss_is_nan_is_refused():
    with pytest.raises(ValueError, match="loss: expected a number"):
        calibrate_fairness_strength(lambda s: (math.nan, [0.0, 1.0], [0, 1]), [0.0, 1.0])


def test_strength_with_the_least_divergence_within_tolerance():
    asked = []

    def fit(strength):
        asked.append(strength)
        apart = 3.0 / (1.0 + strength)
        return 2.0 + 0.02 * strength, np.array([0.0, 0.1, apart, apart + 0.1]), ["m", "m", "f", "f"]

    table = calibrate_fairness_strength(fit, [4.0, 0.0, 20.0, 1.0], tolerance=0.05)
    assert asked == table["strength"].tolist() == [0.0, 1.0, 4.0, 20.0]
    assert table["rise"].tolist() == pytest.approx([0.0, 0.01, 0.04, 0.2])
    assert table["chosen"].tolist() == [False, False, True, False]
    for bad, message in (([], "each once"), ([1.0, 1.0], "each once"), ([-1.0], "a number >= 0")):
        with pytest.raises(ValueError, match=f"lambdas: expected .*{message}"):
            calibrate_fairness_strength(fit, bad)
