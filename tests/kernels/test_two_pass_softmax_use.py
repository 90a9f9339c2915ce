"""Two-pass softmax in use: refusals, transforms, compilers, threads, a GPU."""

from __future__ import annotations

import pytest
import torch

from steepest.kernels import ext_logsumexp, extexp, log_softmax, softmax, two_pass_softmax
from steepest.kernels.two_pass_softmax import _backend as dispatch

PEERS = {two_pass_softmax: torch.softmax, log_softmax: torch.log_softmax, ext_logsumexp: torch.logsumexp}


def test_refusals():
    with pytest.raises(TypeError, match="x: expected a floating tensor, got a int64 tensor"):
        softmax(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="dtype: expected a floating type"):
        softmax(torch.randn(2), dtype=torch.int32)
    with pytest.raises(ValueError, match="x: expected float16, bfloat16, float32 or float64"):
        extexp(torch.zeros(2).to(torch.float8_e5m2))


@pytest.mark.slow
@pytest.mark.parametrize("own", PEERS)
def test_compiled(own):
    x = torch.randn(4, 6)
    torch.testing.assert_close(torch.compile(own, fullgraph=True, backend="aot_eager")(x, -1), PEERS[own](x, -1))


@pytest.mark.parametrize("own", PEERS)
def test_transformed(own):
    peer, x = PEERS[own], torch.randn(4, 6)
    torch.testing.assert_close(torch.func.vmap(lambda row: own(row, -1))(x), peer(x, -1))
    got = torch.func.jacrev(lambda v: own(v, -1))(x)
    torch.testing.assert_close(got, torch.func.jacrev(lambda v: peer(v, -1))(x), rtol=1e-5, atol=1e-6)
    _, tangent = torch.func.jvp(lambda v: own(v, -1), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.func.jvp(lambda v: peer(v, -1), (x,), (torch.ones_like(x),))[1])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        unpacked = torch.autograd.forward_ad.unpack_dual(own(dual, -1))
    torch.testing.assert_close(unpacked.tangent, tangent)
    assert own(x.to("meta"), -1).shape == peer(x, -1).shape


def test_same_bits_for_any_number_of_threads():
    long, short = torch.randn(2, 5 * 2**16 + 7, requires_grad=True), torch.randn(300, 70, requires_grad=True)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        each = []
        for x in (long, short):
            for own in (softmax, log_softmax, ext_logsumexp):
                y = own(x)
                each += [y, torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).view(y.shape))[0]]
        found.append(each)
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_without_a_compiler_the_torch_form_answers(monkeypatch):
    from steepest.kernels import _native_softmax

    monkeypatch.setattr(_native_softmax, "available", lambda: False)
    x = torch.randn(3, 9)
    assert dispatch(x) is None
    torch.testing.assert_close(softmax(x), torch.softmax(x, -1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(1000, 64), (33, 1000), (3, 2**20 + 3), (2, 70001)])
@pytest.mark.parametrize("own", PEERS)
def test_on_a_gpu(own, shape):
    """Its twins on the CPU are the `triton` forms of the other tests."""
    peer = PEERS[own]
    x = (torch.randn(shape, device="cuda") * 3).requires_grad_()
    with torch.no_grad():
        x[0] += 1e6
    wide = x.detach().double().requires_grad_()
    y, wanted = own(x, -1), peer(wide, -1)
    torch.testing.assert_close(y.double(), wanted, rtol=2e-6, atol=2e-6 * float(wanted.detach().abs().max()))
    dy = torch.randn_like(y)
    y.backward(dy)
    wanted.backward(dy.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-4, atol=1e-5 * float(wide.grad.abs().max()))
