"""Softmax, log-softmax and log-sum-exp in two passes over memory: exponentials as pairs of mantissa and exponent.

Float32 on the CPU (and half types, widened) runs a C++ kernel that is compiled at its first use; CUDA runs a Triton
kernel; float64, ``torch.compile``, transforms of ``torch.func`` and machines without a compiler run the torch form:
plain torch operations, differentiable to any order, which inductor fuses. So do gradients of several losses at once.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor

from ..core.checks import check_tensor, refuse, refuse_type
from ..core.reductions import widen
from ..core.transforms import by_hand

_LOG2E = 1.0 / math.log(2.0)
# 33 bits of ln 2 and the rest, in float64: whole multiples below 2^20 of the first are exact
_LN2_HI = float.fromhex("0x1.62e42feep-1")
_LN2_LO = float.fromhex("0x1.a39ef35793c76p-33")
SATURATION = 2.0**23
"""Finite values beyond +-SATURATION count as +-SATURATION in a pair, whose float32 exponent stays a whole number."""
_SHIFT = 2.0**16
"""A row whose maximum lies beyond +-_SHIFT is shifted by it: there the rounding of n ln 2 would show."""
_LOWEST = {torch.float32: -127.0, torch.float64: -1023.0}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ExtFloat(NamedTuple):
    r"""Non-negative numbers :math:`m\,2^n` whose exponent has a float's range.

    Args:
        mantissa: m, any shape.
        exponent: n, whole numbers as floats, the same shape; zero is (0, -inf).

    Example:
        >>> ExtFloat(torch.tensor(1.5), torch.tensor(4000.0)).log()
        tensor(2772.9941)
    """

    mantissa: Tensor
    exponent: Tensor

    def log(self) -> Tensor:
        """log m + n ln 2, finite where the number itself would overflow."""
        m, n = self.mantissa.double(), self.exponent.double()
        return (torch.log(m) + n * _LN2_HI + n * _LN2_LO).to(self.mantissa.dtype)


def extexp(x: F[Tensor, ...]) -> ExtFloat:
    r"""The exponential as a pair that neither overflows nor underflows.

    .. math:: n = \mathrm{round}(x \log_2 e), \qquad m = e^{x - n \ln 2} \in [0.707, 1.415], \qquad e^x = m\,2^n

    Args:
        x: any shape; half types are widened. Finite values beyond +-2^23 count as +-2^23.

    Returns:
        (m, n) in float32 or wider. -inf gives (0, -inf), inf gives an infinite m, NaN stays NaN. n has no gradient.

    Raises:
        TypeError: ``x`` is no floating tensor.

    Example:
        >>> extexp(torch.tensor([1.0, 2.0, 3.0]))
        ExtFloat(mantissa=tensor([1.3591, 0.9236, 1.2553]), exponent=tensor([1., 3., 4.]))

    Source: The Two-Pass Softmax Algorithm, arXiv:2001.04438.
    """
    _check(x)
    return _extexp(widen(x))


def _extexp(x: Tensor) -> ExtFloat:
    wide = x.double().clamp(-SATURATION, SATURATION)  # float32 has no exact n ln 2 without a fused multiply-add
    n = torch.round(wide.detach() * _LOG2E)
    m = torch.exp((wide - n * _LN2_HI) - n * _LN2_LO).to(x.dtype)
    m = torch.where(x == -math.inf, 0.0, torch.where(x == math.inf, math.inf, m))
    return ExtFloat(m, torch.where(x == -math.inf, -math.inf, n.to(x.dtype)))


def merge(a: ExtFloat, b: ExtFloat) -> ExtFloat:
    r"""The sum of two numbers; commutative, and associative up to rounding: blocks and ranks may be added in any order.

    .. math:: (M, N) + (m, n) = (M\,2^{N-K} + m\,2^{n-K},\; K), \qquad K = \max(N, n)

    Args:
        a, b: pairs of shapes that broadcast; factors 2^d count as 0 for d <= -127 (float32).

    Example:
        >>> merge(extexp(torch.tensor(1000.0)), extexp(torch.tensor(1001.0))).log()
        tensor(1001.3132)
    """
    top = torch.maximum(a.exponent, b.exponent)
    return ExtFloat(a.mantissa * _pow2(a.exponent - top) + b.mantissa * _pow2(b.exponent - top), top)


def _pow2(d: Tensor) -> Tensor:
    # a difference of infinite exponents is NaN, which is a factor of zero as well
    return torch.where(d > _LOWEST[d.dtype], torch.exp2(d), 0.0)


def extexp_sum(x: F[Tensor, ...], dim: int = -1, *, keepdim: bool = False) -> ExtFloat:
    r"""Pass 1: the sum of exponentials along a dimension, :math:`\sum_i e^{x_i} = M\,2^N`.

    Args:
        x: any shape; half types are widened. A row whose maximum lies beyond +-2^23 saturates as in :func:`extexp`.
        dim: the dimension that is summed.
        keepdim: keep it with size 1.

    Returns:
        (M, N) in float32 or wider; (0, -inf) for a row that is empty or all -inf. Differentiable in M.

    Raises:
        TypeError: ``x`` is no floating tensor.
        IndexError: no such ``dim``.

    Example:
        >>> extexp_sum(torch.tensor([1.0, 2.0, 3.0]))
        ExtFloat(mantissa=tensor(1.8871), exponent=tensor(4.))
    """
    _check(x)
    m, n, shift = _sums(widen(x), dim)
    by = _extexp(shift)
    zero = n == -math.inf
    total = ExtFloat(torch.where(zero, m, m * by.mantissa), n + by.exponent)
    return total if keepdim else ExtFloat(*(component.squeeze(dim) for component in total))


def ext_logsumexp(x: F[Tensor, ...], dim: int = -1, *, keepdim: bool = False) -> Tensor:
    r"""Log-sum-exp by pairs: :math:`\log M + N \ln 2`, one pass and no maximum.

    Args:
        x: any shape; half types are widened.
        dim: the dimension that is summed.
        keepdim: keep it with size 1.

    Returns:
        float32 or wider; -inf for a row that is empty or all -inf.

    Raises:
        TypeError: ``x`` is no floating tensor.
        IndexError: no such ``dim``.

    Example:
        >>> ext_logsumexp(torch.tensor([1000.0, 1001.0, -500.0]))
        tensor(1001.3132)
    """
    _check(x)
    m, n, shift = _sums(widen(x), dim)
    log_sum = ExtFloat(m.double(), n.double()).log() + shift
    log_sum = log_sum.to(m.dtype)
    return log_sum if keepdim else log_sum.squeeze(dim)


def two_pass_softmax(x: F[Tensor, ...], dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Softmax with two reads and one write of memory.

    .. math:: (M, N) = \sum_i (m_i, n_i), \qquad y_i = m_i\, \tfrac1M\, 2^{n_i - N}, \qquad
        \partial x = y\,(\partial y - \langle y, \partial y\rangle)

    Args:
        x: any shape. Half types are computed in float32.
        dim: the dimension that sums to one.
        dtype: the result's type, to which ``x`` is converted first; default that of ``x``.

    Returns:
        The shape and type of ``x``. As in ``torch.softmax``, a row with a NaN or inf, or all -inf, is NaN.

    Raises:
        TypeError: ``x`` is no floating tensor, or ``dtype`` no floating type.
        IndexError: no such ``dim``.

    Example:
        >>> two_pass_softmax(torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.0900, 0.2447, 0.6652])

    Source: The Two-Pass Softmax Algorithm, arXiv:2001.04438; code google/XNNPACK.
    """
    return _normalised(x, dim, dtype, log=False)


