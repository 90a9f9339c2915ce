"""Roughness: numbers of the card, quadratics, a naive loop in NumPy, exact restoring."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from steepest.watch.landscape import normalized_total_variation, random_direction, roughness_index
from steepest.watch.landscape.roughness_index import _result

S = torch.linspace(-1, 1, 2001, dtype=torch.float64)
CUTS = torch.stack([S**2, S, S**2 + 0.2 * (20 * S).sin()])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.holds("roughness-index", 1)
def test_monotone_and_even_cuts():
    got = normalized_total_variation(torch.stack([S.exp(), -(S**3), S.cosh(), S.abs()]))
    torch.testing.assert_close(got, torch.tensor([1.0, 1.0, 2.0, 2.0]).double(), rtol=1e-9, atol=0.0)
    for a, b in ((3.0, 7.0), (-0.01, 5.0), (-2.0, -1e3)):
        torch.testing.assert_close(
            normalized_total_variation(a * CUTS + b), normalized_total_variation(CUTS), rtol=1e-9, atol=0.0
        )


@pytest.mark.holds("roughness-index", 2)
def test_numbers_of_the_card():
    got = normalized_total_variation(CUTS)
    torch.testing.assert_close(got, torch.tensor([2.0, 1.0, 3.883223]).double(), rtol=0.0, atol=5e-7)
    result = _result(CUTS, None)
    assert float(result.ri) == pytest.approx(0.520979, abs=5e-7)
    assert float(result.mean) == pytest.approx(np.mean(got.numpy()))
    assert float(result.std) == pytest.approx(np.std(got.numpy()))


@pytest.mark.holds("roughness-index", 3)
@pytest.mark.parametrize("normalize", ["unit", "filter", "layer"])
def test_a_quadratic_at_its_minimizer(normalize):
    root = torch.randn(6, 6, generator=seeded(), dtype=torch.float64)
    start = torch.randn(6, generator=seeded(1), dtype=torch.float64)
    w = start.clone().view(2, 3).requires_grad_()
    result = roughness_index(
        lambda: (root @ (w.flatten() - start)).square().sum(),
        [w],
        7,
        points=41,
        normalize=normalize,
        generator=seeded(2),
    )
    torch.testing.assert_close(result.variations, torch.full((7,), 2.0, dtype=torch.float64), rtol=1e-9, atol=0.0)
    assert float(result.ri) < 1e-9


@pytest.mark.holds("roughness-index", 4)
def test_constant_cuts_are_left_out():
    with pytest.warns(UserWarning, match="1 of 4 cuts don't vary"):
        result = _result(torch.cat([CUTS, torch.ones_like(CUTS[:1])]), None)
    assert float(result.ri) == pytest.approx(0.520979, abs=5e-7)
    assert bool(result.variations[3].isnan())
    w = torch.zeros(2)
    with pytest.warns(UserWarning, match="3 of 3 cuts"):
        result = roughness_index(lambda: torch.tensor(1.0), [w], 3, points=5)
    assert bool(result.ri.isnan())


@pytest.mark.holds("roughness-index", 5)
def test_parameters_are_restored_bit_for_bit():
    model = nn.Linear(3, 1)
    w = torch.randn(50, generator=seeded()).requires_grad_()
    half = torch.randn(9, generator=seeded(1)).to(torch.bfloat16)
    before = w.detach().clone(), half.clone(), torch.get_rng_state()
    roughness_index(lambda: w.sin().sum() + half.float().sum(), [w, half], 3, points=9, generator=seeded())

    def failing():
        raise RuntimeError("that was planted")

    with pytest.raises(RuntimeError, match="planted"):
        roughness_index(failing, [w, half], 3, points=9, generator=seeded())
    own = [p.detach().clone() for p in model.parameters()]
    roughness_index(lambda m: m(torch.ones(2, 3)).sin().sum(), model, 3, points=9, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(own, model.parameters()))
    assert torch.equal(w.detach(), before[0])
    assert torch.equal(half, before[1])
    assert w.grad is None
    assert w.requires_grad
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_model_and_its_parameters_give_what_a_loop_gives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(20, 2, generator=seeded(3)).double()

    def loss(model=model):
        return (3 * model(x)).sin().mean()

    settings = {"directions": 4, "radius": 2.0, "points": 31}
    quick = roughness_index(loss, model, generator=seeded(1), **settings)
    one_by_one = roughness_index(loss, list(model.parameters()), generator=seeded(1), **settings)
    torch.testing.assert_close(quick.cuts, one_by_one.cuts.detach())
    a, b, c, d = (p.detach().numpy().copy() for p in model.parameters())
    generator, variations, by_length = seeded(1), [], []
    for _ in range(4):
        moves = [torch.randn(p.shape, generator=generator, dtype=torch.float64).numpy() for p in model.parameters()]
        unit = np.sqrt(sum((m**2).sum() for m in moves))
        values = []
        for s in np.linspace(-2, 2, 31):
            w, v, u, t = (p + s * m / unit for p, m in zip((a, b, c, d), moves))
            values.append(np.sin(3 * (np.tanh(x.numpy() @ w.T + v) @ u.T + t)).mean())
        total = np.abs(np.diff(values)).sum()
        variations.append(total / np.ptp(values))
        by_length.append(total / 4)
    np.testing.assert_allclose(quick.variations, variations, rtol=1e-9)
    np.testing.assert_allclose(float(quick.ri), np.std(variations) / np.mean(variations), rtol=1e-8)
    result = roughness_index(loss, model, generator=seeded(1), normalize_tv="length", **settings)
    np.testing.assert_allclose(result.variations, by_length, rtol=1e-9)


def test_the_official_index():
    """Of the cuts that are given back: total variation over range and length, deviation with M - 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(20, 2, generator=seeded(3)).double()
    result = roughness_index(lambda m: (5 * m(x)).sin().mean(), model, 9, 2.0, 31, generator=seeded(1))
    cuts = result.cuts.numpy()
    assert cuts.shape == (9, 31)
    ratios = [np.sum(np.abs(cut[1:] - cut[:-1])) / 4 / (max(cut) - min(cut)) for cut in cuts]
    index = np.sqrt(np.var(ratios, ddof=1)) / np.mean(ratios)
    assert float(result.ri) == pytest.approx(index * np.sqrt(8 / 9), rel=1e-9)
    assert float(result.mean) == pytest.approx(4 * np.mean(ratios), rel=1e-9)


