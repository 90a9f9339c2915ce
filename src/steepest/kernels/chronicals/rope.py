"""Rotary positions of queries and keys in one pass."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.transforms import by_hand
from . import _native
from ._pieces import compute_dtype, on_triton, pieces


def fused_qk_rope(
    q: Float[Tensor, "batch heads time d"],
    k: Float[Tensor, "batch kv_heads time d"],
    cos: Float[Tensor, "*batch time half"] | None = None,
    sin: Float[Tensor, "*batch time half"] | None = None,
    *,
    positions: Int[Tensor, "*batch time"] | None = None,
    base: float = 10000.0,
    unsqueeze_dim: int = 1,
) -> tuple[Float[Tensor, "batch heads time d"], Float[Tensor, "batch kv_heads time d"]]:
    r"""Rotate queries and keys by their positions, first half of a head against its second.

    .. math::
        q' = (q_1 \cos\theta - q_2 \sin\theta,\; q_2 \cos\theta + q_1 \sin\theta), \quad
        \theta_i = \mathrm{position} \cdot \mathrm{base}^{-2i/d}

    The backward pass is the rotation by :math:`-\theta`: no query or key is kept. On CUDA one Triton kernel for both;
    on the CPU a C++ function, or, in float64 and float16 or without a compiler, pieces that stay in the cache. Under
    ``torch.compile`` and ``torch.func`` it is the plain formula, which inductor fuses itself. Half inputs are computed
    in float32 and rounded once. There is no second derivative.

    Args:
        q: queries ``[B, H, T, d]``, d even; any strides.
        k: keys ``[B, K, T, d]`` of the same type; K may differ from H.
        cos, sin: the table, ``[T, d/2]`` or ``[B or 1, T, d/2]``, or ``[..., d]`` with two equal halves, as
            Transformers makes it (the first half is read). Constants: they may not require a gradient.
        positions: integers ``[T]`` or ``[B or 1, T]``, instead of the table; :func:`rotary_table` makes it once for
            many layers.
        base: > 0, of ``positions``.
        unsqueeze_dim: 1 for the layout above, 2 for ``[B, T, H, d]``.

    Returns:
        The rotated q and k, of the shapes and types they came in.

    Raises:
        ValueError: shapes that don't fit together; an odd d; not exactly one of the table and ``positions``.
        TypeError: q or k is no floating tensor, their types differ, ``positions`` holds no integers.

    Example:
        >>> q = torch.tensor([1.0, 0.0]).expand(1, 2, 3, 2)
        >>> turned, _ = fused_qk_rope(q, q[:, :1], positions=torch.arange(3))
        >>> turned[0, 0]
        tensor([[ 1.0000,  0.0000],
                [ 0.5403,  0.8415],
                [-0.4161,  0.9093]])

    Source: Chronicals, code Ajwebdevs/Chronicals; RoFormer, arXiv:2104.09864.
    """
    check_choice("unsqueeze_dim", unsqueeze_dim, (1, 2))
    check_tensor("q", q, ndim=4, floating=True)
    batch, width = q.shape[0], q.shape[3]
    time = q.shape[3 - unsqueeze_dim]
    fits = (batch, None, time, width) if unsqueeze_dim == 1 else (batch, time, None, width)
    check_tensor("k", k, floating=True, shape=fits)
    if k.dtype != q.dtype:
        refuse_type("k", f"the type of q, {q.dtype}", k)
    if width % 2 or not width:
        refuse("q", "heads of even width", q)
    if (cos is None) != (sin is None) or (cos is None) == (positions is None):
        refuse("positions", "either positions or both cos and sin", [type(v).__name__ for v in (positions, cos, sin)])
    wide = compute_dtype(q.dtype)
    if positions is not None:
        _check_positions(positions, batch, time)
        cos, sin = rotary_table(positions, width, base=base, dtype=wide)
    assert cos is not None
    assert sin is not None
    cos, sin = (_half(name, t, batch, time, width).to(wide) for name, t in (("cos", cos), ("sin", sin)))
    if unsqueeze_dim == 2:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    a, b = _Rotation.apply(q, k, cos, sin) if by_hand(q, k, cos, sin) else (_plain(q, cos, sin), _plain(k, cos, sin))
    return (a.transpose(1, 2), b.transpose(1, 2)) if unsqueeze_dim == 2 else (a, b)


def rotary_table(
    positions: Int[Tensor, "*batch time"], width: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "*batch time half"], Float[Tensor, "*batch time half"]]:
    r"""Cosine and sine of :math:`\mathrm{position} \cdot \mathrm{base}^{-2i/d}`, for i below d/2.

    The angle is computed in float64: in float32 it would be wrong by 0.06 at position one million.

    Args:
        positions: integers of any shape.
        width: d, of a head; even.
        base: > 0.
        dtype: of the table.

    Returns:
        cos and sin, ``[*, d/2]``.

    Raises:
        ValueError: an odd width; base is not positive.
        TypeError: positions are no integers.

    Example:
        >>> cos, sin = rotary_table(torch.tensor([0, 1]), 4, base=100.0)
        >>> sin
        tensor([[0.0000, 0.0000],
                [0.8415, 0.0998]])

    Source: RoFormer, arXiv:2104.09864.
    """
    check_tensor("positions", positions, floating=False)
    check_number("width", width, low=2, integer=True)
    check_number("base", base, low=0.0, open_low=True)
    if width % 2:
        refuse("width", "an even number", width)
    steps = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
    angle = positions.unsqueeze(-1) * base**-steps
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _check_positions(positions: Tensor, batch: int, time: int) -> None:
    check_tensor("positions", positions, floating=False, ndim=(1, 2))
    if positions.shape[-1] != time or (positions.ndim == 2 and positions.shape[0] not in (1, batch)):
        refuse("positions", f"shape ({time},) or ({batch}, {time})", positions)


def _half(name: str, table: Tensor, batch: int, time: int, width: int) -> Tensor:
    """A table as ``[B or 1, T, d/2]``."""
    check_tensor(name, table, ndim=(2, 3), floating=True)
    if table.requires_grad:
        refuse(name, "a table without gradient", "one that requires it")
    table = table if table.ndim == 3 else table.unsqueeze(0)
    if table.shape[0] not in (1, batch) or table.shape[1] != time or table.shape[2] not in (width // 2, width):
        refuse(name, f"shape ([{batch} or 1,] {time}, {width // 2} or {width})", table)
    return table[..., : width // 2]


def _plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cos, sin)
        return _rotate(q, k, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor | None, dk: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        cos, sin = ctx.saved_tensors
        if not by_hand(dq, dk):
            return *(None if d is None else _plain(d, cos, -sin) for d in (dq, dk)), None, None
        return *_rotate(dq, dk, cos, sin, -1.0), None, None


def _rotate(
    q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor, sign: float
) -> tuple[Tensor | None, Tensor | None]:
    given = [t for t in (q, k) if t is not None]
    if given and on_triton(*given, cos, sin):
        from . import _triton

        return _triton.rotate(q, k, cos, sin, sign)
    if given and _native.runs(*given) and _native.runs(cos, sin):
        return _native.rotate(q, k, cos, sin, sign)
    both = torch.cat((cos, cos), -1)
    turned = [None if t is None else _rotated(t, both, sin, sign) for t in (q, k)]
    return turned[0], turned[1]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    out = torch.empty_like(x)
    batch, heads, time, width = x.shape
    half = width // 2
    for here in pieces(time, batch * heads * width, x.device):
        v = x[:, :, here].to(cos.dtype)
        s = sin[:, None, here]
        # one long product with the doubled table, then the halves: short inner loops are slow
        narrow = out.dtype != cos.dtype
        turned = v * cos[:, None, here] if narrow else torch.mul(v, cos[:, None, here], out=out[:, :, here])
        turned[..., :half].addcmul_(v[..., half:], s, value=-sign)
        turned[..., half:].addcmul_(v[..., :half], s, value=sign)
        if narrow:
            out[:, :, here].copy_(turned)
    return out
