"""Two-pass softmax: its pairs, its three implementations against float64, its derivatives."""

from __future__ import annotations

import math
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.kernels import (
    ExtFloat,
    ext_logsumexp,
    extexp,
    extexp_sum,
    log_softmax,
    merge,
    softmax,
    two_pass_softmax,
)
from steepest.kernels.two_pass_softmax import _backend as dispatch

MODULE = sys.modules[dispatch.__module__]  # the room's attribute of this name is the function

INF, NAN = math.inf, math.nan
PEERS = {two_pass_softmax: torch.softmax, log_softmax: torch.log_softmax, ext_logsumexp: torch.logsumexp}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")

EPS = torch.finfo(torch.float32).eps
# Relative errors. A pair is off by 2 eps; each rounding adds eps / 2. In a sum a value goes through at most 14 of them:
# 7 in its lane, 2 where lanes join, 1 for the total of all runs, 4 across a vector. Softmax adds a pair, M and 1 / M
# rounded and their product.
PAIR = 2 * EPS
SUM = PAIR + 14 * EPS / 2
SOFTMAX = SUM + PAIR + 3 * EPS / 2


def use(name, monkeypatch):
    """Make one implementation answer; interpreted Triton takes CPU tensors."""
    if name == "native":  # whatever the dispatch picks on this machine
        return
    answer = None
    if name.startswith("triton"):
        pytest.importorskip("triton", reason="triton is built for Linux only")
        from steepest.kernels import _triton_softmax as t

        chunks = {"block": 16, "chunks": 3} if name.endswith("chunks") else {"block": 32, "chunks": 1}
        parts = {one: partial(getattr(t, one), **chunks) for one in ("forward", "sums", "weights")}
        answer = SimpleNamespace(**parts, backward=partial(t.backward, **chunks))
    monkeypatch.setattr(MODULE, "_backend", lambda x: answer if dispatch(x) else None)


@pytest.fixture(params=["torch", "native"])
def form(request, monkeypatch):
    """Each implementation on the CPU."""
    use(request.param, monkeypatch)


@pytest.fixture(params=["torch", "native", pytest.param("triton", marks=pytest.mark.slow), "triton-chunks"])
def any_form(request, monkeypatch):
    """Each implementation, for the few and small inputs that an interpreter can take."""
    use(request.param, monkeypatch)


def naive(row):
    """Softmax of a list of floats, by Python's own numbers."""
    top = max(row)
    values = [math.exp(v - top) for v in row]
    return [v / math.fsum(values) for v in values]


def relative(got, wanted):
    return float(((got.double() - wanted).abs() / wanted.abs()).max())


# ------------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.holds("two-pass-softmax", 1)
def test_numbers_of_one_two_three(any_form):
    x = torch.tensor([1.0, 2.0, 3.0])
    m, n = extexp(x)
    assert n.tolist() == [1.0, 3.0, 4.0]
    assert m.tolist() == pytest.approx([1.359141, 0.923632, 1.255346], abs=1e-6)
    assert m.tolist() == pytest.approx([math.e / 2, math.e**2 / 8, math.e**3 / 16], rel=PAIR)
    total = extexp_sum(x)
    assert isinstance(total, ExtFloat)
    assert total.exponent.item() == 4.0
    assert total.mantissa.item() == pytest.approx(1.887055, abs=1e-6)
    assert total.mantissa.item() * 16 == pytest.approx(30.192875, abs=1e-5)
    assert two_pass_softmax(x).tolist() == pytest.approx([0.090031, 0.244728, 0.665241], abs=1e-6)
    assert two_pass_softmax(x).tolist() == pytest.approx(naive([1.0, 2.0, 3.0]), rel=SOFTMAX)


@pytest.mark.holds("two-pass-softmax", 2)
def test_large_values_do_not_overflow(any_form):
    x = torch.tensor([1000.0, 1001.0, -500.0])
    closed = 1001 + math.log1p(math.exp(-1))
    assert ext_logsumexp(x).item() == pytest.approx(1001.313262, abs=6e-5)
    assert ext_logsumexp(x.double()).item() == pytest.approx(closed, rel=1e-15)
    assert all(part.isfinite().all() for part in (*extexp(x), *extexp_sum(x), two_pass_softmax(x), log_softmax(x)))
    assert extexp_sum(x).log().item() == ext_logsumexp(x).item()


