"""Numbers as the report prints them, and results as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

MISSING = "–"


def clean(value: Any) -> Any:
    """The same value in plain Python: numpy scalars and arrays converted, NaN and infinities as None.

    >>> clean({"a": np.float64("nan"), "b": np.array([1, 2])})
    {'a': None, 'b': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return clean(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean(item) for item in value]
    if isinstance(value, np.generic):
        return clean(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def decimals(widths: Iterable[float | None]) -> int:
    """How many decimals show two significant digits of the median of these positive widths, from 0 to 6.

    >>> decimals([0.004, 0.006, None]), decimals([12.0]), decimals([])
    (4, 0, 3)
    """
    positive = sorted(abs(width) for width in widths if width)
    if not positive:
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(positive[len(positive) // 2]))))


def number(value: float | None, places: int, signed: bool = False) -> str:
    """A number with fixed decimals, a true minus sign and narrow spaces between thousands; a dash where missing.

    >>> number(-0.00412, 3), number(0.5, 2, signed=True), number(None, 2), number(-0.0001, 2)
    ('−0.004', '+0.50', '–', '0.00')
    """
    if value is None:
        return MISSING
    if abs(value) >= 1e7:
        return f"{value:{'+' if signed else ''}.2e}".replace("-", "−")
    if round(value, places) == 0:
        return f"{0:.{places}f}"
    return f"{value:{'+' if signed else ''},.{places}f}".replace("-", "−").replace(",", "\u202f")


def interval(low: float | None, high: float | None, places: int, signed: bool = False) -> str:
    """An interval in brackets, or an empty string where it is not defined.

    >>> interval(-0.1, 0.25, 2, signed=True), interval(None, None, 2)
    ('[−0.10, +0.25]', '')
    """
    if low is None or high is None:
        return ""
    return f"[{number(low, places, signed)}, {number(high, places, signed)}]"


def probability(value: float | None) -> str:
    """A p value in two significant digits, never as zero.

    >>> probability(0.1134), probability(0.00002), probability(0.034), probability(None), probability(1.0)
    ('0.11', '< 0.001', '0.034', '–', '1.00')
    """
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def chance(value: float | None) -> str:
    """A probability in two digits, never as zero or one.

    >>> chance(0.8004), chance(0.0237), chance(0.0049), chance(0.997), chance(None)
    ('0.80', '0.02', '<0.01', '>0.99', '–')
    """
    if value is None:
        return MISSING
    return "<0.01" if value < 0.005 else ">0.99" if value > 0.995 else f"{value:.2f}"


def inline(label: str) -> str:
    """A label inside a sentence: words start small, abbreviations stay.

    >>> inline("Balanced accuracy"), inline("RMSE"), inline("R²")
    ('balanced accuracy', 'RMSE', 'R²')
    """
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def compact(value: float | None) -> str:
    """A positive quantity in three significant digits.

    >>> compact(812.04), compact(0.03456), compact(None), compact(1234567)
    ('812', '0.0346', '–', '1\u202f234\u202f567')
    """
    if value is None:
        return MISSING
    if abs(value) >= 100:
        return number(value, 0)
    return f"{value:.3g}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units.

    >>> duration(312.5), duration(7384), duration(8.26), duration(None)
    ('5 min 13 s', '2 h 3 min', '8.3 s', '–')
    """
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.floor(seconds + 0.5), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
