"""What a cell costs at a level: a rough model of its steps, corrected by what was timed and what cells took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache, partial

from ..design.context import Context
from ..design.effort import cell_seconds, work_of
from ..design.levels import Level
from .timing import LearnerTime

FIT_POWERS, PREDICT_POWERS = (0.5, 3.0), (0.0, 2.0)
"""Powers of the rows by which the time of a classical learner grows: to fit them, and to predict one more row."""
POWER = 1.15
"""The first of them, and one more than the second, before two sizes tell."""


class Costs:
    """Seconds of one core that cells take, by name and level.

    Args:
        context: of the comparison, at the level that was asked for.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._base: dict[str, float] = {}
        self._timed: dict[str, list[LearnerTime]] = {}
        self._found: dict[tuple[str, Level], list[float]] = {}
        self._work = cache(partial(work_of, context))
        self._inner = cache(lambda rows: len(self._at(rows).inner(next(iter(context.folds)))))

    def _at(self, rows: int) -> Context:
        settings = self.context.settings
        return self.context.at(Level(rows, settings.epochs, settings.trials))

    def model(self, level: Level, *, full: bool = False) -> float:
        """What the model says of a cell of an objective; ``full`` without early stopping."""
        inner = self._inner(min(level.rows, self.context.most_rows))
        return cell_seconds(self.context, level, work=self._work(), inner=inner, full=full)

    def learner(self, name: str, level: Level) -> float:
        """What timings of a classical learner say of a cell: a fit and predictions in each split, and for each trial.

        Each grows by a power of the rows that the last two timings show. Nothing is known without one.
        """
        timings = self._timed.get(name)
        if not timings:
            return math.inf
        context, pair = self._at(min(level.rows, self.context.most_rows)), next(iter(self.context.folds))
        tested = len(context.folds[pair].test) if context.test is None else len(context.test.target)
        tuning = sum(_grown(timings, len(fit), len(valid)) for fit, valid in context.inner(pair))
        whole = _grown(timings, len(context.folds[pair].train), tested)
        return float(tuning * max(1, level.of_learner(name).trials) + whole)

    def _at_other_trials(self, name: str, level: Level) -> float:
        """Seconds of a cell by finished ones of the same rows, in proportion to their fits; infinite without any."""

        def fits(at: Level) -> int:
            return self._inner(min(level.rows, self.context.most_rows)) * max(1, at.trials) + 1

        own = [(fits(at), took) for (known, at), took in self._found.items() if known == name and at.rows == level.rows]
        seconds_a_fit: list[float] = [sum(took) / len(took) / count for count, took in own]
        return max(seconds_a_fit, default=math.inf) * fits(level.of_learner(name))

    def one_fit(self, name: str, level: Level) -> float:
        """Seconds in which a timed learner fits the first inner split of a level, and predicts its other rows."""
        context, pair = self._at(min(level.rows, self.context.most_rows)), next(iter(self.context.folds))
        fit, valid = context.inner(pair)[0]
        return _grown(self._timed[name], len(fit), len(valid))

    def known(self, name: str) -> bool:
        """Whether anything of an objective was timed or finished."""
        return name in self._base

    def learner_done(self, name: str, level: Level) -> bool:
        """Whether a classical learner has finished a cell of so many rows."""
        return (name, level.of_learner(name)) in self._found

    def timed_rows(self, name: str) -> int:
        """The most rows at which a classical learner was timed; 0 without any."""
        return max((timing.rows for timing in self._timed.get(name, ())), default=0)

    def learner_timed(self, name: str, timing: LearnerTime) -> None:
        """A classical learner was timed, at more rows than before."""
        self._timed.setdefault(name, []).append(timing)

    def timed(self, name: str, level: Level, seconds: float) -> None:
        """A cell of an objective would take so many seconds at a level, without early stopping."""
        self._base[name] = max(seconds, 1e-6) / self.model(level, full=True)

    def finished(self, name: str, kind: str, level: Level, seconds: float) -> None:
        """A cell took so many seconds."""
        if kind == "objective":
            self._base.setdefault(name, max(seconds, 1e-6) / self.model(level))
        self._found.setdefault((name, level if kind == "objective" else level.of_learner(name)), []).append(seconds)

    def _guess(self) -> float:
        """For an objective of which nothing is known: as the dearest that is."""
        return max(self._base.values(), default=1.0)

    def cell(self, name: str, kind: str, level: Level) -> float:
        """Expected seconds of a cell."""
        own = self._found.get((name, level if kind == "objective" else level.of_learner(name)))
        if own:
            return sum(own) / len(own)
        if kind == "classical":
            likely = self._at_other_trials(name, level)
            return self.learner(name, level) if math.isinf(likely) else likely
        return (self._base.get(name) or self._guess()) * self.model(level) * self._scale(level)

    def slow(self, names: Sequence[str], level: Level) -> tuple[str, ...]:
        """Objectives beside the first of which each costs over a third of them all, and over twice the first.

        They are told by what was known before the first fold, alike for all, and one beside the first stays.
        """
        cost = {name: (self._base.get(name) or self._guess()) * self.model(level) for name in names}
        least = sum(cost.values()) / 3
        dear = [name for name in names[1:] if cost[name] > max(least, 2 * cost[names[0]])]
        if dear and len(dear) == len(names) - 1:
            dear.remove(min(dear, key=lambda name: cost[name]))
        return tuple(dear)

    def _scale(self, level: Level) -> float:
        """What finished cells of the level took over what was expected of them."""
        objectives = self.context.settings.objectives
        timed = [(name, own) for (name, at), own in self._found.items() if at == level and name in objectives]
        expected = sum(self._base[name] * self.model(level) for name, _ in timed)
        return sum(sum(own) / len(own) for _, own in timed) / expected if expected else self._nearest(level)

    def _nearest(self, level: Level) -> float:
        """The same of the level with the most alike epochs, where most of what is not foreseen comes from."""
        levels = {
            at
            for name, at in self._found
            if name in self.context.settings.objectives
            and (at.epochs > self.context.settings.patience) == (level.epochs > self.context.settings.patience)
        }
        if not levels:
            return 1.0
        return self._scale(min(levels, key=lambda at: abs(at.epochs - level.epochs)))

    def total(self, cells: Iterable[tuple[str, str, Level]]) -> float:
        """Seconds of one core of many cells: name, kind, level."""
        return sum(self.cell(*cell) for cell in cells)


def _grown(timings: Sequence[LearnerTime], rows: int, others: int) -> float:
    """Seconds in which a learner fits ``rows`` and predicts ``others``, by its timings, smallest first.

    >>> timings = [LearnerTime(100, 50, 0.1, 0.1), LearnerTime(200, 100, 0.4, 0.4)]  # both grow by the square
    >>> _grown(timings, 400, 100), _grown(timings, 400, 200)
    (2.4000000000000004, 3.2)
    """
    last = timings[-1]
    fit, predict = POWER, POWER - 1
    if len(timings) > 1 and timings[-2].rows < last.rows:
        before = timings[-2]
        more = math.log(last.rows / before.rows)
        fit = _power(last.fit, before.fit, more, *FIT_POWERS)
        predict = _power(last.predict / last.others, before.predict / before.others, more, *PREDICT_POWERS)
    growth = rows / last.rows
    return last.fit * growth**fit + last.predict * (others / last.others) * growth**predict


def _power(seconds: float, before: float, more: float, low: float, high: float) -> float:
    return min(high, max(low, math.log(max(seconds, 1e-9) / max(before, 1e-9)) / more))
