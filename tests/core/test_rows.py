"""The C++ forms of rows against float64, at each level that the processor has, and where they don't run."""

from __future__ import annotations

import pytest
import torch

from steepest.comparison.design.objectives import known_objectives
from steepest.core import native, rows, rowwise

EPS = torch.finfo(torch.float32).eps
SHAPES = [(1, 1), (3, 2), (1025, 10), (17, 63), (18, 64), (5, 65), (3, 1000), (2, 5003)]
needs_library = pytest.mark.skipif(native.library(rows.SOURCE) is None, reason="needs a C++ compiler")


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(rows, "WORTH", 1)


@pytest.fixture(params=native.levels())
def level(request, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", request.param)


def drawn(shape, scale=3.0, shift=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[1])) * scale + shift


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (1e-3, 1e4), (1e4, -1e9), (0.0, 7.0)])
def test_softmax_is_that_of_float64(shape, scale, shift, level, always):
    z = drawn(shape, scale, shift)
    p = torch.full(shape, -1.0)
    assert rows.runs(z, p)
    top, total = rows.softmax(z, p)
    exact = z.double().softmax(1)
    below = (z - z.amax(1, keepdim=True)).double()
    # z - top is rounded; 8: an exponential and the division; a sum adds at most 64 values to one lane
    share = below.abs() / 2 + (exact * below.abs()).sum(1, keepdim=True) / 2 + 8 + min(shape[1], 64) / 2
    assert ((p - exact).abs() <= EPS * share * exact + torch.finfo(torch.float32).tiny).all()
    assert torch.equal(top, z.amax(1, keepdim=True))
    sums = below.exp().sum(1, keepdim=True)
    assert ((total - sums).abs() <= EPS * share.amax(1, keepdim=True) * sums).all()


@needs_library
@pytest.mark.parametrize("columns", [3, 70])
def test_what_is_not_finite_is_as_in_torch(columns, level, always):
    z = drawn((6, columns))
    z[0, 1], z[1, 0], z[2], z[3, 2], z[4, columns - 1] = torch.nan, torch.inf, -torch.inf, -torch.inf, torch.nan
    p = torch.empty_like(z)
    rows.softmax(z, p)
    wanted = z.softmax(1)
    assert torch.equal(p.isnan(), wanted.isnan())
    assert p[3, 2] == 0.0
    assert wanted.isnan().any(1).tolist() == [True, True, True, False, True, False]


@needs_library
@pytest.mark.parametrize("shape", [(20_000, 3), (40, 1000)])
def test_threads_change_no_bit(shape, always):
    z = drawn(shape)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        p = torch.empty_like(z)
        found.append((p, *rows.softmax(z, p)))
        rows.scale(p, *torch.ones(2, len(p), 1).unbind(), target=torch.zeros(len(p), dtype=torch.int64))
    for one, two in zip(*found):
        assert torch.equal(one, two)


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_scaled_and_added_to(shape, level, always):
    g, factor, value = drawn(shape), drawn((len(drawn(shape)), 1)), drawn((shape[0], 1), 2.0)
    target = torch.arange(shape[0]) % shape[1]
    wanted = g * factor
    wanted[torch.arange(shape[0]), target] += value.squeeze(1)
    rows.scale(g, factor, value, target)
    assert torch.equal(g, wanted)


@needs_library
def test_a_target_outside_the_row_writes_nothing(always):
    g = torch.zeros(3, 4)
    rows.scale(g[1:2], torch.ones(1, 1), torch.ones(1, 1), torch.tensor([4]))
    rows.scale(g[1:2], torch.ones(1, 1), torch.ones(1, 1), torch.tensor([-1]))
    assert not g.any()


@needs_library
def test_where_they_do_not_run(monkeypatch):
    z = torch.zeros(rows.WORTH // 4, 4)
    assert rows.runs(z, z)
    assert not rows.runs(z[1:], z[1:])
    assert not rows.runs(z.double())
    assert not rows.runs(z.t())
    assert not rows.runs(z.to("meta"))
    assert not rows.runs(z, torch.zeros(4, len(z)).t())
    monkeypatch.setattr(rows, "_library", lambda level: None)
    assert not rows.runs(z)


@needs_library
@pytest.mark.parametrize(
    "name", [name for name, (cls, _) in known_objectives().items() if "multiclass" in cls.tasks and not cls.stateful]
)
def test_losses_and_gradients_agree_with_the_forms_of_torch(name, monkeypatch):
    """Rounding apart, which a loss may multiply by as much as its own terms cancel."""
    cls, _ = known_objectives()[name]
    for objective, (args, kwargs) in cls.samples(torch.Generator().manual_seed(0)):
        found = []
        for least in (1, 1 << 62):
            monkeypatch.setattr(rows, "WORTH", least)
            outputs = args[0].clone().requires_grad_()
            torch.manual_seed(0)
            loss = objective(outputs, *args[1:], **kwargs)
            loss = loss[0] if isinstance(loss, tuple) else loss
            found.append((loss.detach(), torch.autograd.grad(loss.sum(), outputs)[0]))
        for native_form, torchs in zip(*found):
            torch.testing.assert_close(native_form, torchs, rtol=64 * EPS, atol=64 * EPS * float(torchs.abs().max()))


@needs_library
def test_large_batches_take_them(monkeypatch):
    z = drawn((rows.WORTH, 2))
    called = []
    monkeypatch.setattr(rows, "softmax", lambda z, p: called.append(1) or (z[:, :1], z[:, :1].exp()))
    rowwise.softmax_parts(z, torch.empty_like(z))
    rowwise.softmax_parts(z[:2], torch.empty(2, 2))
    assert called == [1]
