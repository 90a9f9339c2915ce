"""Cross-entropy of rows by Triton: each row's gradient takes its logits' place, in the logits' own type."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from ._cross_entropy_rows import CrossEntropyRows
from ._triton_row_kernels import columns_kernel, rows_kernel, see_kernel, turn_kernel

BLOCK = 8192
"""Columns of a step at most."""
WARPS = 16
"""Warps of a program at most."""


def _on(z: Tensor) -> Any:
    return torch.cuda.device(z.device) if z.device.type == "cuda" else contextlib.nullcontext()


def _dense(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


def _launch(columns: int) -> dict[str, int]:
    block = min(BLOCK, max(16, triton.next_power_of_2(columns)))
    return {"BLOCK": block, "num_warps": max(1, min(WARPS, block // 512))}


def _cap(softcap: float | None, temperature: float) -> tuple[float, float, float]:
    """1 / softcap, what the capped logit is multiplied by, and what the slope is multiplied by."""
    if softcap is None:
        return 1.0, 1 / temperature, 1 / temperature
    return 1 / softcap, softcap / temperature, 1 / temperature


def rows_in_place(
    z: Tensor,
    rule: CrossEntropyRows,
    rows: slice,
    losses: Tensor,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    factor: Tensor | None = None,
    gradient: bool = True,
    sums: Tensor | None = None,
) -> None:
    """Losses of a chunk of h W' + b, whose place the gradient takes.

    Args:
        z: ``[r, V]``, float16, bfloat16 or float32; columns next to each other.
        rule: cross-entropy of class indices.
        rows: of the chunk among all, ``r`` of them.
        losses: ``[r]`` float32, filled; so are the rule's statistics.
        softcap, temperature: of the head.
        factor: ``[r]`` float32 that the gradients are multiplied by, or None for ones.
        gradient: whether it is wanted.
        sums: ``[r]`` float32, filled with the sums of the gradient's rows; only without softcap.
    """
    if not len(z):
        return
    note, c, smooth, rate = rule.statistics, _dense(rule.class_weight), bool(rule.smoothing), rule.log_partition
    noted = [None] * 3 if note is None else [column[rows] for column in (note.lse, note.entropy, note.argmax)]
    penalty = rate if isinstance(rate, Tensor) else losses.new_full((), rate) if rate else None
    inner, outer, over = _cap(softcap, temperature)
    with _on(z):
        rows_kernel[(len(z),)](
            z, z.stride(0), z.shape[1], rule.target[rows].contiguous(), losses,
            _dense(factor), None if rule.counts is None else _dense(rule.counts[rows]),
            c, c.sum() if c is not None and smooth else None, penalty, *noted, sums, float(1 - rule.smoothing),
            rule.smoothing / z.shape[1], inner, outer, over, CAP=softcap is not None, SMOOTH=smooth, GRADIENT=gradient,
            **_launch(z.shape[1]),
        )  # fmt: skip


def see_slab(
    z: Tensor, seen: Any, row: CrossEntropyRows, start: int, softcap: float | None, temperature: float
) -> None:
    """Take the slab h W' + b of the classes from ``start`` on into ``seen``.

    Args:
        z: ``[n, W]``.
        seen: ``Partials`` of all rows.
        row: cross-entropy of class indices; class weights of all classes.
        start: the slab's first class.
        softcap, temperature: of the head.
    """
    if not len(z):
        return
    inner, outer, _ = _cap(softcap, temperature)
    c = None if row.class_weight is None else _dense(row.class_weight[start:])
    with _on(z):
        see_kernel[(len(z),)](
            z, z.stride(0), z.shape[1], row.target.contiguous(), c, start, seen.top, seen.total, seen.inner, seen.plain,
            seen.moment, seen.best, seen.index, inner, outer, CAP=softcap is not None, SMOOTH=bool(row.smoothing),
            NOTE=row.statistics is not None, **_launch(z.shape[1]),
        )  # fmt: skip


def turn_slab(
    z: Tensor,
    row: CrossEntropyRows,
    start: int,
    lse: Tensor,
    mass: Tensor,
    point: Tensor,
    factor: Tensor,
    even: float,
    softcap: float | None,
    temperature: float,
) -> None:
    """The gradient of a slab in the place of its h W' + b.

    Args:
        z: ``[n, W]``.
        row: cross-entropy of class indices; class weights of all classes.
        start: the slab's first class.
        lse: log-partitions ``[n]`` of all classes.
        mass: what the softmax is multiplied by, ``[n]``.
        point: what is subtracted at the target, ``[n]``.
        factor: ``[n]``, times ``even`` and the class weights subtracted everywhere.
        even: the share of every class in a smoothed target.
        softcap, temperature: of the head.
    """
    if not len(z):
        return
    inner, outer, over = _cap(softcap, temperature)
    c = None if row.class_weight is None else _dense(row.class_weight[start:])
    with _on(z):
        turn_kernel[(len(z),)](
            z, z.stride(0), z.shape[1], row.target.contiguous(), c, start, lse.contiguous(), mass.contiguous(),
            point.contiguous(), factor.contiguous(), even, inner, outer, over, CAP=softcap is not None,
            SMOOTH=bool(even), **_launch(z.shape[1]),
        )  # fmt: skip


def column_sums(
    g: Tensor, weight: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the columns of a gradient hold, in float32 and in one reading.

    Args:
        g: ``[r, V]``.
        weight: ``[r]`` float32, or None for ones.
        scale: ``[r]`` float32, or None.

    Returns:
        ``[V]`` each: sums of ``weight[i] g[i, v]``, and with ``scale`` the largest ``|scale[i] g[i, v]|`` and the sums
        of ``scale[i] g[i, v]``.
    """
    sums = g.new_empty(g.shape[1], dtype=torch.float32)
    tops, masses = (None, None) if scale is None else (torch.empty_like(sums), torch.empty_like(sums))
    block = min(128, max(16, triton.next_power_of_2(g.shape[1])))
    with _on(g):
        columns_kernel[(triton.cdiv(g.shape[1], block),)](
            g, g.stride(0), len(g), g.shape[1], _dense(scale), _dense(weight), tops, masses, sums,
            ROWS=16, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return sums, tops, masses
