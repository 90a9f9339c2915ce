"""Curvature of each class's loss against dense Hessians; steps that leave a saddle; margins of rare classes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steepest.core.curvature import Hessian, hessian_product
from steepest.losses import ldam_margins
from steepest.optim.sharpness import SAM
from steepest.watch.curvature import ClassSpectrum, class_hessians, classwise_hessian, saddle_ratio


def saddle(w):
    """Half of w' diag(2, -1) w."""
    return w[0] ** 2 - 0.5 * w[1] ** 2


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def samples(counts=(12, 5, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=generator)]
    return torch.randn(len(y), 3, generator=generator, dtype=torch.float64), y


def dense(model, x, y):
    """The Hessian of the mean cross-entropy by torch's own function of functions."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in params.values()]

    def loss(flat):
        own = {n: v.view_as(p) for (n, p), v in zip(params.items(), flat.split(sizes))}
        return nn.functional.cross_entropy(torch.func.functional_call(model, own, (x,)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in params.values()]))


@pytest.mark.holds("saddle-imbalance", 1)
def test_gradients_at_displaced_weights_leave_the_saddle():
    w = nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(saddle(w), w)
    assert gradient.tolist() == [2.0, -0.5]
    unnormalised = gradient + 3.0 * hessian_product(lambda: saddle(w), [w])(gradient)
    assert unnormalised.tolist() == pytest.approx([14.0, 1.0])
    assert float(unnormalised[1] / gradient[1]) == pytest.approx(-2.0)
    sam = SAM([w], torch.optim.SGD, rho=0.5, lr=1.0)
    before = w.detach().clone()

    def closure():
        sam.zero_grad()
        loss = saddle(w)
        loss.backward()
        return loss

    sam.step(closure)
    assert (before - w.detach()).tolist() == pytest.approx([2.970143, -0.378732], abs=1e-6)


@pytest.mark.holds("saddle-imbalance", 3)
def test_margins_of_rare_classes():
    assert ldam_margins((100, 10, 1)).tolist() == pytest.approx([0.158114, 0.281171, 0.5], abs=1e-6)


@pytest.mark.holds("saddle-imbalance", 4)
def test_a_radius_of_zero_is_the_base_optimizer_and_weights_come_back():
    x, y = samples()
    plain, wrapped = network(), network()
    base = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    sam = SAM(wrapped.parameters(), torch.optim.SGD, rho=0.0, lr=0.1, momentum=0.9, weight_decay=2e-4)
    for model, optimizer in ((plain, base), (wrapped, sam)):
        for _ in range(5):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wrapped.parameters()))
    still = SAM(wrapped.parameters(), torch.optim.SGD, rho=0.8, lr=0.0)
    before = copy.deepcopy(wrapped.state_dict())

    def both():
        still.zero_grad()
        loss = nn.functional.cross_entropy(wrapped(x), y)
        loss.backward()
        return loss

    still.step(both)  # at a rate of 0 what is left is the way to the worst point and back
    assert all(torch.equal(value, before[name]) for name, value in wrapped.state_dict().items())


@pytest.mark.holds("saddle-imbalance", 6)
def test_the_weighted_mean_of_class_hessians_is_the_hessian():
    model, (x, y) = network(), samples()
    whole = Hessian.of_model(model, nn.functional.cross_entropy, (x, y)).matrix()
    torch.testing.assert_close(whole, dense(model, x, y), rtol=1e-9, atol=1e-12)
    for loader in ((x, y), [(x[:7], y[:7]), (x[7:], y[7:])]):
        hessians = class_hessians(model, loader)
        assert {label: count for label, (_, count) in hessians.items()} == {0: 12, 1: 5, 2: 2}
        mean = sum(count / len(y) * hessian.matrix() for hessian, count in hessians.values())
        torch.testing.assert_close(mean, whole, rtol=1e-9, atol=1e-12)


def test_spectra_are_those_of_dense_hessians():
    model, (x, y) = network(), samples()
    size = sum(p.numel() for p in model.parameters())
    spectra = classwise_hessian(model, (x, y), steps=size)
    assert list(spectra) == [0, 1, 2]
    for label, spectrum in spectra.items():
        own = y == label
        matrix = dense(model, x[own], y[own])
        values = np.linalg.eigvalsh(matrix.numpy())
        assert spectrum.lam_max == pytest.approx(values[-1], rel=1e-9)
        assert spectrum.lam_min == pytest.approx(values[0], rel=1e-9)
        assert (spectrum.lam_max, spectrum.lam_min) == (float(spectrum.nodes[-1]), float(spectrum.nodes[0]))
        assert saddle_ratio(spectrum) == pytest.approx(-values[0] / values[-1])
        assert max(spectrum.residuals) < 1e-9 * values[-1]
        assert float(spectrum.weights.sum()) == pytest.approx(1.0)
        start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        start = start / start.norm()
        assert float((spectrum.weights * spectrum.nodes).sum()) == pytest.approx(float(start @ matrix @ start))
        loss = nn.functional.cross_entropy(model(x[own]), y[own])
        slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).norm()
        assert spectrum.loss == pytest.approx(loss.item())
        assert spectrum.slope == pytest.approx(float(slope))
        assert spectrum.count == int(own.sum())
    few = classwise_hessian(model, (x, y), [2, 0], steps=4)
    assert list(few) == [2, 0]
    for label, spectrum in few.items():
        assert len(spectrum.nodes) == len(spectrum.weights) == 4
        full = spectra[label]
        assert full.lam_min < spectrum.lam_min < spectrum.lam_max < full.lam_max
        for value, residual in zip((spectrum.lam_max, spectrum.lam_min), spectrum.residuals):
            assert float((full.nodes - value).abs().min()) <= residual + 1e-12
        assert max(spectrum.residuals) > 1e-6


def test_residuals_are_lengths_of_what_is_left():
    """|H v - lambda v| of the Ritz vectors, by a dense Lanczos space."""
    model, (x, y) = network(), samples()
    steps = 4
    spectrum = classwise_hessian(model, (x, y), [0], steps=steps)[0]
    matrix = dense(model, x[y == 0], y[y == 0]).numpy()
    start = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    basis = np.linalg.qr(np.stack([np.linalg.matrix_power(matrix, k) @ start for k in range(steps)], 1))[0]
    values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
    ritz = basis @ vectors
    left = np.linalg.norm(matrix @ ritz - ritz * values, axis=0)
    assert spectrum.nodes.numpy() == pytest.approx(values, rel=1e-7)
    assert spectrum.residuals == pytest.approx((left[-1], left[0]), rel=1e-6)


def test_of_a_layer_of_a_loader_in_training_mode_and_by_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x, y = samples((15, 9, 4))
    model(x)
    model.eval()
    expected = classwise_hessian(model, (x, y), steps=12)
    model.train()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    for spectra in (
        classwise_hessian(model, loader, steps=12),
        classwise_hessian(model, (x, y), steps=12, method="differences"),
    ):
        for label, spectrum in spectra.items():
            assert spectrum.lam_max == pytest.approx(expected[label].lam_max, rel=1e-6)
            assert spectrum.lam_min == pytest.approx(expected[label].lam_min, rel=1e-5)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all((p.grad == 2.0).all() for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    model.eval()
    assert class_hessians(model, (x, y), method="differences")[1][0].method == "differences"
    last = ["4.weight", "4.bias"]
    layer = class_hessians(model, (x, y), params=last)[1][0]
    block = class_hessians(model, (x, y))[1][0].matrix()[-21:, -21:]
    torch.testing.assert_close(layer.matrix(), block, rtol=1e-8, atol=1e-12)
    spectrum = classwise_hessian(model, (x, y), [1], steps=21, params=last)[1]
    assert spectrum.lam_max == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-8)


class TwoInputs(nn.Module):
    """Of a pair of inputs and a number that is of no sample."""

    def __init__(self):
        super().__init__()
        self.inside = network()

    def forward(self, x, *, shift, factor):
        return factor * self.inside(x + shift)


def test_inputs_by_name_and_batches_that_cannot_be_joined():
    model, (x, y) = TwoInputs(), samples()
    parts = [slice(0, 3), slice(3, 9), slice(9, 19)]
    named = [({"x": x[s], "shift": 0 * x[s], "factor": 1.0}, y[s]) for s in parts]
    spectra = classwise_hessian(model, named, steps=6)
    plain = classwise_hessian(model.inside, (x, y), steps=6)
    for label, spectrum in spectra.items():
        assert spectrum.lam_max == pytest.approx(plain[label].lam_max, rel=1e-8)
        assert spectrum.count == plain[label].count
    unjoined = class_hessians(model, named)[0][0]
    joined = class_hessians(model.inside, [(x[s], y[s]) for s in parts])
    assert len(unjoined.weights) == sum(bool((y[s] == 0).any()) for s in parts)
    assert [len(hessian.weights) for hessian, _ in joined.values()] == [2, 1, 1]
    torch.testing.assert_close(unjoined.matrix(), joined[0][0].matrix(), rtol=1e-9, atol=1e-12)


def test_the_loss_and_the_start_may_be_others():
    model, (x, y) = network(), samples()
    doubled = classwise_hessian(model, (x, y), loss=lambda z, t: 2 * nn.functional.cross_entropy(z, t), steps=6)
    plain = classwise_hessian(model, (x, y), steps=6)
    for label in plain:
        assert doubled[label].lam_max == pytest.approx(2 * plain[label].lam_max)
        assert saddle_ratio(doubled[label]) == pytest.approx(saddle_ratio(plain[label]))
    again = classwise_hessian(model, (x, y), steps=6)
    assert all(torch.equal(again[label].nodes, plain[label].nodes) for label in plain)
    moved = classwise_hessian(model, (x, y), steps=6, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(moved[0].nodes, plain[0].nodes)


def test_ratios():
    def of(low, high):
        ends = torch.tensor([low, high], dtype=torch.float64)
        return saddle_ratio(ClassSpectrum(high, low, ends, torch.full((2,), 0.5), (0.0, 0.0), 3, 0.1, 0.0))

    assert of(-1.0, 2.0) == 0.5
    assert of(-3e-12, 2e-12) == pytest.approx(1.5)
    assert of(1.0, 2.0) == of(0.0, 2.0) == of(0.0, 0.0) == 0.0
    assert of(-4.0, -2.0) == 2.0
    assert of(-1.0, 0.0) == math.inf
    assert math.isnan(of(math.nan, math.nan))


def test_what_is_not_finite_gives_nan():
    model, (x, y) = network(), samples()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    for spectrum in classwise_hessian(model, (x, y), steps=5).values():
        assert math.isnan(spectrum.lam_max)
        assert math.isnan(spectrum.lam_min)
        assert spectrum.nodes.isnan().all()
        assert math.isnan(saddle_ratio(spectrum))


def test_what_it_refuses():
    model, (x, y) = network(), samples()
    for bad, message in (
        (lambda: classwise_hessian(model, (x, y), steps=1), "steps: expected an integer >= 2"),
        (lambda: classwise_hessian(model, (x, y), [0, 7]), "classes: expected classes that have samples, got 7"),
        (lambda: classwise_hessian(model, (x, y), []), "classes: expected one or more"),
        (lambda: classwise_hessian(model, (x[:0], y[:0])), "loader: expected one sample or more"),
        (lambda: classwise_hessian(model, (x, y[:, None])), "target: expected 1 dimensions"),
        (lambda: classwise_hessian(model, []), "batches: expected one or more"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    with pytest.raises(TypeError, match="target: expected an integer tensor"):
        classwise_hessian(model, (x, y.double()))
    with pytest.raises(TypeError, match="classes: expected an integer"):
        classwise_hessian(model, (x, y), [0.5])
