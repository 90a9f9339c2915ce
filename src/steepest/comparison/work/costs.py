"""What a cell costs at a level: a rough model of its steps, corrected by what was timed and what cells took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from math import ceil

from ..design.context import Context
from ..design.levels import Level
from ..read.images import Images

SPEED = 2e10
"""Floating-point operations a second that the model assumes; only ratios of its seconds count."""
STEP = 1.5e-3
"""Seconds of a step of a stack, however few models it has."""
SCORED = 3e-4
"""Seconds that the metric of a model takes."""
KEPT = 0.6
"""The share of the epochs beyond the patience that a training runs, before any tells."""


class Costs:
    """Seconds of one core that cells take, by name and level.

    Args:
        context: of the comparison, at the level that was asked for.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._base: dict[str, float] = {}
        self._found: dict[tuple[str, Level], list[float]] = {}
        self._inner = cache(lambda rows: len(self._at(rows).inner(next(iter(context.folds)))))

    def _at(self, rows: int) -> Context:
        settings = self.context.settings
        return self.context.at(Level(rows, settings.epochs, settings.trials))

    def model(self, level: Level, *, full: bool = False) -> float:
        """What the model says of a cell of an objective; ``full`` without early stopping."""
        s, rows = self.context.settings, min(level.rows, self.context.most_rows)
        images = isinstance(self.context.table, Images)
        width = 512 if images else int(self.context.split(next(iter(self.context.folds)), 0).inputs.shape[1])
        size = width * 128 + 128 * 128 + 128 * max(self.context.classes, 1)
        inner = self._inner(rows)
        epochs = float(level.epochs)
        if not (full or s.one_cycle) and epochs > s.patience:
            epochs = s.patience + KEPT * (epochs - s.patience)
        models = level.trials * inner
        fit = rows * (7 / 8 if s.one_cycle else 3 / 4 if inner == 1 else 2 / 3)
        batch = min(s.batch_size, fit)
        step = 6.0 * batch * size / SPEED
        together = models * step if images else STEP + models * step
        looked = models * (SCORED + 2.0 * (rows - fit) * size / SPEED)
        seconds = epochs * (ceil(fit / batch) * together + looked)
        if not s.one_cycle:
            seconds += epochs * ceil(rows / batch) * (STEP + step)
        return seconds

    def learner(self, level: Level) -> float:
        """What the model says of a cell of a classical learner: its cost grows a little faster than the rows."""
        rows = min(level.rows, self.context.most_rows)
        return float(rows) ** 1.15 * (self._inner(rows) + 1)

    def _model(self, kind: str, level: Level) -> float:
        return self.model(level) if kind == "objective" else self.learner(level)

    def known(self, name: str) -> bool:
        """Whether anything was timed or finished."""
        return name in self._base

    def timed(self, name: str, kind: str, level: Level, seconds: float) -> None:
        """A cell would take so many seconds at a level, without early stopping."""
        whole = self.model(level, full=True) if kind == "objective" else self.learner(level)
        self._base[name] = max(seconds, 1e-6) / whole

    def finished(self, name: str, kind: str, level: Level, seconds: float) -> None:
        """A cell took so many seconds."""
        self._base.setdefault(name, max(seconds, 1e-6) / self._model(kind, level))
        self._found.setdefault((name, level), []).append(seconds)

    def _guess(self, kind: str) -> float:
        """For a name of which nothing is known: as the dearest of its kind that is."""
        learners = self.context.settings.classical
        others = [value for name, value in self._base.items() if (name in learners) == (kind == "classical")]
        return max(others, default=1.0 if kind == "objective" else 1e-4)

    def cell(self, name: str, kind: str, level: Level) -> float:
        """Expected seconds of a cell."""
        own = self._found.get((name, level))
        if own:
            return sum(own) / len(own)
        base = self._base.get(name) or self._guess(kind)
        scale = self._scale(level) if kind == "objective" else 1.0
        return base * self._model(kind, level) * scale

    def slow(self, names: Sequence[str], level: Level) -> tuple[str, ...]:
        """Objectives beside the first of which each costs over a third of them all, and over twice the first.

        They are told by what was known before the first fold, alike for all, and one beside the first stays.
        """
        cost = {name: (self._base.get(name) or self._guess("objective")) * self.model(level) for name in names}
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