@pytest.mark.holds("two-pass-softmax", 3)
@pytest.mark.parametrize("k", [1, -7, 300, -5000])
def test_a_shift_by_whole_powers_moves_only_the_exponent(k, form):
    x = torch.randn(5, 19, dtype=torch.float64) * 3
    m, n = extexp_sum(x)
    moved = extexp_sum(x + k * math.log(2))
    assert torch.equal(moved.exponent, n + k)
    torch.testing.assert_close(moved.mantissa, m, rtol=1e-11, atol=0)
    low = x.float()
    shifted = (low.double() + k * math.log(2)).float()  # rounded, by half of |x| eps
    moved = extexp_sum(shifted)
    assert torch.equal(moved.exponent, extexp_sum(low).exponent + k)
    torch.testing.assert_close(moved.mantissa, m.float(), rtol=2 * SUM + float(shifted.abs().max()) * EPS / 2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_is_the_exponential(dtype):
    x = torch.cat([torch.linspace(-80, 80, 1001), torch.tensor([0.0, -1e-30])]).to(dtype)
    m, n = extexp(x)
    assert torch.equal(n, n.round())
    assert 0.7071 <= float(m.min()) <= float(m.max()) <= 1.41422
    wanted = [math.exp(v) for v in x.tolist()]
    got = [a * 2.0**b for a, b in zip(m.tolist(), n.tolist())]
    assert got == pytest.approx(wanted, rel=2 * torch.finfo(dtype).eps)


def test_pairs_at_the_ends():
    m, n = extexp(torch.tensor([-INF, INF, NAN, 1e30, -1e30, 2.0**23]))
    assert m[:2].tolist() == [0.0, INF]
    assert n[0].item() == -INF
    assert m[2].isnan()
    assert bool(((m[3:] > 0.7) & (m[3:] < 1.42)).all())
    assert n[3].item() == n[5].item() == -n[4].item() == round(2.0**23 / math.log(2))


@pytest.mark.holds("two-pass-softmax", 4)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(-3000, 3000, width=32), min_size=0, max_size=5), min_size=3, max_size=3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_merge_is_a_sum(blocks, dtype):
    a, b, c = (extexp_sum(torch.tensor(block, dtype=dtype)) for block in blocks)
    assert [v.tolist() for v in merge(a, b)] == [v.tolist() for v in merge(b, a)]
    left, right = merge(merge(a, b), c), merge(a, merge(b, c))
    rounding = torch.finfo(dtype).eps / 2
    error = (SUM / (EPS / 2) + 2) * rounding  # of the number itself, after two merges
    last = rounding + 2 * torch.finfo(torch.float64).eps  # of its logarithm: formed in float64, then rounded
    torch.testing.assert_close(left.log(), right.log(), rtol=2 * last, atol=2 * error)
    values = [v for block in blocks for v in block]
    if values:
        top = max(values)
        closed = top + math.log(math.fsum(math.exp(v - top) for v in values))
        assert abs(left.log().item() - closed) <= error + abs(closed) * last
    else:
        assert left.log().item() == -INF


@pytest.mark.parametrize(("dtype", "lowest"), [(torch.float32, -126), (torch.float64, -1022)])
def test_merge_forgets_what_its_type_cannot_hold(dtype, lowest):
    for d, wanted in ((lowest, 2.0**lowest), (lowest - 1, 0.0)):
        zero, small = (ExtFloat(*torch.tensor(pair, dtype=dtype)) for pair in ((0.0, 5.0), (1.0, 5.0 + d)))
        m, n = merge(zero, small)
        assert (m.item(), n.item()) == (wanted, 5.0)


@pytest.mark.holds("two-pass-softmax", 4)
def test_any_split_gives_the_same_log_sum(form):
    x = torch.randn(3, 40) * 30 + 500
    whole = torch.logsumexp(x.double(), -1)
    for cuts in ([13], [1, 2, 39], [8, 16, 24, 32]):
        parts = [extexp_sum(part, 1) for part in x.tensor_split(cuts, 1)]
        total = parts[0]
        for part in parts[1:]:
            total = merge(total, part)
        torch.testing.assert_close(total.log().double(), whole, rtol=EPS / 2, atol=SUM + len(cuts) * EPS / 2)
        mantissas = torch.stack([part.mantissa for part in parts])
        assert bool((mantissas >= 0.7).all())


# ---------------------------------------------------------------------------------------------------- against float64


