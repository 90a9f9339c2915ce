"""Learning rates of an experiment's arms: chosen alike, from one grid, on splits that are not reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .classify import Arm, train

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
UNREPORTED = 10_000
"""The first seed of splits and weights that serve the choice alone; reported seeds lie below."""


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
    """The rate of each arm with the highest mean score on the test parts of the splits; the first of equal ones.

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
    scores = {arm.label: np.zeros(len(rates)) for arm in arms}
    for number, split in enumerate(splits):
        tried = [(replace(arm, lr=rate, history=[]), place) for arm in arms for place, rate in enumerate(rates)]
        train([arm for arm, _ in tried], split, seed=UNREPORTED + number, **training)
        for arm, place in tried:
            scores[arm.label][place] += score(arm, split[3])
    return {label: float(rates[int(by_rate.argmax())]) for label, by_rate in scores.items()}
