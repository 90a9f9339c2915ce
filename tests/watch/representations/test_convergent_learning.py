"""Convergent learning: numbers of the card, NumPy's correlations, all assignments, an independent Lasso, CCA."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA

from steepest.watch.representations import (
    cluster_spans,
    cluster_units,
    match_units,
    sparse_unit_prediction,
    unit_correlation,
)
from steepest.watch.representations import convergent_learning as module

CARD = torch.tensor([[0.9, 0.8, 0.1], [0.85, 0.3, 0.2], [0.2, 0.1, 0.4]], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(x, z):
    """Every pair by the definition."""
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    return torch.as_tensor(
        [[np.corrcoef(x[:, i], z[:, j])[0, 1] for j in range(z.shape[1])] for i in range(x.shape[1])]
    )


@pytest.mark.holds("convergent-learning", 1)
def test_matchings_of_the_card():
    index, score = match_units(CARD)
    assert index.tolist() == [1, 0, 2]
    assert float(score.sum()) == pytest.approx(2.05, rel=1e-12)
    assert float(score.mean()) == pytest.approx(0.683333, abs=5e-7)
    index, score = match_units(CARD, "semi")
    assert index.tolist() == [0, 0, 2]
    assert float(score.mean()) == pytest.approx(0.716667, abs=5e-7)


@pytest.mark.holds("convergent-learning", 2)
def test_the_best_partner_scores_no_lower_than_the_assigned_one():
    for seed in range(20):
        c = normal(5, 5, seed=seed).tanh()
        one, several = match_units(c), match_units(c, "semi")
        # of all assignments the best one, by trying them
        best = max(sum(float(c[i, j]) for i, j in enumerate(p)) for p in itertools.permutations(range(5)))
        assert float(one[1].sum()) == pytest.approx(best, rel=1e-12)
        assert bool((several[1] >= one[1]).all())
        distinct = len(set(several[0].tolist())) == 5
        assert distinct == (float(several[1].mean() - one[1].mean()) < 1e-12)
    assert match_units(torch.eye(3))[0].tolist() == match_units(torch.eye(3), "semi")[0].tolist() == [0, 1, 2]


@pytest.mark.holds("convergent-learning", 3)
def test_a_permutation_is_recovered():
    x = normal(300, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    z = x[:, order] * torch.linspace(0.1, 9, 12, dtype=torch.float64)
    for how in ("bipartite", "semi"):
        index, score = match_units(unit_correlation(x, z), how)
        assert torch.equal(index, order.argsort())
        torch.testing.assert_close(score, torch.ones(12, dtype=torch.float64), rtol=0.0, atol=1e-12)


@pytest.mark.holds("convergent-learning", 4)
def test_factors_and_offsets_of_units():
    x, z = normal(100, 4), normal(100, 3, seed=1)
    c = unit_correlation(x, z)
    moved = unit_correlation(x * torch.tensor([1.0, 3.0, 0.01, 1e6]) + 7.0, 5 * z - 2.0)
    torch.testing.assert_close(moved, c, rtol=0.0, atol=1e-12)
    flipped = unit_correlation(x * torch.tensor([1.0, -2.0, 1.0, 1.0]), z)
    torch.testing.assert_close(flipped[1], -c[1], rtol=0.0, atol=1e-12)
    torch.testing.assert_close(flipped[[0, 2, 3]], c[[0, 2, 3]], rtol=0.0, atol=1e-12)


@pytest.mark.holds("convergent-learning", 5)
def test_a_turned_basis_is_predicted_by_many_units_and_matched_by_none():
    x = normal(500, 16)
    turn, _ = torch.linalg.qr(normal(16, 16, seed=1))
    fit = sparse_unit_prediction(x, x @ turn, alphas=[0.0])
    torch.testing.assert_close(fit["r2"], torch.ones(1, 16, dtype=torch.float64), rtol=0.0, atol=1e-12)
    assert int(fit["nnz"].min()) > 12
    _, score = match_units(unit_correlation(x, x @ turn))
    assert float(score.max()) < 0.8
    assert float(score.mean()) < 0.6


@pytest.mark.holds("convergent-learning", 6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_in_a_stream_give_what_numpy_gives(dtype):
    # means a thousand times the deviation, where sums of squares in float32 have no digits left
    x = (normal(999, 5) + torch.tensor([0.0, 1000.0, -1000.0, 0.0, 1.0])).to(dtype)
    z = (x[:, :3] + normal(999, 3, seed=1)).to(dtype)
    wanted = reference(x, z)
    for sizes in ([999], [1, 998], [100] * 9 + [99], [0, 500, 0, 499]):
        pairs = zip(x.split(sizes), z.split(sizes))
        got = unit_correlation(pair for pair in pairs)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=0.0, atol=1e-6 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(unit_correlation(x), reference(x, x).to(dtype), rtol=0.0, atol=1e-6)


def test_slabs_are_merged(monkeypatch):
    x, z = normal(50, 3) + torch.linspace(0, 30, 50).double()[:, None], normal(50, 2, seed=1)
    monkeypatch.setattr(module, "ROWS", 7)
    torch.testing.assert_close(unit_correlation(x, z), reference(x, z), rtol=0.0, atol=1e-12)


def test_half_types_are_widened_and_no_value_passes_1():
    x = normal(40, 3).bfloat16()
    got = unit_correlation(x, x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, reference(x.double(), x.double()).float())
    assert unit_correlation(x.float(), x.double()).dtype == torch.float64
    big = normal(1000, 40)
    assert float(unit_correlation(big, 3 * big).max()) <= 1.0


def test_positions_of_images_are_samples():
    x, z = normal(6, 3, 4, 5), normal(6, 2, 4, 5, seed=1)
    rows, others = (side.permute(0, 2, 3, 1).reshape(-1, side.shape[1]) for side in (x, z))
    torch.testing.assert_close(unit_correlation(x, z), reference(rows, others), rtol=0.0, atol=1e-12)
    fits = [sparse_unit_prediction(*pair, alphas=[0.1, 0.0]) for pair in ((x, z), (rows, others))]
    torch.testing.assert_close(fits[0], fits[1])
    assert torch.equal(cluster_units(x, z, 2), cluster_units(rows, others, 2))
    labels = torch.tensor([0, 1, 0, 0, 1])
    torch.testing.assert_close(cluster_spans(x, z, labels), cluster_spans(rows, others, labels), equal_nan=True)


def test_units_that_never_vary_are_dropped():
    x, z = normal(60, 4), normal(60, 3, seed=1)
    # a tenth is no binary fraction: means of it are rounded
    x[:, 1], z[:, 0], z[:, 1] = 0.1, 0.0, x[:, 2]
    c = unit_correlation(pair for pair in zip(x.split(7), z.split(7)))
    assert c.isnan().nonzero().tolist() == [[0, 0], [1, 0], [1, 1], [1, 2], [2, 0], [3, 0]]
    index, score = match_units(c)
    assert index[[1, 2]].tolist() == [-1, 1]
    assert sorted(index.tolist()) == [-1, -1, 1, 2]
    assert torch.equal(score.isnan(), index < 0)
    index, score = match_units(c, "semi")
    assert index[[1, 2]].tolist() == [-1, 1]
    assert int((index < 0).sum()) == int(score.isnan().sum()) == 1
    index, score = match_units(torch.full((2, 3), torch.nan))
    assert index.tolist() == [-1, -1]
    assert bool(score.isnan().all())

    fit = sparse_unit_prediction(x, z, alphas=[0.0, 0.05])
    assert fit["dropped"].tolist() == [1, 1]
    assert fit["r2"].isnan().tolist() == [[True, False, False]] * 2
    assert fit["nnz"][:, 0].tolist() == [0, 0]
    assert not bool(fit["weights"][:, 1].any())
    without = sparse_unit_prediction(x[:, [0, 2, 3]], z[:, 1:], alphas=[0.0, 0.05])
    torch.testing.assert_close(fit["weights"][:, [0, 2, 3], 1:], without["weights"])
    torch.testing.assert_close(fit["r2"][:, 1:], without["r2"])
    none = sparse_unit_prediction(torch.ones_like(x), z, alphas=[0.0, 0.05])
    assert none["dropped"].tolist() == [4, 1]
    torch.testing.assert_close(none["r2"][:, 1:], torch.zeros(2, 2, dtype=torch.float64), rtol=0.0, atol=1e-12)

    labels = cluster_units(x, z, 2)
    assert (labels < 0).tolist() == [False, True, False, False, True, False, False]
    spans = cluster_spans(x, z, torch.zeros(7, dtype=torch.long))
    assert spans["units"].tolist() == [[3, 2]]


def lasso(xs, z, alpha, rounds=400):
    """Coordinate descent by the textbook, in NumPy."""
    w = np.zeros(xs.shape[1])
    for _ in range(rounds):
        for i in range(len(w)):
            rest = z - xs @ w + xs[:, i] * w[i]
            slope = xs[:, i] @ rest / len(z)
            w[i] = np.sign(slope) * max(abs(slope) - alpha, 0.0) / (xs[:, i] @ xs[:, i] / len(z))
    return w


def test_a_lasso_and_its_score_on_other_rows_by_hand():
    x, x_test = normal(80, 5), normal(50, 5, seed=1) + 0.3
    mixed = torch.tensor([[1.0, 0.5, 0.0, 0.0, -0.3], [0.0, 0.0, 2.0, 0.1, 0.0]]).double().T
    z, z_test = x @ mixed + 0.3 * normal(80, 2, seed=2) + 4, x_test @ mixed + 0.3 * normal(50, 2, seed=3)
    x[:, 1] *= 100
    x_test[:, 1] *= 100
    alphas = [0.02, 0.0, 0.3]
    fit = sparse_unit_prediction(x, z, alphas, test=(x_test, z_test))
    same = sparse_unit_prediction(x, z, alphas)
    mean, deviation = x.numpy().mean(0), x.numpy().std(0)
    for row, alpha in enumerate(alphas):
        for j in range(2):
            target = (z[:, j].numpy() - z[:, j].numpy().mean()) / z[:, j].numpy().std()
            w = lasso((x.numpy() - mean) / deviation, target, alpha)
            # scikit-learn stops at a duality gap of 1e-4 of the target's squares
            np.testing.assert_allclose(fit["weights"][row, :, j], w, rtol=0.0, atol=2e-3)
            assert int(fit["nnz"][row, j]) == int((w != 0).sum())
            w = fit["weights"][row, :, j].numpy()
            test_target = (z_test[:, j].numpy() - z[:, j].numpy().mean()) / z[:, j].numpy().std()
            errors = test_target - (x_test.numpy() - mean) / deviation @ w
            r2 = 1 - (errors**2).sum() / ((test_target - test_target.mean()) ** 2).sum()
            assert float(fit["r2"][row, j]) == pytest.approx(r2, rel=1e-9)
            errors = target - (x.numpy() - mean) / deviation @ w
            assert float(same["r2"][row, j]) == pytest.approx(1 - (errors**2).mean(), rel=1e-9)
    torch.testing.assert_close(same["weights"], fit["weights"])
    assert fit["nnz"][1].tolist() == [5, 5]
    assert int(fit["nnz"][2].max()) < int(fit["nnz"][0].max())
    assert sparse_unit_prediction(x.float(), z.float(), [0.1])["r2"].dtype == torch.float32
    z_test[:, 1] = 0.1  # its mean over rows is rounded
    still = sparse_unit_prediction(x, z, alphas, test=(x_test, z_test))
    assert still["r2"].isnan().tolist() == [[False, True]] * 3


def test_groups_of_units_are_clusters():
    causes = normal(400, 3)
    which = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    signs = torch.tensor([1.0, 1, -1, -1, 1, 1, 1, -1])  # a negative correlation joins as a positive one does
    units = causes[:, which] * signs + 0.3 * normal(400, 8, seed=1)
    for seed in (0, 1):
        labels = cluster_units(units[:, :5], units[:, 5:], 3, seed=seed)
        assert sorted(set(labels.tolist())) == [0, 1, 2]
        same = labels[:, None] == labels
        assert torch.equal(same, which[:, None] == which)
    assert cluster_units(units[:, :5], units[:, 5:], 1).tolist() == [0] * 8
    first = [cluster_units(normal(30, 10), normal(30, 10, seed=1), 5, seed=3) for _ in range(2)]
    assert torch.equal(*first)
    assert not torch.equal(first[0], cluster_units(normal(30, 10), normal(30, 10, seed=1), 5, seed=4))


def test_spans_against_canonical_correlations_of_scikit_learn():
    x = normal(300, 6)
    z = x[:, :4] @ normal(4, 5, seed=1) + normal(300, 5, seed=2)
    x[:, 2] *= 50
    labels = torch.tensor([1, 1, 0, 0, -1, 0, 1, 1, 1, 0, 0])
    spans = cluster_spans(x, z, labels, variance=1.0)
    assert spans["units"].tolist() == spans["dimensions"].tolist() == [[3, 2], [2, 3]]
    assert spans["canonical"].shape == (2, 2)
    for cluster, (a, b) in enumerate((([2, 3, 5], [3, 4]), ([0, 1], [0, 1, 2]))):
        u, v = CCA(2, max_iter=10_000, tol=1e-12).fit_transform(x[:, a].numpy(), z[:, b].numpy())
        wanted = [abs(np.corrcoef(u[:, i], v[:, i])[0, 1]) for i in range(2)]
        np.testing.assert_allclose(spans["canonical"][cluster], sorted(wanted, reverse=True), rtol=1e-6)
        by_least_squares = [
            sparse_unit_prediction(*sides, (0.0,))["r2"].mean() for sides in ((z[:, b], x[:, a]), (x[:, a], z[:, b]))
        ]
        torch.testing.assert_close(spans["explained"][cluster], torch.stack(by_least_squares))


def test_dimensions_are_those_of_the_share_of_variance():
    # correlations .8 within: principal shares 2.6 / 3, .2 / 3 and .2 / 3
    c = torch.full((3, 3), 0.8).double() + 0.2 * torch.eye(3)
    x = normal(4000, 3)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T @ torch.linalg.cholesky(c).T
    z = x[:, :1].clone()
    labels = torch.tensor([0, 0, 0, 0])
    for variance, wanted in ((0.8, 1), (0.86, 1), (0.87, 2), (0.93, 2), (0.94, 3), (1.0, 3)):
        spans = cluster_spans(x, z, labels, variance=variance)
        assert spans["dimensions"].tolist() == [[wanted, 1]]
    one = cluster_spans(x, z, labels, variance=0.8)
    # the mean of the three units with one of them: (1 + .8 + .8) / 3 / sqrt(2.6 / 3)
    assert float(one["canonical"][0, 0]) == pytest.approx(2.6 / 3 / (2.6 / 3) ** 0.5, rel=1e-9)
    assert one["explained"].tolist() == [pytest.approx([(1 + 0.64 + 0.64) / 3, 2.6 / 3], rel=1e-9)]
    apart = cluster_spans(x, z, torch.tensor([0, 0, 0, 1]))
    assert apart["units"].tolist() == [[3, 0], [0, 1]]
    assert apart["canonical"].shape == (2, 0)
    assert bool(apart["explained"].isnan().all())
    assert cluster_spans(x.float(), z.float(), labels)["canonical"].dtype == torch.float32
    none = cluster_spans(x, z, labels - 1)
    assert none["units"].shape == none["dimensions"].shape == none["explained"].shape == (0, 2)
    # a copy of a unit adds no dimension
    assert cluster_spans(x[:, [0, 1, 0]], z, labels, variance=1.0)["dimensions"].tolist() == [[2, 1]]
    # by default 95%
    assert cluster_spans(x, z, labels)["dimensions"].tolist() == [[3, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, z: unit_correlation(x, z[:3]), "z: expected 5 samples, as x"),
        (lambda x, z: unit_correlation([(x, z)], z), "z: expected None, where x is an iterable"),
        (lambda x, z: unit_correlation([x]), "x: expected pairs of activations"),
        (lambda x, z: unit_correlation([]), "x: expected at least one sample, got 'none'"),
        (lambda x, z: unit_correlation(x[:0], z[:0]), "x: expected at least one sample"),
        (lambda x, z: unit_correlation(x[0], z), "x: expected 2 or 4 dimensions"),
        (lambda x, z: unit_correlation(x.long(), z), "x: expected a floating tensor"),
        (lambda x, z: unit_correlation(x, z[None]), "z: expected 2 or 4 dimensions"),
        (lambda x, z: unit_correlation([(x, z), (x[:, :2], z)]), r"x: expected shape \(\*, 3\)"),
        (lambda x, z: unit_correlation([(x, z), (x, z[:, :1])]), r"z: expected shape \(\*, 2\)"),
        (lambda x, z: match_units(x[0]), "correlation: expected 2 dimensions"),
        (lambda x, z: match_units(x, "greedy"), "how: expected one of 'bipartite', 'semi'"),
        (lambda x, z: match_units(torch.tensor([[1.0, torch.nan], [0.0, 1.0]])), "correlation: expected finite values"),
        (lambda x, z: match_units(torch.tensor([[1.0, torch.inf]])), "correlation: expected finite values"),
        (lambda x, z: sparse_unit_prediction(x, z, []), "alphas: expected at least one penalty"),
        (lambda x, z: sparse_unit_prediction(x, z, [-0.1]), "alphas: expected a number >= 0"),
        (lambda x, z: sparse_unit_prediction(x, z[:2]), "z: expected 5 samples, as x"),
        (lambda x, z: sparse_unit_prediction(x[:0], z[:0]), "x: expected at least one sample"),
        (lambda x, z: sparse_unit_prediction(x, z / 0), "z: expected finite values"),
        (lambda x, z: sparse_unit_prediction(x, z, test=x), "test: expected a pair of activations"),
        (lambda x, z: sparse_unit_prediction(x, z, test=(x, z[:2])), "test: expected 5 samples, as x"),
        (lambda x, z: sparse_unit_prediction(x, z, test=(z, x)), "test: expected 3 and 2 units, as x and z"),
        (lambda x, z: cluster_units(x, z, 0), "k: expected an integer >= 1"),
        (lambda x, z: cluster_units(x, z, 5), "k: expected fewer clusters than the 5 units that vary, got 5"),
        (lambda x, z: cluster_units(x, z, 2, seed=-1), "seed: expected an integer >= 0"),
        (lambda x, z: cluster_units(x * torch.inf, z, 2), "x: expected finite values"),
        (lambda x, z: cluster_spans(x, z, torch.zeros(4).long()), r"labels: expected shape \(5\)"),
        (lambda x, z: cluster_spans(x, z, torch.zeros(5)), "labels: expected an integer tensor"),
        (lambda x, z: cluster_spans(x, z, torch.zeros(5).long(), variance=0.0), "variance: expected a number > 0"),
        (lambda x, z: cluster_spans(x, z, torch.zeros(5).long(), variance=1.1), "variance: expected a number > 0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(normal(5, 3), normal(5, 2, seed=1))