@pytest.mark.holds("two-pass-softmax", 5)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 16), (2, 77)])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (8.0, 0.0), (3.0, 1000.0), (3.0, -9999.0)])
def test_agrees_with_float64(shape, scale, offset, form):
    x = torch.randn(shape) * scale + offset
    y = two_pass_softmax(x)
    assert y.dtype == torch.float32
    assert relative(y, torch.softmax(x.double(), -1)) < SOFTMAX
    torch.testing.assert_close(y.double().sum(-1), torch.ones(shape[0], dtype=torch.float64), rtol=0, atol=SOFTMAX)
    assert y[0].tolist() == pytest.approx(naive(x[0].tolist()), rel=SOFTMAX)


@pytest.mark.holds("two-pass-softmax", 5)
@pytest.mark.parametrize("shape", [(1, 2**20 + 3), (2, 2**16), (3, 2**16 + 5), (300, 64), (40, 130), (9, 1000)])
@pytest.mark.parametrize("slope", [0.0, 60.0, -60.0])
def test_agrees_with_float64_where_blocks_are_merged(shape, slope, level):
    x = torch.randn(shape) * 3 + torch.linspace(0, slope, shape[1])  # blocks of different exponents
    wanted = torch.softmax(x.double(), -1)
    y = two_pass_softmax(x)
    assert relative(y, wanted) < SOFTMAX
    torch.testing.assert_close(y.double().sum(-1), torch.ones(shape[0], dtype=torch.float64), rtol=0, atol=SOFTMAX)
    torch.testing.assert_close(ext_logsumexp(x).double(), torch.logsumexp(x.double(), -1), rtol=EPS / 2, atol=SUM)


@pytest.mark.parametrize("offset", [0.0, -9999.0, 4e4, -6.5e4, 1e6])
def test_agrees_with_float64_wherever_the_row_lies(offset, level):
    """n ln 2 is taken from x without loss, with a fused multiply-add or without one."""
    x = torch.randn(6, 333) * 5 + offset
    assert relative(two_pass_softmax(x), torch.softmax(x.double(), -1)) < SOFTMAX
    torch.testing.assert_close(ext_logsumexp(x).double(), torch.logsumexp(x.double(), -1), rtol=EPS / 2, atol=SUM)
    log = log_softmax(x).double()
    torch.testing.assert_close(log, torch.log_softmax(x.double(), -1), rtol=EPS, atol=SUM)


EQUAL = (0.0, 0.1, 0.33, -5.0, 1000.3)
"""Sums of equal values: as a plain sum grows, each addition rounds to the same side."""


@pytest.mark.parametrize("value", EQUAL)
def test_sums_of_many_equal_values(value, level):
    x = torch.full((1, 2**16), value)
    assert relative(two_pass_softmax(x), torch.tensor(2.0**-16, dtype=torch.float64)) < SOFTMAX
    wanted = torch.tensor([value]).double() + 16 * math.log(2)
    torch.testing.assert_close(ext_logsumexp(x).double(), wanted, rtol=EPS / 2, atol=SUM)
    # the gradient's sum is one of equal terms too
    leaf, dy = torch.zeros(1, 2**16, requires_grad=True), torch.full((1, 2**16), 1.1)
    (got,) = torch.autograd.grad(log_softmax(leaf), leaf, dy)
    assert float(got.abs().max()) < 1.1 * (14 * EPS / 2 + SOFTMAX)


def test_values_that_are_small_beside_the_sum_count(any_form):
    """Each is less than half of the sum's last place, so that a plain sum would not move."""
    x = torch.full((1, 2**11), math.log(0.47 * EPS))
    x[:, :16] = 0.0
    assert relative(two_pass_softmax(x), torch.softmax(x.double(), -1)) < SOFTMAX


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4, -1e5, 1e6, -3e9, 1e38])
@pytest.mark.parametrize("columns", [7, 40, 200])
def test_no_worse_than_torch(columns, offset, form):
    compare_errors(torch.randn(4, columns) * 4 + offset * (1 + torch.rand(4, 1)))


def test_no_worse_than_torch_in_small(any_form):
    compare_errors(torch.randn(3, 37) * 4 + torch.tensor([[0.0], [1e4], [-3e9]]))


