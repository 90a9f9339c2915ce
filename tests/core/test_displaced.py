"""Displaced passes leave weights, buffers and random numbers as one pass would have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core import native
from steepest.core.displaced import (
    SOURCE,
    Climb,
    ascent,
    displaced,
    length,
    random_numbers,
    same_random_numbers,
    sharpness_aware,
    unrecorded,
)
from steepest.optim import SAM


def test_weights_come_back_to_the_last_bit_also_after_an_exception():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(50)), nn.Parameter(torch.randn(3).bfloat16())]
    before = [w.detach().clone() for w in weights]
    moves = [torch.full((50,), 1e-3), None]
    inside = []

    def fail():
        inside.extend(w.detach().clone() for w in weights)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), displaced(weights, moves):
        fail()
    assert not torch.equal(inside[0], before[0])
    assert torch.equal(inside[1], before[1])
    assert all(torch.equal(w, b) for w, b in zip(weights, before))


def test_statistics_are_those_of_the_first_pass():
    """One step on a batch (1, 3) with momentum 0.1: a running mean of 0.2, one batch."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    x = torch.tensor([[1.0], [3.0]])
    sharpness_aware(lambda: model(x).square().mean(), list(model.parameters()), rho=0.05, modules=[model])
    torch.testing.assert_close(model[0].running_mean, torch.tensor([0.2]))
    assert model[0].num_batches_tracked == 1


def test_both_passes_draw_the_same_numbers():
    torch.manual_seed(1)
    drawn = []

    def closure():
        drawn.append(torch.rand(3))
        return (w * drawn[-1]).sum() ** 2

    w = nn.Parameter(torch.ones(3))
    sharpness_aware(closure, [w], rho=0.05)
    after = torch.rand(2)
    assert torch.equal(*drawn)
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(torch.rand(2), after), "the run goes on as after one pass"


def test_random_numbers_go_on_after_an_exception():
    torch.manual_seed(2)
    start = random_numbers()
    torch.rand(4)
    with pytest.raises(RuntimeError, match="inside"), same_random_numbers(start):
        raise RuntimeError("inside")
    after = torch.rand(1)
    torch.manual_seed(2)
    torch.rand(4)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_gradient_moves_nothing(dtype):
    moves = ascent([torch.ones(2, dtype=dtype)], [torch.zeros(2, dtype=dtype)], 0.05)
    assert torch.equal(moves[0], torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_move_has_length_rho(size):
    """Whose squares would overflow or vanish."""
    g = [torch.tensor([3.0, 4.0]) * size, None, torch.tensor([12.0]) * size]
    moves = ascent([torch.zeros(2), torch.zeros(1), torch.zeros(1)], g, 0.13)
    torch.testing.assert_close(torch.cat([moves[0], moves[2]]), torch.tensor([0.03, 0.04, 0.12]))
    assert moves[1] is None


def test_the_adaptive_move():
    w, g = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 3.0])
    t = w.abs()
    torch.testing.assert_close(ascent([w], [g], 0.5, adaptive=True)[0], 0.5 * t**2 * g / (t * g).norm())
    assert ascent([], [], 0.1) == []


def test_buffers_come_back():
    norm = nn.BatchNorm1d(2)
    with unrecorded([norm, norm]):
        norm(torch.randn(4, 2))
        assert norm.num_batches_tracked == 1
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(2))


@pytest.fixture(params=native.levels())
def level(request, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)


needs_library = pytest.mark.skipif(native.library(SOURCE) is None, reason="needs a C++ compiler")


@needs_library
def test_a_climb_is_a_move_along_gradients_bit_for_bit(level):
    """Widths around a vector's; the length in float64; numbers beside the tensors stay."""
    g = torch.Generator().manual_seed(0)
    whole = [torch.randn(3, size, generator=g) for size in (1, 7, 16, 33, 1000)]
    weights, slopes = [row[1] for row in whole], [torch.randn(len(row[1]), generator=g) for row in whole]
    start = [row.clone() for row in whole]
    factors = [0.3, -0.1, 1.0, 1e-3, 0.0]
    assert Climb.runs(weights, slopes)
    climb = Climb(weights, slopes, torch.empty(1057))
    wanted = torch.cat(slopes).double().norm()
    torch.testing.assert_close(climb.length(), float(wanted), rtol=1e-13, atol=0.0)
    torch.testing.assert_close(length(slopes), wanted, rtol=1e-13, atol=0.0)
    climb.move(factors)
    for w, row, slope, factor in zip(weights, start, slopes, factors):
        assert torch.equal(w, row[1] + torch.tensor(factor) * slope)
    for row, before in zip(whole, start):
        assert torch.equal(row[[0, 2]], before[[0, 2]])
    climb.put_back()
    assert all(map(torch.equal, whole, start))


@needs_library
def test_lengths_of_tiny_huge_and_broken_numbers(level):
    for size in (1e-38, 1e38):
        assert float(length([torch.full((9,), size)])) == pytest.approx(3 * float(torch.tensor(size)), rel=1e-12)
    assert float(length([torch.zeros(20)])) == 0.0
    assert math.isnan(float(length([torch.ones(20), torch.tensor([math.nan])])))
    assert math.isinf(float(length([torch.ones(20), torch.tensor([-math.inf])])))


@needs_library
def test_what_a_climb_does_not_take():
    w = torch.zeros(4, 8)
    assert Climb.runs([w], [w])
    assert not Climb.runs([], [])
    for other in (w.double(), w.T, w[:2], w.to("meta"), w.to_sparse()):
        assert not Climb.runs([w], [other])
    torch.testing.assert_close(length([w.T + 1, w.double() + 1]), torch.tensor(8.0).double())


@needs_library
@pytest.mark.parametrize("maximize", [False, True])
def test_sam_moves_alike_in_both_forms(maximize, monkeypatch):
    """Two groups of radii; float32 in C++, and by operations of torch."""
    moved = []
    for runs in (Climb.runs, lambda *_: False):
        monkeypatch.setattr(Climb, "runs", staticmethod(runs))
        torch.manual_seed(0)
        a, b = nn.Parameter(torch.randn(50)), nn.Parameter(torch.randn(3))
        groups = [{"params": [a], "rho": 0.5}, {"params": [b], "rho": 0.1}]
        optimizer = SAM(groups, lr=0.1, maximize=maximize)
        away = []

        def closure(optimizer=optimizer, a=a, b=b, away=away):
            optimizer.zero_grad()
            away.append(torch.cat([a, b]).detach().clone())
            loss = a.square().sum() + 3 * b.pow(4).sum()
            loss.backward()
            return loss.detach()

        for _ in range(2):
            optimizer.step(closure)
        moved.append(torch.stack(away))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-6, atol=1e-6)
    assert (moved[0][0] - moved[0][1]).norm() > 0.1
    assert ((moved[0][1] - moved[0][0])[0] * moved[0][0][0] > 0) != maximize
