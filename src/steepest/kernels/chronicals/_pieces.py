"""Where a fused operation runs, and the pieces in which it goes through memory on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

PIECE = 1 << 17  # elements a thread: three float32 arrays of this size lie in a second-level cache of 1 to 2 MiB


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that an operation computes in: float64 for float64, else float32.

    >>> compute_dtype(torch.bfloat16), compute_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def on_triton(*tensors: Tensor) -> bool:
    """Whether the Triton kernels run here: all tensors on a GPU and triton installed."""
    return all(t.is_cuda for t in tensors) and _has_triton()


def as_rows(x: Tensor) -> Tensor:
    """``x`` as rows ``[N, D]`` with neighbouring elements in a row: a view where its strides allow one."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(0, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def pieces(rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows that fit the caches of the CPU's threads; one slice elsewhere.

    >>> list(pieces(5, 1 << 30, torch.device("cpu")))[:2]
    [slice(0, 1, None), slice(1, 2, None)]
    """
    step = rows if device.type != "cpu" else max(1, PIECE * torch.get_num_threads() // max(width, 1))
    for start in range(0, rows, max(step, 1)):
        yield slice(start, min(start + step, rows))


def piece_buffer(rows: int, width: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for one piece of ``rows`` rows."""
    longest = next(pieces(rows, width, like.device), slice(0, 0)).stop
    return torch.empty(longest, width, dtype=dtype, device=like.device)


def widened(piece: Tensor, buffer: Tensor) -> Tensor:
    """The piece itself where it has the buffer's type already, else copied there."""
    return piece if piece.dtype == buffer.dtype else buffer[: len(piece)].copy_(piece)
