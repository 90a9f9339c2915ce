"""The quick front: PyHessian's calling form, right where it was reported wrong, and no trace left."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

import steepest.watch
from steepest.watch.curvature import hessian


class Quadratic(nn.Module):
    """Half a quadratic form: its Hessian is the matrix."""

    def __init__(self, matrix):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(matrix), dtype=matrix.dtype))
        self.register_buffer("matrix", matrix)

    def forward(self, x):
        return x * 0.5 * (self.weight @ self.matrix @ self.weight)


def of(*rows):
    return hessian(Quadratic(torch.tensor(rows)), lambda out, y: out.mean(), data=(torch.ones(3), torch.zeros(3)))


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double()
    x, y = torch.randn(30, 4).double(), torch.arange(30) % 3
    return model, x, y


def test_eigenvalues_are_the_largest_not_those_of_largest_modulus():
    values, vectors = of([1.0, 0.0], [0.0, -5.0]).eigenvalues()
    assert values == pytest.approx([1.0])
    assert vectors[0][0].abs().tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert of([1.0, 0.0], [0.0, -5.0]).eigenvalues(which="SA")[0] == pytest.approx([-5.0])
    assert of([1.0, 0.0], [0.0, -5.0]).eigenvalues(top_n=2)[0] == pytest.approx([1.0, -5.0])
    assert of([2e-6, 0.0], [0.0, 1e-6]).eigenvalues()[0] == pytest.approx([2e-6], rel=1e-6, abs=0)


def test_the_trace_does_not_end_by_two_equal_samples():
    samples = of([0.0, 1.0], [1.0, 0.0]).trace()
    assert isinstance(samples, list)
    assert set(np.abs(samples)) == {2.0}
    assert len(samples) == 100
    assert abs(np.mean(samples)) < 4 * np.std(samples) / 10
    assert of([3.0, 0.0], [0.0, 1.0]).trace() == [4.0] * 20
    assert len(of([0.0, 1.0], [1.0, 0.0]).trace(maxIter=7)) == 7


def test_weights_of_the_density_are_a_distribution():
    nodes, weights = of([1.0, 0.0], [0.0, 3.0]).density(iter=2, n_v=2)
    assert len(nodes) == len(weights) == 2
    for row, own in zip(nodes, weights):
        assert row == pytest.approx([1.0, 3.0], rel=1e-5)
        assert own == pytest.approx([0.5, 0.5], rel=1e-5)
    nodes, weights = of([2.0, 0.0], [0.0, 2.0]).density()  # one node: the space is closed
    assert (nodes, weights) == ([[pytest.approx(2.0)]], [[pytest.approx(1.0)]])


def test_a_batch_and_a_loader_of_unequal_batches_against_a_dense_spectrum():
    model, x, y = network()
    model.eval()
    whole = hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    batches = hessian(model, nn.CrossEntropyLoss(), dataloader=loader)
    matrix = whole.matrix()
    torch.testing.assert_close(batches.matrix(), matrix, rtol=1e-10, atol=1e-12)
    spectrum = torch.linalg.eigvalsh(matrix)
    for own in (whole, batches):
        values, vectors = own.eigenvalues(tol=1e-9, top_n=2)
        assert values == pytest.approx(spectrum.flip(0)[:2].tolist(), rel=1e-10)
        assert [v.shape for v in vectors[0]] == [p.shape for p in model.parameters()]
        image = own @ vectors[0]
        for a, b in zip(image, vectors[0]):
            torch.testing.assert_close(a, values[0] * b, rtol=1e-5, atol=1e-7)
        samples = own.trace(maxIter=200)
        assert abs(np.mean(samples) - spectrum.sum().item()) < 4 * np.std(samples) / math.sqrt(len(samples))
        assert own.density(iter=10)[0][0][-1] <= spectrum[-1] + 1e-10
        assert own.eigenvalues()[0] == own.eigenvalues()[0]
    theirs = eigsh(whole.to_scipy(), 1, which="LA", v0=np.ones(whole.size))[0]
    assert values[0] == pytest.approx(theirs[0], rel=1e-9)
    layer = hessian(model, nn.CrossEntropyLoss(), data=(x, y), params=lambda name, p: name.startswith("4."))
    torch.testing.assert_close(layer.matrix(), matrix[-layer.size :, -layer.size :], rtol=1e-9, atol=1e-12)


def test_it_sees_evaluation_mode_and_leaves_everything_as_it_was():
    model, x, y = network()
    model.eval()
    expected = hessian(model, nn.CrossEntropyLoss(), data=(x, y)).matrix()
    model.train()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    own = hessian(model, nn.CrossEntropyLoss(), data=(x, y))
    torch.testing.assert_close(own.matrix(), expected, rtol=1e-12, atol=1e-14)
    own.eigenvalues(), own.trace(20), own.density(5)
    assert [module.training for module in model.modules()] == modes
    assert all((p.grad == 2.0).all() and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_has_not_converged_warns():
    model, x, y = network()
    own = hessian(model, nn.CrossEntropyLoss(), data=(x, y))
    with pytest.warns(UserWarning, match="not converged after 22 products; residuals"):
        own.eigenvalues(maxIter=3, tol=1e-14)
    pairs = own.eigenpairs(2, steps=5)
    assert (pairs.iterations, pairs.converged) == (5, False)


def test_exactly_one_of_batch_and_loader():
    model, x, y = network()
    for options, got in (({}, "neither"), ({"data": (x, y), "dataloader": [(x, y)]}, "both")):
        with pytest.raises(ValueError, match=f"data: .* got '{got}'"):
            hessian(model, nn.CrossEntropyLoss(), **options)


def test_the_room_has_it():
    assert steepest.watch.curvature.hessian is hessian
