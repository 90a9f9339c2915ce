"""How long a comparison may take, in the words of the command line: ``90s``, ``10m``, ``2h``, ``1h30m``."""

from __future__ import annotations

import math
import re
from typing import Any

from ..core.scalars import is_number, plain
from .errors import InputError

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_MINUTES = re.compile(rf"(?:{_NUMBER})(?:e[+-]?\d+)?", re.ASCII)
_WORDS = re.compile(rf"(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?", re.ASCII)
_UNITS = (3600, 60, 1)


def seconds_of(budget: Any) -> float:
    """The seconds of a budget: words like ``90s``, ``10m``, ``2h``, ``1h30m``; a plain number is minutes.

    Raises:
        InputError: it is no time above 0.

    >>> [seconds_of(budget) for budget in ("90s", "10m", "1h30m", "2", 0.5)]
    [90.0, 600.0, 5400.0, 120.0, 30.0]
    >>> seconds_of("soon")
    Traceback (most recent call last):
    steepest.core.errors.InputError: --budget: expected a time above 0 (90s, 10m, 2h, 1h30m, plain minutes), got 'soon'
    """
    seconds = 0.0
    if is_number(budget) and (minutes := plain(budget)) < 1e300:  # a larger integer is no float
        seconds = float(minutes) * 60
    elif isinstance(budget, str):
        text = budget.strip().lower()
        if _MINUTES.fullmatch(text):
            seconds = float(text) * 60
        elif words := _WORDS.fullmatch(text):
            seconds = sum(float(count) * unit for count, unit in zip(words.groups(), _UNITS) if count)
    if not 0 < seconds < math.inf:
        raise InputError(f"--budget: expected a time above 0 (90s, 10m, 2h, 1h30m, plain minutes), got {budget!r:.80}")
    return seconds


def words_of(seconds: float) -> str:
    """A time as :func:`seconds_of` reads it, rounded up to whole seconds.

    >>> [words_of(seconds) for seconds in (0.2, 45, 90, 600, 5400, 7200, 3601)]
    ['1s', '45s', '1m30s', '10m', '1h30m', '2h', '1h1s']
    """
    left, words = max(1, math.ceil(seconds)), ""
    for unit, letter in zip(_UNITS, "hms"):
        count, left = divmod(left, unit)
        words += f"{count}{letter}" if count else ""
    return words
