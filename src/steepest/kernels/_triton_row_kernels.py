"""Triton programs of cross-entropy over logits that lie in memory; :mod:`._triton_rows` launches them.

A program works on one row, in float32 whatever the logits' type. Pass 1 keeps a maximum and a sum for every eight
columns that a thread reads, so that no thread waits for another; pass 2 goes from the last block to the first, whose
end is still in the cache. No sum depends on the order in which programs run. The slabs' programs do one pass each.
"""

from __future__ import annotations

import triton
import triton.language as tl

_GROUP = tl.constexpr(8)
_FAR = tl.constexpr(2147483647)
_LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _tanh(x):
    """tanh x and 1 - tanh^2 x, neither by cancellation."""
    a, s = tl.abs(x), x * x
    e = tl.exp(-2.0 * a)
    near = x * (1.0 + s * (-0.33333334 + s * (0.13333334 + s * (-0.053968254 + s * 0.021869488))))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(x < 0.0, -far, far)
    return tl.where(a < 0.25, near, far), 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _shaped(x, inner, outer, CAP: tl.constexpr):
    """softcap(x) / temperature; ``inner`` is 1 / softcap."""
    if CAP:
        t, _ = _tanh(x * inner)
        z = t * outer
    else:
        z = x * outer
    return z


@triton.jit
def _scan_block(
    row, c, first, columns, state, inner, outer, CAP: tl.constexpr, SMOOTH: tl.constexpr, NOTE: tl.constexpr,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    top, total, plain, moment, index = state
    at = first + tl.arange(0, BLOCK // _GROUP)[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    if MASKED:
        mask = at < columns
        z = _shaped(tl.load(row + at, mask=mask, other=0.0).to(tl.float32), inner, outer, CAP)
        if SMOOTH:
            weighted = z if c is None else z * tl.load(c + at, mask=mask, other=0.0)
            plain += tl.sum(tl.where(mask, weighted, 0.0), 1)
        z = tl.where(mask, z, -float("inf"))
    else:
        z = _shaped(tl.load(row + at).to(tl.float32), inner, outer, CAP)
        if SMOOTH:
            weighted = z if c is None else z * tl.load(c + at)
            plain += tl.sum(weighted, 1)
    own = tl.max(z, 1)
    new = tl.maximum(top, own)
    safe = tl.where(new == -float("inf"), 0.0, new)
    shrink = tl.exp(top - safe)
    far = z - safe[:, None]
    e = tl.exp(far)
    if NOTE:
        moved = tl.where(top == -float("inf"), 0.0, top - safe)
        moment = (moment + moved * total) * shrink + tl.sum(e * tl.maximum(far, _LOWEST), 1)
        first_at = tl.min(tl.where(z == own[:, None], at, _FAR), 1)
        index = tl.where(own > top, first_at, index)
    total = total * shrink + tl.sum(e, 1)
    return new, total, plain, moment, index


@triton.jit
def _scan(
    row, c, columns, inner, outer, CAP: tl.constexpr, SMOOTH: tl.constexpr, NOTE: tl.constexpr, BLOCK: tl.constexpr
):
    """Maximum M, sum of e^(z - M), sum of c z, sum of (z - M) e^(z - M), and the first column that has M."""
    zero = tl.zeros((BLOCK // _GROUP,), tl.float32)
    state = (zero - float("inf"), zero, zero, zero, tl.zeros((BLOCK // _GROUP,), tl.int32))
    full = columns // BLOCK * BLOCK
    for first in range(0, full, BLOCK):
        state = _scan_block(row, c, first, columns, state, inner, outer, CAP, SMOOTH, NOTE, False, BLOCK)
    if full < columns:
        state = _scan_block(row, c, full, columns, state, inner, outer, CAP, SMOOTH, NOTE, True, BLOCK)
    tops, total, plain, moment, index = state
    top = tl.max(tops, 0)
    safe = tl.where(top == -float("inf"), 0.0, top)
    shrink = tl.exp(tops - safe)
    moved = tl.where(tops == -float("inf"), 0.0, tops - safe)
    moment = tl.sum((moment + moved * total) * shrink, 0)
    index = tl.min(tl.where(tops == top, index, _FAR), 0)
    return top, tl.sum(total * shrink, 0), tl.sum(plain, 0), moment, tl.where(index == _FAR, 0, index)


@triton.jit
def _write_block(
    row, c, first, columns, y, shift, scale, point, share, inner, outer, over, CAP: tl.constexpr, SMOOTH: tl.constexpr,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = first + tl.arange(0, BLOCK)
    if MASKED:
        x = tl.load(row + at, mask=at < columns, other=0.0, eviction_policy="evict_first").to(tl.float32)
    else:
        x = tl.load(row + at, eviction_policy="evict_first").to(tl.float32)
    slope = over
    z = x * outer
    if CAP:
        t, slope = _tanh(x * inner)
        z = t * outer
        slope = slope * over
    g = tl.exp(z - shift) * scale
    g = tl.where(at == y, g - point, g)
    if SMOOTH:
        if c is None:
            g -= share
        elif MASKED:
            g -= share * tl.load(c + at, mask=at < columns, other=0.0)
        else:
            g -= share * tl.load(c + at)
    g = (g * slope).to(row.dtype.element_ty)
    if MASKED:
        tl.store(row + at, g, mask=at < columns)
    else:
        tl.store(row + at, g)


@triton.jit
def _write(
    row, c, columns, y, shift, scale, point, share, inner, outer, over, CAP: tl.constexpr, SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(scale e^(z - shift) - point [v = y] - share c_v) dz/dx over the row."""
    full = columns // BLOCK * BLOCK
    if full < columns:
        _write_block(
            row, c, full, columns, y, shift, scale, point, share, inner, outer, over, CAP, SMOOTH, True, BLOCK
        )  # fmt: skip
    for step in range(full // BLOCK):
        first = full - (step + 1) * BLOCK
        _write_block(
            row, c, first, columns, y, shift, scale, point, share, inner, outer, over, CAP, SMOOTH, False, BLOCK
        )  # fmt: skip


@triton.jit
def _zero(row, columns, BLOCK: tl.constexpr):
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(row + at, tl.zeros((BLOCK,), row.dtype.element_ty), mask=at < columns)


@triton.jit
def rows_kernel(
    z, stride, columns, target, losses, factor, counts, c, c_sum, penalty, lses, entropies, argmaxes, sums, keep, even,
    inner, outer, over, CAP: tl.constexpr, SMOOTH: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    row = z + i.to(tl.int64) * stride
    counted = True
    if counts is not None:
        counted = tl.load(counts + i).to(tl.float32) != 0.0
    if counted:
        NOTE: tl.constexpr = entropies is not None
        top, total, plain, moment, index = _scan(row, c, columns, inner, outer, CAP, SMOOTH, NOTE, BLOCK)
        y = tl.load(target + i)
        inside = (y >= 0) & (y < columns)
        own = _shaped(tl.load(row + y, mask=inside, other=float("nan")).to(tl.float32), inner, outer, CAP)
        log_total = tl.log(total)
        lse = top + log_total
        t = keep
        if c is not None:
            t = keep * tl.load(c + y, mask=inside, other=0.0)
        loss = t * ((top - own) + log_total)
        mass = t
        if SMOOTH:
            all_c = columns * 1.0
            if c is not None:
                all_c = tl.load(c_sum)
            loss += even * (all_c * lse - plain)
            mass += even * all_c
        rest = 0.0 * t  # the sum of the row's gradient
        if penalty is not None:
            rate = tl.load(penalty)
            loss += rate * lse * lse
            rest = 2.0 * rate * lse
            mass += rest
        tl.store(losses + i, loss)
        if entropies is not None:
            tl.store(lses + i, lse)
            tl.store(entropies + i, log_total - moment / total)
            tl.store(argmaxes + i, index.to(tl.int64))
        if GRADIENT:
            f = 1.0
            if factor is not None:
                f = tl.load(factor + i)
            if sums is not None:
                tl.store(sums + i, f * rest * over)
            tl.debug_barrier()  # every thread has read before any writes
            _write(
                row, c, columns, y, top, mass / total * f, t * f, even * f, inner, outer, over, CAP, SMOOTH, BLOCK
            )  # fmt: skip
    else:
        tl.store(losses + i, 0.0)
        if entropies is not None:
            tl.store(lses + i, 0.0)
            tl.store(entropies + i, 0.0)
            tl.store(argmaxes + i, tl.full((), -1, tl.int64))
        if sums is not None:
            tl.store(sums + i, 0.0)
        if GRADIENT:
            _zero(row, columns, BLOCK)


@triton.jit
def see_kernel(
    z, stride, width, target, c, start, tops, totals, inners, plains, moments, bests, indices, inner, outer,
    CAP: tl.constexpr, SMOOTH: tl.constexpr, NOTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    row = z + i.to(tl.int64) * stride
    own, total, plain, moment, index = _scan(row, c, width, inner, outer, CAP, SMOOTH, NOTE, BLOCK)
    old = tl.load(tops + i)
    top = tl.maximum(old, own)
    safe = tl.where(top == -float("inf"), 0.0, top)
    shrink, grow = tl.exp(old - safe), tl.exp(own - safe)
    tl.store(tops + i, top)
    tl.store(totals + i, tl.load(totals + i) * shrink + total * grow)
    if NOTE:
        moment += tl.where(own == -float("inf"), 0.0, own) * total
        tl.store(moments + i, tl.load(moments + i) * shrink + moment * grow)
        best = tl.load(bests + i)
        tl.store(indices + i, tl.where(own > best, index.to(tl.int64) + start, tl.load(indices + i)))
        tl.store(bests + i, tl.maximum(best, own))
    y = tl.load(target + i) - start
    here = (y >= 0) & (y < width)
    shaped = _shaped(tl.load(row + y, mask=here, other=0.0).to(tl.float32), inner, outer, CAP)
    tl.store(inners + i, tl.load(inners + i) + tl.where(here, shaped, 0.0))
    if SMOOTH:
        tl.store(plains + i, tl.load(plains + i) + plain)


@triton.jit
def turn_kernel(
    z, stride, width, target, c, start, lses, masses, points, factor, even, inner, outer, over, CAP: tl.constexpr,
    SMOOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    row = z + i.to(tl.int64) * stride
    y = tl.load(target + i) - start
    share = even * tl.load(factor + i)
    lse, mass, point = tl.load(lses + i), tl.load(masses + i), tl.load(points + i)
    _write(row, c, width, y, lse, mass, point, share, inner, outer, over, CAP, SMOOTH, BLOCK)


@triton.jit
def columns_kernel(
    g, stride, rows, columns, scale, weight, tops, masses, sums, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top = tl.zeros((ROWS, BLOCK), tl.float32)
    mass = tl.zeros((ROWS, BLOCK), tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, rows, ROWS):
        i = first + tl.arange(0, ROWS)
        mask = (i < rows)[:, None] & (at < columns)[None, :]
        x = tl.load(g + i.to(tl.int64)[:, None] * stride + at[None, :], mask=mask, other=0.0).to(tl.float32)
        if scale is not None:
            s = x * tl.load(scale + i, mask=i < rows, other=0.0)[:, None]
            top = tl.maximum(top, tl.abs(s))
            mass += s
        if weight is not None:
            x = x * tl.load(weight + i, mask=i < rows, other=0.0)[:, None]
        total += x
    if scale is not None:
        tl.store(tops + at, tl.max(top, 0), mask=at < columns)
        tl.store(masses + at, tl.sum(mass, 0), mask=at < columns)
    tl.store(sums + at, tl.sum(total, 0), mask=at < columns)
