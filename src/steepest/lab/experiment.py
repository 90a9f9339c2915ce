"""The contract of an experiment: claims with numbers, evidence of one seed, a verdict over seeds.

An experiment is a module with ``CLAIMS`` (a tuple of :class:`Claim`) and ``run(scale, seed) -> Evidence``; it may have
``figure(evidence) -> matplotlib Figure`` and ``SEEDS`` (default 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SCALES = ("smoke", "full")
SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"


@dataclass(frozen=True)
class Claim:
    """One measurable statement, fixed before the first run.

    Args:
        effect: key of the number in :attr:`Evidence.effects` that decides it.
        text: the statement in words, with its numbers.
        threshold: what the effect must exceed (or stay under).
        greater: whether the claimed side is above the threshold.
        size: the claimed distance from the threshold, in the effect's unit: seeds that could not have found it leave
            the experiment unfinished.
        ours: whether it is an expectation of ours (a number measured here before, a part that we added, a control)
            and not a claim of the publication.
    """

    effect: str
    text: str
    size: float
    threshold: float = 0.0
    greater: bool = True
    ours: bool = False


@dataclass(frozen=True)
class Evidence:
    """What one seed measured.

    Args:
        rows: one plain dict for each arm, for the table and the figure; texts, numbers, true or false, all finite.
        effects: the number of each claim.
    """

    rows: list[dict[str, Any]]
    effects: dict[str, float]

    def __post_init__(self) -> None:
        for row in [*self.rows, self.effects]:
            for name, value in row.items():
                if not isinstance(value, (str, int, float)):
                    raise TypeError(f"{name}: expected a text or a number, got {type(value).__name__}")
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{name}: expected a finite number, got {value}")


@dataclass(frozen=True)
class Finding:
    """A claim over all seeds: mean effect with its 95% interval, the verdict, what the seeds could have found."""

    claim: Claim
    mean: float
    low: float
    high: float
    verdict: str
    detectable: float
    values: list[float] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the seeds could have found the claimed size, or did not need to."""
        return self.verdict != NOT_SHOWN or self.detectable <= self.claim.size


def judge(claim: Claim, evidence: Sequence[Evidence]) -> Finding:
    """The verdict on one claim.

    *Shown*: the 95% t interval over seeds lies on the claimed side of the threshold; *contradicted*: on the other; else
    *not shown*. ``detectable`` is the smallest distance from the threshold that these seeds would have shown with 80%
    power.

    Raises:
        ValueError: fewer than two seeds.

    >>> claim = Claim("gain", "it gains 1 point", size=1.0)
    >>> judge(claim, [Evidence([], {"gain": g}) for g in (0.9, 1.1, 1.0, 1.2, 0.8)]).verdict
    'shown'
    """
    import numpy as np
    from scipy import stats  # where it is needed: what evidence says is read without it

    values = np.array([e.effects[claim.effect] for e in evidence], dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"evidence: expected at least 2 seeds, got {len(values)}")
    mean, df = float(values.mean()), len(values) - 1
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    half = float(stats.t.ppf(0.975, df)) * error
    low, high = mean - half, mean + half
    sign = 1.0 if claim.greater else -1.0
    near, far = sorted((sign * (low - claim.threshold), sign * (high - claim.threshold)))
    verdict = SHOWN if near > 0 else CONTRADICTED if far < 0 else NOT_SHOWN
    detectable = float(stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * error
    return Finding(claim, mean, low, high, verdict, detectable, [float(v) for v in values])
