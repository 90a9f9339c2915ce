"""What makes a baseline fair: settings chosen alike for every arm, and a level that the baseline must reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from .classify import Arm, train

S = TypeVar("S")
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

PILOTS = (101, 102, 103)
"""Seeds that serve the choice of settings and are not reported."""
UNREPORTED = 10_000
"""The first seed of splits and weights where rates are chosen in stacks; reported seeds lie below."""


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


def accuracy_of(arm: Arm, y: np.ndarray) -> float:
    """Share of the held-out rows that are right."""
    return arm.accuracy(y)


def best_rates(
    arms: Sequence[Arm],
    splits: Sequence[Split],
    rates: Sequence[float],
    *,
    score: Callable[[Arm, np.ndarray], float] = accuracy_of,
    **training: Any,
) -> dict[str, float]:
    """The :func:`best_setting` of each arm among learning rates; all arms and rates of a split are trained at once.

    Args:
        arms: what is trained; their labels name the result.
        splits: of seeds that are not reported (:data:`UNREPORTED` and above), one training each.
        rates: the grid, the same for all arms.
        score: of a trained arm and the test labels; higher is better.
        **training: what :func:`steepest.lab.classify.train` takes.

    >>> from ..losses.classification.cross_entropy import CrossEntropyLoss
    >>> x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    >>> line = (x, (x[:, 0] > 0).astype(int), x, (x[:, 0] > 0).astype(int))
    >>> best_rates([Arm("log", CrossEntropyLoss)], [line], (1e-9, 1e-2), epochs=20, width=8)
    {'log': 0.01}
    """
    scores: dict[tuple[str, float, int], float] = {}
    for number, split in enumerate(splits):
        trials = [(rate, replace(arm, lr=rate, history=[])) for arm in arms for rate in rates]
        train([trial for _, trial in trials], split, seed=UNREPORTED + number, **training)
        scores |= {(trial.label, rate, number): score(trial, split[3]) for rate, trial in trials}
    pilots = range(len(splits))
    return {
        arm.label: best_setting(rates, lambda rate, number, label=arm.label: scores[label, rate, number], pilots)
        for arm in arms
    }


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
