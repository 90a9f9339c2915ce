"""Root-mean-square normalisation with one saved number a row."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...core.checks import check_number, check_tensor
from ...core.transforms import by_hand, plain_gradients
from . import _native
from ._pieces import as_rows, compute_dtype, on_triton, piece_buffer, pieces, widened

WIDEST = 1 << 16  # a Triton program holds a whole row


def fused_rms_norm(
    x: Float[Tensor, "*batch d"], w: Float[Tensor, " d"], eps: float = 1e-6
) -> Float[Tensor, "*batch d"]:
    r"""RMSNorm whose backward reads x and dy once.

    .. math::
        r = (\mathrm{mean}\, x^2 + \epsilon)^{-1/2},\quad y = x\, r\, w,\quad
        dx = r\,[\,w\,dy - x\, r^2\, \mathrm{mean}(x\, w\, dy)\,],\quad dw = \sum_{rows} dy\, x\, r

    Besides its inputs only r is kept, one number a row, and dw is summed piece by piece without an ``[N, d]``
    temporary. On CUDA a Triton kernel each way; on the CPU a C++ function, or, in float64 and float16 or without a
    compiler, pieces of rows that stay in the cache. Under ``torch.compile`` and ``torch.func`` it is the plain formula,
    which inductor fuses itself. Half inputs are computed in float32 and rounded once. There is no second derivative.

    Args:
        x: floating, ``[*, d]``.
        w: floating, ``[d]``; may be wider than x, as under autocast.
        eps: >= 0, added to the mean square.

    Returns:
        y, of the shape and type of x.

    Raises:
        ValueError: w does not have the width of x; eps is negative.
        TypeError: an argument is no floating tensor.

    Example:
        >>> fused_rms_norm(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 2.0]), eps=0.0)
        tensor([0.5774, 1.1547, 2.3094])

    Source: Chronicals, code Ajwebdevs/Chronicals; Root Mean Square Layer Normalization, arXiv:1910.07467.
    """
    check_tensor("x", x, ndim=tuple(range(1, 17)), floating=True)
    check_tensor("w", w, floating=True, shape=(x.shape[-1],))
    check_number("eps", eps, low=0.0)
    return _RMSNorm.apply(x, w, float(eps)) if by_hand(x, w) else _plain(x, w, eps)


def _plain(x: Tensor, w: Tensor, eps: float) -> Tensor:
    wide = compute_dtype(x.dtype)
    v = x.to(wide)
    return (v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps) * w.to(wide)).to(x.dtype)


def _in_one_program(x: Tensor, w: Tensor) -> bool:
    return on_triton(x, w) and x.shape[-1] <= WIDEST


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float) -> Tensor:
        rows = as_rows(x)
        if _in_one_program(x, w):
            from . import _triton

            y, r = _triton.rms_norm(rows, w, eps)
        elif _native.runs(x):
            y, r = _native.rms_norm(rows, w, eps)
        else:
            y, r = _forward(rows, w, eps)
        ctx.save_for_backward(x, w, r)
        ctx.eps = eps
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w, r = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad[:2]
        if not by_hand(dy):
            gradients = plain_gradients(lambda x, w: _plain(x, w, ctx.eps), (x, w), (need_x, need_w), dy)
            return gradients[0], gradients[1], None
        dx: Tensor | None
        if _in_one_program(x, w):
            from . import _triton

            dx, dw = _triton.rms_norm_backward(as_rows(x), w, r, as_rows(dy))
        elif _native.runs(x, dy):
            dx, dw = _native.rms_norm_backward(as_rows(x), w, r, as_rows(dy))
        else:
            # a matrix-vector product is on the list of autocast
            with torch.autocast(x.device.type, enabled=False):
                dx, dw = _backward(as_rows(x), w, r, as_rows(dy), need_x, need_w)
        return None if dx is None else dx.view(x.shape), dw if need_w else None, None


def _forward(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = compute_dtype(x.dtype)
    rows, width = x.shape
    y, w = x.new_empty(rows, width), w.to(wide)
    r = torch.empty(rows, 1, dtype=wide, device=x.device)
    buffer = None if x.dtype == wide else piece_buffer(rows, width, x, wide)
    for here in pieces(rows, width, x.device):
        scale = torch.linalg.vector_norm(x[here], dim=1, keepdim=True, dtype=wide)  # no square is written out
        torch.rsqrt(scale.square_().div_(width).add_(eps), out=r[here])
        if buffer is None:
            torch.mul(x[here], r[here], out=y[here]).mul_(w)
        else:
            y[here].copy_(widened(x[here], buffer).mul_(r[here]).mul_(w))
    return y, r


def _backward(x: Tensor, w: Tensor, r: Tensor, dy: Tensor, need_x: bool, need_w: bool) -> tuple[Tensor | None, Tensor]:
    wide = r.dtype
    rows, width = x.shape
    scale = w.to(wide)
    dx = x.new_empty(rows, width) if need_x else None
    dw = torch.zeros(width, dtype=wide, device=x.device)
    product, xs, gs = (piece_buffer(rows, width, x, wide) for _ in range(3))
    for here in pieces(rows, width, x.device):
        v, g, inverse = widened(x[here], xs), widened(dy[here], gs), r[here]
        both = torch.mul(v, g, out=product[: len(v)])
        if need_w:
            dw.addmv_(both.T, inverse[:, 0])
        if dx is None:
            continue
        pull = torch.mv(both, scale).div_(width).neg_().unsqueeze(1).mul_(inverse).mul_(inverse)
        out = dx[here] if dx.dtype == wide else both
        torch.mul(g, scale, out=out).addcmul_(v, pull).mul_(inverse)
        if dx.dtype != wide:
            dx[here].copy_(out)
    return dx, dw.to(w.dtype)