def compare_errors(x):
    """The error against float64 is at most twice that of torch in the same type, plus rounding."""
    for own in (two_pass_softmax, log_softmax):
        peer = PEERS[own]
        wanted = peer(x.double(), -1)
        size = wanted.abs() if peer is torch.softmax else wanted.abs() + 1
        worst = float(((peer(x, -1) - wanted).abs() / size).max())
        assert float(((own(x, -1) - wanted).abs() / size).max()) <= 2 * worst + 2 * EPS
    assert float(log_softmax(x, -1).max()) <= 0.0
    torch.testing.assert_close(ext_logsumexp(x), torch.logsumexp(x, -1), rtol=2 * EPS, atol=0)


def test_a_certain_class_has_log_probability_zero(any_form):
    x = torch.full((16, 20), -200.0)
    x[:, 3] = torch.linspace(-5.3, 5.3, 16)
    y = log_softmax(x)
    assert -SUM < float(y[:, 3].min()) <= float(y[:, 3].max()) <= 0.0
    torch.testing.assert_close(y.double(), torch.log_softmax(x.double(), -1), rtol=EPS, atol=SUM)


def test_a_certain_class_keeps_its_gradient(form):
    """Where rounding would leave a log-probability above 0 it is cut to 0, its gradient is not."""
    x = torch.full((200, 4), -17.0)
    x[:, 1] = torch.linspace(0, 1, 200)
    x.requires_grad_()
    log_softmax(x)[:, 1].sum().backward()
    wanted = -torch.softmax(x.detach().double(), -1)[:, [0, 2, 3]]
    assert relative(x.grad[:, [0, 2, 3]], wanted) < 2 * SOFTMAX


@pytest.mark.holds("two-pass-softmax", 6)
@pytest.mark.parametrize("own", [two_pass_softmax, log_softmax])
def test_infinities_and_nan_are_as_in_torch(own, any_form):
    x = torch.randn(7, 21)
    x[1] = -INF
    x[2, 4] = NAN
    x[3, [0, 20]] = INF
    x[4, 1:20] = -INF
    x[5] = -INF
    x[5, 20] = -3.0
    x[6, 7], x[6, 8] = INF, NAN
    peer = PEERS[own]
    wanted = peer(x, -1)
    torch.testing.assert_close(own(x), wanted, equal_nan=True, rtol=2 * SOFTMAX, atol=2 * SUM)
    torch.testing.assert_close(own(x.double()), peer(x.double(), -1), equal_nan=True)
    assert wanted[1].isnan().all()
    assert not wanted[4].isnan().any()
    sums = ext_logsumexp(x)
    torch.testing.assert_close(sums, torch.logsumexp(x, -1), equal_nan=True)


# -------------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.holds("two-pass-softmax", 6)
@pytest.mark.parametrize(
    "own", [two_pass_softmax, softmax, log_softmax, ext_logsumexp, lambda x, d: extexp_sum(x, d)[0]]
)
def test_gradcheck_in_float64(own):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    for dim in (0, 1):
        assert torch.autograd.gradcheck(lambda v: own(v, dim), x)  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda v: own(v, dim), x)  # noqa: B023


@pytest.mark.parametrize("shape", [(3, 37), (2, 3, 64), (4, 1)])
@pytest.mark.parametrize("own", PEERS)
def test_float32_derivatives_are_those_of_float64(own, shape, form):
    compare_derivatives(own, shape)


@pytest.mark.parametrize("own", PEERS)
def test_float32_derivatives_in_small(own, any_form):
    compare_derivatives(own, (2, 19))


def compare_derivatives(own, shape):
    """First and second, for gradients that are strided or broadcast."""
    peer = PEERS[own]
    x = (torch.randn(shape) * 2).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, wanted = own(x, -1), peer(wide, -1)
    for dy in (torch.randn(wanted.shape), torch.randn(wanted.shape[:1] + (1,) * (wanted.ndim - 1)).expand_as(wanted)):
        (got,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        (right,) = torch.autograd.grad(wanted, wide, dy.double(), retain_graph=True)
        assert bool(((got.double() - right).abs() <= 2 * SOFTMAX * size_of_gradient(own, wide, dy.double())).all())
    dy = torch.randn(wanted.shape)
    (first,) = torch.autograd.grad(y, x, dy, create_graph=True)
    (first_wide,) = torch.autograd.grad(wanted, wide, dy.double(), create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), x)
    (second_wide,) = torch.autograd.grad((first_wide**2).sum(), wide)
    torch.testing.assert_close(second.double(), second_wide, rtol=1e-4, atol=1e-5)


