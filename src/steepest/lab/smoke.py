"""The smoke rows of a system against those that its evidence keeps: has code beneath it moved its results?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .evidence import rounded
from .experiment import Evidence

TOLERANCE = 1e-4
"""Relative difference of a number: other machines and code that moves no result stay below, other results don't."""

MEASURED = math.inf
"""The tolerance of a column that holds measured time or rates: any number."""

LOOSE: dict[str, dict[str, float]] = {
    # measured: time, rates, and ratios of them
    "chronicals": dict.fromkeys(
        ("milliseconds", "tokens a second", "GFLOP a second", "fused", "packed", "at most", "batch"), MEASURED
    ),
    "group-policy": {"seconds": MEASURED},
    "two-pass-softmax": dict.fromkeys(("ns a value", "GB/s", "beyond", "within"), MEASURED),
    "z-loss": dict.fromkeys(("milliseconds", "flat", "linear", "faster"), MEASURED),
    # the same, and relative errors of gradients that are right: rounding alone
    "cut-cross-entropy": {
        **dict.fromkeys(("seconds", "chunk time", "slab time"), MEASURED),
        **dict.fromkeys(("hidden error", "weight error"), 1.0),
    },
    # second differences of a loss over a thousandth, across kinks of rectified units
    "loss-landscape-analysis": {"Hessian axis": 1e-3, "random axis": 5e-4},
    # nearest neighbours in an embedding that collapses: distances that rounding alone tells apart
    "hard-negative-mining": {"right neighbours": 0.05},
    # log10 of a deviation that is rounding alone
    "sparse-ot": {"imbalance": 0.1},
    # the angle of gradient and weights where most losses are 0: the gradient is rounding
    "stablemax": {"alignment": 0.02},
}
"""By slug, the columns and effects whose numbers differ by more between instruction sets, with their tolerance: several
times what they were seen to differ by (torch's ``default`` and ``avx2``, MKL and oneDNN down to SSE 4)."""

MOST_ROWS = 100
"""Smoke rows that evidence keeps: of longer curves every second, or third ..."""


def loose_columns(slug: str) -> Mapping[str, float]:
    """The columns and effects of a system's smoke rows that have a tolerance of their own."""
    return LOOSE.get(slug, {})


def smoke_rows(measured: Evidence) -> Evidence:
    """What evidence keeps of a smoke run, and what a later one is compared by: six digits, at most 100 rows.

    >>> len(smoke_rows(Evidence([{"step": step} for step in range(250)], {})).rows)
    84
    """
    every = math.ceil(len(measured.rows) / MOST_ROWS) or 1
    return rounded(Evidence(measured.rows[::every], measured.effects))


def differences(stored: Evidence, now: Evidence, loose: Mapping[str, float] | None = None) -> list[str]:
    """Where the smoke rows of today's code differ from those that were kept, in words; empty if nowhere.

    Texts, and which rows and columns there are, must be equal. A number may differ by 1e-4 of itself, or of a
    hundredth of the largest in its column where it is smaller than that, which is what sums over the column round
    away. Effects are differences of shares or points, of numbers around 1 and more: they may differ by 1e-4 of
    themselves or of a tenth.

    Args:
        stored, now: rows and effects, as :func:`smoke_rows` makes them.
        loose: tolerances that replace 1e-4, by column.

    >>> stored = Evidence([{"arm": "a", "error": 0.5}], {"gain": 1.0})
    >>> differences(stored, Evidence([{"arm": "a", "error": 0.50001}], {"gain": 1.0}))
    []
    >>> differences(stored, Evidence([{"arm": "a", "error": 0.51}], {"gain": 1.0}))
    ['row 0, error: 0.5 was kept, now 0.51']
    """
    if len(stored.rows) != len(now.rows):
        return [f"{len(stored.rows)} rows were kept, now {len(now.rows)}"]
    tolerances = loose or {}
    largest: dict[str, float] = {}
    for row in stored.rows:
        for name, value in row.items():
            if isinstance(value, (int, float)):
                largest[name] = max(largest.get(name, 0.0), abs(value))
    lines = [(f"row {place}", *rows) for place, rows in enumerate(zip(stored.rows, now.rows))]
    moved = []
    for where, old, new in [*lines, ("effects", stored.effects, now.effects)]:
        if set(old) != set(new):
            moved.append(f"{where}: {', '.join(old)} were kept, now {', '.join(new)}")
            continue
        for name, value in old.items():
            size = 0.1 if where == "effects" else largest.get(name, 0.0) / 100
            if not _equal(value, new[name], tolerances.get(name, TOLERANCE), size):
                moved.append(f"{where}, {name}: {value} was kept, now {new[name]}")
    return moved


def _equal(old: Any, new: Any, tolerance: float, size: float) -> bool:
    numbers = isinstance(old, (int, float)) and isinstance(new, (int, float)) and not isinstance(old, bool)
    if not numbers:
        return bool(old == new)
    return math.isinf(tolerance) or abs(old - new) <= tolerance * max(abs(old), size)
