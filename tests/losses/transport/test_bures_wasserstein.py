"""Bures-Wasserstein distance, its gradient, critical points under a rank bound, deep linear descent."""

from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from scipy import integrate, linalg

from steepest.losses.transport.bures_wasserstein import (
    BuresWassersteinLoss,
    bures_wasserstein_distance,
    deep_linear_bw_experiment,
    rank_bounded_critical_points,
)

A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
B = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def covariance(d, seed=0, rank=None):
    root = torch.randn(d, rank or d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def by_scipy(s, s0):
    root = linalg.sqrtm(s0.numpy())
    return float(np.trace(s.numpy() + s0.numpy()) - 2 * np.trace(linalg.sqrtm(root @ s.numpy() @ root)).real)


def map_by_scipy(s, s0):
    """The transport map, S^(-1/2) (S^(1/2) S0 S^(1/2))^(1/2) S^(-1/2): another form than the module's."""
    root = linalg.sqrtm(s.numpy())
    inverse = np.linalg.inv(root)
    return inverse @ linalg.sqrtm(root @ s0.numpy() @ root) @ inverse


def gradient(s, s0, **kwargs):
    at = s.clone().requires_grad_()
    return torch.autograd.grad(bures_wasserstein_distance(at, s0, **kwargs).sum(), at)[0]


@pytest.mark.holds("bures-wasserstein", 1)
def test_card_values():
    assert bures_wasserstein_distance(diagonal(1, 4), diagonal(4, 1)).item() == pytest.approx(2.0, abs=1e-12)
    assert bures_wasserstein_distance(A, B).item() == pytest.approx(0.42, abs=5e-5)
    wanted = [[0.2311, 0.1867], [0.1867, -0.2085]]
    assert np.allclose(gradient(A, B), wanted, atol=5.1e-5)
    assert by_scipy(A, B) == pytest.approx(0.42, abs=5e-5)


@pytest.mark.holds("bures-wasserstein", 2)
def test_critical_points():
    points = rank_bounded_critical_points(diagonal(4, 2, 1), 1)
    assert [(pytest.approx(v), best) for _, v, best in points] == [(3, True), (5, False), (6, False)]
    s0 = covariance(4)
    values = np.linalg.eigvalsh(s0.numpy())
    points = rank_bounded_critical_points(s0, 2)
    sums = sorted(values.sum() - values[list(j)].sum() for j in itertools.combinations(range(4), 2))
    assert [v for _, v, _ in points] == pytest.approx(sums)
    assert [best for *_, best in points] == [True] + [False] * 5
    for point, value, _ in points:
        assert bures_wasserstein_distance(point, s0).item() == pytest.approx(value, abs=1e-6)
        # at W with W W' = point the chain rule's gradient 2 (I - T) W vanishes
        u, size, _ = torch.linalg.svd(point)
        w = (u[:, :2] * size[:2].sqrt()).requires_grad_()
        assert torch.autograd.grad(BuresWassersteinLoss(s0)(w), w)[0].abs().max() < 1e-6


@pytest.mark.holds("bures-wasserstein", 3)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_metric(d):
    s, s0 = covariance(d, 1), covariance(d, 2)
    value = bures_wasserstein_distance(s, s0)
    assert value.item() == pytest.approx(bures_wasserstein_distance(s0, s).item(), abs=1e-12)
    assert bures_wasserstein_distance(s, s).item() < 1e-12 < 1e-3 < value.item()
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    turned = [(q @ m @ q.T + (q @ m @ q.T).T) / 2 for m in (s, s0)]
    assert bures_wasserstein_distance(*turned).item() == pytest.approx(value.item(), abs=1e-10)
    assert bures_wasserstein_distance(3 * s, 3 * s0).item() == pytest.approx(3 * value.item(), rel=1e-10)
    assert bures_wasserstein_distance(s, s0, squared=False).item() == pytest.approx(math.sqrt(value.item()))


@pytest.mark.holds("bures-wasserstein", 4)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_gradient_and_peers(d):
    s, s0 = covariance(d, 3), covariance(d, 4)
    assert np.allclose(gradient(s, s0), np.eye(d) - map_by_scipy(s, s0), atol=1e-6)
    assert np.allclose(gradient(s0, s), np.eye(d) - map_by_scipy(s0, s), atol=1e-6)
    other = s0.clone().requires_grad_()
    (second,) = torch.autograd.grad(bures_wasserstein_distance(s, other), other)
    assert np.allclose(second, np.eye(d) - map_by_scipy(s0, s), atol=1e-6)
    # along a symmetric direction, against central differences
    h = covariance(d, 5)
    slope = (bures_wasserstein_distance(s + 1e-5 * h, s0) - bures_wasserstein_distance(s - 1e-5 * h, s0)) / 2e-5
    assert (gradient(s, s0) * h).sum().item() == pytest.approx(slope.item(), rel=1e-6)
    peer = ot.gaussian.bures_wasserstein_distance(np.zeros(d), np.zeros(d), s.numpy(), s0.numpy())
    assert bures_wasserstein_distance(s, s0, squared=False).item() == pytest.approx(float(peer), rel=1e-8)
    assert bures_wasserstein_distance(s, s0, tau=0.3).item() == pytest.approx(by_scipy(s + 0.3 * torch.eye(d), s0))


def test_repeated_and_zero_eigenvalues():
    assert torch.allclose(gradient(4 * torch.eye(3), torch.eye(3)), torch.eye(3) / 2)
    assert gradient(torch.eye(3), torch.eye(3)).abs().max() < 1e-6
    assert gradient(torch.eye(3), torch.eye(3), squared=False).isfinite().all()
    thin = covariance(4, rank=2)
    assert bures_wasserstein_distance(thin, torch.zeros(4, 4, dtype=torch.float64)).item() == pytest.approx(
        thin.trace().item()
    )
    assert gradient(thin, covariance(4, 1)).isfinite().all()


def test_batches_broadcast():
    s = torch.stack([covariance(3, i) for i in range(4)]).reshape(2, 2, 3, 3)
    s0 = torch.stack([covariance(3, 7), covariance(3, 8)]).requires_grad_()
    found = bures_wasserstein_distance(s, s0)
    wanted = [[bures_wasserstein_distance(s[i, j], s0[j]).item() for j in range(2)] for i in range(2)]
    assert np.allclose(found.detach(), wanted, atol=1e-12)
    found.sum().backward()
    alone = gradient(s0.detach()[1], s[0, 1]) + gradient(s0.detach()[1], s[1, 1])
    assert torch.allclose(s0.grad[1], alone, atol=1e-10)


def test_no_second_derivative():
    w = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(BuresWassersteinLoss(B)(w), w, create_graph=True)
    assert torch.allclose(first, 2 * gradient(w.detach() @ w.detach().T, B) @ w)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(first.sum(), w)


@pytest.mark.holds("bures-wasserstein", 5)
def test_flow_of_one_layer():
    """dW/dt = -dB^2/dW integrated, against w(t) = s + (w(0) - s) exp(-2t); and on a diagonal."""
    for start, roots in (([0.5], [2.0]), ([0.5, 3.0], [2.0, 1.0])):
        loss = BuresWassersteinLoss(diagonal(*[r**2 for r in roots]))

        def flow(t, w, loss=loss):
            at = torch.diag(torch.tensor(w)).requires_grad_()
            return -torch.autograd.grad(loss(at), at)[0].diagonal().numpy()

        found = integrate.solve_ivp(flow, (0, 1), start, t_eval=[0.5, 1.0], rtol=1e-9, atol=1e-11).y
        for row, w, s in zip(found, start, roots):
            assert row == pytest.approx([s + (w - s) * math.exp(-2 * t) for t in (0.5, 1.0)], abs=1e-7)
    loss = BuresWassersteinLoss(diagonal(4.0))
    assert 2 + (0.5 - 2) * math.exp(-1) == pytest.approx(1.448181, abs=5e-7)
    assert 2 + (0.5 - 2) * math.exp(-2) == pytest.approx(1.796997, abs=5e-7)
    run = deep_linear_bw_experiment(diagonal(4.0), 1, 1, 1e-3, 500, start=torch.tensor([[0.5]]))
    assert run.product.item() == pytest.approx(1.448181, abs=2e-3)


@pytest.mark.holds("bures-wasserstein", 6)
def test_refused():
    skew = torch.tensor([[1.0, 0.2], [0.1, 1.0]], dtype=torch.float64)
    for bad, message in ((skew, "symmetric"), (diagonal(1, -0.1), "positive semi-definite"), (A[:1], "square")):
        with pytest.raises(ValueError, match=f"s: expected {message}"):
            bures_wasserstein_distance(bad, B)
        with pytest.raises(ValueError, match=f"s0: expected {message}"):
            bures_wasserstein_distance(B, bad)
        with pytest.raises(ValueError, match=f"s0: expected {message}"):
            BuresWassersteinLoss(bad)
    with pytest.raises(ValueError, match=r"s0: expected shape \(..., 2, 2\)"):
        bures_wasserstein_distance(A, diagonal(1, 1, 1))
    with pytest.raises(ValueError, match="tau: expected a number >= 0"):
        bures_wasserstein_distance(A, B, tau=-1.0)
    with pytest.raises(ValueError, match=r"k: expected an integer >= 1 and <= 2"):
        rank_bounded_critical_points(B, 3)
    with pytest.raises(ValueError, match="s0: expected a positive definite matrix"):
        rank_bounded_critical_points(diagonal(1, 0), 1)
    with pytest.raises(ValueError, match="tau: expected at most 4"):
        deep_linear_bw_experiment(B, 1, 1, 0.1, 1, tau=5.0)
    with pytest.raises(ValueError, match=r"start: expected shape \(2, 1\)"):
        deep_linear_bw_experiment(B, 1, 1, 0.1, 1, start=A)


@pytest.mark.parametrize(("depth", "width"), [(1, 3), (2, 1), (3, 3)])
def test_deep_descent(depth, width):
    """Ends at the truncation to the largest eigenvalues; layers are those of the chain rule and stay balanced."""
    s0 = diagonal(4.0, 2.0, 1.0)
    start = torch.eye(3, dtype=torch.float64)[:, :width] + 0.1
    run = deep_linear_bw_experiment(s0, depth, width, 0.02, 400, tau=0.01, start=start)
    dropped = [2.0, 1.0] if width == 1 else []
    assert run.minimum == pytest.approx(sum((math.sqrt(v) - 0.1) ** 2 for v in dropped), abs=1e-12)
    assert run.losses[-1].item() == pytest.approx(run.minimum, abs=1e-6)
    assert run.imbalance < 0.05
    assert bures_wasserstein_distance(start @ start.T, s0, tau=0.01).item() == pytest.approx(run.losses[0].item())
    none = deep_linear_bw_experiment(s0, depth, width, 0.02, 0, start=start)
    assert torch.allclose(none.product, start, atol=1e-12)
    assert none.imbalance < 1e-12


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_step_of_each_layer(depth):
    """W_j - lr W_{j+1:N}' 2 (I - T) W W_{1:j-1}', T by scipy."""
    s0, start, eye = diagonal(4.0, 2.0, 1.0), covariance(3, 6) / 3, np.eye(3)
    before = [w.numpy() for w in deep_linear_bw_experiment(s0, depth, 3, 0.02, 0, start=start).layers]
    after = deep_linear_bw_experiment(s0, depth, 3, 0.02, 1, start=start).layers
    pull = 2 * (eye - map_by_scipy(start @ start.T, s0)) @ start.numpy()
    for j, (old, new) in enumerate(zip(before, after)):
        above, below = eye, eye
        for layer in before[j + 1 :]:
            above = layer @ above
        for layer in before[:j]:
            below = layer @ below
        assert np.allclose(new, old - 0.02 * above.T @ pull @ below.T, atol=1e-9)
