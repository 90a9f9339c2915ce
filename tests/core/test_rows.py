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
    top, rest = rows.softmax(z, p)
    exact = z.double().softmax(1)
    below = (z - z.amax(1, keepdim=True)).double()
    # z - top is rounded; 8: an exponential and the division; a sum adds at most 64 values to one lane
    share = below.abs() / 2 + (exact * below.abs()).sum(1, keepdim=True) / 2 + 8 + min(shape[1], 64) / 2
    assert ((p - exact).abs() <= EPS * share * exact + torch.finfo(torch.float32).tiny).all()
    assert torch.equal(top, z.amax(1, keepdim=True))
    sums = below.exp().sum(1, keepdim=True)
    assert ((1 + rest - sums).abs() <= EPS * share.amax(1, keepdim=True) * sums).all()


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
        rows.mix(p, None, None, 2.0, z, 3.0, torch.ones(len(p), 1), None)
        found[-1] += rows.moments(z)
    for one, two in zip(*found):
        assert torch.equal(one, two)


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["scaled", "added to", "replaced"])
def test_rows_are_mixed(shape, kind, level, always):
    g, z, target = drawn(shape), drawn(shape, 1.0, 5.0), torch.arange(shape[0]) % shape[1]
    factor, slope, centre, shift, value = drawn((5 * shape[0], 1)).view(5, -1, 1).unbind()
    factor = None if kind == "replaced" else factor
    own = 0.0 if factor is None else factor.double() * g
    other = 0.0 if kind == "scaled" else slope.double() * (z - centre)
    wanted = (own + other + shift.double()).scatter(1, target.unsqueeze(1), value.double())
    rows.mix(g, target, value, factor, *((None,) * 3 if kind == "scaled" else (z, slope, centre)), shift)
    size = torch.as_tensor(own).abs() + torch.as_tensor(other).abs() + shift.abs()
    assert ((g - wanted).abs() <= 2 * EPS * size).all()


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_moments_are_those_of_float64(shape, shift, level, always):
    z = drawn(shape, 1.0, shift)
    mean, squares = rows.moments(z)
    exact, least = z.double(), EPS * (4 + min(shape[1], 64) / 2)
    apart = exact - exact.mean(1, keepdim=True)
    assert ((mean - exact.mean(1, keepdim=True)).abs() <= EPS * exact.abs().amax(1, keepdim=True)).all()
    # the mean that is subtracted is a float32: off by half its last bit
    off = EPS * exact.abs().amax(1, keepdim=True)
    wanted = apart.square().sum(1, keepdim=True)
    assert (
        (squares - wanted).abs()
        <= least * wanted + shape[1] * off.square() + 4 * off * apart.abs().sum(1, keepdim=True)
    ).all()
    y = torch.arange(shape[0]) % shape[1]
    _, squares = rows.moments(z, y, 0.5)
    wanted = (exact - 0.5).square().scatter(1, y.unsqueeze(1), 0.0).sum(1, keepdim=True)
    assert ((squares - wanted).abs() <= least * wanted).all()


@needs_library
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] > 1])
@pytest.mark.parametrize("size", [1e-4, 3.0, 40.0])
@pytest.mark.parametrize("numbers", ["none", "one", "each"])
def test_what_a_loss_of_the_target_needs(shape, size, numbers, level, always):
    """All parts to a few roundings of their own size, however small."""
    z, y = drawn(shape, size), torch.arange(shape[0]) % shape[1]
    scale, shift = {"none": (1.0, 0.0), "one": (0.7, -0.4), "each": (None, None)}[numbers]
    if numbers == "each":
        scale, shift = 0.1 + torch.rand(2, shape[0], 1).unbind()[0], drawn((shape[0], 1), 0.5)
    found = []
    for least in (1, 1 << 62):
        rows.WORTH, p = least, torch.empty(shape)
        found.append((*rowwise.target_softmax(z, p, y, scale=scale, shift=shift, excess=True), p))
    column, columns = y.unsqueeze(1), [torch.as_tensor(v).expand(shape[0], 1).double() for v in (scale, shift)]
    u = z.scatter_add(1, column, columns[1].float()).double()
    top = u.amax(1, keepdim=True)
    u = (u - top) * columns[0]
    rest = u.exp().scatter(1, u.argmax(1, keepdim=True), 0.0).sum(1, keepdim=True)
    away = u.softmax(1).scatter(1, column, 0.0).sum(1, keepdim=True)
    wanted = (top, u.gather(1, column), rest, away, u.expm1().sum(1, keepdim=True), u.softmax(1))
    # u is rounded, and so is what is moved; an exponential multiplies that by e^u
    allowed = EPS * (8 + 2 * u.abs().amax(1, keepdim=True) + min(shape[1], 64) / 2)
    for parts in found:
        for part, exact in zip(parts, wanted):
            assert ((part - exact).abs() <= allowed * exact.abs() + torch.finfo(torch.float32).tiny).all()


@needs_library
def test_a_target_outside_the_row_writes_nothing(always):
    g = torch.zeros(3, 4)
    for target in (4, -1):
        rows.mix(g[1:2], torch.tensor([target]), torch.ones(1, 1), 1.0, None, None, None, None)
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
    monkeypatch.setattr(rows, "_library", lambda functions, level: None)
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
