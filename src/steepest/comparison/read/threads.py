"""Work in several threads, for what releases Python's lock: parsers, and NumPy and Arrow on long arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LONG = 1 << 15
"""Rows from which on threads are worth their beginning."""

_MOST = 4
_Item, _Made = TypeVar("_Item"), TypeVar("_Made")


def workers() -> int:
    """How many threads are worth having: the processors that this process may use, 4 at most."""
    return min(_MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def side_by_side(work: Callable[[_Item], _Made], items: Sequence[_Item]) -> Iterator[_Made]:
    """What ``work`` makes of each item, in order; several at a time where there are several."""
    if len(items) < 2 or workers() == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers()) as pool:
        yield from pool.map(work, items)