def softmax(x: F[Tensor, ...], dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    """:func:`two_pass_softmax` under the name of ``torch.softmax``, whose place it takes.

    Example:
        >>> softmax(torch.tensor([[0.0, 0.0], [1e4, 0.0]]), dim=1)
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """
    return _normalised(x, dim, dtype, log=False)


def log_softmax(x: F[Tensor, ...], dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Log-softmax with two reads and one write of memory: :math:`(x - N \ln 2) - \log M`, never above 0.

    Args, returns, raises: as :func:`two_pass_softmax`.

    Example:
        >>> log_softmax(torch.tensor([1000.0, 1001.0]))
        tensor([-1.3133, -0.3133])
    """
    return _normalised(x, dim, dtype, log=True)


def _normalised(x: Tensor, dim: int, dtype: torch.dtype | None, log: bool) -> Tensor:
    _check(x, dtype)
    x = x if dtype is None else x.to(dtype)
    if not x.numel():
        return torch.log_softmax(x, dim) if log else torch.softmax(x, dim)
    wide = widen(x)
    backend = _backend(wide)
    if backend is None:
        return _torch_form(wide, dim, log).to(x.dtype)
    rows, around = _rows(wide, dim)
    normalised = _Normalise.apply(rows, backend, log) if _recorded(rows) else backend.forward(rows, log)
    return normalised.view(around).movedim(-1, dim).to(x.dtype) if x.ndim else normalised.view(()).to(x.dtype)


def _check(x: Tensor, dtype: torch.dtype | None = None) -> None:
    check_tensor("x", x, floating=True)
    if x.dtype not in _FLOATS:
        refuse("x", "float16, bfloat16, float32 or float64", x)
    if dtype is not None and dtype not in _FLOATS:
        refuse_type("dtype", "a floating type", dtype)


def _backend(x: Tensor) -> ModuleType | None:
    """The module of kernels for this tensor, or None for the torch form."""
    if type(x) not in (Tensor, torch.nn.Parameter) or x.layout != torch.strided or not by_hand(x):
        return None
    if x.device.type == "cpu" and x.dtype == torch.float32:
        from . import _native_softmax

        return _native_softmax if _native_softmax.available() else None
    if x.device.type == "cuda" and x.dtype == torch.float32 and find_spec("triton") is not None:
        from . import _triton_softmax

        return _triton_softmax
    return None


def _recorded(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _rows(x: Tensor, dim: int) -> tuple[Tensor, torch.Size]:
    """The dimension last and the others as one, contiguous; and the shape before they were one."""
    moved = (x if x.ndim else x.unsqueeze(0)).movedim(dim, -1)
    return moved.reshape(-1, moved.shape[-1]).contiguous(), moved.shape


# ---------------------------------------------------------------------------------------------------- the torch form


def _shift_of(x: Tensor, dim: int) -> Tensor:
    top = x.detach().amax(dim, keepdim=True)
    return torch.where((top.abs() > _SHIFT) & top.isfinite(), top, 0.0)


def _torch_sums(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """M, N and shift, the dimension kept."""
    shift = _shift_of(x, dim)
    m, n = _extexp(x - shift)
    top = n.amax(dim, keepdim=True)
    return (m * _pow2(n - top)).sum(dim, keepdim=True), top, shift


def _torch_weights(x: Tensor, n: Tensor, shift: Tensor) -> Tensor:
    """e^(x - shift) 2^-N."""
    e = _extexp(x - shift)
    return e.mantissa * _pow2(e.exponent - n)


def _torch_form(x: Tensor, dim: int, log: bool) -> Tensor:
    m, n, shift = _torch_sums(x, dim)
    m = torch.where(m.isinf(), math.nan, m)
    if not log:
        return _torch_weights(x, n, shift) * (1.0 / m)
    exponent = n.double()
    log_p = (((x - shift).double() - exponent * _LN2_HI) - exponent * _LN2_LO - torch.log(m.double())).to(x.dtype)
    return log_p - log_p.detach().relu()  # rounding may leave a certain class just above 0; its gradient stays


# ---------------------------------------------------------------------------------------------------------- kernels


def _sums(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """M, N and shift, the dimension kept: the sum of e^x is M 2^N e^shift."""
    if not x.ndim:
        return tuple(component.squeeze(0) for component in _sums(x.unsqueeze(0), dim))  # type: ignore[return-value]
    if not x.shape[dim]:
        shape = [1 if axis == dim % x.ndim else size for axis, size in enumerate(x.shape)]
        zero = x.new_zeros(shape)
        return zero, zero - math.inf, zero
    backend = _backend(x) if x.numel() else None
    if backend is None:
        return _torch_sums(x, dim)
    rows, around = _rows(x, dim)
    components = _Sums.apply(rows, backend) if _recorded(rows) else backend.sums(rows).unbind(1)
    return tuple(component.view(*around[:-1], 1).movedim(-1, dim) for component in components)  # type: ignore[return-value]


class _Normalise(torch.autograd.Function):
    """Softmax or log-softmax of rows; a second derivative goes through torch operations on the saved result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: ModuleType, log: bool) -> Tensor:
        y: Tensor = backend.forward(x, log)
        ctx.save_for_backward(y)
        ctx.backend, ctx.log = backend, log
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        if by_hand(dy) and not torch.is_grad_enabled():
            return ctx.backend.backward(y, dy.contiguous(), ctx.log), None, None
        if ctx.log:
            return dy - y.exp() * dy.sum(-1, keepdim=True), None, None
        return y * (dy - (y * dy).sum(-1, keepdim=True)), None, None


class _Sums(torch.autograd.Function):
    """M, N and shift of rows, differentiable in M."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: ModuleType) -> tuple[Tensor, Tensor, Tensor]:
        of_rows = backend.sums(x)
        ctx.save_for_backward(x, of_rows)
        ctx.backend = backend
        m, n, shift = (component.clone() for component in of_rows.unbind(1))
        ctx.mark_non_differentiable(n, shift)
        return m, n, shift

    @staticmethod
    def backward(ctx: Any, dm: Tensor, *rest: Tensor) -> tuple[Tensor, None]:
        x, of_rows = ctx.saved_tensors
        if by_hand(dm) and not torch.is_grad_enabled():
            return ctx.backend.weights(x, of_rows, dm.contiguous()), None
        return dm.unsqueeze(1) * _torch_weights(x, of_rows[:, 1:2], of_rows[:, 2:3]), None
