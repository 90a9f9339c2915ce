"""Displaced passes leave weights, buffers and random numbers as one pass would have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.core.displaced import ascent, displaced, random_numbers, same_random_numbers, sharpness_aware, unrecorded


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
