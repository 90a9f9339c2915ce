"""The Triton kernels of RMSNorm, SwiGLU and the rotation. Imported only where they run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_forward(x, w, y, r, stride, width, EPS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    v = tl.load(x + row * stride + at, mask=inside, other=0.0).to(WIDE)
    scale = 1.0 / tl.sqrt(tl.sum(v * v, 0) / width + EPS)
    tl.store(r + row, scale)
    gain = tl.load(w + at, mask=inside, other=0.0).to(WIDE)
    tl.store(y + row * width + at, (v * scale * gain).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _rms_backward(
    x, w, r, dy, dx, partial, stride, dy_stride, rows, share, width, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    gain = tl.load(w + at, mask=inside, other=0.0).to(WIDE)
    total = tl.zeros((BLOCK,), dtype=WIDE)
    for row in range(program * share, tl.minimum((program + 1) * share, rows)):
        v = tl.load(x + row * stride + at, mask=inside, other=0.0).to(WIDE)
        g = tl.load(dy + row * dy_stride + at, mask=inside, other=0.0).to(WIDE)
        scale = tl.load(r + row)
        total += g * v * scale
        pull = tl.sum(v * gain * g, 0) / width * scale * scale
        tl.store(dx + row * width + at, (scale * (gain * g - v * pull)).to(dx.dtype.element_ty), mask=inside)
    tl.store(partial + program * width + at, total, mask=inside)


@triton.jit
def _swiglu_forward(gate, up, y, gate_stride, up_stride, width, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    g = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(WIDE)
    u = tl.load(up + row * up_stride + at, mask=inside, other=0.0).to(WIDE)
    tl.store(y + row * width + at, (g * tl.sigmoid(g) * u).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(
    gate, up, dy, dg, du, gate_stride, up_stride, dy_stride, width, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    g = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(WIDE)
    u = tl.load(up + row * up_stride + at, mask=inside, other=0.0).to(WIDE)
    d = tl.load(dy + row * dy_stride + at, mask=inside, other=0.0).to(WIDE)
    s = tl.sigmoid(g)
    tl.store(dg + row * width + at, (d * u * s * (1.0 + g * (1.0 - s))).to(dg.dtype.element_ty), mask=inside)
    tl.store(du + row * width + at, (d * g * s).to(du.dtype.element_ty), mask=inside)


@triton.jit
def _turn(x, y, x_head, x_inner, y_head, y_inner, c, s, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    head = tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (at < half)
    a = tl.load(x + head * x_head + at * x_inner, mask=inside, other=0.0).to(c.dtype)
    b = tl.load(x + head * x_head + (at + half) * x_inner, mask=inside, other=0.0).to(c.dtype)
    kind = y.dtype.element_ty
    tl.store(y + head * y_head + at * y_inner, (a * c - b * s).to(kind), mask=inside)
    tl.store(y + head * y_head + (at + half) * y_inner, (b * c + a * s).to(kind), mask=inside)


@triton.jit
def _rotate(
    q, q_out, q_b, q_h, q_t, q_d, qo_b, qo_h, qo_t, qo_d, q_heads,
    k, k_out, k_b, k_h, k_t, k_d, ko_b, ko_h, ko_t, ko_d, k_heads,
    cos, sin, table_batch, time, half,
    SIGN: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) % time).to(tl.int64)
    b = (tl.program_id(0) // time).to(tl.int64)
    at = tl.arange(0, HALF)[None, :]
    row = b * table_batch + t * half
    c = tl.load(cos + row + at, mask=at < half, other=0.0)
    s = tl.load(sin + row + at, mask=at < half, other=0.0) * SIGN
    if Q_HEADS > 0:
        _turn(
            q + b * q_b + t * q_t, q_out + b * qo_b + t * qo_t, q_h, q_d, qo_h, qo_d, c, s, q_heads, half, Q_HEADS, HALF
        )
    if K_HEADS > 0:
        _turn(
            k + b * k_b + t * k_t, k_out + b * ko_b + t * ko_t, k_h, k_d, ko_h, ko_d, c, s, k_heads, half, K_HEADS, HALF
        )


def rms_norm(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y and r of rows ``[N, D]``."""
    rows, width = x.shape
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    r = torch.empty(rows, 1, dtype=_wide(x)[1], device=x.device)
    if y.numel():
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(x):
            _rms_forward[(rows,)](
                x, w.contiguous(), y, r, x.stride(0), width, EPS=eps, BLOCK=block, WIDE=_wide(x)[0],
                num_warps=_warps(block),
            )  # fmt: skip
    return y, r


