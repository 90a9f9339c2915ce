"""Ascent on inputs inside a box."""

from __future__ import annotations

import pytest
import torch

from steepest.core.attack import l2_ascent, linf_ascent


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


@pytest.mark.parametrize("ascent", [linf_ascent, l2_ascent])
def test_inputs_and_parameters_are_left_alone(ascent):
    layer = torch.nn.Linear(3, 1)
    x = torch.randn(4, 3, requires_grad=True)
    before = x.detach().clone()
    with torch.no_grad():
        found = ascent(x, layer, radius=0.1, step_size=0.1, steps=3)
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    assert layer.weight.grad is None
    assert not found.requires_grad


@pytest.mark.parametrize("bad", [{"radius": -1.0}, {"step_size": 0.0}, {"steps": -1}, {"bounds": (1.0, 0.0)}])
def test_refusals(bad):
    with pytest.raises(ValueError, match=": expected "):
        linf_ascent(torch.zeros(2), lambda v: v, **{"radius": 0.1, "step_size": 0.1, "steps": 1, **bad})


def test_l2_linear_objective_ends_along_its_slope():
    x = torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.2]], dtype=torch.float64)
    slope = torch.tensor([0.03, -0.04, 0.12], dtype=torch.float64)  # of length 0.13
    for size in (1.0, 1e-6):
        ended = l2_ascent(x, lambda v, size=size: size * (v * slope).sum(-1), radius=0.1, step_size=0.08, steps=40)
        torch.testing.assert_close(ended, x + 0.1 * slope / 0.13, rtol=0.0, atol=1e-6)
    inside = l2_ascent(x, lambda v: (v * slope).sum(-1), radius=9.0, step_size=8.0, steps=60, bounds=(0.0, 1.0))
    torch.testing.assert_close(inside, (x + 9.0 * slope.sign()).clamp(0, 1))
    lengths = torch.linalg.vector_norm(
        l2_ascent(x, lambda v: -(v * v).sum(-1), radius=0.1, step_size=0.5, steps=3) - x, dim=1
    )
    assert float(lengths.max()) <= 0.1 + 1e-12


def test_l2_small_steps_stay_inside_and_go_as_far_as_they_say():
    x = torch.zeros(5, 2, 3, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    start, moved = (
        l2_ascent(x, lambda v: v[:, 0, 0], radius=10.0, step_size=0.01, steps=steps, generator=generator)
        for steps, generator in zip((0, 2), generators)
    )
    along = torch.zeros(2, 3, dtype=torch.float64)
    along[0, 0] = 0.02
    torch.testing.assert_close(moved - start, along.expand(5, 2, 3), rtol=0.0, atol=1e-12)


def test_l2_start_is_uniform_in_the_ball_and_a_flat_objective_leaves_it():
    def run(steps, **options):
        generator = torch.Generator().manual_seed(1)
        return l2_ascent(torch.ones(4000, 3), lambda v: 0 * v, radius=0.5, step_size=0.1, steps=steps,
                         generator=generator, **options)  # fmt: skip

    lengths = torch.linalg.vector_norm(run(0) - 1, dim=1)
    assert float(lengths.max()) <= 0.5 + 1e-6
    assert float((lengths / 0.5).pow(3).mean()) == pytest.approx(0.5, abs=0.03), "volume is uniform"
    assert float((run(0) - 1).mean(0).abs().max()) < 0.02
    torch.testing.assert_close(run(2), run(0))
    assert float(run(0, bounds=(0.0, 1.0)).max()) <= 1.0
    assert torch.equal(l2_ascent(torch.ones(2), lambda v: v, radius=0.0, step_size=0.1, steps=2), torch.ones(2))


def test_l2_refuses():
    for bad in ({"radius": -1.0}, {"step_size": 0.0}, {"steps": -1}, {"bounds": (1.0, 0.0)}):
        with pytest.raises(ValueError, match=": expected "):
            l2_ascent(torch.zeros(2), lambda v: v, **{"radius": 0.1, "step_size": 0.1, "steps": 1, **bad})
