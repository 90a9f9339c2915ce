"""The Triton softmax over contiguous float32 rows ``[rows, columns]``; the interface of ``_native_softmax``.

Many rows: a program a row, which reads it twice. Few long rows: a program a chunk; pass 1 leaves a pair a chunk, and in
pass 2 each program merges the pairs of its row. A row whose maximum lies beyond +-65536 is shifted by it, as on
the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LONG = 1 << 15
"""Rows from this length on are shared among programs where there are few of them."""
FEW = 512
CHUNKS = 64

_LOG2E = tl.constexpr(1.4426950216293335)
_LN2_HI = tl.constexpr(float.fromhex("0x1.62E43p-1"))
_LN2_LO = tl.constexpr(float.fromhex("-0x1.05C61p-29"))
_ROUND = tl.constexpr(float.fromhex("0x1.8p+23"))
_FLOOR = tl.constexpr(-65536.0)
_LIMIT = tl.constexpr(90000.0)
_C5 = tl.constexpr(float.fromhex("0x1.0fa9f6p-7"))
_C4 = tl.constexpr(float.fromhex("0x1.573ffap-5"))
_C3 = tl.constexpr(float.fromhex("0x1.555a78p-3"))
_C2 = tl.constexpr(float.fromhex("0x1.fffdb8p-2"))
_C1 = tl.constexpr(float.fromhex("0x1.fffff6p-1"))


@triton.jit
def _extexp(x):
    x = tl.where(x < _FLOOR, _FLOOR, x)  # NaN stays; -inf is nothing beside any row that is not shifted
    n = tl.fma(x, tl.full(x.shape, _LOG2E, tl.float32), tl.full(x.shape, _ROUND, tl.float32)) - _ROUND
    t = tl.fma(n, tl.full(x.shape, -_LN2_HI, tl.float32), x)
    t = tl.fma(n, tl.full(x.shape, -_LN2_LO, tl.float32), t)
    m = ((((_C5 * t + _C4) * t + _C3) * t + _C2) * t + _C1) * t + 1.0
    return m, n


@triton.jit
def _pow2(d):
    # 2^d for whole d <= 0, and 0 from -127 on; a NaN gives any factor, beside a mantissa that is NaN
    bits = tl.where(d > -127.0, d + 127.0, 0.0).to(tl.int32)
    return (bits << 23).to(tl.float32, bitcast=True)


@triton.jit
def _added(total, rest, value):
    """total + value, and rest with what that addition rounds away: the error of a sum does not grow with its length."""
    rounded = total + value
    addend = rounded - total
    return rounded, rest + ((total - (rounded - addend)) + (value - addend))


@triton.jit
def _lanes(total, rest):
    return total + tl.where(rest == rest, rest, 0.0)  # rest is NaN beside an infinite total


@triton.jit
def _sum(row, start, stop, shift, BLOCK: tl.constexpr):
    """Pass 1 over columns start..stop: lanes of pairs, then one pair."""
    sums = tl.zeros((BLOCK,), tl.float32)
    rest = tl.zeros((BLOCK,), tl.float32)
    tops = tl.full((BLOCK,), _FLOOR * 2.0, tl.float32)
    at = tl.arange(0, BLOCK)
    for first in range(start, stop, BLOCK):
        x = tl.load(row + first + at, mask=first + at < stop, other=-float("inf")) - shift
        m, n = _extexp(x)
        top = tl.maximum(tops, n)
        shrink = _pow2(tops - top)
        sums, rest = _added(sums * shrink, rest * shrink, m * _pow2(n - top))
        tops = top
    most = tl.max(tops, 0)
    return tl.sum(_lanes(sums, rest) * _pow2(tops - most), 0), most


@triton.jit
def _shifted(row, columns, BLOCK: tl.constexpr):
    """M, N and shift of a row whose maximum is no small number."""
    at = tl.arange(0, BLOCK)
    tops = tl.full((BLOCK,), -float("inf"), tl.float32)
    wrong = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, columns, BLOCK):
        x = tl.load(row + first + at, mask=first + at < columns, other=-float("inf"))
        wrong = wrong | (x != x).to(tl.int32)
        tops = tl.where(x > tops, x, tops)
    top = tl.max(tops, 0)
    any_wrong = tl.max(wrong, 0) > 0
    finite = (top > -float("inf")) & (top < float("inf"))
    shift = tl.where(finite, top, 0.0)
    m, n = _sum(row, 0, columns, shift, BLOCK)
    m = tl.where(finite, m, tl.where(top > 0.0, float("inf"), 0.0))
    n = tl.where(finite, n, tl.where(top > 0.0, 0.0, -float("inf")))
    return tl.where(any_wrong, float("nan"), m), n, tl.where(any_wrong, 0.0, shift)


@triton.jit
def _row(row, columns, BLOCK: tl.constexpr):
    m, n = _sum(row, 0, columns, 0.0, BLOCK)
    shift = 0.0
    if (n >= _LIMIT) | (n <= -_LIMIT) | (m != m):
        m, n, shift = _shifted(row, columns, BLOCK)
    return m, n, shift


@triton.jit
def _merged(parts, chunks, row, columns, CHUNKS_UP: tl.constexpr, BLOCK: tl.constexpr):
    """M, N and shift of a row from the pairs of its chunks, ``parts`` [chunks, 2]."""
    at = tl.arange(0, CHUNKS_UP)
    ms = tl.load(parts + 2 * at, mask=at < chunks, other=0.0)
    ns = tl.load(parts + 2 * at + 1, mask=at < chunks, other=_FLOOR * 2.0)
    n = tl.max(ns, 0)
    m = tl.sum(ms * _pow2(ns - n), 0)
    shift = 0.0
    if (n >= _LIMIT) | (n <= -_LIMIT) | (m != m):
        m, n, shift = _shifted(row, columns, BLOCK)
    return m, n, shift


@triton.jit
def _write(x_row, y_row, start, stop, m, n, shift, factor, LOG: tl.constexpr, BLOCK: tl.constexpr):
    """Pass 2 over columns start..stop."""
    at = tl.arange(0, BLOCK)
    proper = (m > 0.0) & (m < float("inf"))
    log_m = tl.log(m)
    for first in range(start, stop, BLOCK):
        mask = first + at < stop
        x = tl.load(x_row + first + at, mask=mask, other=0.0) - shift
        if LOG:
            exponent = tl.full((BLOCK,), 0.0, tl.float32) + n
            t = tl.fma(exponent, tl.full((BLOCK,), -_LN2_HI, tl.float32), x)
            t = tl.fma(exponent, tl.full((BLOCK,), -_LN2_LO, tl.float32), t) - log_m
            y = tl.where(t > 0.0, 0.0, t)
        else:
            e, k = _extexp(x)
            y = e * factor * _pow2(k - n)
        tl.store(y_row + first + at, tl.where(proper, y, float("nan")), mask=mask)


@triton.jit
def _forward_rows(x, y, columns, LOG: tl.constexpr, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * columns
    m, n, shift = _row(x + offset, columns, BLOCK)
    _write(x + offset, y + offset, 0, columns, m, n, shift, 1.0 / m, LOG, BLOCK)


@triton.jit
def _sum_chunks(x, parts, columns, width, BLOCK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = chunk * width
    m, n = _sum(x + row * columns, start, tl.minimum(start + width, columns), 0.0, BLOCK)
    place = parts + 2 * (row * tl.num_programs(1) + chunk)
    tl.store(place, m)
    tl.store(place + 1, n)


@triton.jit
def _write_chunks(x, y, parts, columns, width, CHUNKS_UP: tl.constexpr, LOG: tl.constexpr, BLOCK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunks = tl.num_programs(1)
    x_row, y_row = x + row * columns, y + row * columns
    m, n, shift = _merged(parts + 2 * row * chunks, chunks, x_row, columns, CHUNKS_UP, BLOCK)
    start = chunk * width
    _write(x_row, y_row, start, tl.minimum(start + width, columns), m, n, shift, 1.0 / m, LOG, BLOCK)


@triton.jit
def _sums_rows(x, found, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    m, n, shift = _row(x + row * columns, columns, BLOCK)
    tl.store(found + 3 * row, m)
    tl.store(found + 3 * row + 1, n)
    tl.store(found + 3 * row + 2, shift)


@triton.jit
def _merge_chunks(x, parts, found, chunks, columns, CHUNKS_UP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    m, n, shift = _merged(parts + 2 * row * chunks, chunks, x + row * columns, columns, CHUNKS_UP, BLOCK)
    tl.store(found + 3 * row, m)
    tl.store(found + 3 * row + 1, n)
    tl.store(found + 3 * row + 2, shift)


@triton.jit
def _weights(x, found, factor, y, columns, width, BLOCK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    m = tl.load(found + 3 * row)
    n = tl.load(found + 3 * row + 1)
    shift = tl.load(found + 3 * row + 2)
    scale = tl.load(factor + row)
    start = chunk * width
    stop = tl.minimum(start + width, columns)
    _write(x + row * columns, y + row * columns, start, stop, m, n, shift, scale, False, BLOCK)


@triton.jit
def _backward_rows(y, dy, dx, columns, LOG: tl.constexpr, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * columns
    at = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    rest = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        mask = first + at < columns
        term = tl.load(dy + offset + first + at, mask=mask, other=0.0)
        if not LOG:
            term *= tl.load(y + offset + first + at, mask=mask, other=0.0)
        sums, rest = _added(sums, rest, term)
    total = tl.sum(_lanes(sums, rest), 0)
    for first in range(0, columns, BLOCK):
        mask = first + at < columns
        grad = tl.load(dy + offset + first + at, mask=mask, other=0.0)
        value = tl.load(y + offset + first + at, mask=mask, other=0.0)
        if LOG:
            m, n = _extexp(value)
            out = grad - m * _pow2(n) * total
        else:
            out = value * (grad - total)
        tl.store(dx + offset + first + at, out, mask=mask)


def _launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *rest: Any, **fixed: Any) -> None:
    """Run on the device of ``x``, with the warps that the block can keep busy."""
    block = fixed["BLOCK"]
    with torch.cuda.device_of(x):
        kernel[grid](x, *rest, **fixed, num_warps=1 if block <= 256 else 4 if block <= 2048 else 8)


def _block(columns: int) -> int:
    return min(4096, max(16, triton.next_power_of_2(columns)))


def _plan(x: Tensor, block: int | None, chunks: int | None) -> tuple[int, int, int]:
    """Values a step, chunks a row and values a chunk."""
    rows, columns = x.shape
    block = _block(columns) if block is None else block
    if chunks is None:
        chunks = CHUNKS if columns >= LONG and rows < FEW else 1
    width = triton.cdiv(triton.cdiv(columns, chunks), block) * block
    return block, triton.cdiv(columns, width), width


def forward(x: Tensor, log: bool, *, block: int | None = None, chunks: int | None = None) -> Tensor:
    """Softmax, or its logarithm, of each row."""
    y = torch.empty_like(x)
    block, chunks, width = _plan(x, block, chunks)
    if chunks == 1:
        _launch(_forward_rows, (len(x),), x, y, x.shape[1], LOG=log, BLOCK=block)
        return y
    parts = x.new_empty(len(x), chunks, 2)
    _launch(_sum_chunks, (len(x), chunks), x, parts, x.shape[1], width, BLOCK=block)
    up = triton.next_power_of_2(chunks)
    _launch(_write_chunks, (len(x), chunks), x, y, parts, x.shape[1], width, CHUNKS_UP=up, LOG=log, BLOCK=block)
    return y


def backward(y: Tensor, dy: Tensor, log: bool, *, block: int | None = None, chunks: int | None = None) -> Tensor:
    """The gradient in x from the result and its gradient; plain torch operations where long rows are few."""
    block, chunks, _ = _plan(y, block, chunks)
    if chunks > 1:
        if log:
            return torch.addcmul(dy, y.exp(), dy.sum(1, keepdim=True), value=-1)
        return y * (dy - torch.linalg.vecdot(y, dy).unsqueeze(1))
    dx = torch.empty_like(y)
    _launch(_backward_rows, (len(y),), y, dy, dx, y.shape[1], LOG=log, BLOCK=block)
    return dx


def sums(x: Tensor, *, block: int | None = None, chunks: int | None = None) -> Tensor:
    """``[rows, 3]`` M, N and shift: the sum of e^x is M 2^N e^shift."""
    of_rows = x.new_empty(len(x), 3)
    block, chunks, width = _plan(x, block, chunks)
    if chunks == 1:
        _launch(_sums_rows, (len(x),), x, of_rows, x.shape[1], BLOCK=block)
        return of_rows
    parts = x.new_empty(len(x), chunks, 2)
    _launch(_sum_chunks, (len(x), chunks), x, parts, x.shape[1], width, BLOCK=block)
    up = triton.next_power_of_2(chunks)
    _launch(_merge_chunks, (len(x),), x, parts, of_rows, chunks, x.shape[1], CHUNKS_UP=up, BLOCK=block)
    return of_rows


def weights(x: Tensor, found: Tensor, factor: Tensor, *, block: int | None = None, chunks: int | None = None) -> Tensor:
    """``factor e^(x - shift) 2^-N`` with one factor a row, for the ``found`` of :func:`sums`."""
    y = torch.empty_like(x)
    block, chunks, width = _plan(x, block, chunks)
    _launch(_weights, (len(x), chunks), x, found, factor, y, x.shape[1], width, BLOCK=block)
    return y
