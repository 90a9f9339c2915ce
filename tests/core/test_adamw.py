"""The C++ step of AdamW against float64, at each level that the processor has, and where it doesn't run."""

from __future__ import annotations

import pytest
import torch

from steepest.core import adamw, native

needs_library = pytest.mark.skipif(native.library(adamw.SOURCE) is None, reason="needs a C++ compiler")
BETAS, EPS = (0.9, 0.999), 1e-8


@pytest.fixture(params=native.levels())
def level(request, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)


def scalars(step):
    (b1, b2) = BETAS
    return (1 - b1, b2, 1 - b2, (1 - b2**step) ** -0.5, EPS, -1 / (1 - b1**step))


@needs_library
@pytest.mark.parametrize("sizes", [(1,), (3, 16, 5), (33, 7), (1024,)])
def test_steps_are_those_of_torch(sizes, level):
    """Widths around a vector's; gradients of many sizes, zeros among them; every model with its own rate and decay."""
    models, g = 3, torch.Generator().manual_seed(sum(sizes))
    flat = torch.randn(models, sum(sizes), generator=g)
    first, second = torch.zeros_like(flat), torch.zeros_like(flat)
    rates, decays = [1e-3, 0.1, 1e-4], [0.0, 0.5, 0.01]
    rate, decay = torch.tensor(rates).unsqueeze(1), torch.tensor(decays).unsqueeze(1)
    twins = [torch.nn.Parameter(row.double()) for row in flat]
    optimizers = [
        torch.optim.AdamW([twin], lr=lr, weight_decay=wd, betas=BETAS, eps=EPS)
        for twin, lr, wd in zip(twins, rates, decays)
    ]
    steps = 12
    assert adamw.runs(flat, first, second)
    move = adamw.Step(flat, first, second, sizes, rate, 1 - rate * decay)
    for step in range(1, steps + 1):
        gradients = [torch.randn(models, size, generator=g) * 10.0 ** (step % 5 - 3) for size in sizes]
        gradients[0][0] *= step % 3 > 0
        if step == 3:  # laid out otherwise
            gradients = [gradient.T.contiguous().T for gradient in gradients]
        move(gradients, scalars(step))
        for m, (twin, optimizer) in enumerate(zip(twins, optimizers)):
            twin.grad = torch.cat([gradient[m] for gradient in gradients]).double()
            optimizer.step()
    # each step rounds the weight, and a move of at most some rates eight times
    wanted = torch.stack([twin.detach() for twin in twins])
    allowed = steps * torch.finfo(torch.float32).eps * (wanted.abs() + 8 * 10 * rate)
    assert ((flat.double() - wanted).abs() <= allowed).all()


@needs_library
def test_numbers_beside_the_rows_stay(level):
    """A row of 21 numbers between others."""
    whole = torch.full((3, 3, 21), 7.0)
    flat, first, second = (whole[i, 1:2] for i in range(3))
    second.abs_()
    adamw.Step(flat, first, second, [21], torch.ones(1, 1), torch.ones(1, 1))([torch.ones(1, 21)], scalars(3))
    assert (whole[:, [0, 2]] == 7.0).all()
    assert (flat != 7.0).all()


@needs_library
def test_what_it_does_not_take():
    flat = torch.zeros(2, 8)
    assert adamw.runs(flat)
    assert not adamw.runs(flat.double())
    assert not adamw.runs(flat, flat.T)
    assert not adamw.runs(flat.to("meta"))


def test_without_a_library_it_does_not_run(monkeypatch):
    monkeypatch.setattr(adamw, "_library", lambda level: None)
    assert not adamw.runs(torch.zeros(2, 8))
