"""The C++ forms of RMSNorm, SwiGLU and the rotation on the CPU; the interface of ``_triton``."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import native

SOURCE = Path(__file__).parent.with_suffix(".cpp")
CHUNKS = 32  # of rows that sum their own dw
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_P, _I, _D, _N = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
_TYPES = {
    "rms_forward": [_P] * 4 + [_I] * 3 + [_D, _N],
    "rms_backward": [_P] * 6 + [_I] * 5 + [_N],
    "swiglu_forward": [_P] * 3 + [_I] * 4 + [_N],
    "swiglu_backward": [_P] * 5 + [_I] * 5 + [_N],
    "rotate": [_P] * 6 + [_I] * 5 + [_D, _N],
}


@cache
def _library() -> ctypes.CDLL | None:
    return native.library(SOURCE)


def runs(*tensors: Tensor) -> bool:
    """Whether the C++ form takes these: plain CPU tensors of one type, float32 or bfloat16, and a compiler is there."""
    first = tensors[0].dtype
    return (
        first in _NAMES
        and all(t.device.type == "cpu" and t.dtype == first and type(t) in _PLAIN for t in tensors)
        and _library() is not None
    )


_PLAIN = (Tensor, torch.nn.Parameter)


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(_library(), f"{name}_{_NAMES[dtype]}")
    function.argtypes, function.restype = _TYPES[name], None
    return function


def rms_norm(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y and r of rows ``[N, D]``."""
    rows, width = x.shape
    y, r = torch.empty(rows, width, dtype=x.dtype), torch.empty(rows, 1)
    gain = w.detach().to(torch.float32).contiguous()
    pointers = (t.data_ptr() for t in (x, gain, y, r))
    _function("rms_forward", x.dtype)(*pointers, x.stride(0), rows, width, eps, torch.get_num_threads())
    return y, r


def rms_norm_backward(x: Tensor, w: Tensor, r: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dw of rows ``[N, D]``."""
    rows, width = x.shape
    chunks = max(1, min(CHUNKS, rows // 8))
    dx, dw = torch.empty(rows, width, dtype=x.dtype), torch.zeros(chunks, width)
    gain = w.detach().to(torch.float32).contiguous()
    pointers = (t.data_ptr() for t in (x, gain, r, dy, dx, dw))
    sizes = (x.stride(0), dy.stride(0), rows, width, chunks)
    _function("rms_backward", x.dtype)(*pointers, *sizes, torch.get_num_threads())
    return dx, dw.sum(0).to(w.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y of rows ``[N, D]``."""
    rows, width = gate.shape
    y = torch.empty(rows, width, dtype=gate.dtype)
    pointers = (t.data_ptr() for t in (gate, up, y))
    sizes = (gate.stride(0), up.stride(0), rows, width)
    _function("swiglu_forward", gate.dtype)(*pointers, *sizes, torch.get_num_threads())
    return y


def swiglu_backward(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The two gradients of rows ``[N, D]``."""
    rows, width = gate.shape
    dg, du = torch.empty(rows, width, dtype=gate.dtype), torch.empty(rows, width, dtype=gate.dtype)
    pointers = (t.data_ptr() for t in (gate, up, dy, dg, du))
    sizes = (gate.stride(0), up.stride(0), dy.stride(0), rows, width)
    _function("swiglu_backward", gate.dtype)(*pointers, *sizes, torch.get_num_threads())
    return dg, du


def rotate(
    q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor, sign: float
) -> tuple[Tensor | None, Tensor | None]:
    """Queries and keys ``[B, H, T, d]`` turned by the table ``[B or 1, T, d/2]``; one of them may be absent."""
    cos, sin = cos.contiguous(), sin.contiguous()
    return _turned(q, cos, sin, sign), _turned(k, cos, sin, sign)


def _turned(x: Tensor | None, cos: Tensor, sin: Tensor, sign: float) -> Tensor | None:
    if x is None:
        return None
    x = x if x.stride(3) == 1 else x.contiguous()
    y = torch.empty_like(x)
    batch, heads, time, width = x.shape
    strides = [(ctypes.c_int64 * 3)(*t.stride()[:3]) for t in (x, y)]
    table = cos.stride(0) if cos.shape[0] > 1 else 0
    _function("rotate", x.dtype)(
        *(t.data_ptr() for t in (x, y, cos, sin)), *map(ctypes.addressof, strides),
        table, batch, heads, time, width // 2, sign, torch.get_num_threads(),
    )  # fmt: skip
    return y
