"""How many rows of logits may exist at once: from bytes, never from the ratio of vocabulary and width."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import check_number, refuse, refuse_type
from ..core.rowwise import PIECE
from ..core.scalars import is_number, plain

CPU_CHUNK = (64 << 20) + 2 * PIECE
"""Bytes of logits at once on the CPU where nobody says otherwise: larger chunks were not measured to be faster."""

FEWEST = 128
"""Rows below which a chunk's matrix products no longer outweigh the traffic of the weight's gradient."""

DEVICE_GRAIN = {"fewest": 1024, "step": 256, "widest": 16384}
"""For :func:`plan` on an accelerator, by count of bytes and operations: rows of chunks and columns of slabs."""

NARROWEST = 1024
"""Columns of a slab on an accelerator at least."""


@dataclass(frozen=True)
class Plan:
    """How a sweep goes over rows and vocabulary.

    Args:
        mode: ``"keep"`` (one chunk, its gradient kept for the backward pass), ``"chunk"`` (gradients of hidden and
            weight formed in the forward pass), ``"recompute"`` (logits formed again in the backward pass, by rows) or
            ``"slab"`` (the same by slabs of the vocabulary).
        rows: of a chunk, >= 1.
        columns: of a slab, >= 1.
        piece: bytes of logits that a row function sees at once.
    """

    mode: str
    rows: int
    columns: int
    piece: int = PIECE


def budget(memory: str | int | float, device: torch.device) -> int:
    """Bytes that ``memory`` stands for on a device.

    Args:
        memory: ``"auto"`` (64 MiB on the CPU; on an accelerator the larger of 1 GiB and a sixteenth of what is
            free), bytes, or a fraction in (0, 1] of what is free.
        device: where the logits will lie.

    >>> budget(1 << 20, torch.device("cpu"))
    1048576
    """
    if isinstance(memory, str):
        if memory != "auto":
            refuse("memory", "'auto', bytes or a fraction of the free memory", memory)
        return CPU_CHUNK if device.type == "cpu" else max(1 << 30, _free(device) // 16)
    memory = plain(memory)
    if not is_number(memory):
        refuse_type("memory", "'auto', bytes or a fraction of the free memory", memory)
    if isinstance(memory, float) and memory <= 1:
        check_number("memory", memory, low=0.0, open_low=True)
        return max(1, int(memory * _free(device)))
    check_number("memory", memory, low=1)
    return int(memory)


def plan(
    rows: int,
    vocabulary: int,
    bytes_of: int,
    limit: int,
    *,
    scalar: bool,
    heads: int = 1,
    slabs: bool = True,
    accumulator: int = 0,
    pieces: int = 1,
    piece: int = PIECE,
    fewest: int = FEWEST,
    step: int = 64,
    aside: int = 0,
    widest: int | None = None,
) -> Plan:
    """The fastest way that stays within a number of bytes.

    Args:
        rows: that count, n.
        vocabulary: V.
        bytes_of: of one logit, with whatever else a chunk holds of it.
        limit: bytes.
        scalar: whether the weights of rows are known in the forward pass.
        heads: how many heads have logits at once.
        slabs: whether the loss can go by slabs of the vocabulary.
        accumulator: bytes of a wider accumulator of the weight's gradient, which slabs don't need.
        pieces: how many pieces of a chunk the row function holds at once.
        piece: bytes of one, at most.
        fewest: rows below which slabs of the vocabulary do better than chunks.
        step: a chunk of so many rows has a multiple of them.
        aside: bytes that slabs need beside their logits.
        widest: columns of a slab at most, with :data:`NARROWEST` at least whatever the limit; None for no bounds.

    >>> plan(4096, 32000, 4, CPU_CHUNK, scalar=True, pieces=2).rows
    512
    >>> plan(4096, 256000, 4, 16 << 20, scalar=True).mode
    'slab'
    """
    piece = max(1, min(piece, limit // max(1, 2 * pieces)))
    limit = max(1, limit - pieces * piece)
    row = max(1, vocabulary * bytes_of * heads)
    fit = limit // row
    if rows <= fit:
        return Plan("keep", max(1, rows), max(1, vocabulary), piece)
    chunk = max(1, (limit - accumulator) // row if limit > accumulator else 0)
    step = step if chunk >= 2 * step else 8
    chunk = max(1, chunk // step * step if chunk > step else chunk)
    columns = max(1, (limit - aside) // max(1, rows * bytes_of))
    columns = columns if widest is None else min(max(columns, NARROWEST), widest)
    columns = columns // 64 * 64 if columns > 64 else columns
    if slabs and chunk < fewest and columns > 2 * chunk:
        return Plan("slab", chunk, min(columns, vocabulary), piece)
    return Plan("chunk" if scalar else "recompute", chunk, vocabulary, piece)


def chunks(rows: int, size: int) -> list[slice]:
    """Slices of at most ``size`` that cover ``rows``."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def computed(weight: Tensor) -> torch.dtype:
    """The type that logits of a head are worked on: float32, or float64 for float64."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        # what torch holds and doesn't use is free as well
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + spare
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
