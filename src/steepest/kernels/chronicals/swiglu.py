"""The gated unit of language models, silu(gate) times up, with nothing kept but its inputs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ...core.checks import check_tensor, refuse_type
from ...core.transforms import by_hand, plain_gradients
from . import _native
from ._pieces import as_rows, compute_dtype, on_triton, piece_buffer, pieces, widened


def fused_swiglu(gate: Float[Tensor, "*batch d"], up: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    r"""SwiGLU, its sigmoid computed again in the backward pass instead of kept.

    .. math::
        s = \sigma(g),\quad y = g\, s\, u,\quad dg = dy\, u\, s\,(1 + g\,(1 - s)),\quad du = dy\, g\, s

    Only the two inputs are kept. On CUDA a Triton kernel each way; on the CPU a C++ function, or, in float64 and
    float16 or without a compiler, pieces that stay in the cache. Halves of one tensor (``x.chunk(2, -1)``) are read
    where they lie. Under ``torch.compile`` and ``torch.func`` it is the plain formula, which inductor fuses itself.
    Half inputs are computed in float32 and rounded once. There is no second derivative.

    Args:
        gate: g, floating, ``[*, d]``.
        up: u, of the shape and type of ``gate``.

    Returns:
        y, of the same shape and type.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is no floating tensor; the types differ.

    Example:
        >>> gate = torch.tensor([1.0], requires_grad=True)
        >>> y = fused_swiglu(gate, torch.tensor([3.0]))
        >>> y.backward()
        >>> y.item(), gate.grad.item()  # doctest: +ELLIPSIS
        (2.1931..., 2.7830...)

    Source: Chronicals, code Ajwebdevs/Chronicals; GLU Variants Improve Transformer, arXiv:2002.05202.
    """
    check_tensor("gate", gate, ndim=tuple(range(1, 17)), floating=True)
    check_tensor("up", up, floating=True, shape=tuple(gate.shape))
    if up.dtype != gate.dtype:
        refuse_type("up", f"the type of gate, {gate.dtype}", up)
    return _SwiGLU.apply(gate, up) if by_hand(gate, up) else _plain(gate, up)


def _plain(gate: Tensor, up: Tensor) -> Tensor:
    wide = compute_dtype(gate.dtype)
    return (functional.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        if on_triton(gate, up):
            from . import _triton

            return _triton.swiglu(as_rows(gate), as_rows(up)).view(gate.shape)
        form = _native.swiglu if _native.runs(gate, up) else _forward
        return form(as_rows(gate), as_rows(up)).view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if not by_hand(dy):
            return tuple(plain_gradients(_plain, (gate, up), ctx.needs_input_grad, dy))
        if on_triton(gate, up):
            from . import _triton

            dg, du = _triton.swiglu_backward(as_rows(gate), as_rows(up), as_rows(dy))
        else:
            form = _native.swiglu_backward if _native.runs(gate, up, dy) else _backward
            dg, du = form(as_rows(gate), as_rows(up), as_rows(dy))
        return dg.view(gate.shape), du.view(gate.shape)


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    wide = compute_dtype(gate.dtype)
    rows, width = gate.shape
    y = gate.new_empty(rows, width)
    buffer = None if gate.dtype == wide else piece_buffer(rows, width, gate, wide)
    for here in pieces(rows, width, gate.device):
        if buffer is None:
            torch.ops.aten.silu.out(gate[here], out=y[here]).mul_(up[here])
        else:
            y[here].copy_(functional.silu(widened(gate[here], buffer), inplace=True).mul_(up[here]))
    return y


def _backward(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    wide = compute_dtype(gate.dtype)
    rows, width = gate.shape
    dg, du = gate.new_empty(rows, width), gate.new_empty(rows, width)
    narrow = gate.dtype != wide
    first, second = (piece_buffer(rows if narrow else 0, width, gate, wide) for _ in range(2))
    for here in pieces(rows, width, gate.device):
        g = widened(gate[here], first)
        slope = second[: len(g)] if narrow else dg[here]
        slope.copy_(dy[here]).mul_(up[here]) if narrow else torch.mul(dy[here], up[here], out=slope)
        torch.ops.aten.silu_backward.grad_input(slope, g, grad_input=slope)
        flow = torch.ops.aten.silu.out(g, out=g if narrow else du[here]).mul_(dy[here])
        if narrow:
            dg[here].copy_(slope)
            du[here].copy_(flow)
    return dg, du
