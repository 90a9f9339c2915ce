"""Where the Triton kernels of rows serve, and the logits they work on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._cross_entropy_rows import CrossEntropyRows

_triton_on_cpu = False
"""Whether tensors on the CPU go the same way, for tests of interpreted kernels."""


def row_kernels(
    device: torch.device,
    kind: torch.dtype,
    rule: Any,
    softcap: float | None = None,
    collect: Any = None,
    others: Sequence[Any] = (),
) -> Any:
    """The module of kernels, or None where torch's operations do the work.

    It serves cross-entropy of class indices under one head, in float32 or less. A filter needs the slopes before a
    softcap's derivative, which are gone where the gradient has taken the logits' place.

    Args:
        device: of the logits.
        kind: type of the matrix products.
        rule: the row function.
        softcap: of the head.
        collect: what makes gradients of a chunk's slopes, or None.
        others: further heads.
    """
    here = device.type == "cuda" or (_triton_on_cpu and device.type == "cpu")
    fits = isinstance(rule, CrossEntropyRows) and rule.share is None and rule.target.ndim == 1
    if not here or not fits or others or kind == torch.float64 or (collect is not None and softcap is not None):
        return None
    return _module()


@functools.cache
def _module() -> Any:
    try:
        from . import _triton_rows
    except ImportError:
        return None
    return _triton_rows


def logits_buffer(like: Tensor, rows: int, columns: int, kind: torch.dtype) -> Tensor:
    """Room ``[rows, columns]`` whose rows begin at multiples of 128 bytes, as fast products and loads need them.

    >>> logits_buffer(torch.empty(0), 3, 50, torch.float32).stride()
    (64, 1)
    """
    line = 128 // kind.itemsize
    return like.new_empty((rows, -(-columns // line) * line), dtype=kind)[:, :columns]
