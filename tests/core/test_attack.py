"""Ascent on inputs inside a box."""

from __future__ import annotations

import pytest
import torch

from steepest.core.attack import linf_ascent


def test_linear_objective_ends_in_its_corner():
    x = torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.2]], dtype=torch.float64)
    slope = torch.tensor([0.01, -0.5, 3.0], dtype=torch.float64)  # the size of a slope plays no part
    found = linf_ascent(x, lambda v: (v * slope).sum(-1), radius=0.1, step_size=0.05, steps=5)
    torch.testing.assert_close(found, x + 0.1 * slope.sign())
    inside = linf_ascent(x, lambda v: (v * slope).sum(-1), radius=0.6, step_size=0.5, steps=9, bounds=(0.0, 1.0))
    torch.testing.assert_close(inside, (x + 0.6 * slope.sign()).clamp(0, 1))


def test_start_is_uniform_seeded_and_left_where_there_are_no_steps():
    def start(seed):
        generator = torch.Generator().manual_seed(seed)
        return linf_ascent(torch.ones(2000), lambda v: v, radius=0.5, step_size=0.1, steps=0, generator=generator)

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    moved = start(1) - 1
    assert float(moved.abs().max()) <= 0.5
    assert float(moved.mean().abs()) < 0.03
    assert float(moved.var()) == pytest.approx(0.5**2 / 3, rel=0.1)


def test_inputs_and_parameters_are_left_alone():
    layer = torch.nn.Linear(3, 1)
    x = torch.randn(4, 3, requires_grad=True)
    before = x.detach().clone()
    with torch.no_grad():
        found = linf_ascent(x, layer, radius=0.1, step_size=0.1, steps=3)
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    assert layer.weight.grad is None
    assert not found.requires_grad


@pytest.mark.parametrize("bad", [{"radius": -1.0}, {"step_size": 0.0}, {"steps": -1}, {"bounds": (1.0, 0.0)}])
def test_refusals(bad):
    with pytest.raises(ValueError, match=": expected "):
        linf_ascent(torch.zeros(2), lambda v: v, **{"radius": 0.1, "step_size": 0.1, "steps": 1, **bad})