def rms_norm_backward(x: Tensor, w: Tensor, r: Tensor, dy: Tensor, programs: int = 0) -> tuple[Tensor, Tensor]:
    """dx and dw of rows ``[N, D]``; each program sums dw over its share of the rows."""
    rows, width = x.shape
    programs = max(1, min(rows, programs or 4 * torch.cuda.get_device_properties(x.device).multi_processor_count))
    dx = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    partial = torch.zeros(programs, width, dtype=r.dtype, device=x.device)
    if dx.numel():
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(x):
            _rms_backward[(programs,)](
                x, w.contiguous(), r, dy, dx, partial, x.stride(0), dy.stride(0), rows, triton.cdiv(rows, programs),
                width, BLOCK=block, WIDE=_wide(x)[0], num_warps=_warps(block),
            )  # fmt: skip
    return dx, partial.sum(0).to(w.dtype)


def swiglu(gate: Tensor, up: Tensor, block: int = 1024) -> Tensor:
    """y of rows ``[N, D]``."""
    rows, width = gate.shape
    y = torch.empty(rows, width, dtype=gate.dtype, device=gate.device)
    if y.numel():
        with torch.cuda.device_of(gate):
            _swiglu_forward[(rows, triton.cdiv(width, block))](
                gate, up, y, gate.stride(0), up.stride(0), width, BLOCK=block, WIDE=_wide(gate)[0]
            )
    return y


def swiglu_backward(gate: Tensor, up: Tensor, dy: Tensor, block: int = 1024) -> tuple[Tensor, Tensor]:
    """The two gradients of rows ``[N, D]``."""
    rows, width = gate.shape
    dg = torch.empty(rows, width, dtype=gate.dtype, device=gate.device)
    du = torch.empty_like(dg)
    if dg.numel():
        strides = gate.stride(0), up.stride(0), dy.stride(0)
        with torch.cuda.device_of(gate):
            _swiglu_backward[(rows, triton.cdiv(width, block))](
                gate, up, dy, dg, du, *strides, width, BLOCK=block, WIDE=_wide(gate)[0]
            )
    return dg, du


def rotate(
    q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor, sign: float
) -> tuple[Tensor | None, Tensor | None]:
    """Queries and keys ``[B, H, T, d]`` turned by the table ``[B or 1, T, d/2]``; one of them may be absent."""
    some = q if q is not None else k
    if some is None:
        return None, None
    batch, _, time, width = some.shape
    outs = [None if t is None else torch.empty_like(t) for t in (q, k)]
    arguments: list[object] = []
    heads = []
    for t, out in zip((q, k), outs):
        a, b = (some, some) if t is None or out is None else (t, out)
        arguments += [a, b, *a.stride(), *b.stride(), a.shape[1]]
        heads.append(0 if t is None else triton.next_power_of_2(a.shape[1]))
    cos, sin = cos.contiguous(), sin.contiguous()
    if batch * time:
        with torch.cuda.device_of(some):
            _rotate[(batch * time,)](
                *arguments, cos, sin, cos.stride(0) if cos.shape[0] > 1 else 0, time, width // 2,
                SIGN=sign, Q_HEADS=heads[0], K_HEADS=heads[1], HALF=triton.next_power_of_2(width // 2),
            )  # fmt: skip
    return outs[0], outs[1]


def _wide(x: Tensor) -> tuple[object, torch.dtype]:
    return (tl.float64, torch.float64) if x.dtype == torch.float64 else (tl.float32, torch.float32)


def _warps(block: int) -> int:
    return min(16, max(4, block // 1024))
