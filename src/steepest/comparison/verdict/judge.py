"""Scores, picks and tests of a run's finished cells, under the design that was declared beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core.lazy import late
from ..design.context import Context
from ..design.jobs import Pair
from ..design.trials import seed_of
from ..errors import InputError
from ..scores.outcome import Outcome
from ..statistics import (
    ALPHA,
    LEAST_FOR_INTERVAL,
    LEAST_FOR_TEST,
    SAME,
    Look,
    PairedResult,
    bootstrap_metric_difference,
    combined_f_5x2,
    corrected_resampled_ttest,
    tiers,
)
from ..statistics.resampled import POWER
from ..work.cells import best_trial
from ..work.store import Store

stats = late("scipy.stats")

MOST_RESAMPLES = 2000
Cells = dict[str, dict[Pair, dict[str, Any]]]


@dataclass(frozen=True)
class Seeds:
    """What several trainings say about the same fixed test rows."""

    outcomes: list[Outcome]

    def rows(self, index: np.ndarray) -> Seeds:
        """The same of some rows, for all of them alike."""
        return Seeds([outcome.rows(index) for outcome in self.outcomes])

    @property
    def finite(self) -> bool:
        """Whether none diverged."""
        return all(outcome.finite for outcome in self.outcomes)


class Judge:
    """Scores and tests of a run's finished cells at one level, under the design that was declared beforehand.

    Args:
        context: of the comparison, at the level of the cells.
        store: of its finished cells.
        look: tests, tiers and intervals are at its level; None is the whole level, where there is one look only.
        pairs: the folds that count; None is all.
    """

    def __init__(
        self, context: Context, store: Store, look: Look | None = None, pairs: Sequence[Pair] | None = None
    ) -> None:
        self.context, self.store, self.look = context, store, look
        self.alpha = ALPHA if look is None else look.alpha
        self.cells: Cells = store.cells(context.level)
        self.settings, self.metric = context.settings, context.metric
        self.pairs: list[Pair] = list(context.folds if pairs is None else pairs)

    @property
    def ratio(self) -> float:
        """Test rows over training rows, on average over the folds; 0 with a fixed test set."""
        folds = self.context.folds
        sizes = [(len(folds[pair].train), len(folds[pair].test)) for pair in self.pairs]
        train, test = (float(np.mean(side)) for side in zip(*sizes))
        return test / train

    def complete(self, name: str) -> bool:
        """Whether every fold of ``name`` is finished."""
        own = self.cells.get(name, {})
        return all(pair in own for pair in self.pairs)

    def names(self, kind: str) -> list[str]:
        """Objectives or classical learners that are complete, in the settings' order."""
        known = self.settings.objectives if kind == "objective" else self.settings.classical
        return [name for name in known if self.complete(name)]

    def score(self, name: str, pair: Pair) -> float:
        """The metric on one test part; a model that diverged gets the worst score there, chance among them."""
        value = self.cells[name][pair]["score"]
        if value is not None:
            return float(value)
        finite = [own[pair]["score"] for own in self.cells.values() if own.get(pair, {}).get("score") is not None]
        blind = self.blind(pair)
        known = [*finite, blind] if np.isfinite(blind) else finite
        return float((min if self.metric.greater_is_better else max)(known, default=0.0))

    def blind(self, pair: Pair) -> float:
        """The metric of a model that knows the training target and nothing of the rows.

        NaN for several targets, texts and retrieval.
        """
        if self.context.parts or self.context.table.task in ("text", "retrieval"):
            return float("nan")
        split = self.context.split(pair, -1)
        rows, classes = len(split.other_target), self.context.classes
        if self.context.table.task in ("regression", "ranking"):
            outcome = Outcome(np.full(rows, split.scale[0]))
        else:
            common = int(np.bincount(split.target.numpy()).argmax())
            outcome = Outcome(np.full(rows, common), np.full((rows, classes), 1 / classes))
        return self.metric(split.other_target, outcome, split.other_weight)

    def scores(self, name: str) -> np.ndarray:
        """The metric on each test part."""
        return np.array([self.score(name, pair) for pair in self.pairs])

    def inner(self, name: str, pair: Pair) -> float:
        """The best score of ``name`` on inner validation."""
        inner_scores = [s for s in self.cells[name][pair]["inner"] if s is not None]
        greater = self.metric.greater_is_better
        return (max(inner_scores) if greater else min(inner_scores)) if inner_scores else float("nan")

    def procedure(self, names: Sequence[str]) -> list[str]:
        """What inner validation picks among ``names`` in each fold; ties go to the first."""
        greater = self.metric.greater_is_better
        return [names[best_trial([self.inner(n, pair) for n in names], greater)] for pair in self.pairs]

    def picked_scores(self, picked: Sequence[str]) -> np.ndarray:
        """The test scores of a procedure that takes ``picked[i]`` in fold i."""
        return np.array([self.score(name, pair) for name, pair in zip(picked, self.pairs)])

    def test_name(self) -> str:
        """The test of this design, in words."""
        if self.settings.test:
            seeds = len(self.pairs)
            words = "paired bootstrap on the fixed test set" + (f", {seeds} seeds" if seeds > 1 else "")
        elif len(self.pairs) < LEAST_FOR_TEST:
            return "none with one fold" if len(self.pairs) == 1 else f"none with {len(self.pairs)} folds"
        elif self._five_by_two:
            words = "combined 5x2cv F test"
        else:
            words = f"corrected resampled t test, {len(self.pairs)} differences"
        return words if self.look is None else f"{words}; {self.look.words}"

    @property
    def _five_by_two(self) -> bool:
        return (self.settings.repeats, self.settings.folds, len(self.pairs)) == (5, 2, 10)

    def compare(self, a: Sequence[str], b: Sequence[str]) -> PairedResult:
        """The test of procedure ``a`` minus procedure ``b``, each a name for every fold."""
        if self.settings.test:
            return self._bootstrap(a, b)
        differences = self.picked_scores(a) - self.picked_scores(b)
        if len(differences) < LEAST_FOR_INTERVAL:
            nan = float("nan")
            return PairedResult(float(differences[0]), nan, nan, nan, 0, nan, nan)
        tested = self.resampled(differences)
        if len(differences) < LEAST_FOR_TEST:
            return replace(tested, pvalue=float("nan"), detectable=float("nan"))
        five_by_two = self._five_by_two
        if five_by_two and np.ptp(differences.reshape(5, 2), axis=1).any():  # F has no value without spread in a round
            tested = replace(tested, pvalue=combined_f_5x2(differences.reshape(5, 2)).pvalue)
        return tested

    def resampled(self, values: np.ndarray) -> PairedResult:
        """The corrected resampled t test of values by fold, at this level."""
        return corrected_resampled_ttest(values, test_fraction=self.ratio / (1 + self.ratio), confidence=1 - self.alpha)

    def _bootstrap(self, a: Sequence[str], b: Sequence[str]) -> PairedResult:
        test = self.context.test
        assert test is not None
        if list(a) == list(b):
            return PairedResult(0.0, 0.0, 0.0, 1.0, 0, 0.0, 0.0, degenerate=True)
        first, second = self._seeds(a), self._seeds(b)
        if not (first.finite and second.finite):  # a diverged model is worse for certain
            gap = float(np.mean(self.picked_scores(a) - self.picked_scores(b)))
            return PairedResult(gap, gap, gap, 0.0 if gap else 1.0, 0, 0.0, 0.0, degenerate=True)

        def metric(y: np.ndarray, seeds: Seeds, weights: np.ndarray | None = None) -> float:
            return float(np.mean([self.metric(y, outcome, weights) for outcome in seeds.outcomes]))

        bootstrapped = bootstrap_metric_difference(
            metric,
            test.target,
            first,
            second,
            seed=seed_of(self.settings.seed, 0, 0, "bootstrap") % 2**31,
            n=self._resamples(len(test.target) * len(self.pairs)),
            confidence=1 - self.alpha,
            weights=test.weights,
        )
        quantile = float(stats.norm.ppf(1 - self.alpha / 2))
        error = (bootstrapped.high - bootstrapped.low) / (2 * quantile)
        detectable = (quantile + float(stats.norm.ppf(POWER))) * error
        return PairedResult(
            bootstrapped.difference, bootstrapped.low, bootstrapped.high, bootstrapped.pvalue, 0, error, detectable
        )

    def _resamples(self, rows: int) -> int:
        """Bootstrap resamples: what costs little, or so many that ten lie beyond each end, within a limit of time."""
        least = min(MOST_RESAMPLES, round(20 / self.alpha))
        return int(np.clip(4_000_000 // rows, least, MOST_RESAMPLES))

    def outcome(self, name: str, pair: Pair) -> Outcome:
        """What a cell said about the rows of its test part.

        Raises:
            InputError: the stored outcome is not of these rows.
        """
        outcome, rows = (
            self.store.outcome(name, *pair, self.context.level),
            len(self.context.split(pair, -1).other_target),
        )
        if len(outcome.predicted) != rows:
            raise InputError(f"{name}, repeat {pair[0]}, fold {pair[1]}: the stored outcome has other rows than {rows}")
        return outcome

    def _seeds(self, names: Sequence[str]) -> Seeds:
        return Seeds([self.outcome(name, pair) for name, pair in zip(names, self.pairs)])

    def tier(self, result: PairedResult, p: float) -> str:
        """better, not told apart, or worse; not told apart where there is no test."""
        if np.isnan(p):
            return SAME
        return str(tiers([result], [p], self.alpha, self.metric.greater_is_better)[0])