def size_of_gradient(own, x, dy):
    """The terms that a gradient is a sum of, beside which it is rounded."""
    p, dy = torch.softmax(x.detach(), -1), dy.abs()
    if own is two_pass_softmax:
        return p * (dy + (p * dy).sum(-1, keepdim=True))
    return dy + p * dy.sum(-1, keepdim=True) if own is log_softmax else p * dy.unsqueeze(-1)


@pytest.mark.parametrize("own", [two_pass_softmax, log_softmax])
@pytest.mark.parametrize("columns", [1000, 2**16 + 9, 3 * 2**16])
def test_backward_of_long_rows(own, columns):
    peer = PEERS[own]
    x, dy = torch.randn(2, columns, requires_grad=True), torch.randn(2, columns)
    own(x).backward(dy)
    wide = x.detach().double().requires_grad_()
    peer(wide, -1).backward(dy.double())
    size = size_of_gradient(own, wide, dy.double())
    assert bool(((x.grad.double() - wide.grad).abs() <= 2 * SOFTMAX * size).all())


@pytest.mark.parametrize("columns", [21, 1100])
@pytest.mark.parametrize("own", [two_pass_softmax, log_softmax])
def test_an_infinite_gradient_is_as_in_torch(own, columns, form):
    infinite_gradient(own, columns)


def test_an_infinite_gradient_in_small(any_form):
    infinite_gradient(two_pass_softmax, 70)


def infinite_gradient(own, columns):
    x, dy = torch.randn(2, columns), torch.randn(2, columns)
    dy[0, 3] = INF
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    got, wanted = (torch.autograd.grad(f(leaf, -1), leaf, dy)[0] for f, leaf in zip((own, PEERS[own]), leaves))
    assert torch.equal(got[0].isnan(), wanted[0].isnan())
    assert torch.equal(got[0].isinf(), wanted[0].isinf())


def test_sums_of_shifted_rows_have_the_gradient_of_softmax(any_form):
    x = (torch.randn(3, 18) * 2 + torch.tensor([[2e5], [-7e5], [0.0]])).requires_grad_()
    assert [part.requires_grad for part in extexp_sum(x)] == [True, False]
    ext_logsumexp(x).sum().backward()
    torch.testing.assert_close(x.grad.double(), torch.softmax(x.detach().double(), -1), rtol=2 * SOFTMAX, atol=1e-37)


# ------------------------------------------------------------------------------------------------ shapes, types, modes


def test_any_dimension(form):
    x = torch.randn(3, 4, 5)
    for dim in (0, 1, 2, -1, -2, -3):
        for own, peer in PEERS.items():
            torch.testing.assert_close(own(x, dim), peer(x, dim))
        torch.testing.assert_close(ext_logsumexp(x, dim, keepdim=True), torch.logsumexp(x, dim, keepdim=True))
        m, n = extexp_sum(x, dim, keepdim=True)
        torch.testing.assert_close(m * 2**n, x.exp().sum(dim, keepdim=True))
    strided = x[:, ::2, 1:].transpose(0, 2)
    torch.testing.assert_close(two_pass_softmax(strided), torch.softmax(strided, -1))


def test_scalars_and_nothing(form):
    assert two_pass_softmax(torch.tensor(3.0)).item() == 1.0
    assert log_softmax(torch.tensor(3.0)).item() == pytest.approx(0.0, abs=SUM)
    assert ext_logsumexp(torch.tensor(3.0)).item() == pytest.approx(3.0)
    assert two_pass_softmax(torch.empty(2, 0)).shape == (2, 0)
    assert log_softmax(torch.empty(0, 3)).shape == (0, 3)
    assert ext_logsumexp(torch.empty(2, 0)).tolist() == [-INF, -INF]
    assert [part.tolist() for part in extexp_sum(torch.empty(2, 0))] == [[0.0, 0.0], [-INF, -INF]]
    assert ext_logsumexp(torch.empty(0, 3)).shape == (0,)
    for shape in ((2, 3), (0, 3)):
        with pytest.raises(IndexError):
            two_pass_softmax(torch.randn(shape), 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype, form):
    x = (torch.randn(3, 40) * 3).to(dtype).requires_grad_()
    y = softmax(x)
    assert y.dtype == dtype
    assert torch.equal(y, softmax(x.detach().float()).to(dtype))
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert ext_logsumexp(x).dtype == extexp(x).mantissa.dtype == torch.float32
    assert torch.equal(softmax(x, dtype=torch.float32), softmax(x.float()))
    assert log_softmax(x, dtype=torch.float64).dtype == torch.float64
