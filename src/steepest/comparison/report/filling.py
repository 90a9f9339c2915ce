"""The table that fills while a comparison runs: who is ahead so far, by how much, and how sure that is yet.

It keeps the scores that came in and reads no store, so that a row costs microseconds however long a run is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..design.jobs import Pair
from ..statistics import LEAST_FOR_INTERVAL, corrected_resampled_ttest
from ..statistics.looks import confidence


@dataclass(frozen=True)
class Standing:
    """One objective so far.

    Attributes:
        name: of the objective.
        rank: by the mean difference to the baseline in the folds that both have; None while there is no such fold.
        folds: that are finished.
        score: mean of the metric in them; None before the first.
        difference: to the baseline, in shared folds; None without one, and for the baseline itself.
        half: half the width of its interval; None in fewer than two shared folds.
    """

    name: str
    rank: int | None
    folds: int
    score: float | None
    difference: float | None
    half: float | None


class Filling:
    """Scores by objective and fold as they come in.

    Args:
        objectives: in the order of the settings.
        baseline: with which the others are compared.
        folds: how many there will be.
        greater_is_better: of the metric.
        ratio: test rows over training rows; 0 with a fixed test set, whose seeds give no interval over rows.
        alpha: intervals have the confidence 1 - alpha.
    """

    def __init__(
        self, objectives: Sequence[str], baseline: str, folds: int, greater_is_better: bool, ratio: float, alpha: float
    ) -> None:
        self.objectives, self.baseline, self.folds = tuple(dict.fromkeys((baseline, *objectives))), baseline, folds
        self.greater, self.ratio, self.alpha = greater_is_better, ratio, alpha
        self._scores: dict[str, dict[Pair, float | None]] = {name: {} for name in self.objectives}
        self._halves: dict[tuple[float, ...], float | None] = {}

    def add(self, name: str, pair: Pair, score: float | None) -> None:
        """The score of a finished cell, None where it diverged; classical learners are not in the table."""
        if name in self._scores:
            self._scores[name][pair] = score

    def standings(self) -> list[Standing]:
        """Every objective, the best first; those without a fold that the baseline has come last."""
        base = self._filled(self.baseline)
        rows = []
        for name in self.objectives:
            own = self._filled(name)
            gaps = np.array([value - base[pair] for pair, value in own.items() if pair in base])
            mean = float(np.mean(list(own.values()))) if own else None
            difference = float(gaps.mean()) if len(gaps) else None
            rows.append((name, len(self._scores[name]), mean, difference, self._half(tuple(gaps.tolist()))))
        sign = -1 if self.greater else 1
        # sorting is stable, so that ties stay in the order of the settings
        rows.sort(key=lambda row: (row[3] is None, 0.0 if row[3] is None else sign * row[3]))
        return [
            Standing(
                name,
                None if difference is None else place,
                folds,
                mean,
                None if name == self.baseline else difference,
                None if name == self.baseline else half,
            )
            for place, (name, folds, mean, difference, half) in enumerate(rows, start=1)
        ]

    def best(self) -> Standing | None:
        """The leader, as soon as one fold has the baseline and another objective."""
        standings = self.standings()
        return standings[0] if any(standing.difference is not None for standing in standings) else None

    def head(self, label: str) -> tuple[str, ...]:
        """Titles of the columns; ``label`` is the metric's."""
        return ("objective", "#", "folds", label, "to baseline", f"interim {confidence(self.alpha)}")

    def rows(self) -> list[tuple[str, ...]]:
        """A row of text for each objective, the best first."""
        return [self._row(standing) for standing in self.standings()]

    def _row(self, standing: Standing) -> tuple[str, ...]:
        gap = "" if standing.difference is None else f"{standing.difference:+.4f}"
        return (
            standing.name,
            "" if standing.rank is None else str(standing.rank),
            f"{standing.folds}/{self.folds}",
            "" if standing.score is None else f"{standing.score:.4f}",
            "baseline" if standing.name == self.baseline else gap,
            "" if standing.half is None else f"± {standing.half:.4f}",
        )

    def line(self) -> str:
        """Who is ahead, in one line; where nobody can be yet, that.

        >>> filling = Filling(("cross_entropy", "ldr"), "cross_entropy", 5, True, 0.25, 0.025)
        >>> filling.line()
        'no fold has two objectives yet'
        >>> for fold, score in enumerate((0.90, 0.93)):
        ...     filling.add("cross_entropy", (0, fold), 0.88)
        ...     filling.add("ldr", (0, fold), score)
        >>> filling.line()
        'best so far: ldr, +0.0350 ± 0.4676 to cross_entropy (interim 97.5%), 2 of 5 folds'
        """
        best = self.best()
        if best is None:
            return "no fold has two objectives yet"
        folds = f"{best.folds} of {self.folds} folds"
        if best.difference is None:
            return f"best so far: {best.name}, the baseline, {folds}"
        sure = "" if best.half is None else f" ± {best.half:.4f}"
        interim = f" (interim {confidence(self.alpha)})" if sure else ""
        return f"best so far: {best.name}, {best.difference:+.4f}{sure} to {self.baseline}{interim}, {folds}"

    def _filled(self, name: str) -> dict[Pair, float]:
        """Scores of an objective by fold; one that diverged has the worst that is known of its fold, if any is."""
        values: dict[Pair, float] = {}
        for pair, score in self._scores[name].items():
            known = [score] if score is not None else [
                own[pair] for own in self._scores.values() if own.get(pair) is not None
            ]  # fmt: skip
            if known:
                values[pair] = float((min if self.greater else max)(known))  # type: ignore[type-var]
        return values

    def _half(self, gaps: tuple[float, ...]) -> float | None:
        """Half the width of the interval of these differences; a new cell changes those of one objective."""
        if len(gaps) < LEAST_FOR_INTERVAL or self.ratio <= 0:
            return None
        if gaps not in self._halves:
            test = self.ratio / (1 + self.ratio)
            interval = corrected_resampled_ttest(np.array(gaps), test_fraction=test, confidence=1 - self.alpha)
            self._halves[gaps] = None if interval.degenerate else (interval.high - interval.low) / 2
        return self._halves[gaps]
