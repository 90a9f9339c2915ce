"""What makes a baseline fair: settings chosen alike for every arm, and a level that the baseline must reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

S = TypeVar("S")

PILOTS = (101, 102, 103)
"""Seeds that serve the choice of settings and are not reported."""


def best_setting(settings: Iterable[S], score: Callable[[S, int], float], pilots: Iterable[int] = PILOTS) -> S:
    """The setting with the highest mean score over the pilot seeds; the first of equal ones.

    Args:
        settings: the grid of an arm, for example its learning rates.
        score: of a setting and a seed; higher is better.
        pilots: seeds that are not reported.

    >>> best_setting((1e-3, 1e-2, 1e-1), lambda rate, seed: -abs(rate - 0.02))
    0.01
    """
    seeds = tuple(pilots)
    return max(settings, key=lambda setting: float(np.mean([score(setting, seed) for seed in seeds])))


def check_sane(what: str, value: float, least: float) -> None:
    """Stop an experiment whose baseline has not learned what it can: a gain over it would say nothing.

    Raises:
        RuntimeError: ``value`` is below ``least``.

    >>> check_sane("accuracy of cross-entropy", 91.0, 95.0)
    Traceback (most recent call last):
    RuntimeError: accuracy of cross-entropy: 91, at least 95 expected of a trained baseline
    """
    if not value >= least:
        raise RuntimeError(f"{what}: {value:.4g}, at least {least:g} expected of a trained baseline")
