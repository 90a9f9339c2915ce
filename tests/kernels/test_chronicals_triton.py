"""The Triton kernels against the CPU path: interpreted on CPU tensors, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is built for Linux only")

from steepest.kernels import fused_qk_rope, fused_rms_norm, fused_swiglu  # noqa: E402
from steepest.kernels.chronicals import _triton, rms_norm, rope, rotary_table, swiglu  # noqa: E402

INTERPRETED = not torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def draw(*shape, dtype):
    return torch.randn(*shape).to(DEVICE, dtype)


def same(got, wanted, dtype):
    """Equal up to the order of float32 sums and the rounding of the type."""
    loose = 4 * torch.finfo(dtype).eps
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got.double(), wanted.double(), rtol=loose, atol=loose * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", TYPES)
def test_rms_norm(dtype):
    x, w, dy = draw(4, 14, dtype=dtype)[:, :11], draw(11, dtype=dtype), draw(4, 11, dtype=dtype)
    y, r = _triton.rms_norm(x, w, 1e-6)
    wanted_y, wanted_r = rms_norm._forward(x, w, 1e-6)
    same(y, wanted_y, dtype)
    same(r, wanted_r, r.dtype)
    dx, dw = rms_norm._backward(x, w, r, dy, True, True)
    for programs in (1, 3):  # the second share is cut short
        own_dx, own_dw = _triton.rms_norm_backward(x, w, r, dy, programs)
        same(own_dx, dx, dtype)
        same(own_dw, dw, dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_swiglu(dtype):
    gate, up = draw(3, 22, dtype=dtype).chunk(2, -1)
    dy = draw(3, 11, dtype=dtype)
    same(_triton.swiglu(gate, up, block=4), swiglu._forward(gate, up), dtype)
    for own, wanted in zip(_triton.swiglu_backward(gate, up, dy, block=4), swiglu._backward(gate, up, dy)):
        same(own, wanted, dtype)


@pytest.mark.parametrize(("dtype", "tables"), [*((dtype, 2) for dtype in TYPES), (torch.float32, 1)])
def test_rotation(dtype, tables):
    q, k = draw(2, 2, 3, 6, dtype=dtype).transpose(1, 2), draw(2, 2, 2, 6, dtype=dtype)[:, :1]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = (t.to(DEVICE) for t in rotary_table(torch.randint(0, 50, (tables, 2)), 6, dtype=wide))
    both = torch.cat((cos, cos), -1)
    for sign in (1.0, -1.0):
        for own, x in zip(_triton.rotate(q, k, cos, sin, sign), (q, k)):
            same(own, rope._rotated(x, both, sin, sign), dtype)
        alone, nothing = _triton.rotate(None, k, cos, sin, sign)[::-1]
        assert nothing is None
        same(alone, rope._rotated(k, both, sin, sign), dtype)


def test_empty():
    x, w = draw(0, 3, dtype=torch.float32), draw(3, dtype=torch.float32)
    y, r = _triton.rms_norm(x, w, 1e-6)
    assert y.shape == (0, 3)
    assert torch.equal(_triton.rms_norm_backward(x, w, r, x, 1)[1], torch.zeros_like(w))
    assert _triton.swiglu(x, x).shape == _triton.swiglu_backward(x, x, x)[0].shape == (0, 3)
    q = draw(1, 2, 0, 4, dtype=torch.float32)
    cos, sin = (t.to(DEVICE) for t in rotary_table(torch.arange(0), 4))
    assert _triton.rotate(q, q, cos[None], sin[None], 1.0)[0].shape == q.shape


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_gpu_gradcheck():
    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, device="cuda", requires_grad=True)

    positions = torch.arange(5, device="cuda")
    assert torch.autograd.gradcheck(fused_rms_norm, (leaf(4, 7), leaf(7)))
    assert torch.autograd.gradcheck(fused_swiglu, (leaf(4, 7), leaf(4, 7)))
    assert torch.autograd.gradcheck(
        lambda q, k: fused_qk_rope(q, k, positions=positions), (leaf(2, 3, 5, 6), leaf(2, 1, 5, 6))
    )
