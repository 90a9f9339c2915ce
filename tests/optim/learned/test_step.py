"""Steps of a learned optimizer in C++ against float64, at each level that the processor has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core import native
from steepest.optim.learned import SmallFCLOpt, _step, learned_optimizers
from steepest.optim.learned._network import SIZE, initial

SHAPES = [(), (5,), (37,), (2000,), (3, 4), (40, 33), (33, 40), (2, 3, 2, 2), (3, 50, 3), (50, 3, 3)]
FORMS = {"C++": torch.float32, "torch": torch.float32, "wide": torch.float64}
needs_library = pytest.mark.skipif(native.library(_step.SOURCE) is None, reason="needs a C++ compiler")


@pytest.fixture(params=native.levels())
def level(request, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)


def meta_parameters():
    g = torch.Generator().manual_seed(1)
    theta = initial(g).double() + 0.02 * torch.randn(SIZE, generator=g).double()
    theta[180:188] *= 100  # so that the exponent of the second output counts
    return theta


def moved(params, gradients, dtype=torch.float32):
    own = [nn.Parameter(p.to(dtype, copy=True)) for p in params]
    optimizer = SmallFCLOpt(own, meta_parameters())
    for gradient in gradients:
        for p, g in zip(own, gradient):
            p.grad = g.to(dtype)
        optimizer.step()
    return [p.detach() for p in own], [optimizer.state[p] for p in own]


def drawn(shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=g) for shape in shapes]
    return params, [[10.0 ** (i - 3) * torch.randn(shape, generator=g) for shape in shapes] for i in range(4)]


@needs_library
def test_steps_are_as_near_to_float64_as_those_of_torch(level, monkeypatch):
    """Lines shorter and longer than a vector; both are in float32: four times torch's error is allowed."""
    params, gradients = drawn(SHAPES)
    ways = {}
    for form, dtype in FORMS.items():
        if form == "torch":
            monkeypatch.setattr(learned_optimizers, "runs", lambda *_: False)
        ways[form] = moved(params, gradients, dtype)
    for shape, start, ours, theirs, wide in zip(SHAPES, params, *(way[0] for way in ways.values())):
        floor = torch.finfo(torch.float32).eps * float((wide - start).abs().max() + wide.abs().max())
        errors = [float((own.double() - wide).abs().max()) for own in (ours, theirs)]
        assert errors[0] <= 4 * errors[1] + 4 * floor, f"{shape}: {errors}"
    for shape, *states in zip(SHAPES, *(way[1] for way in ways.values())):
        assert states[0]["step"] == 4
        for name, value in states[2].items():
            if name != "step":
                ours, theirs = (state[name].double() for state in states[:2])
                size = 2000 * torch.finfo(torch.float32).eps * value.abs().max()  # 1 less a decay of 0.999
                assert ((ours - value).abs() <= size).all(), f"{shape}: {name}"
                assert ours.shape == theirs.shape


@needs_library
def test_a_tensor_is_the_same_whatever_moves_beside_it(level):
    params, gradients = drawn(SHAPES, seed=2)
    together, states = moved(params, gradients)
    for i, p in enumerate(params):
        alone, state = moved([p], [[gradient[i]] for gradient in gradients])
        assert torch.equal(together[i], alone[0])
        assert all(torch.equal(torch.as_tensor(state[0][name]), torch.as_tensor(states[i][name])) for name in state[0])


@needs_library
@pytest.mark.parametrize("shape", [(21,), (3, 7)])
def test_numbers_beside_a_tensor_stay(level, shape):
    whole = torch.full((3, 21), 7.0)
    p = nn.Parameter(whole[1].view(shape))
    optimizer = SmallFCLOpt([p], meta_parameters())
    p.grad = torch.arange(21.0).view(shape) - 5
    optimizer.step()
    assert (whole[[0, 2]] == 7.0).all()
    assert (whole[1] != 7.0).any()


@needs_library
def test_the_exponent_at_its_ends(level):
    """A network that gives (2, b): 0.001 * 2 * exp(0.001 b), and NaN where the gradient has one."""
    for b in (-5e4, -3.0, 0.0, 40.0, 8e4):
        theta = torch.zeros(SIZE, dtype=torch.float64)
        theta[188], theta[189] = 2.0, b
        p = nn.Parameter(torch.zeros(3))
        optimizer = SmallFCLOpt([p], theta)
        p.grad = torch.ones(3)
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.full((3,), -0.002 * math.exp(0.001 * b)), rtol=1e-5, atol=1e-30)
    p.grad[1] = math.nan
    SmallFCLOpt([p], meta_parameters()).step()
    assert p.isnan().all(), "its root mean square is that of the tensor"


@needs_library
def test_what_it_takes():
    p = torch.zeros(4, 8)
    state = {"step": 3, "momentum": torch.zeros(3, 4, 8), "rms": torch.zeros(1, 4, 8)}
    assert _step.runs(p, p, state)
    assert not _step.runs(p.double(), p.double(), state)
    assert not _step.runs(p.T, p.T, state)
    assert not _step.runs(p, p, {**state, "rms": torch.zeros(1, 4, 8).double()})


def test_without_a_library_it_does_not_run(monkeypatch):
    monkeypatch.setattr(_step, "_library", lambda level: None)
    assert not _step.runs(torch.zeros(8), torch.zeros(8), {"step": 0, "rms": torch.zeros(1, 8)})
