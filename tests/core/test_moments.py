"""Averages, products and moves in C++ against float64, at each level that the processor has."""

from __future__ import annotations

import pytest
import torch

from steepest.core import moments, native
from steepest.optim import PSPS, Momo, MomoAdam

needs_library = pytest.mark.skipif(native.library(moments.SOURCE) is None, reason="needs a C++ compiler")
SIZES = (1, 3, 16, 37, 1030, 5000)
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=native.levels())
def level(request, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)


def lists(number, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(size, generator=g) for size in SIZES] for _ in range(number)]


@needs_library
@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("squared", [True, False])
def test_products_and_moves_are_those_of_float64(level, averaged, squared):
    w, g, d, v = lists(4)
    v = [own.square() for own in v]
    wide = [[own.double() for own in values] for values in (w, g, d, v)]
    shares = [0.5 + 0.1 * k for k in range(len(SIZES))]
    beta, gain, beta2, gain2, eps, length = 0.9, 0.1, 0.99, 0.01, 1e-3, 0.25
    assert moments.runs(w, g, d, v)
    own = moments.Moments(w, g, d if averaged else (), v if squared else (), shares if squared else (), eps)
    sums = own.products(beta, gain, beta2, gain2)
    own.move(length)
    wanted, sizes = torch.zeros(3).double(), torch.zeros(3).double()
    for k, (a, b, c, e) in enumerate(zip(*wide)):
        c = beta * c + gain * b if averaged else b
        e = beta2 * e + gain2 * b * b
        way = c / (e.sqrt() * shares[k] + eps) if squared else c
        terms = [b * a, c * a, c * way]
        wanted += torch.stack([term.sum() for term in terms])
        sizes += torch.stack([term.abs().sum() for term in terms])
        if averaged:
            assert ((d[k] - c).abs() <= 3 * EPS * (c.abs() + b.abs() + 10)).all()
        if squared:
            torch.testing.assert_close(v[k].double(), e, rtol=4 * EPS, atol=0)
        # the direction carries the average's error over its metric, a few roundings on top
        allowed = EPS * (a.abs() + 10 * length * (10 / eps if squared else 10))
        assert ((w[k] - (a - length * way)).abs() <= allowed).all()
    # a term takes some roundings, a lane 64 additions in float32
    assert ((torch.tensor(sums).double() - wanted).abs() <= (64 + 10) * EPS * sizes).all()


@needs_library
def test_a_tensor_is_the_same_whatever_moves_beside_it(level):
    together, alone = lists(4, seed=1), lists(4, seed=1)
    for values in (together, alone):
        values[3] = [own.square() for own in values[3]]
    scalars = (0.9, 0.1, 0.99, 0.01)
    whole = moments.Moments(*together, eps=1e-8)
    sums = whole.products(*scalars)
    whole.move(0.1)
    own = []
    for tensors in zip(*alone):
        single = moments.Moments(*([tensor] for tensor in tensors), eps=1e-8)
        own.append(single.products(*scalars))
        single.move(0.1)
    assert sums == tuple(map(sum, zip(*own)))
    for values, others in zip(together, alone):
        assert all(map(torch.equal, values, others))


@needs_library
def test_numbers_beside_a_tensor_stay(level):
    whole = torch.full((4, 3, 21), 7.0)
    own = moments.Moments(*([row[1]] for row in whole), eps=1e-8)
    own.products(0.5, 0.25, 0.5, 0.25)
    own.move(0.1)
    assert (whole[:, [0, 2]] == 7.0).all()
    assert (whole[[0, 2, 3], 1] != 7.0).any(1).all()


@needs_library
def test_a_backward_through_weights_that_moved_is_refused():
    w = torch.nn.Parameter(torch.ones(3))
    loss = w.square().sum()
    with torch.no_grad():
        moments.Moments([w], [torch.ones(3)]).move(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_library
def test_what_it_does_not_take():
    w = torch.zeros(4, 8)
    assert moments.runs([w], [w])
    assert not moments.runs([w.double()])
    assert not moments.runs([w], [w.T])
    assert not moments.runs([w], [w[:2]])
    assert not moments.runs([w], [])
    assert not moments.runs([w.to("meta")])
    assert not moments.runs([w.to_sparse()])


def test_without_a_library_it_does_not_run(monkeypatch):
    monkeypatch.setattr(moments, "_library", lambda level: None)
    assert not moments.runs([torch.zeros(8)])


BUILDS = [
    lambda p: Momo(p, 0.3, weight_decay=0.01),
    lambda p: Momo(p, 0.3, weight_decay=0.01, bias_correction=True, use_fstar=True, divide=False),
    lambda p: MomoAdam(p, 0.01, weight_decay=0.01, lb=0.1),
    lambda p: PSPS(p, cap=0.1),
    lambda p: PSPS(p, "adam", cap=0.1),
    lambda p: PSPS(p, "adagrad", "L2", cap=0.1),
]
FORMS = {"moments": (None, True), "one by one": (None, False), "lists": (lambda *_: False, True)}


@needs_library
@pytest.mark.parametrize("build", BUILDS)
def test_both_forms_of_a_step(build, monkeypatch):
    """Two groups whose tensors a step by lists takes in several shares."""
    results = {}
    for form, (runs, foreach) in FORMS.items():
        if runs is not None:
            for module in ("momo", "preconditioned_sps"):
                monkeypatch.setattr(f"steepest.optim.optimizers.{module}.runs", runs)
        g = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(size, generator=g)) for size in (50_000, 90_000, 60_000, 7, 40_000)]
        optimizer = build([{"params": params[:3]}, {"params": params[3:], "lr": 0.2}])
        for group in optimizer.param_groups:
            group["foreach"] = foreach
        scales = [torch.rand(p.shape, generator=g) for p in params]
        for _ in range(5):
            optimizer.zero_grad()
            loss = sum((scale * p.square()).mean() for scale, p in zip(scales, params))
            loss.backward()
            optimizer.step(loss=loss.detach())
        results[form] = params
    for p, q, r in zip(*results.values()):
        assert torch.equal(p, q)
        torch.testing.assert_close(p, r, rtol=1e-4, atol=1e-5)


@needs_library
@pytest.mark.parametrize("averaged", [True, False])
def test_a_pass_along_momenta_is_that_of_float64(level, averaged):
    w, g, m = lists(3, seed=2)
    wide = [[own.double() for own in values] for values in (w, g, m)]
    versions = [own._version for own in w]
    moments.momentum_pass(w, g, m if averaged else [], 0.5, 0.9, 0.3, 0.75)
    for k, (a, b, c) in enumerate(zip(*wide)):
        c = 0.9 * c + 0.3 * b if averaged else b
        size = 0.75 * a.abs() + 0.5 * (m[k].abs() + b.abs() + 10)
        assert ((w[k] - (0.75 * a - 0.5 * c)).abs() <= 4 * EPS * size).all()
        if averaged:
            assert ((m[k] - c).abs() <= 3 * EPS * (c.abs() + b.abs() + 10)).all()
        assert w[k]._version > versions[k]