def test_directions_of_the_scale_of_filters():
    model = nn.Linear(3, 2, bias=False).double()
    x = torch.eye(3, dtype=torch.float64)
    result = roughness_index(lambda m: m(x)[0, 1], model, 2, points=3, normalize="filter", generator=seeded())
    directions = [
        random_direction(model.parameters(), ignore=None, generator=generator)
        for generator in [seeded()]
        for _ in range(2)
    ]
    moved = torch.stack([d[0][1, 0] for d in directions])
    torch.testing.assert_close(result.cuts[:, 2] - result.cuts[:, 1], moved)


def test_one_loss_of_drawn_points_has_them_fixed():
    w = torch.zeros(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = roughness_index(lambda: torch.rand(()) + w.square().sum(), [w], 2, points=9, generator=seeded())
    torch.testing.assert_close(result.variations, torch.full((2,), 2.0), rtol=1e-5, atol=0.0)


def test_what_it_refuses():
    w = torch.zeros(2)
    with pytest.raises(ValueError, match="points: expected an odd number"):
        roughness_index(lambda: w.sum(), [w], points=4)
    with pytest.raises(ValueError, match="directions: expected an integer >= 1"):
        roughness_index(lambda: w.sum(), [w], directions=0)
    with pytest.raises(ValueError, match="radius: expected a number > 0"):
        roughness_index(lambda: w.sum(), [w], radius=0)
    with pytest.raises(ValueError, match="normalize: expected one of"):
        roughness_index(lambda: w.sum(), [w], normalize="model")
    with pytest.raises(ValueError, match="normalize_tv: expected one of"):
        roughness_index(lambda: w.sum(), [w], normalize_tv="none")
    with pytest.raises(ValueError, match="params: expected at least one parameter"):
        roughness_index(lambda: w.sum(), [])
    with pytest.raises(TypeError, match="loss_fn: expected a function"):
        roughness_index(1.0, [w])
    with pytest.raises(ValueError, match="points: expected an integer >= 3"):
        roughness_index(lambda: w.sum(), [w], points=1)
    with pytest.raises(ValueError, match="cuts: expected at least 2 points"):
        normalized_total_variation(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="radius: expected a number > 0"):
        normalized_total_variation(torch.zeros(3, 4), radius=0.0)
    with pytest.raises(TypeError, match="cuts: expected a floating tensor"):
        normalized_total_variation(torch.zeros(3, 4).long())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_that_of_the_model(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double().train(training)
    x = torch.randn(9, 3, generator=seeded()).double()
    got = roughness_index(lambda m: m(x).sin().square().sum(), model, 2, points=3, generator=seeded())
    middle = copy.deepcopy(model)(x).sin().square().sum()
    torch.testing.assert_close(got.cuts[:, 1], middle.detach().expand(2))
    assert model.training == training


def test_layers_and_the_middle():
    model = nn.Linear(3, 2).double()
    x = torch.eye(3, dtype=torch.float64)
    got = roughness_index(lambda m: m(x).sin().sum(), model, 3, 0.5, 5, "layer", seeded(7))
    generator, names = seeded(7), [n for n, _ in model.named_parameters()]
    for cut in got.cuts:
        drawn = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()]
        units = [d * p.detach().norm() / d.norm() for d, p in zip(drawn, model.parameters())]
        for k, s in enumerate((-0.5, -0.25, 0.0, 0.25, 0.5)):
            moved = {n: p.detach() + s * d for n, p, d in zip(names, model.parameters(), units)}
            assert float(cut[k]) == pytest.approx(float(torch.func.functional_call(model, moved, x).sin().sum()))
    half = normalized_total_variation(torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.bfloat16))
    assert half.dtype == torch.float32
    assert float(half) == 1.5
    with pytest.warns(UserWarning, match="2 of 2 cuts"):
        by_length = roughness_index(lambda m: m(x).sum() * 0, model, 2, points=3, normalize_tv="length")
    assert bool(by_length.ri.isnan())


def test_a_constant_curve_has_no_ratio_but_a_variation_of_zero():
    curves = torch.stack([torch.ones(5), torch.arange(5.0)])
    assert normalized_total_variation(curves).isnan().tolist() == [True, False]
    assert normalized_total_variation(curves, radius=2.0).tolist() == [0.0, 1.0]
    constant = torch.cat([CUTS, torch.ones_like(CUTS[:1])])
    with pytest.warns(UserWarning, match="1 of 4 cuts"):
        assert _result(constant, 1.0).variations.isnan().tolist() == [False, False, False, True]
